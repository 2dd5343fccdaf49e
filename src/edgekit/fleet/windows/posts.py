"""What a device posts, read strictly: a post that breaks the contract anywhere is refused as a whole."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import to_json

from edgekit.fleet.errors import InvalidError, TooMuchError
from edgekit.fleet.windows.schema import quickly_read
from edgekit_runtime.state import PHASES, UNKNOWN, Report
from edgekit_runtime.strict_json import (
    ContractError,
    Fields,
    check_choice,
    check_pattern,
    check_plain,
    check_text,
    parse,
    read_text,
    within,
)
from edgekit_runtime.windows import Window

SCHEMA: Final = 1
MAX_REPORTS: Final = 256
MAX_STATUS_BYTES: Final = 32 << 10
# The quickest: a window shrinks to two fifths, and more work would save another twentieth.
PACKING: Final = 1

_ID: Final = re.compile(r"[0-9a-f]{64}")
_KEY: Final = re.compile(r"[0-9a-f]{8,64}")
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SLOTS: Final = ("live", "candidate", "last_good")


@dataclass(frozen=True, slots=True)
class Packed:
    """A window as it is stored.

    Attributes:
        key: of it.
        live: id of the release that served.
        candidate: id of the one beside it.
        document: packed by zlib.
    """

    key: str
    live: str
    candidate: str
    document: bytes


@dataclass(frozen=True, slots=True)
class Status:
    """How the versions of a device stand.

    Attributes:
        phase: of an update.
        live: release that serves, "" for none.
        candidate: on its way, "" for none.
        last_good: "" for none.
        pinned: whether it takes nothing new.
        failed: release to the code of why it is not installed again.
        rest: all else that it told.
    """

    phase: str
    live: str
    candidate: str
    last_good: str
    pinned: bool
    failed: Mapping[str, str]
    rest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Post:
    """What a device told at once.

    Attributes:
        device: id.
        status: as it is now.
        reports: key to report.
        windows: in the order in which they came.
        token_hash: of the token that it came with, which has to be the device's still when the post is stored; ""
            where nobody has to look.
    """

    device: str
    status: Status
    reports: Mapping[str, Report]
    windows: tuple[Packed, ...]
    token_hash: str = ""

    @property
    def keys(self) -> list[str]:
        """Of all that the device may forget once this is stored."""
        return [*self.reports, *(window.key for window in self.windows)]


def read_post(body: bytes, *, windows: int) -> Post:
    """Read a post.

    Args:
        body: JSON, not packed.
        windows: at most.

    Raises:
        InvalidError: it breaks the contract; the error names the key.
        TooMuchError: more windows.
    """
    try:
        tree = quickly_read(body)
        post = _slowly_read(body) if tree is None else _read(tree, tuple(map(_packed, tree["windows"])))
    except ContractError as error:
        raise InvalidError(
            f"{error.key or 'the body'}: {error.found}",
            expected=error.expected,
            way_out="Update edgekit-runtime on this device, or the server.",
            code="contract",
        ) from error
    if len(post.windows) > windows:
        raise TooMuchError(
            f"{len(post.windows)} windows in one post",
            expected=f"at most {windows}",
            way_out="Send them in several posts.",
            code="too_many_windows",
        )
    return post


def unpacked(document: bytes) -> Window:
    """A window as it was stored."""
    return Window.from_json(zlib.decompress(document))


def _packed(tree: Mapping[str, Any]) -> Packed:
    document = zlib.compress(to_json(tree), PACKING)
    return Packed(tree["key"], tree["live"], tree["candidate"], document)


def _slowly_read(body: bytes) -> Post:
    top = Fields(parse(body), "", required=("schema", "device", "status", "reports", "windows"))
    if (schema := top.whole("schema")) != SCHEMA:
        raise ContractError("schema", str(schema), f"{SCHEMA}; a newer server may read it")
    tree = {"device": top.text("device"), "status": top.mapping("status"), "reports": top.take("reports")}
    return _read(tree, top.each("windows", _window))


def _window(value: object, path: str) -> Packed:
    window = within(path, lambda: Window.from_json(json.dumps(value)))
    document = zlib.compress(window.to_json().encode(), PACKING)
    return Packed(window.key, window.live, window.candidate, document)


def _read(tree: Mapping[str, Any], windows: tuple[Packed, ...]) -> Post:
    check_text("device", tree["device"], empty=False)
    found = Fields(tree, "", required=tuple(tree)).each("reports", _report)
    if len(found) > MAX_REPORTS:
        raise ContractError("reports", f"{len(found)} reports", f"at most {MAX_REPORTS}")
    return Post(tree["device"], _status(tree["status"]), dict(found), windows)


def _report(value: object, path: str) -> tuple[str, Report]:
    tree = Fields(value, path, required=("key", "kind", "release", "reason", "at_s"))
    key, kind, release, reason = (tree.text(name) for name in ("key", "kind", "release", "reason"))
    check_pattern(f"{path}.key", key, _KEY, "from 8 to 64 hexadecimal digits")
    at_s = tree.whole("at_s")
    return key, within(path, lambda: Report(kind, release, reason, at_s))


def _status(tree: Mapping[str, Any]) -> Status:
    check_plain("status", tree)
    if (size := len(json.dumps(tree))) > MAX_STATUS_BYTES:
        raise ContractError("status", f"{size} bytes", f"at most {MAX_STATUS_BYTES}")
    known = ("phase", "pinned", "failed", *_SLOTS)
    top = Fields(tree, "status", required=known, optional=tuple(tree))
    check_choice("status.phase", tree["phase"], (*PHASES, UNKNOWN))
    if not isinstance(tree["pinned"], bool):
        raise ContractError("status.pinned", repr(tree["pinned"])[:80], "true or false")
    for name in _SLOTS:
        if tree[name] is not None:
            check_pattern(f"status.{name}", tree[name], _ID, "64 hexadecimal digits, or null")
    failed = top.mapping("failed")
    for release, code in failed.items():
        check_pattern("status.failed", release, _ID, "64 hexadecimal digits")
        check_pattern(
            f"status.failed.{release}", read_text(code, "status.failed"), _CODE, "a code such as crash_loop"
        )
    live, candidate, last_good = (str(tree[name] or "") for name in _SLOTS)
    rest = {name: value for name, value in tree.items() if name not in known or name == "failed"}
    return Status(tree["phase"], live, candidate, last_good, tree["pinned"], failed, rest)
