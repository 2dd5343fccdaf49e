"""What a device has to tell and could not yet: a bounded queue of small documents on disk, for weeks without a network.

```
SPOOL/
  000000000017-2-3f9a…     a document: its number, its value, its key
  dropped.json             how many gave way, and which of them are just going
  lock                     held for the moment in which a document comes in or goes
```

A document that `put` returned for is on the disk. When the spool is full, the documents of least value give way, of
those the oldest first, and every one of them is counted, once, whatever happens in between.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit_runtime.disk import Disk, replace
from edgekit_runtime.strict_json import ContractError, Fields, parse, read_text

_NAME: Final = re.compile(r"(\d{12})-(\d)-([0-9a-f]{8,64})")
HIGHEST: Final = 9


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A document in the spool; the order is that of their arrival.

    Attributes:
        number: of its arrival.
        value: from 0, which gives way first, to `HIGHEST`.
        key: that a server knows it by, hexadecimal; the same document has the same key.
    """

    number: int
    value: int
    key: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.number:012d}-{self.value}-{self.key}"


class Spool:
    """A bounded queue. Several processes may write to it; one at a time does.

    Args:
        path: folder; it is made.
        max_bytes: that all documents together may take.
        disk: does what changes it.

    Raises:
        OSError: the folder cannot be made or read.
    """

    def __init__(self, path: Path, *, max_bytes: int, disk: Disk | None = None) -> None:
        self.path, self.max_bytes, self.disk = path, max_bytes, disk or Disk()
        self._counter = path / "dropped.json"
        self.dropped: int = 0
        self._going: tuple[Entry, ...] = ()
        if not path.exists():
            with suppress(FileExistsError):
                self.disk.make_folder(path)
            self.disk.sync_folder(path.parent)
        with self._locked():
            for half in path.glob("*.new"):
                self.disk.remove(half)

    def put(self, key: str, document: bytes, *, value: int = 5) -> bool:
        """Take a document in; when this returns, no power cut loses it.

        Args:
            key: of the document; one that is here already is not taken twice.
            document: at most `max_bytes`.
            value: what it is worth, 0…9.

        Returns:
            Whether it is in the spool; False where all that is there is worth more, and it was counted as dropped.

        Raises:
            OSError: the disk is full, or cannot be written; nothing is lost that was there.
        """
        with self._locked():
            return self._put(key, document, value)

    def _put(self, key: str, document: bytes, value: int) -> bool:
        entries = list(self)
        if any(entry.key == key for entry in entries):
            return True
        sizes = {entry: self._size(entry) for entry in entries}
        excess = sum(sizes.values()) + len(document) - self.max_bytes
        going: list[Entry] = []
        for entry in sorted(entries, key=lambda each: (each.value, each.number)):
            if excess <= 0 or entry.value > value:
                break
            going.append(entry)
            excess -= sizes[entry]
        if excess > 0:
            self._count(1, self._going)
            return False
        if going:
            self._count(len(going), going)
            for entry in going:
                self.disk.remove(self.path / entry.name)
        # Never the name of one that gave way: the next process removes what is left of those.
        number = 1 + max((entry.number for entry in (*entries, *self._going)), default=-1)
        path = self.path / Entry(number, value, key).name
        try:
            replace(self.disk, path, document)
        except OSError:
            # Whoever hears of this tries again, and must not find it here then.
            for half in (path, path.with_name(f"{path.name}.new")):
                with suppress(OSError):
                    self.disk.remove(half)
            raise
        return True

    def read(self, entry: Entry) -> bytes:
        """The document of an entry.

        Raises:
            OSError: it is gone.
        """
        return (self.path / entry.name).read_bytes()

    def done(self, entry: Entry) -> None:
        """Forget a document that the server has; after a power cut it may be offered again, under the same key."""
        with self._locked():
            if not (self.path / entry.name).exists():
                # It gave way while it was on its way, and is not lost after all.
                self._count(-1, self._going)
            self.disk.remove(self.path / entry.name)

    def give_up(self, entry: Entry) -> None:
        """Forget a document that no server will ever have; it is counted as dropped."""
        with self._locked():
            if (self.path / entry.name).exists():
                self._count(1, (entry,))
                self.disk.remove(self.path / entry.name)

    def __iter__(self) -> Iterator[Entry]:
        """Entries that are here now, oldest first."""
        return iter(_entries(each.name for each in self.path.iterdir()))

    def _size(self, entry: Entry) -> int:
        with suppress(FileNotFoundError):
            return (self.path / entry.name).stat().st_size
        return 0

    def _count(self, more: int, going: Sequence[Entry]) -> None:
        """Persist how many gave way before they go; which they are tells the next process what it has to remove."""
        dropped = max(0, self.dropped + more)
        content = {"dropped": dropped, "going": [entry.name for entry in going]}
        replace(self.disk, self._counter, json.dumps(content).encode())
        self.dropped, self._going = dropped, tuple(going)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone, with what others counted; the system gives the lock back with the process, however that ends."""
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self.dropped, self._going = self._counted()
            # A process that died may have counted what it did not come to remove.
            for entry in self._going:
                self.disk.remove(self.path / entry.name)
            yield
        finally:
            os.close(handle)

    def _counted(self) -> tuple[int, tuple[Entry, ...]]:
        try:
            fields = Fields(parse(self._counter.read_bytes()), "", required=("dropped", "going"))
            return max(0, fields.whole("dropped")), tuple(_entries(fields.each("going", read_text)))
        except (FileNotFoundError, ContractError):
            return 0, ()


def _entries(names: Iterable[str]) -> list[Entry]:
    found = (_NAME.fullmatch(name) for name in names)
    return sorted(Entry(int(m[1]), int(m[2]), m[3]) for m in found if m)
