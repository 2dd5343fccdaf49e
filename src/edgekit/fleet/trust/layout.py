"""Names and lifetimes in the repository; devices expect them so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from edgekit.fleet.errors import InvalidError

OFFLINE: Final = ("root", "targets")
ONLINE: Final = ("timestamp", "snapshot", "rollout")
ROLES: Final = (*OFFLINE, *ONLINE)
TIMESTAMP: Final = "metadata/timestamp.json"
ROLLOUT_PATHS: Final = ("rollout/*",)

LIFE: Final[Mapping[str, timedelta]] = MappingProxyType(
    {
        "root": timedelta(days=365),
        "targets": timedelta(days=180),
        "rollout": timedelta(days=14),
        "snapshot": timedelta(days=7),
        "timestamp": timedelta(days=2),
    }
)
"""How long what a role signs is valid. The timestamp bounds for how long a frozen server passes for a live one."""

RELEASE_ID: Final = re.compile(r"[0-9a-f]{64}")
# What `edgekit-runtime agent --channel` takes.
CHANNEL: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


def metadata_name(role: str, version: int) -> str:
    """Where a version of a role lies; of the timestamp there is only the newest, at `TIMESTAMP`."""
    return f"metadata/{version}.{role}.json"


def target_name(path: str, sha256: str) -> str:
    """Where the content of a target lies (consistent snapshots, TUF specification 6.2)."""
    folder, slash, name = path.rpartition("/")
    return f"targets/{folder}{slash}{sha256}.{name}"


def policy_path(channel: str) -> str:
    """Of the target with the policy of a channel.

    Raises:
        InvalidError: no device takes a channel of that name.
    """
    if not CHANNEL.fullmatch(channel):
        raise InvalidError(
            f"channel {channel!r}",
            expected="letters, digits and ._-, at most 128, the first a letter or a digit",
            way_out="Choose another name.",
            code="channel",
        )
    return f"rollout/{channel}.json"


def say_day(moment: datetime) -> str:
    """A time for people, in UTC."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
