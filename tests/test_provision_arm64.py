"""A whole device that is set up and taken back: a Debian for arm64 under qemu, as root, with a user and a unit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.bench.targets.emulated import default_folder, enter
from edgekit.provision.carry_out import Order, provision, uninstall
from edgekit.provision.plan import Plan
from edgekit.remote.hosts import Host
from support.sshd import write_script

pytestmark = pytest.mark.slow
TOKEN = "edgd_" + "t" * 40
# What systemctl does to files and to an agent, without systemd.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>/run/systemctl.log
wants=/etc/systemd/system/multi-user.target.wants
case "$1 $2" in
    "is-active --quiet") test -e /run/edgekit-active ;;
    "enable edgekit-agent") mkdir -p $wants && ln -sf /etc/systemd/system/edgekit-agent.service $wants/ ;;
    "restart edgekit-agent") mkdir -p /var/lib/edgekit && : >/run/edgekit-active ;;
    "disable --now") rm -f /run/edgekit-active $wants/edgekit-agent.service ;;
esac
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its root; `ssh` leads into it."""
    folder = default_folder().absolute()
    root = folder / "root"
    if os.geteuid() != 0 or not list(root.glob("usr/lib/python3*/ensurepip/__init__.py")):
        pytest.skip("sudo scripts/arm64 makes the root")
    # A device has a mirror of packages; here what the runtime needs lies in /opt/site.
    (root / "etc" / "pip.conf").write_text("[global]\nno-deps = true\nno-index = true\n")
    (root / "run" / "systemd" / "system").mkdir(parents=True, exist_ok=True)
    write_script(root / "usr" / "bin" / "systemctl", SYSTEMCTL)
    words = " ".join(f"'{word}'" for word in enter(folder))
    write_script(tmp_path / "bin" / "ssh", f'#!/bin/sh\nfor line; do :; done\nexec {words} "$line"\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield root
    for name in ("etc/pip.conf", "usr/bin/systemctl", "run/systemctl.log", "run/edgekit-active"):
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / "run" / "systemd")


def everything(root: Path) -> dict[str, str]:
    """Hash of each file where a set-up could leave something, also of what Debian notes of users."""
    found = {}
    for place in ("etc", "opt", "var/lib", "usr/local", "root", "home", "tmp", "var/tmp"):
        for path in sorted((root / place).rglob("*")):
            name = str(path.relative_to(root))
            # Backups of useradd, and packages that were there before.
            if path.is_symlink() or not path.is_file() or name.endswith("-") or name.startswith("opt/site"):
                continue
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_a_board_is_set_up_twice_and_nothing_of_it_is_left(board: Path) -> None:
    host, told = Host("board", "root"), list[str]()
    root = json.dumps({"signed": {"_type": "root"}, "signatures": []}).encode()
    order = Order("https://fleet.example.com", root, "tflite", "", TOKEN, {"region": "eu"})
    before = everything(board)

    planned = provision(host, order, dry_run=True, told=told.append)
    assert everything(board) == before
    assert provision(host, order, dry_run=False, told=told.append) == planned
    assert planned.steps[0] == "make the user edgekit"
    assert planned.steps[-1] == "start the agent"

    token = board / "etc" / "edgekit" / "token"
    user = next(
        line for line in (board / "etc" / "passwd").read_text().splitlines() if line.startswith("edgekit:")
    )
    assert stat.S_IMODE(token.stat().st_mode) == 0o400
    assert token.stat().st_uid == int(user.split(":")[2])
    assert token.read_text().strip() == TOKEN
    assert (board / "run" / "edgekit-active").exists()

    first, log = everything(board), (board / "run" / "systemctl.log").read_text()
    assert provision(host, order, dry_run=False, told=told.append) == Plan((), ())
    assert everything(board) == first
    said = (board / "run" / "systemctl.log").read_text().removeprefix(log).split("\n")
    assert {line for line in said if line} == {"is-active --quiet edgekit-agent.service"}

    kept = uninstall(host, purge=False, prefix="", dry_run=False, told=told.append)
    assert "stop the agent" in kept.steps
    assert len(kept.notes) == 2
    assert token.exists()
    uninstall(host, purge=True, prefix="", dry_run=False, told=told.append)
    assert everything(board) == before
    assert uninstall(host, purge=True, prefix="", dry_run=False, told=told.append) == Plan((), ())
    assert TOKEN not in "".join(told)
