"""Zip archives are checked before torch's native reader sees them.

torch reads archives in C++, where a damaged file can end the process. A probe in a subprocess would cost
two seconds and a second copy of the model for every load; the checksums that every member carries find
truncation and bit rot in a tenth of that, so they are verified here, in Python, and nothing damaged reaches
native code.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from edgekit.errors import UsageError

# torch stores tensors uncompressed; only code and small texts are compressed, hardly ever by more than this.
MAX_EXPANSION = 8
FREE_EXPANSION_BYTES = 64 * 2**20
MAX_MEMBERS = 200_000
_CHUNK = 1 << 20


def check_archive(path: Path) -> list[str]:
    """Verify an archive and list it.

    Args:
        path: a file that starts like a zip.

    Returns:
        Member names.

    Raises:
        UsageError: truncated, damaged, or it would unpack to far more than its own size.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            declared = sum(member.file_size for member in members)
            if len(members) > MAX_MEMBERS or declared > size * MAX_EXPANSION + FREE_EXPANSION_BYTES:
                raise UsageError(
                    f"{path}: {len(members)} members that unpack to {declared} bytes from a file of {size} "
                    f"bytes",
                    expected=f"at most {MAX_MEMBERS} members and {MAX_EXPANSION} times the size of the file",
                    way_out="This is not what torch writes. Save the model again from its source.",
                )
            for member in members:
                with archive.open(member) as stream:
                    while stream.read(_CHUNK):
                        pass
            return [member.filename for member in members]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> UsageError:
    """The error for a file that starts well and does not go on so."""
    return UsageError(
        f"{path}: damaged or truncated ({path.stat().st_size} bytes): {why}",
        expected="a whole file",
        way_out="Copy or download it again and compare the checksum with the original.",
    )
