"""Which devices should run which release: what the fleet signs, and how a device reads it. Standard library only.

A policy is a static document that any server of files can hold. It only selects: the release that it names has to be
signed by the keys that are kept offline. Each device decides alone whether it is meant, so nobody has to keep a list.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final

from edgekit_runtime.strict_json import (
    ContractError,
    Fields,
    check_choice,
    check_pattern,
    check_text,
    check_whole,
    parse,
)

SCHEMA: Final = 1
BUCKETS: Final = 1_000_000
MODES: Final = ("live", "shadow")
MAX_POLICY_BYTES: Final = 64 << 10

_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Policy:
    """`policy.json` of a channel.

    Attributes:
        release: id of the release that the devices should run.
        salt: of this rollout; another one draws other devices first.
        bound: devices whose bucket is below it are meant: 10,000 is 1%, `BUCKETS` all of them, 0 none.
        mode: "live", or "shadow": beside what serves, until a later policy says live.
    """

    release: str
    salt: str
    bound: int
    mode: str = "live"

    def __post_init__(self) -> None:
        check_pattern("release", self.release, _ID, "64 hexadecimal digits")
        check_text("salt", self.salt, empty=False)
        check_whole("bound", self.bound, 0, BUCKETS)
        check_choice("mode", self.mode, MODES)

    def includes(self, device: str) -> bool:
        """Whether a device is meant."""
        return bucket_of(self.salt, device) < self.bound

    def to_json(self) -> str:
        """Return the canonical document."""
        tree = {
            "schema": SCHEMA,
            "release": self.release,
            "salt": self.salt,
            "bound": self.bound,
            "mode": self.mode,
        }
        return json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, document: str | bytes) -> Policy:
        """Read a policy.

        Raises:
            ContractError: the document breaks the contract; the error names the key.
        """
        top = Fields(parse(document), "", required=("schema", "release", "salt", "bound", "mode"))
        if (schema := top.whole("schema")) != SCHEMA:
            raise ContractError("schema", str(schema), f"{SCHEMA}; a newer edgekit-runtime may read it")
        return cls(top.text("release"), top.text("salt"), top.whole("bound"), top.text("mode"))


def bucket_of(salt: str, device: str) -> int:
    """Where a device falls, from 0 to `BUCKETS` - 1: the first 64 bits of SHA-256(salt NUL device), modulo.

    Args:
        salt: of the rollout.
        device: id.
    """
    digest = hashlib.sha256(f"{salt}\0{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS
