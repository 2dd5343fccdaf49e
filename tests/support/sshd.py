"""A real sshd for tests, on loopback: keys, port, configuration and environment of its own, as the current user."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
# Profiles of the shell of whoever runs the tests shall have no part in them.
ForceCommand {folder}/session
"""
CLIENT = """
Host *
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
"""
SESSION = """#!/bin/sh
{exports}
exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


@dataclass(frozen=True)
class Sshd:
    """A running one.

    Attributes:
        folder: of its files.
        port: on 127.0.0.1.
        pid: of the process that listens.
        there: TMPDIR of its sessions.
    """

    folder: Path
    port: int
    pid: int
    there: Path

    @property
    def url(self) -> str:
        """Of the only user."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def known_hosts(self) -> Path:
        """Of the client."""
        return self.folder / "known_hosts"

    def session(self, **environment: str) -> None:
        """Give its sessions another environment."""
        usual = {
            "PATH": f"{self.folder / 'there-bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "TMPDIR": str(self.there),
        }
        exports = "\n".join(f"export {name}='{value}'" for name, value in {**usual, **environment}.items())
        write_script(self.folder / "session", SESSION.format(exports=exports))

    def python(self, command: str) -> None:
        """Make another `python3` the first one there."""
        write_script(self.folder / "there-bin" / "python3", f"#!/bin/sh\nexec {command}\n")

    def cut(self) -> None:
        """Kill whatever serves connections now, as a network that goes away would."""
        for each in psutil.Process(self.pid).children():
            for inner in (each, *each.children()):
                if inner.name().startswith("sshd"):
                    inner.kill()

    def left(self) -> list[Path]:
        """What lies in the folder for temporary files."""
        return sorted(self.there.iterdir())


def write_script(path: Path, text: str) -> None:
    """A script that may be run, in place whole."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(new.stat().st_mode | stat.S_IXUSR)
    new.replace(path)


def program() -> str:
    """Path of sshd, which has to be run by its full path; skips the test where there is none."""
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    for name, there in (("openssh-server", found), ("openssh-client", shutil.which("ssh"))):
        if there is None:
            pytest.skip(f"apt-get install {name}")
    assert found is not None
    return found


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """Run one; `ssh` of this process talks to it with a key that it lets in.

    Args:
        folder: for its files; the path must not have spaces.
    """
    server, client = program(), shutil.which("ssh")
    folder.mkdir()
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder))
    (folder / "ssh_config").write_text(CLIENT.format(folder=folder))
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    write_script(folder / "here-bin" / "ssh", f'#!/bin/sh\nexec {client} -F {folder}/ssh_config "$@"\n')
    if os.geteuid() == 0:
        # Where the package is there and its service never ran.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    there = folder / "there"
    there.mkdir()
    path = os.environ["PATH"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([server, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    found = Sshd(folder, port, process.pid, there)
    found.session()
    found.python(f'{sys.executable} "$@"')
    try:
        _wait(found, process)
        os.environ["PATH"] = f"{folder / 'here-bin'}:{path}"
        yield found
    finally:
        os.environ["PATH"] = path
        found.cut()
        process.terminate()
        process.wait(20)


def _wait(found: Sshd, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", found.port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
            continue
        return
    raise RuntimeError(f"sshd does not answer: {(found.folder / 'log').read_text()[:2000]}")
