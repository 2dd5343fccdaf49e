"""Runs one command on a machine and leaves nothing there; sent over the line, so it needs nothing but Python 3.10.

Standard input brings a line of JSON (`Job` in `edgekit.remote.session`), the content of all files one after another,
and then a byte now and then: `.` that somebody listens, `!` that the command be asked to end, as by Ctrl-C. The end of
it, or a silence, means that the line is cut. Standard output has lines that begin with `EDGEKIT` and go on with JSON:

```
{"refused": code, …}       nothing was copied, or all of it is gone again
{"ready": folder}          files may come
{"started": true}          all files are there
{"line": text}             of the command's standard error
{"ended": status, "out": text, "left": folder or null}     the folder is gone but where `left` names it
```
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MARK = "EDGEKIT "
PREFIX = "edgekit-run-"
# Room that has to stay on the disk of the device for everybody else.
SPARE_BYTES = 8 << 20
# A folder of a run that could not clean up, as after a power cut, goes with a later run.
ABANDONED_S = 3600
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Between asking a command to end and ending it.
PATIENCE_S = 3.0
MOST_BYTES = 256 << 20
STOP = b"!"

Head = dict[str, Any]


class Cut(Exception):  # noqa: N818 - nobody is there any more to whom it would be an error
    """The line is cut, or somebody ends this process."""


class Refused(Exception):  # noqa: N818 - part of the protocol
    """The command is not run; `event` says why."""

    def __init__(self, code: str, **detail: object) -> None:
        super().__init__(code)
        self.event = {"refused": code, **detail}


def say(**event: object) -> None:
    """Send one line."""
    # A profile of the shell may have left a line without an end.
    left = f"\n{MARK}{json.dumps(event)}\n".encode()
    while left:
        left = left[os.write(1, left) :]


def main() -> None:
    """Do what the line asks for."""
    for each in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(each, _cut)
    place: Path | None = None
    child: subprocess.Popen[bytes] | None = None
    event: dict[str, object] | None = None
    try:
        head: Head = json.loads(read_line())
        check(head)
        with _whole():
            place = make_folder(head)
        say(ready=str(place))
        receive(place, head)
        with _whole():
            child = start(place, head)
        say(started=True)
        status, out = attend(child, head["silence_s"])
        event = {"ended": status, "out": out.decode("utf-8", "replace")}
    except (Cut, BrokenPipeError):
        # Nobody listens any more: what is left to do is below.
        pass
    except Refused as refused:
        event = refused.event
    except OSError as error:
        event = {"refused": "folder", "what": f"{error.filename or place}: {error.strerror}"}
    finally:
        # From here on nothing comes between.
        _state["making"] = True
        if child is not None:
            end(child)
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
    if event is not None:
        with suppress(BrokenPipeError):
            say(**event, left=str(place) if place is not None and place.exists() else None)


# Whether something is being made that is only known when it is whole, and whether the line was cut meanwhile.
_state = {"making": False, "cut": False}


def _cut(*_: object) -> None:
    first, _state["cut"] = not _state["cut"], True
    if first and not _state["making"]:
        raise Cut


@contextmanager
def _whole() -> Iterator[None]:
    """Let a signal wait for the end of the block: what the block makes can be removed then."""
    _state["making"] = True
    try:
        yield
    finally:
        _state["making"] = False
    if _state["cut"]:
        raise Cut


def read_line() -> bytes:
    """The first line; nothing after it is taken."""
    found = bytearray()
    while not found.endswith(b"\n"):
        found += take(1)
    return bytes(found)


def take(most: int) -> bytes:
    """Some bytes of standard input.

    Raises:
        Cut: there are no more.
    """
    found = os.read(0, most)
    if not found:
        raise Cut
    return found


def check(head: Head) -> None:
    """Look for what the command needs.

    Raises:
        Refused: a module is missing, or this user may not become root.
    """
    signal.alarm(head["silence_s"])
    missing = [each for each in head["needs"] if not any(map(importlib.util.find_spec, each))]
    if missing:
        raise Refused("modules", missing=missing, python=sys.executable, venv=sys.prefix != sys.base_prefix)
    if head["root"] and os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise Refused("root", what="there is no sudo")
        ask = ["sudo", "-n", "true"]
        asked = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
        if asked.returncode != 0:
            raise Refused("root", what=(asked.stderr.strip() or "sudo refuses").splitlines()[-1])


def make_folder(head: Head) -> Path:
    """A fresh folder for this user alone (mode 0700), where there is room; locked for as long as this process lives.

    Raises:
        Refused: there is room in none.
    """
    named = os.environ.get("TMPDIR")
    places = [named] if named else [tempfile.gettempdir(), "/var/tmp", os.path.expanduser("~")]  # noqa: PTH111, S108
    looked: dict[str, object] = {}
    for each in dict.fromkeys(places):
        try:
            clear_abandoned(Path(each))
            free = shutil.disk_usage(each).free
            looked[each] = free
            if free < head["size_bytes"] + SPARE_BYTES:
                continue
            made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=each))
        except OSError as error:
            looked[each] = error.strerror
            continue
        fcntl.flock(os.open(made, os.O_RDONLY), fcntl.LOCK_EX)
        return made
    raise Refused("room", places=looked, size_bytes=head["size_bytes"] + SPARE_BYTES)


def clear_abandoned(place: Path) -> None:
    """Remove folders of this user whose process is gone."""
    for found in place.glob(f"{PREFIX}*"):
        try:
            about = found.lstat()
            if about.st_uid != os.geteuid() or time.time() - about.st_mtime < ABANDONED_S:
                continue
            lock = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(lock)
        except OSError:
            continue


def receive(place: Path, head: Head) -> None:
    """Write the files as they come.

    Raises:
        Refused: the disk is full.
    """
    for name, size in head["files"]:
        path = place / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb", buffering=0) as file:
                path.chmod(0o600)
                left = size
                while left:
                    part = memoryview(take(min(left, 1 << 16)))
                    signal.alarm(head["silence_s"])
                    left -= len(part)
                    while part:
                        part = part[file.write(part) or 0 :]
        except OSError as error:
            if error.errno in NO_ROOM:
                looked = {str(place.parent): error.strerror}
                raise Refused("room", places=looked, size_bytes=head["size_bytes"]) from error
            raise


def start(place: Path, head: Head) -> subprocess.Popen[bytes]:
    """Start the command in the folder."""

    def filled(text: str) -> str:
        return text.replace("{python}", sys.executable).replace("{folder}", str(place))

    command = [filled(each) for each in head["command"]]
    if head["root"] and os.geteuid() != 0:
        command = ["sudo", "-n", "--", *command]
    path = [*map(filled, head["path"]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(place)}
    if path:
        env["PYTHONPATH"] = os.pathsep.join(path)
    with (place / head["stdin"]).open("rb") if head["stdin"] else Path(os.devnull).open("rb") as stdin:
        return subprocess.Popen(  # noqa: S603 - what was sent to be run
            command, cwd=place, env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip


def attend(child: subprocess.Popen[bytes], silence_s: int) -> tuple[int, bytes]:
    """Hand on what the command says until it ends.

    Returns:
        Its status (below 0: the signal that ended it) and its standard output.

    Raises:
        Cut: nobody listens any more.
    """
    assert child.stdout is not None
    assert child.stderr is not None
    out, line = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for each in (0, child.stdout.fileno(), child.stderr.fileno()):
            selector.register(each, selectors.EVENT_READ)
        while len(selector.get_map()) > 1:
            ready = selector.select(timeout=1.0)
            if not ready and child.poll() is not None:
                # What it started may hold its ends open for ever.
                break
            for key, _ in ready:
                if key.fd == 0:
                    if STOP in take(1 << 10):
                        with suppress(OSError):
                            child.send_signal(signal.SIGINT)
                    signal.alarm(silence_s)
                    continue
                part = os.read(key.fd, 1 << 16)
                if not part:
                    selector.unregister(key.fd)
                elif key.fd == child.stdout.fileno():
                    out += part[: MOST_BYTES - len(out)]
                else:
                    line = _hand_on(line + part)
    if line:
        say(line=line.decode("utf-8", "replace"))
    return child.wait(), bytes(out)


def _hand_on(text: bytearray) -> bytearray:
    """Send whole lines; returns the rest. A progress bar ends its lines with a carriage return."""
    *lines, rest = text.replace(b"\r", b"\n").split(b"\n")
    for each in lines:
        if each.strip():
            say(line=each.decode("utf-8", "replace"))
    return rest


def end(child: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started."""
    for number, wait_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, PATIENCE_S)):
        try:
            os.killpg(child.pid, number)
        except PermissionError:
            # What runs as root ends by root alone.
            kill = ["sudo", "-n", "sh", "-c", f"kill -{int(number)} -{child.pid}"]
            null = subprocess.DEVNULL
            subprocess.run(kill, stdin=null, stdout=null, stderr=null, check=False)  # noqa: S603 - a number
        except OSError:
            continue
        with suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)


if __name__ == "__main__":
    main()
