"""The runtime as a wheel, made of what is installed here: it is pure Python, so it suits every device."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Final

DISTRIBUTION: Final = "edgekit-runtime"
_TAG: Final = "Wheel-Version: 1.0\nGenerator: edgekit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel.

    Attributes:
        name: of the file.
        content: of it; the same bytes for the same runtime.
        version: of the distribution.
        requires: other distributions that it needs, without those of extras.
    """

    name: str
    content: bytes
    version: str
    requires: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        return hashlib.sha256(self.content).hexdigest()


def runtime_wheel() -> Wheel:
    """Pack the runtime that is installed here, from a wheel or from a checkout."""
    about = metadata.distribution(DISTRIBUTION)
    stem = f"{DISTRIBUTION.replace('-', '_')}-{about.version}"
    info = f"{stem}.dist-info"
    files = {
        **_sources(resources.files("edgekit_runtime"), "edgekit_runtime"),
        f"{info}/METADATA": (about.read_text("METADATA") or "").encode(),
        f"{info}/WHEEL": _TAG.encode(),
        f"{info}/entry_points.txt": (about.read_text("entry_points.txt") or "").encode(),
    }
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            # A date would make other bytes of the same files.
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    requires = tuple(each for each in about.requires or () if "extra ==" not in each)
    return Wheel(f"{stem}-py3-none-any.whl", packed.getvalue(), about.version, requires)


def _sources(folder: Traversable, name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir() and each.name != "__pycache__":
            found |= _sources(each, f"{name}/{each.name}")
        elif each.is_file() and each.name.endswith((".py", ".typed")):
            found[f"{name}/{each.name}"] = each.read_bytes()
    return found


def _digest(content: bytes) -> str:
    """As RECORD has it: https://packaging.python.org/en/latest/specifications/recording-installed-packages/."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
