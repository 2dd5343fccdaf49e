"""Blobs in S3 or in what speaks its protocol."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import FileIO
from typing import TYPE_CHECKING, BinaryIO, Final, cast
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from edgekit.fleet.errors import InvalidError, NotFoundError, UnavailableError
from edgekit.fleet.storage.spool import (
    CHUNK_BYTES,
    check_name,
    check_same,
    cut_short,
    failure_of,
    is_name,
    missing,
    spool,
    stretch,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig

_PART_BYTES: Final = 8 * CHUNK_BYTES  # larger blobs go up in parts; S3 takes 10,000 of them
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_KNOWN: Final = {"endpoint", "region"}


class S3Blobs:
    """A bucket, or a prefix in it; see `edgekit.fleet.storage.blobs.Blobs` for what the methods promise.

    A stream is first kept in the temporary folder of this machine, so that nothing goes up before its hash is known.
    Parts of an upload that broke are never seen as an object; a lifecycle rule of the bucket
    (`AbortIncompleteMultipartUpload`) takes them away.

    Credentials come from the environment (`AWS_ACCESS_KEY_ID`, …) or from the machine's role.
    """

    __slots__ = ("_store", "place")

    def __init__(self, url: str) -> None:
        parsed = urlsplit(url)
        options = dict(parse_qsl(parsed.query, keep_blank_values=True))
        if parsed.scheme != "s3" or not _BUCKET.fullmatch(parsed.netloc) or options.keys() - _KNOWN:
            raise InvalidError(
                # Not the whole of it: somebody may have put a secret there.
                f"the URL s3://{parsed.hostname or ''}{parsed.path} with {', '.join(options) or 'no options'}",
                expected="s3://bucket/prefix?endpoint=https://host&region=name, both options optional",
                way_out="correct the URL; credentials go into the environment, not into it",
                code="bad_blobs_url",
            )
        prefix = parsed.path.strip("/")
        if prefix:
            check_name(prefix)
        self.place = f"s3://{parsed.netloc}/{prefix}".rstrip("/")
        endpoint = options.get("endpoint")
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(minutes=10),
            "read_timeout": timedelta(seconds=30),
        }
        if endpoint is not None and endpoint.startswith("http://"):
            client["allow_http"] = True
        settings = {"endpoint": endpoint, "region": options.get("region")}
        with self._told(self.place):
            self._store = S3Store(
                parsed.netloc,
                prefix=prefix or None,
                client_options=client,
                retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=20)},
                **{key: value for key, value in settings.items() if value is not None},  # type: ignore[arg-type]
            )
            # A bucket that is not there would later look like blobs that are not there.
            next(iter(obstore.list(self._store, chunk_size=1)), None)

    def put(
        self,
        name: str,
        parts: Iterable[bytes],
        *,
        max_bytes: int,
        sha256: str | None = None,
        replace: bool = False,
    ) -> int:
        """Write `parts` under `name`, all or nothing."""
        check_name(name)
        with self._temporary() as file:
            new = spool(file, parts, sha256=sha256, max_bytes=max_bytes, name=name)
            file.seek(0)
            large = new.size_bytes > _PART_BYTES
            # S3 does not make an upload in parts depend on the name being free, so that is asked before.
            if large and not replace and self.size(name) is not None:
                check_same(name, new, self.open(name))
            try:
                self._put(name, file, large=large, replace=replace or large)
            except AlreadyExistsError:
                with suppress(NotFoundError):
                    check_same(name, new, self.open(name))
                # The same bytes: S3 dates an object anew in no other way.
                file.seek(0)
                self._put(name, file, large=large, replace=True)
        return new.size_bytes

    def _put(self, name: str, file: FileIO, *, large: bool, replace: bool) -> None:
        with self._told(name):
            obstore.put(
                self._store,
                name,
                cast(BinaryIO, file) if large else file.readall(),
                mode="overwrite" if replace else "create",
                use_multipart=large,
                chunk_size=_PART_BYTES,
                max_concurrency=4,
            )

    def open(self, name: str, at: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the bytes of `name` in chunks."""
        size = self.size(name)
        if size is None:
            raise missing(name)
        return self._read(name, at, stretch(name, size, at, length))

    def size(self, name: str) -> int | None:
        """Return the size in bytes, None where there is nothing."""
        found = self._head(name)
        return None if found is None else int(found["size"])

    def written_s(self, name: str) -> float | None:
        """Return when it was written last, None where there is nothing."""
        found = self._head(name)
        return None if found is None else found["last_modified"].timestamp()

    def _head(self, name: str) -> ObjectMeta | None:
        check_name(name)
        with self._told(name):
            try:
                return obstore.head(self._store, name)
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""
        check_name(name)
        with self._told(name), suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def names(self, prefix: str = "") -> Iterator[str]:
        """Return the names in the folder `prefix`, in no order."""
        prefix = prefix.rstrip("/")
        if prefix:
            check_name(prefix)
        with self._told(self.place):
            for page in obstore.list(self._store, prefix or None):
                for entry in page:
                    if is_name(entry["path"]):
                        yield entry["path"]

    def _read(self, name: str, at: int, end: int) -> Iterator[bytes]:
        if at == end:
            return
        done = at
        with self._told(name):
            try:
                answer = obstore.get(self._store, name, options={"range": (at, end)})
            except FileNotFoundError as error:
                raise missing(name) from error
            for part in answer.stream(min_chunk_size=CHUNK_BYTES):
                done += len(part)
                yield bytes(part)
        if done != end:
            raise cut_short(name, done, end)

    @contextmanager
    def _temporary(self) -> Iterator[FileIO]:
        try:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            raise failure_of(error, tempfile.gettempdir()) from error
        with file:
            yield file

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except AlreadyExistsError:
            raise
        except (BaseError, OSError, ValueError) as error:
            reason = str(error).split("\n", maxsplit=1)[0][:300]
            raise UnavailableError(
                f"{self.place} does not give or take {name}: {reason}",
                expected="a bucket that this account may read and write",
                way_out="see the endpoint, the region, the credentials in the environment and the bucket's policy",
                code="blobs_away",
            ) from error
