"""Bytes under names: releases, their files and signed metadata, in a folder or in S3.

Names are like `blobs/<sha256>`, `metadata/3.root.json`, `targets/releases/<hash>.x.json`. What was written under a name
stays as it is, unless the writer says that it may be replaced, as for `metadata/timestamp.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from edgekit.fleet.errors import InvalidError, TooMuchError
from edgekit.fleet.storage.folder import FolderBlobs
from edgekit.fleet.storage.s3 import S3Blobs


class Blobs(Protocol):
    """Bytes under names, for any number of threads and processes.

    Every method raises `InvalidError` (`bad_name`) for what is no name, and `UnavailableError` (`blobs_away`,
    `no_room`) where the disk or the server fails.
    """

    def put(
        self,
        name: str,
        parts: Iterable[bytes],
        *,
        max_bytes: int,
        sha256: str | None = None,
        replace: bool = False,
    ) -> int:
        """Write `parts` under `name`; when this returns, it is there to stay.

        Until then nothing, or with `replace` the earlier bytes, is read under the name. Writing the same bytes again
        changes nothing but `written_s`.

        Args:
            name: under which.
            parts: the bytes; what it raises is passed on, and nothing is written.
            max_bytes: more are refused.
            sha256: that the bytes must have, lower-case hexadecimal.
            replace: whether other bytes may be there already.

        Returns:
            The size in bytes.

        Raises:
            ConflictError: other bytes are there (`blob_exists`).
            InvalidError: the hash is another (`hash_mismatch`).
            TooMuchError: more than `max_bytes` (`too_large`).
        """

    def open(self, name: str, at: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the bytes in chunks, from `at` on, `length` of them or to the end.

        Raises:
            NotFoundError: nothing is there (`no_blob`).
            InvalidError: the stretch is not within it (`bad_range`).
        """

    def size(self, name: str) -> int | None:
        """Return the size in bytes, None where nothing is."""

    def written_s(self, name: str) -> float | None:
        """Return when it was written last, in seconds since 1970 by the storage's clock, None where nothing is."""

    def delete(self, name: str) -> None:
        """Remove it, if it is there."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Return the names in the folder `prefix` and below, in no order; "" is all."""


def open_blobs(url: str) -> Blobs:
    """Open blobs by their URL.

    Args:
        url: a folder, plain or as `file:///folder`, or `s3://bucket/prefix?endpoint=https://host&region=name`.
    """
    parsed = urlsplit(url)
    if parsed.scheme == "s3":
        return S3Blobs(url)
    if parsed.scheme == "file" and not parsed.netloc and parsed.path:
        return FolderBlobs(Path(unquote(parsed.path)))
    if not parsed.scheme and url:
        return FolderBlobs(Path(url))
    raise InvalidError(
        f"{url or 'an empty URL'} names no blobs that edgekit knows",
        expected="a folder, file:///folder or s3://bucket/prefix",
        way_out="correct the URL",
        code="bad_blobs_url",
    )


def read(blobs: Blobs, name: str, max_bytes: int) -> bytes:
    """Return all bytes of a small blob.

    Raises:
        NotFoundError: nothing is there (`no_blob`).
        TooMuchError: it has more than `max_bytes` (`too_large`).
    """
    size = blobs.size(name)
    if size is not None and size > max_bytes:
        raise TooMuchError(
            f"{name} has {size} bytes",
            expected=f"at most {max_bytes}",
            way_out="read it in parts",
            code="too_large",
        )
    return b"".join(blobs.open(name))
