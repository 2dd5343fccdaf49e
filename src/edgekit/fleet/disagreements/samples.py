"""An input and two answers to it as a device posts them, read strictly; nothing of it is ever unpickled."""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.fleet.errors import InvalidError, TooMuchError
from edgekit_runtime.strict_json import (
    UNPRINTABLE,
    ContractError,
    Fields,
    check_pattern,
    check_text,
    parse,
    read_text,
    show,
)

SCHEMA: Final = 1
MAX_LABEL: Final = 256
MAX_ARRAYS: Final = 64
# Once it is unpacked: a few kilobytes may stand for gigabytes.
MAX_UNPACKED_BYTES: Final = 16 << 20
CHUNK_BYTES: Final = 1 << 16
LATEST_S: Final = 10**11

_ID: Final = re.compile(r"[0-9a-f]{64}")
_KEY: Final = re.compile(r"[0-9a-f]{8,64}")
# Without anything that would lead out of a folder, for whoever unpacks it.
_NAME: Final = re.compile(
    r"(?:(?:input|live|candidate)/(?!\.)[^/\\\x00-\x1f\x7f]{1,200}|confidence)\.npy", re.DOTALL
)
_MEANS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
# What zipfile and numpy make of bytes that are none of theirs.
_BROKEN: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, ValueError, KeyError, EOFError, OSError,
    RuntimeError, SyntaxError, OverflowError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """What a device posted.

    Attributes:
        device: id.
        key: of it.
        live: id of the release that served.
        candidate: id of the one beside it.
        labels: that they chose, "" where the task has none.
        at_s: seconds since 1970 by the device's clock.
        payload: `.npz` with `input/…`, and where they are small `live/…` and `candidate/…`.
    """

    device: str
    key: str
    live: str
    candidate: str
    labels: tuple[str, str]
    at_s: int
    payload: bytes


def read_sample(body: bytes, most_bytes: int) -> Sample:
    """Read a post.

    Args:
        body: JSON, not packed.
        most_bytes: of the payload.

    Raises:
        InvalidError: it breaks the contract; the error names the key.
        TooMuchError: the payload is larger.
    """
    try:
        sample = _read(body)
        if len(sample.payload) > most_bytes:
            raise TooMuchError(
                f"a payload of {len(sample.payload):,} bytes", expected=f"at most {most_bytes:,}",
                way_out="Let `disagreement_bytes` of the server be larger, or leave such inputs out.", code="too_large",
            )  # fmt: skip
        check_arrays(sample.payload)
    except ContractError as error:
        raise InvalidError(
            f"{error.key or 'the body'}: {error.found}",
            expected=error.expected,
            way_out="Update edgekit-runtime on this device, or the server.",
            code="contract",
        ) from error
    return sample


def _read(body: bytes) -> Sample:
    top = Fields(
        parse(body),
        "",
        required=("schema", "device", "key", "live", "candidate", "labels", "at_s", "payload"),
    )
    if (schema := top.whole("schema")) != SCHEMA:
        raise ContractError("schema", str(schema), f"{SCHEMA}; a newer server may read it")
    names = ("device", "key", "live", "candidate")
    device, key, live, candidate = (top.text(name) for name in names)
    check_text("device", device, empty=False)
    check_pattern("key", key, _KEY, "from 8 to 64 hexadecimal digits")
    for name, value in (("live", live), ("candidate", candidate)):
        check_pattern(name, value, _ID, "64 hexadecimal digits")
    labels = top.each("labels", _label)
    if len(labels) != 2:
        raise ContractError("labels", f"{len(labels)} labels", "two, of live and candidate")
    if not 0 <= (at_s := top.whole("at_s")) <= LATEST_S:
        raise ContractError("at_s", str(at_s), "seconds since 1970")
    try:
        payload = base64.b64decode(top.text("payload"), validate=True)
    except (binascii.Error, ValueError):
        raise ContractError("payload", "no base64", "a .npz in base64") from None
    return Sample(device, key, live, candidate, (labels[0], labels[1]), at_s, payload)


def _label(value: object, path: str) -> str:
    text = read_text(value, path)
    if len(text) > MAX_LABEL or UNPRINTABLE.search(text):
        raise ContractError(path, show(text), f"one line of at most {MAX_LABEL} characters")
    return text


def check_arrays(content: bytes) -> None:
    """Refuse what is no `.npz` of plain numbers under the names of a sample; no more than a chunk is ever held.

    Raises:
        ContractError: it is none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            _check_members(packed.infolist())
            for each in packed.infolist():
                with packed.open(each) as member:
                    _check_array(member, each.filename)
    except ContractError:
        raise
    except _BROKEN as error:
        raise ContractError("payload", f"no .npz: {str(error)[:80]}", "a .npz that is whole") from error


def _check_members(members: Sequence[zipfile.ZipInfo]) -> None:
    if not 1 <= len(members) <= MAX_ARRAYS or len({each.filename for each in members}) < len(members):
        raise ContractError("payload", f"{len(members)} arrays", f"from 1 to {MAX_ARRAYS}, each once")
    if (size := sum(each.file_size for each in members)) > MAX_UNPACKED_BYTES:
        raise ContractError("payload", f"{size:,} bytes once unpacked", f"at most {MAX_UNPACKED_BYTES:,}")
    for each in members:
        if not _NAME.fullmatch(each.filename) or each.compress_type not in _MEANS:
            raise ContractError(
                "payload", show(each.filename), "names such as input/x.npy, stored or deflated"
            )


def _check_array(member: Any, name: str) -> None:
    version = np.lib.format.read_magic(member)  # type: ignore[no-untyped-call]
    readers: dict[tuple[int, int], Callable[[Any], Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ContractError("payload", f"{name[:80]} of format {version}", "1.0 or 2.0")
    shape, _, dtype = readers[version](member)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ContractError("payload", f"{name[:80]} of {dtype.str[:20]}", "numbers, nothing pickled")
    size, here = math.prod(shape) * dtype.itemsize, 0
    # To its end, where its checksum is; `zipfile` reads no further than the size that was checked.
    while part := member.read(CHUNK_BYTES):
        here += len(part)
    if here != size:
        raise ContractError("payload", f"{name[:80]} with {here:,} bytes", f"{size:,}, as its head says")
