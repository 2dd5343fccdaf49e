"""Power cuts, without a power switch: every operation on a disk is recorded, and what any cut may leave is rebuilt.

The disk that is modelled keeps less than any real one promises: content is safe after its file was synced, a name after
its folder was. Before that, each operation by itself may have reached the disk or not, in any order, and content may be
there in part.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit_runtime.disk import Disk

# How much of content that was not synced may be there: all of it as zeros, as file systems leave it, or its first half.
TORN: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
}


@dataclass
class Op:
    """One operation; `synced_by` is the number of the first operation after which it is safe."""

    kind: str
    path: Path
    inode: int = -1
    data: bytes = b""
    at: int = 0
    source: Path | None = None
    synced_by: int | None = None


@dataclass
class Recorder:
    """A disk that keeps a record of what is done to it.

    Attributes:
        skip: syncs that are left out: a method's name and a part of the path.
        ops: in order.
        marks: (number of operations before it, what was promised by then).
        inodes: path to the file that has that name.
        files: that were made.
        first: operation that may be cut off; what is before it was there.
    """

    skip: tuple[str, str] | None = None
    disk: Disk = field(default_factory=Disk)
    ops: list[Op] = field(default_factory=list)
    marks: list[tuple[int, Any]] = field(default_factory=list)
    inodes: dict[Path, int] = field(default_factory=dict)
    files: int = 0
    first: int = 0

    def found(self, root: Path) -> None:
        """Begin with what lies below a folder, all of it safe."""
        for path in sorted(root.rglob("*")):
            if path.is_dir():
                self.ops.append(Op("folder", path, synced_by=0))
            else:
                self.files += 1
                self.inodes[path] = self.files
                self.ops.append(Op("create", path, self.files, synced_by=0))
                self.ops.append(Op("write", path, self.files, path.read_bytes(), synced_by=0))
        self.first = len(self.ops)

    def mark(self, promise: Any) -> None:
        """Note what holds from here on."""
        self.marks.append((len(self.ops), promise))

    def make_folder(self, path: Path) -> None:
        self.disk.make_folder(path)
        self.ops.append(Op("folder", path))

    def write(self, path: Path, parts: Iterable[bytes], *, at: int = 0) -> None:
        data = b"".join(parts)
        if path not in self.inodes:
            self.files += 1
            self.inodes[path] = self.files
            self.ops.append(Op("create", path, self.files))
        self.disk.write(path, (data,), at=at)
        self.ops.append(Op("write", path, self.inodes[path], data, at))

    def sync(self, path: Path) -> None:
        if self._skipped("sync", path):
            return
        self.disk.sync(path)
        self._safe(lambda op: op.kind == "write" and op.inode == self.inodes[path])

    def sync_folder(self, path: Path) -> None:
        if self._skipped("sync_folder", path):
            return
        self.disk.sync_folder(path)
        self._safe(lambda op: op.kind != "write" and op.path.parent == path)

    def rename(self, source: Path, target: Path) -> None:
        self.disk.rename(source, target)
        inode = self.inodes.pop(source)
        self.inodes[target] = inode
        self.ops.append(Op("rename", target, inode, source=source))

    def remove(self, path: Path) -> None:
        self.disk.remove(path)
        if path in self.inodes:
            self.ops.append(Op("remove", path, self.inodes.pop(path)))

    def _skipped(self, kind: str, path: Path) -> bool:
        return self.skip is not None and self.skip[0] == kind and self.skip[1] in str(path)

    def _safe(self, which: Callable[[Op], bool]) -> None:
        for op in self.ops:
            if op.synced_by is None and which(op):
                op.synced_by = len(self.ops)


Image = dict[Path, bytes | None]
"""Path to content, None for a folder."""


def cuts(recorder: Recorder, root: Path, *, seed: int = 0, drawn: int = 4) -> Iterator[tuple[int, Image]]:
    """What the disk may hold after a cut before each operation, and after the last.

    Of what was not safe by then: nothing, all, each alone, all but each, each in part; and some subsets by chance.

    Args:
        recorder: of the operations.
        root: folder that was there before the first of them.
        seed: of the subsets.
        drawn: subsets for each cut.

    Yields:
        The number of operations before the cut, and what is there then; none twice for a cut.
    """
    chance = random.Random(seed)
    for end in range(recorder.first, len(recorder.ops) + 1):
        ops = recorder.ops[:end]
        open_ = [i for i, op in enumerate(ops) if op.synced_by is None or op.synced_by > end]
        everything = dict.fromkeys(open_, "whole")
        choices: list[dict[int, str]] = [{}, everything]
        for i in open_:
            choices += [{i: "whole"}, {k: how for k, how in everything.items() if k != i}]
            if ops[i].kind == "write":
                choices += [{**everything, i: how} for how in TORN]
        choices += [{i: "whole" for i in open_ if chance.random() < 0.5} for _ in range(drawn)]
        seen = set()
        for choice in choices:
            image = _image(ops, set(open_), choice, root)
            digest = hashlib.sha256(repr(sorted(image.items())).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield end, image


def _image(ops: list[Op], open_: set[int], chosen: dict[int, str], root: Path) -> Image:
    names: dict[Path, int] = {}
    content: dict[int, bytes] = {}
    folders: set[Path] = set()
    for i, op in enumerate(ops):
        if i in open_ and i not in chosen:
            continue
        if op.kind == "folder":
            folders.add(op.path)
        elif op.kind == "create":
            names[op.path] = op.inode
        elif op.kind == "write":
            data = TORN.get(chosen.get(i, "whole"), bytes)(op.data)
            content[op.inode] = content.get(op.inode, b"")[: op.at].ljust(op.at, b"\0") + data
        elif op.kind == "rename":
            assert op.source is not None
            if names.get(op.source) == op.inode:
                del names[op.source]
            names[op.path] = op.inode
        elif names.get(op.path) == op.inode:
            del names[op.path]
    image: Image = dict.fromkeys(folders)
    image |= {path: content.get(inode, b"") for path, inode in names.items()}
    # A name in a folder that is not there is not there either.
    there = {root, *root.parents, *folders}
    return {path: held for path, held in image.items() if there.issuperset(path.parents)}


def rebuild(image: Image, before: Path, after: Path) -> None:
    """Lay what a cut left in another place.

    Args:
        image: from `cuts`.
        before: root of the recorded paths.
        after: an empty folder.
    """
    for path in sorted(image):
        held, target = image[path], after / path.relative_to(before)
        if held is None:
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(held)
