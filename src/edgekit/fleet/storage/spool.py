"""What both kinds of blobs share: which names are taken, and how a stream comes onto the disk, counted and hashed."""

from __future__ import annotations

import errno
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from io import RawIOBase
from typing import Final

from edgekit.fleet.errors import ConflictError, InvalidError, NotFoundError, TooMuchError, UnavailableError

CHUNK_BYTES: Final = 1024 * 1024
_PART_BYTES: Final = 200  # file systems take 255, with something before or after it
_NAME_BYTES: Final = 800  # S3 takes 1024, its prefix included
# What S3 clients escape in one way or another, shells and other systems read as more than a name.
_REFUSED: Final = re.compile(r'[\\:*?"<>|{}^%\[\]~#`\x00-\x1f\x7f\ud800-\udfff]')
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Spooled:
    """A stream that is on the disk to its end.

    Attributes:
        size_bytes: of it.
        sha256: of it, lower-case hexadecimal.
    """

    size_bytes: int
    sha256: str


def check_name(name: str) -> str:
    """Return `name` if it is one: parts with / between them, none of them hidden or a step upwards.

    Raises:
        InvalidError: it is none (`bad_name`).
    """
    if not is_name(name):
        raise InvalidError(
            f"the name {name[:120]!a}",
            expected='parts like "blobs/3f0a…" with / between them, none empty or with a dot in front',
            way_out="choose another name",
            code="bad_name",
        )
    return name


def is_name(name: str) -> bool:
    """Tell whether `name` is one."""
    parts = name.split("/")
    return (
        not _REFUSED.search(name)
        and name.isprintable()
        and unicodedata.normalize("NFC", name) == name
        and len(name.encode()) <= _NAME_BYTES
        and all(
            part == part.strip() and part and part[0] != "." and len(part.encode()) <= _PART_BYTES
            for part in parts
        )
    )


def spool(
    file: RawIOBase, parts: Iterable[bytes], *, sha256: str | None, max_bytes: int, name: str
) -> Spooled:
    """Write `parts` into `file`, which has no buffer: what it cannot take is known at once.

    Raises:
        InvalidError: the bytes have another hash (`hash_mismatch`).
        TooMuchError: they are more than `max_bytes` (`too_large`).
        UnavailableError: the disk does not take them.
        Exception: what `parts` raises, as it is.
    """
    digest, size = hashlib.sha256(), 0
    for part in parts:
        size += len(part)
        if size > max_bytes:
            raise TooMuchError(
                f"{name} has more than {max_bytes} bytes",
                expected=f"at most {max_bytes}",
                way_out="send less, or raise the limit of the server",
                code="too_large",
            )
        digest.update(part)
        _write(file, part, name)
    found = digest.hexdigest()
    if sha256 is not None and found != sha256:
        raise InvalidError(
            f"{name} has the sha256 {found}",
            expected=sha256,
            way_out="send it again; if it stays, the source is damaged",
            code="hash_mismatch",
        )
    return Spooled(size, found)


def _write(file: RawIOBase, part: bytes, name: str) -> None:
    rest = memoryview(part)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError as error:
        raise failure_of(error, name) from error


def check_same(name: str, new: Spooled, old: Iterable[bytes]) -> None:
    """Raise unless what is there already has the same bytes."""
    digest = hashlib.sha256()
    for part in old:
        digest.update(part)
    if digest.hexdigest() != new.sha256:
        raise ConflictError(
            f"{name} is there already with the sha256 {digest.hexdigest()}",
            expected=f"nothing under this name, or the sha256 {new.sha256}",
            way_out="take another name; what was published under one does not change",
            code="blob_exists",
        )


def stretch(name: str, size: int, at: int, length: int | None) -> int:
    """Return the end of the bytes from `at`, `length` of them or to the end."""
    end = size if length is None else at + length
    if not 0 <= at <= end <= size:
        raise InvalidError(
            f"bytes {at} to {end} of {name}",
            expected=f"a stretch within its {size} bytes",
            way_out="ask for the size first",
            code="bad_range",
        )
    return end


def in_the_way(name: str) -> ConflictError:
    """Return the error for a folder where a file should be, or a file where a folder should be."""
    return ConflictError(
        f"{name} lies where a folder is, or below a file",
        expected="names of which none is the beginning of another up to a /",
        way_out="choose another name",
        code="blob_exists",
    )


def missing(name: str) -> NotFoundError:
    """Return the error for a name under which nothing is."""
    return NotFoundError(
        f"there is nothing under {name}",
        expected="a name that was written",
        way_out="look at the names; it may have been deleted by the retention",
        code="no_blob",
    )


def cut_short(name: str, read: int, size: int) -> UnavailableError:
    """Return the error for bytes that ended early."""
    return UnavailableError(
        f"{name} ended after {read} of {size} bytes",
        expected="all of it",
        way_out="try again; if it stays, restore it from a backup",
        code="blobs_away",
    )


def failure_of(error: OSError, name: str) -> UnavailableError:
    """Return what to raise instead of an error of the file system."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return UnavailableError(
            f"no room for {name}: {reason}",
            expected="free space; nothing was written",
            way_out="free or add space, or shorten the retention, then try again",
            code="no_room",
        )
    return UnavailableError(
        f"{name} cannot be read or written: {reason}",
        expected="plain files in plain folders that this account may read and write",
        way_out="see the folder's owner, rights and mount, and that nobody put a link in it",
        code="blobs_away",
    )
