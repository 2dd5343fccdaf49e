"""The tables of the fleet. Every change of them is a migration in `migrations/`.

Times are whole seconds since 1970 in UTC by the server's clock, under names that end in `_s`. Ids of releases are the
sha256 of their document. What is counted once is kept under the key that its device gave it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Plain: Final = JSON().with_variant(JSONB(), "postgresql")
Seconds: Final = BigInteger
# SQLite numbers rows by itself only where the key is its own INTEGER.
Serial: Final = BigInteger().with_variant(Integer(), "sqlite")
RELEASE_ID: Final = String(64)
NAME: Final = String(128)

# Registry

versions = Table(
    "versions",
    metadata,
    Column("id", RELEASE_ID, primary_key=True),
    Column("model", NAME, nullable=False, index=True),
    Column("version", String(64), nullable=False),
    # Of what it was trained or compressed from, "" where it is the first.
    Column("parent", RELEASE_ID, nullable=False, default=""),
    # "pending" until enough keys signed it, then "signed"; "retired" is below the floor, and no device takes it.
    Column("state", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("release", Text, nullable=False),
    Column("manifest", Plain, nullable=False),
    Column("report", Plain, nullable=False),
    # sha256 of data, recipe and source model, as far as the report tells.
    Column("lineage", Plain, nullable=False),
    Column("notes", Text, nullable=False, default=""),
    Column("published_s", Seconds, nullable=False),
    Column("published_by", NAME, nullable=False),
    UniqueConstraint("model", "version"),
)

channels = Table(
    "channels",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("model", NAME, nullable=False),
    # [{"cohort": …, "release": …}], first match wins: what devices run outside a rollout.
    Column("settled", Plain, nullable=False),
    # Raised with every change, and compared before it.
    Column("revision", Integer, nullable=False),
)

# Devices

devices = Table(
    "devices",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("revoked", Boolean, nullable=False, default=False),
    Column("channel", NAME, nullable=False, default="stable"),
    Column("labels", Plain, nullable=False),
    Column("enrolled_s", Seconds, nullable=False),
    # 0 until it was heard of.
    Column("seen_s", Seconds, nullable=False, default=0, index=True),
    Column("phase", String(16), nullable=False, default=""),
    Column("live", RELEASE_ID, nullable=False, default="", index=True),
    Column("candidate", RELEASE_ID, nullable=False, default="", index=True),
    Column("last_good", RELEASE_ID, nullable=False, default=""),
    Column("pinned", Boolean, nullable=False, default=False),
    # The last status as it came, but for what has a column.
    Column("status", Plain, nullable=False),
    # When its inputs were deleted on request: none are taken of rollouts that began until then. 0 for never.
    Column("erased_s", Seconds, nullable=False, default=0),
)

enrolment_codes = Table(
    "enrolment_codes",
    metadata,
    Column("code_hash", String(64), primary_key=True),
    Column("labels", Plain, nullable=False),
    Column("channel", NAME, nullable=False),
    Column("created_s", Seconds, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("expires_s", Seconds, nullable=False),
    # "" until it was used.
    Column("used_by", NAME, nullable=False, default=""),
)

# Rollouts

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", NAME, nullable=False, index=True),
    Column("channel", NAME, nullable=False),
    Column("release", RELEASE_ID, ForeignKey("versions.id"), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    # `edgekit.fleet.rules.rollouts.Rollout` as JSON, whole.
    Column("document", Plain, nullable=False),
    # Raised with every change, and compared before it: two servers never take the same step twice.
    Column("revision", Integer, nullable=False),
    Column("created_s", Seconds, nullable=False),
    Column("created_by", NAME, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("rollout", String(32), ForeignKey("rollouts.id"), nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("at_s", Seconds, nullable=False),
    # "opened", "passed", "failed", "held", "paused", …
    Column("kind", String(32), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("why", Text, nullable=False),
    # Verdicts of the gates at that time.
    Column("verdicts", Plain, nullable=False),
    UniqueConstraint("rollout", "revision"),
)

# The last look of each rollout at its gates, for people who watch.
looks = Table(
    "looks",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("rollout", String(32), ForeignKey("rollouts.id"), nullable=False),
    Column("at_s", Seconds, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("bound", Integer, nullable=False),
    Column("verdicts", Plain, nullable=False),
    Column("counts", Plain, nullable=False),
    Index("ix_looks_rollout_at_s", "rollout", "at_s"),
)

# What devices tell

windows = Table(
    "windows",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("device", NAME, nullable=False),
    Column("key", String(64), nullable=False),
    Column("live", RELEASE_ID, nullable=False),
    Column("candidate", RELEASE_ID, nullable=False),
    Column("received_s", Seconds, nullable=False, index=True),
    Column("merged", Boolean, nullable=False, default=False),
    # The document, packed by zlib; empty once it was merged and retention took it.
    Column("document", LargeBinary, nullable=False),
    UniqueConstraint("device", "key"),
    # Of those alone that are still to be merged, which are few.
    Index("ix_windows_unmerged", "id", sqlite_where=text("NOT merged"), postgresql_where=text("NOT merged")),
)

reports = Table(
    "reports",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("device", NAME, nullable=False),
    Column("key", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("release", RELEASE_ID, nullable=False, index=True),
    Column("reason", String(64), nullable=False),
    Column("at_s", Seconds, nullable=False),
    Column("received_s", Seconds, nullable=False, index=True),
    UniqueConstraint("device", "key"),
)

# Inputs on which two versions differ, where they were asked for; sealed by a key that is not in the database.
disagreements = Table(
    "disagreements",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("device", NAME, nullable=False),
    Column("key", String(64), nullable=False),
    Column("rollout", String(32), ForeignKey("rollouts.id"), nullable=False, index=True),
    Column("live", RELEASE_ID, nullable=False),
    Column("candidate", RELEASE_ID, nullable=False),
    Column("live_label", String(256), nullable=False),
    Column("candidate_label", String(256), nullable=False),
    Column("at_s", Seconds, nullable=False),
    Column("received_s", Seconds, nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    # Of the sealing key, so that a wrong one is told from damage.
    Column("key_id", String(16), nullable=False),
    # Last: sums of sizes read no further than to it.
    Column("sealed", LargeBinary, nullable=False),
    UniqueConstraint("device", "key"),
)

# Evidence: one row for what one device shows of one rollout.
evidence = Table(
    "evidence",
    metadata,
    Column("rollout", String(32), ForeignKey("rollouts.id"), primary_key=True),
    Column("device", NAME, primary_key=True),
    Column("bucket", Integer, nullable=False),
    Column("labels", Plain, nullable=False),
    Column("accepted_s", Seconds, nullable=False, default=0),
    Column("committed_s", Seconds, nullable=False, default=0),
    Column("heard_s", Seconds, nullable=False),
    # Code of why it gave the release up, "" while it did not.
    Column("failed", String(64), nullable=False, default=""),
    # Place in the order in which devices had told enough, and their figures at that moment; 0 before it.
    Column("place", BigInteger, nullable=False, default=0),
    Column("first", Plain, nullable=False),
    # `edgekit_runtime.windows.Figures` of all its windows together, packed.
    Column("figures", LargeBinary, nullable=False),
    Column("compared", BigInteger, nullable=False, default=0),
    Column("agreed", BigInteger, nullable=False, default=0),
)

# Figures of all devices together by minute, for the comparison.
minutes = Table(
    "minutes",
    metadata,
    Column("rollout", String(32), primary_key=True),
    Column("stage", Integer, primary_key=True),
    # "" of all devices, else "label=value".
    Column("slice", String(256), primary_key=True),
    Column("live", RELEASE_ID, primary_key=True),
    Column("candidate", RELEASE_ID, primary_key=True),
    # Of the server's clock: seconds since 1970, divided by 60.
    Column("minute", BigInteger, primary_key=True),
    Column("windows", Integer, nullable=False),
    Column("figures", LargeBinary, nullable=False),
)

# Operations

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", NAME, nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("created_s", Seconds, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("expires_s", Seconds, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Seconds, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("action", String(64), nullable=False, index=True),
    Column("subject", String(256), nullable=False),
    Column("detail", Plain, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("url", String(2048), nullable=False),
    Column("events", Plain, nullable=False),
    # Signs what is sent, so that the receiver knows who sent it.
    Column("secret", String(128), nullable=False),
    Column("created_s", Seconds, nullable=False),
    Column("created_by", NAME, nullable=False),
)

# What is to be sent, written in the same transaction as the decision that it tells of.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("webhook", String(32), ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("event", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("next_s", Seconds, nullable=False, index=True),
    Column("done_s", Seconds, nullable=False, default=0),
    Column("failure", Text, nullable=False, default=""),
)

# One holder at a time among all servers; who stops is followed when the time is over.
leases = Table(
    "leases",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("holder", NAME, nullable=False),
    Column("until_s", Float, nullable=False),
)
