"""All of a fleet in one file, of one moment, and back into an empty place: of another kind, too.

A tar of `tables/<name>.jsonl`, the blobs under their names, the settings, and, where it is asked for, the online keys;
`index.json` comes last and has the hash of each. It holds hashes of tokens and secrets of webhooks, so nobody else may
read it. What a file does not have is the offline keys: those were never on the server.

The tables are read in one transaction and the timestamp before the other blobs, so what it leads to is all there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqlalchemy import Connection, LargeBinary, Table, func, insert, select

from edgekit.fleet.context import Fleet
from edgekit.fleet.disagreements import sealing
from edgekit.fleet.errors import ConflictError, FleetError, InvalidError
from edgekit.fleet.operations.newer import Brought, bring, reader
from edgekit.fleet.operations.setup import ROOT, check_empty, clear, toml, write_new
from edgekit.fleet.settings import FILE, Settings
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.audit import Head
from edgekit.fleet.storage.blobs import Blobs, open_blobs
from edgekit.fleet.storage.database import Database
from edgekit.fleet.storage.folder import FolderBlobs
from edgekit.fleet.storage.tables import leases, metadata
from edgekit.fleet.trust.layout import TIMESTAMP

SCHEMA: Final = 1
INDEX: Final = "index.json"
BATCH: Final = 500
MAX_INDEX_BYTES: Final = 256 << 20
MAX_BLOB_BYTES: Final = 1 << 40
MAX_SMALL_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """What is in a file.

    Attributes:
        rows: of all tables.
        blobs: how many.
        size_bytes: of the file.
        head: end of the audit log, to be noted elsewhere.
        newer: metadata that were newer than the backup; of `restore`, where it was told of a place.
    """

    rows: int
    blobs: int
    size_bytes: int
    head: Head
    newer: Brought | None = None


def save(fleet: Fleet, path: Path, *, keys: bool = False) -> Saved:
    """Write a backup; it is whole or not there.

    Args:
        fleet: that may go on meanwhile.
        path: of the file, which is not there yet.
        keys: with the private keys of the server, that of inputs among them.

    Raises:
        ConflictError: the file is there.
        InvalidError: it cannot be written.
        UnavailableError: database or blobs do not answer.
    """
    if path.exists():
        raise ConflictError(
            f"{path} is there already",
            expected="a name that is free",
            way_out="Choose another name.",
            code="exists",
        )
    try:
        handle, new = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            saved = _save(fleet, file, keys=keys)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        Path(new).rename(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        Path(new).unlink(missing_ok=True)
    return Saved(saved.rows, saved.blobs, size, saved.head)


def restore(
    path: Path,
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    newer: str = "",
    now: Callable[[], float] = time.time,
) -> Saved:
    """Bring a backup into an empty place, and verify all of it.

    Devices take nothing older than they saw, so what the server signs next is above all that it can have signed since:
    below one publication a second, versions never reach the seconds since 1970.

    Args:
        path: of the file.
        folder: new or empty.
        settings: database_url and blobs_url where they are to be others than before; both are empty.
        newer: address, folder or bucket with metadata that are perhaps newer than the backup, "" for none.
        now: seconds since 1970.

    Raises:
        ConflictError: folder, database or blobs hold something.
        InvalidError: the file is damaged or of another version of edgekit.
        UnavailableError: database or blobs do not answer.
    """
    check_empty(folder)
    there = folder.exists()
    try:
        # The index is at the end, so the file is read twice: what is damaged is found before anything is made.
        index = _checked(path)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tarfile.open(path, "r:") as tar, tempfile.TemporaryDirectory() as scratch:
            # First: a place that cannot be used leaves no database that is half full.
            found = FolderBlobs(Path(scratch))
            brought = _bring(tar, index, found, newer) if newer else None
            least = max(int(now()), int(index["saved_s"]))
            saved = _restore(tar, index, folder, {**(settings or {}), "least_version": least}, found)
            return replace(saved, newer=brought)
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        clear(folder, keep=there)
        raise _damaged(path, str(error)) from error
    except BaseException:
        clear(folder, keep=there)
        raise


# Writing


def _save(fleet: Fleet, file: BinaryIO, *, keys: bool) -> Saved:
    hashes: dict[str, str] = {}
    counts: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="w:") as tar, fleet.database.reading() as connection:
        head = audit.head(connection)
        for table in metadata.sorted_tables:
            if table is not leases:
                counts[table.name] = _save_table(tar, connection, table, hashes)
        names = [TIMESTAMP, *sorted(each for each in fleet.blobs.names() if each != TIMESTAMP)]
        blobs = sum(_save_blob(tar, fleet.blobs, name, hashes) for name in names)
        folder = fleet.settings.folder
        others = [folder / FILE, folder / ROOT]
        if keys:
            others += [*sorted((folder / "keys" / "online").glob("*.p??")), sealing.path_of(folder)]
        for each in others:
            if each.exists():
                content = each.read_bytes()
                _add(tar, f"folder/{each.relative_to(folder)}", len(content), io.BytesIO(content), hashes)
        tree = {
            "schema": SCHEMA, "revision": fleet.database.revision(), "saved_s": int(fleet.now()), "rows": counts,
            "audit": {"sequence": head.sequence, "hash": head.hash}, "sha256": hashes,
        }  # fmt: skip
        content = json.dumps(tree, sort_keys=True).encode()
        _add(tar, INDEX, len(content), io.BytesIO(content), {})
    return Saved(sum(counts.values()), blobs, 0, head)


def _save_table(tar: tarfile.TarFile, connection: Connection, table: Table, hashes: dict[str, str]) -> int:
    count = 0
    with tempfile.TemporaryFile() as spool:
        statement = select(table).order_by(*table.primary_key.columns)
        for row in connection.execute(statement, execution_options={"yield_per": BATCH}).mappings():
            spool.write(
                json.dumps({key: _plain(row[key]) for key in row}, ensure_ascii=False).encode() + b"\n"
            )
            count += 1
        size = spool.tell()
        spool.seek(0)
        _add(tar, f"tables/{table.name}.jsonl", size, spool, hashes)
    return count


def _save_blob(tar: tarfile.TarFile, blobs: Blobs, name: str, hashes: dict[str, str]) -> bool:
    size = blobs.size(name)
    if size is None:
        return False
    if name.startswith("blobs/"):
        _add(tar, name, size, _Reader(blobs.open(name)), hashes)
    else:
        # What may be replaced meanwhile is of one moment.
        content = b"".join(blobs.open(name))
        _add(tar, name, len(content), io.BytesIO(content), hashes)
    return True


def _add(tar: tarfile.TarFile, name: str, size: int, content: Any, hashes: dict[str, str]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    hashed = _Hashed(content)
    tar.addfile(entry, hashed)  # type: ignore[arg-type] # reads alone
    hashes[name] = hashed.digest.hexdigest()


def _plain(value: object) -> object:
    return (
        {"base64": base64.b64encode(bytes(value)).decode()}
        if isinstance(value, bytes | memoryview)
        else value
    )


@dataclass(slots=True)
class _Hashed:
    content: Any
    digest: Any = None

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        part: bytes = self.content.read(size)
        self.digest.update(part)
        return part


class _Reader:
    """Parts, read like a file."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._rest = parts, b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (part := next(self._parts, b"")):
            self._rest += part
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


# Reading


def _checked(path: Path) -> dict[str, Any]:
    """The index, once every part of the file has its hash."""
    found: dict[str, str] = {}
    index: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is None or entry.name in found:
                    raise ValueError(f"{entry.name[:80]}: no plain file, or there twice")  # noqa: TRY301
                if entry.name == INDEX:
                    index = json.loads(content.read(MAX_INDEX_BYTES))
                else:
                    found[entry.name] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
        if index.get("schema") != SCHEMA or index["sha256"] != found:
            wrong = {name for name, of in index.get("sha256", {}).items() if found.get(name) != of}
            raise ValueError(f"{min(wrong)} is damaged" if wrong else "it does not end with its index")  # noqa: TRY301
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or str(error)) from error
    return index


def _restore(
    tar: tarfile.TarFile, index: Mapping[str, Any], folder: Path, changed: Mapping[str, Any], newer: Blobs
) -> Saved:
    hashes: Mapping[str, str] = index["sha256"]
    names = list(hashes)
    _restore_folder(tar, [name for name in names if name.startswith("folder/")], folder, changed)
    settings = Settings.read(folder)
    database = Database.open(settings.database_url, create=True)
    try:
        database.migrate()
        if database.revision() != index["revision"]:
            raise InvalidError(
                f"a backup of tables of revision {index['revision']}", expected=f"revision {database.revision()}",
                way_out="Restore it with the edgekit that made it, then upgrade: `edgekit fleet migrate`.",
                code="backup_revision",
            )  # fmt: skip
        head = Head(**index["audit"])
        rows = _restore_tables(tar, database, head)
        blobs = open_blobs(settings.blobs_url)
        if next(iter(blobs.names()), None) is not None:
            raise _in_use(settings.blobs_url, "--blobs-url")
        kept = [name for name in names if not name.startswith(("folder/", "tables/"))]
        others = {*newer.names()}
        # Last: it leads to all the others.
        for name in sorted({*kept, *others}, key=lambda each: each == TIMESTAMP):
            parts = newer.open(name) if name in others else _parts(tar, name)
            blobs.put(name, parts, max_bytes=MAX_BLOB_BYTES, sha256=None if name in others else hashes[name])
    finally:
        database.close()
    return Saved(rows, len(kept), 0, head)


def _bring(tar: tarfile.TarFile, index: Mapping[str, Any], found: Blobs, newer: str) -> Brought:
    """Signed documents of the backup, and what a place has that is newer."""
    for name in index["sha256"]:
        if name.startswith(("metadata/", "targets/")):
            found.put(name, _parts(tar, name), max_bytes=MAX_BLOB_BYTES)
    return bring(found, reader(newer))


def _restore_folder(tar: tarfile.TarFile, names: list[str], folder: Path, changed: Mapping[str, Any]) -> None:
    given: dict[str, Any] = {}
    for name in names:
        inside = Path(name.removeprefix("folder/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError(f"{name[:80]} leads out of the folder")
        content = b"".join(_parts(tar, name))
        if inside == Path(FILE):
            given = tomllib.loads(content.decode())
            continue
        (folder / inside).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(folder / inside, content, 0o600 if inside.suffix in {".pem", ".key"} else 0o644)
    write_new(
        folder / FILE,
        toml({**given, **{key: value for key, value in changed.items() if value}}).encode(),
        0o600,
    )


def _restore_tables(tar: tarfile.TarFile, database: Database, head: Head) -> int:
    with database.writing() as connection:
        for table in metadata.sorted_tables:
            if connection.scalar(select(func.count()).select_from(table)):
                raise _in_use(database.place, "--database-url")
        rows = sum(
            _restore_table(tar, connection, table) for table in metadata.sorted_tables if table is not leases
        )
        if (broken := audit.verify(connection, head if head.sequence else None)) is not None:
            raise ValueError(f"the audit log is broken at row {broken.sequence}: {broken.why}")
    return rows


def _restore_table(tar: tarfile.TarFile, connection: Connection, table: Table) -> int:
    content = tar.extractfile(f"tables/{table.name}.jsonl")
    assert content is not None
    binary = {column.name for column in table.columns if isinstance(column.type, LargeBinary)}
    count, batch = 0, []
    for line in content:
        row = json.loads(line)
        batch.append(
            {key: base64.b64decode(row[key]["base64"]) if key in binary else row[key] for key in row}
        )
        count += 1
        if len(batch) == BATCH:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)
    serial = table.autoincrement_column
    if connection.dialect.name == "postgresql" and serial is not None and count:
        # Numbers that were given by hand do not move the sequence.
        last = connection.scalar(select(func.max(serial)))
        sequence = func.pg_get_serial_sequence(table.name, serial.name)
        connection.execute(select(func.setval(sequence, last)))
    return count


def _parts(tar: tarfile.TarFile, name: str) -> Iterator[bytes]:
    content = tar.extractfile(name)
    assert content is not None
    while part := content.read(1 << 20):
        yield part


def _in_use(place: str, option: str) -> ConflictError:
    return ConflictError(
        f"{place} holds something", expected="an empty place", way_out=f"Name another with {option}.",
        code="not_empty",
    )  # fmt: skip


def _damaged(path: Path, why: str) -> FleetError:
    return InvalidError(
        f"{path}: {why}", expected="a file that `edgekit fleet backup` wrote, whole",
        way_out="Take another copy of it.", code="backup",
    )  # fmt: skip


def _unwritable(path: Path, error: OSError) -> FleetError:
    return InvalidError(
        f"{path}: {error.strerror or error}", expected="a place with room that can be written",
        way_out="Choose another.", code="backup",
    )  # fmt: skip
