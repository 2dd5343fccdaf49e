"""Says what of edgekit is on this device, as JSON, and changes nothing: `python probe.py [PREFIX]`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

UNIT = "edgekit-agent.service"
UNITS = "etc/systemd/system"
# What is looked at, by the name that `edgekit.provision.plan` knows it by.
FILES = {
    "root": "etc/edgekit/root.json",
    "settings": "etc/edgekit/agent.env",
    "token": "etc/edgekit/token",
    "unit": f"{UNITS}/{UNIT}",
    "groups": f"{UNITS}/{UNIT}.d/groups.conf",
    "sysusers": "etc/sysusers.d/edgekit.conf",
    "tmpfiles": "etc/tmpfiles.d/edgekit.conf",
    "package": "opt/edgekit/package",
}
# The last is there where an installation was cut off before it started the agent anew.
FOLDERS = ("opt/edgekit", "etc/edgekit", "var/lib/edgekit", "opt/edgekit/changed")
# Nothing in these is a secret.
SHOWN = ("settings", "package", "groups")


def main(prefix: str) -> None:
    """Print what is found."""
    top = Path(prefix or "/")
    contents = {name: read(top / path) for name, path in FILES.items()}
    print(
        json.dumps(
            {
                "machine": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
                "venv": all(map(importlib.util.find_spec, ("venv", "ensurepip"))),
                "systemd": Path("/run/systemd/system").is_dir(),
                "free_bytes": shutil.disk_usage(existing(top / "opt")).free,
                "hashes": {name: digest(content) for name, content in contents.items()},
                "texts": {name: (contents[name] or b"").decode("utf-8", "replace") for name in SHOWN},
                "user": has_line(top / "etc/passwd", "edgekit:"),
                "devices": [each for each in ("video", "render") if has_line(top / "etc/group", f"{each}:")],
                "works": works(top / "opt/edgekit/bin/python"),
                "there": [each for each in FOLDERS if (top / each).exists()],
                "enabled": os.path.lexists(top / UNITS / "multi-user.target.wants" / UNIT),
                "active": not prefix and says_yes("systemctl", "is-active", "--quiet", UNIT),
            }
        )
    )


def read(path: Path) -> bytes | None:
    """Content of a file, None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def digest(content: bytes | None) -> str | None:
    """SHA-256 of what is there."""
    return None if content is None else hashlib.sha256(content).hexdigest()


def has_line(path: Path, beginning: str) -> bool:
    """Whether a line of a file begins so."""
    return any(
        line.startswith(beginning) for line in (read(path) or b"").decode("utf-8", "replace").splitlines()
    )


def existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there."""
    return path if path.exists() else existing(path.parent)


def works(python: Path) -> bool:
    """Whether this interpreter has the runtime."""
    return python.exists() and says_yes(str(python), "-c", "import edgekit_runtime.cli")


def says_yes(*command: str) -> bool:
    """Whether a command ends with status 0."""
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(command, stdin=null, stdout=null, stderr=null, check=False)  # noqa: S603 - fixed words
    except OSError:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
