"""The Free Spoken Digit Dataset: 3,000 recordings of ten digits by six speakers, as arrays to train and to judge with.

It is Jakobovski/free-spoken-digit-dataset on GitHub, CC BY-SA 4.0, at one commit. An archive is known by the recordings
in it, not by its own bytes: GitHub may compress the same commit anew, and other tools pack it flat.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from edgekit.errors import UsageError
from examples.keywords_sound import log_mel, read_wav

REPOSITORY: Final = "https://github.com/Jakobovski/free-spoken-digit-dataset"
COMMIT: Final = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL: Final = f"{REPOSITORY}/archive/{COMMIT}.zip"
# Of the lines `sha256 of the file, two spaces, its name, line feed`, in the order of the names.
SHA256: Final = "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959"
# The archive has 17 MB and its recordings 21 MB.
MAX_BYTES: Final = 64_000_000
TIMEOUT_SECONDS: Final = 60

CHECKOUT: Final = Path(__file__).parents[1]
DOWNLOADED: Final = CHECKOUT / ".cache" / "fsdd.zip"
PLACES: Final = (CHECKOUT.parent / "shared" / "data" / "fsdd.zip", DOWNLOADED)

# Of each speaker and digit, recordings 0 to 14 judge and 15 to 49 train.
FIRST_TO_TRAIN: Final = 15
_NAME: Final = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")

Arrays = dict[str, Any]


def find(places: Sequence[Path] = PLACES) -> Path:
    """The archive, where it is on this machine.

    Raises:
        UsageError: it is at none of the places; the message says where to get it.
    """
    for place in places:
        if place.is_file():
            return place
    raise UsageError(
        f"the spoken digits are not on this machine: looked for {', '.join(map(str, places))}",
        expected="the Free Spoken Digit Dataset (17 MB, CC BY-SA 4.0)",
        way_out=f"Add --download, or fetch {URL} and put it at {places[-1]}, or name its place with --data.",
    )


def download(to: Path = DOWNLOADED, *, url: str = URL, sha256: str = SHA256, limit: int = MAX_BYTES) -> Path:
    """Fetch the archive, check its recordings, and only then put it into its place.

    Args:
        to: where it goes; what is there and right is kept.
        url: of the archive.
        sha256: of its recordings, see `content_sha256`.
        limit: largest size in bytes.

    Returns:
        `to`.

    Raises:
        UsageError: it cannot be reached, is too large, or holds something else; nothing is left at `to` then.
    """
    if _holds(to, sha256, limit):
        return to
    content = _fetch(url, limit)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent) as folder:
            fetched = Path(folder) / to.name
            fetched.write_bytes(content)
            _check(fetched, url, sha256, limit)
            fetched.replace(to)
    except OSError as error:
        raise UsageError(
            f"{to}: {error.strerror}", expected="a place to write to", way_out="Name another with --data."
        ) from error
    return to


def _holds(path: Path, sha256: str, limit: int) -> bool:
    """Are the right recordings there already? Whatever else is there will be replaced."""
    try:
        return path.is_file() and content_sha256(read(path, limit=limit)) == sha256
    except UsageError:
        return False


def _check(fetched: Path, url: str, sha256: str, limit: int) -> None:
    found = content_sha256(read(fetched, limit=limit))
    if found != sha256:
        raise UsageError(
            f"{url}: its recordings have the sha256 {found}",
            expected=sha256,
            way_out=f"It was changed on its way; get {REPOSITORY} at {COMMIT[:7]} by other means.",
        )


def _fetch(url: str, limit: int) -> bytes:
    """The content at an address, never more than the limit."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read(limit + 1)
            missing = answer.length  # where the server told how much there is
    except (OSError, HTTPException) as error:
        raise UsageError(
            f"{url}: {error}",
            expected="an answer",
            way_out=f"Is there a network? Fetch it by other means and put it at {DOWNLOADED}.",
        ) from error
    if len(content) > limit:
        raise UsageError(
            f"{url}: more than {limit:,} bytes",
            expected="an archive of 17 MB",
            way_out="It is something else; look at it.",
        )
    if missing:
        raise UsageError(
            f"{url}: the connection broke {missing:,} bytes before the end",
            expected="the whole archive",
            way_out="Try again.",
        )
    return content


def read(path: Path, *, limit: int = MAX_BYTES) -> dict[str, bytes]:
    """The recordings of an archive, in the order of their names; folders and other files are left out.

    Args:
        path: of a zip file.
        limit: of bytes when unpacked.

    Returns:
        Name such as `7_jackson_32.wav` to the file's content.

    Raises:
        UsageError: it is no zip file, is damaged, holds no recordings, or far too much.
    """
    expected = f"the zip file of {REPOSITORY} at {COMMIT[:7]}"
    way_out = f"Fetch {URL}."
    try:
        with zipfile.ZipFile(path) as archive:
            members = {PurePosixPath(m.filename).name: m for m in archive.infolist()}
            members = {name: members[name] for name in sorted(members) if _NAME.fullmatch(name)}
            if sum(member.file_size for member in members.values()) > limit:
                raise UsageError(
                    f"{path}: more than {limit:,} bytes of recordings", expected=expected, way_out=way_out
                )
            recordings = {name: archive.read(member) for name, member in members.items()}
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: {error}", expected=expected, way_out=way_out) from error
    if not recordings:
        raise UsageError(f"{path}: no recordings in it", expected=expected, way_out=way_out)
    return recordings


def content_sha256(recordings: Mapping[str, bytes]) -> str:
    """What tells these recordings from others, however they were packed."""
    lines = (f"{hashlib.sha256(recordings[name]).hexdigest()}  {name}\n" for name in sorted(recordings))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def arrays(recordings: Mapping[str, bytes]) -> Arrays:
    """Inputs and labels, as `edgekit compress --data` takes them.

    Args:
        recordings: name to wav file.

    Returns:
        `train_x`, `eval_x`: float32 `[n, 1, 64, 32]`; `train_y`, `eval_y`: int64 `[n]`, the digit.

    Raises:
        UsageError: a recording cannot be read, or one of the sets is empty.
    """
    rows: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "eval": []}
    for name in sorted(recordings):
        matched = _NAME.fullmatch(name)
        assert matched is not None, name
        split = "train" if int(matched[3]) >= FIRST_TO_TRAIN else "eval"
        rows[split].append((log_mel(read_wav(recordings[name], name)), int(matched[1])))
    for split, found in rows.items():
        if not found:
            raise UsageError(
                f"no recordings for {split} among {len(recordings)}",
                expected=f"some numbered below {FIRST_TO_TRAIN} and some from there on",
                way_out=f"Fetch {URL}.",
            )
    return {
        f"{split}_{key}": values
        for split, found in rows.items()
        for key, values in (
            ("x", np.stack([x for x, _ in found])),
            ("y", np.array([y for _, y in found], np.int64)),
        )
    }
