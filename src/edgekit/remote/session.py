"""A job on another machine, from here: speaks with `supervisor` at the other end of a command's ends."""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any, Final

from edgekit.errors import UsageError
from edgekit.remote import refusals

# Signs of life that the other end gets, and how long it waits for one before it cleans up.
BEAT_S, SILENCE_S = 5.0, 60
# Lines that an error shows.
LAST: Final = 12
# The usual places of an interpreter with a runtime: what `edgekit devices provision` makes, what docs/raspberry-pi.md
# makes by hand, the system's.
PYTHONS: Final = ("/opt/edgekit/bin/python", "~/edgekit/bin/python", "python3")
OLDEST: Final = (3, 10)
_CHUNK: Final = 256 << 10
_MARK: Final = b"EDGEKIT "
_BEAT, _STOP = b".", b"!"

Explain = Callable[[int, Sequence[str], str], UsageError]
"""Exit status of the command that leads there, the last lines that it said, and what was going on → an error."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is copied there.

    Attributes:
        name: relative path in the folder of the job.
        content: bytes, or the file here that has them.
    """

    name: str
    content: bytes | Path

    @property
    def size_bytes(self) -> int:
        """Of the content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class Job:
    """A command that runs there once, in a fresh folder that is removed afterwards.

    Attributes:
        files: that lie in the folder, for this user alone.
        command: words; `{python}` is the interpreter and `{folder}` the folder.
        stdin: name of the file that it reads, "" for nothing.
        path: what is put in front of PYTHONPATH.
        needs: modules that have to be there; of each tuple one.
        root: run the command as root, by `sudo` where that is another user.
        pythons: interpreters, of which the first that has what is needed is taken.
        ends_well: asked to end by SIGINT, it does so with what it has; Ctrl-C here asks it, a second one cuts the line.
    """

    files: tuple[Source, ...]
    command: tuple[str, ...]
    stdin: str = ""
    path: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    root: bool = False
    pythons: tuple[str, ...] = PYTHONS
    ends_well: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command ended.

    Attributes:
        status: of it; below 0 the signal that ended it.
        out: its standard output.
        lines: the last lines of its standard error.
    """

    status: int
    out: str
    lines: tuple[str, ...]


def run(
    argv: Sequence[str],
    job: Job,
    *,
    where: str,
    explain: Explain,
    told: Callable[[str], None],
    copied: Callable[[int, int], None] = lambda done, size: None,  # noqa: ARG005
    beat_s: float = BEAT_S,
    silence_s: int = SILENCE_S,
) -> Ended:
    """Do a job on another machine.

    Args:
        argv: command that leads there; it gets one more word, a line for a shell there.
        job: to do.
        where: the machine, for messages.
        explain: what an end of `argv` before the end of the job means.
        told: each line that the command writes to its standard error.
        copied: bytes that are there, and all of them.
        beat_s: between two signs of life.
        silence_s: without one until the other end takes the line for cut.

    Raises:
        UsageError: it cannot be done there, or the line was cut.
    """
    program = resources.files("edgekit.remote").joinpath("supervisor.py").read_bytes()
    sizes = [(each.name, each.size_bytes) for each in job.files]
    head = {
        "files": sizes, "size_bytes": sum(size for _, size in sizes), "command": job.command, "stdin": job.stdin,
        "path": job.path, "needs": job.needs, "root": job.root, "silence_s": silence_s,
    }  # fmt: skip
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell here
            [*argv, shell_line(job, len(program))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Messages are told apart by their words. Ctrl-C at the terminal is for this process alone.
            env={**os.environ, "LC_ALL": "C"}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise refusals.no_program(argv[0], error) from error
    talk = _Talk(process, job, head, told, copied, beat_s)
    try:
        talk.send(program + json.dumps(head).encode() + b"\n")
        with talk.asking_first():
            ended = talk.hear(where)
        if ended is not None:
            return ended
        status = process.wait()
        talk.said.join(5)
        raise explain(status, tuple(talk.errors), talk.doing)
    finally:
        talk.close()


def shell_line(job: Job, size: int) -> str:
    """What a shell there runs: an interpreter, which reads the supervisor from its standard input.

    Args:
        job: to do.
        size: of the supervisor, in bytes.
    """
    oldest = list(OLDEST)
    begin = (
        "import json,os,sys;v=list(sys.version_info[:3]);"
        f"v<{oldest}and(os.write(1,('\\nEDGEKIT '+json.dumps(dict(refused='old',python=sys.executable,version=v))"
        "+'\\n').encode()),os._exit(0));"
        f"exec(compile(b''.join(os.read(0,1)for _ in range({size})),'supervisor','exec'))"
    )
    # `find_spec` only looks: a runtime takes seconds to import on a small board.
    look = (
        f"import sys,importlib.util as u;sys.exit(sys.version_info<{OLDEST}or "
        f"not all(any(map(u.find_spec,a))for a in {job.needs!r}))"
    )
    places = " ".join(each if each.startswith("~/") else shlex.quote(each) for each in job.pythons)
    script = (
        f'f=; for p in {places}; do command -v "$p" >/dev/null 2>&1 || continue; f=${{f:-$p}}; '
        f'"$p" -c {shlex.quote(look)} </dev/null >/dev/null 2>&1 && f=$p && break; done; '
        f'[ -n "$f" ] && exec "$f" -c {shlex.quote(begin)}; '
        f'printf \'\\nEDGEKIT {{"refused": "python"}}\\n\''
    )
    # The shell of the user may be any; two words without a line break are the same to all of them.
    return f"exec sh -c {shlex.quote(script)}"


class _Talk:
    """Both directions of one job."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        job: Job,
        head: dict[str, Any],
        told: Callable[[str], None],
        copied: Callable[[int, int], None],
        beat_s: float,
    ) -> None:
        self.process, self.job, self.beat_s = process, job, beat_s
        self.sizes, self.size_bytes = head["files"], head["size_bytes"]
        self.told, self.copied = told, copied
        self.errors: deque[str] = deque(maxlen=40)
        self.doing = "connecting"
        self.failed: Exception | None = None
        # What the sending thread writes next; None ends it.
        self._words: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._sending: threading.Thread | None = None
        self.said = threading.Thread(target=self._read_errors, daemon=True)
        self.said.start()

    def send(self, content: bytes) -> None:
        """Write to the other end; that it is gone shows in what it says."""
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(content)
            self.process.stdin.flush()

    @contextmanager
    def asking_first(self) -> Iterator[None]:
        """Let the first Ctrl-C, while the command runs, ask it for what it has instead of cutting the line."""
        if not self.job.ends_well or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def ask(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, before)
            if self.doing == "running":
                self._words.put(_STOP)
            elif callable(before):
                before(number, frame)

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def hear(self, where: str) -> Ended | None:
        """Follow the job to its end; None where the line ended first."""
        lines: deque[str] = deque(maxlen=LAST)
        for event in self._events():
            if "ready" in event:
                self.doing = "copying"
                self._sending = threading.Thread(target=self._send_files, daemon=True)
                self._sending.start()
            elif "started" in event:
                self.doing = "running"
            elif "line" in event:
                lines.append(event["line"])
                self.told(event["line"])
            elif "refused" in event:
                raise refusals.refused(event, where, self.job.needs)
            elif "ended" in event:
                if event.get("left"):
                    raise refusals.left(where, event["left"])
                return Ended(event["ended"], event["out"], tuple(lines))
        if self.failed is not None:
            raise self.failed
        return None

    def close(self) -> None:
        """Let go; the other end cleans up when it sees that."""
        self._words.put(None)
        if self._sending is not None:
            # It may be in the middle of a write that nobody takes.
            self._sending.join(0.1)
            if self._sending.is_alive():
                self.process.terminate()
                self._sending.join(5)
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            if pipe is not self.process.stderr or not self.said.is_alive():
                # A master that OpenSSH left behind for later connections may hold its end.
                pipe.close()

    def _events(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Whatever a profile of the shell prints is not ours.
            if line.startswith(_MARK):
                yield json.loads(line[len(_MARK) :])

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text := line.decode("utf-8", "replace").strip():
                self.errors.append(text)

    def _send_files(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        done = 0
        try:
            for source, (_, size) in zip(self.job.files, self.sizes, strict=True):
                for part in _parts(source, size):
                    pipe.write(part)
                    done += len(part)
                    self.copied(done, self.size_bytes)
            pipe.flush()
            while (word := self._next_word()) is not None:
                pipe.write(word)
                pipe.flush()
        except BrokenPipeError:
            # The other end is gone; what it said, and its status, tell why.
            pass
        except Exception as error:  # noqa: BLE001 - raised where the job was asked for
            self.failed = error
            self.process.terminate()

    def _next_word(self) -> bytes | None:
        """A sign of life, unless there is something to say before it is time for one."""
        try:
            return self._words.get(timeout=self.beat_s)
        except queue.Empty:
            return _BEAT


def _parts(source: Source, size: int) -> Iterator[bytes]:
    """As many bytes as were announced."""
    if isinstance(source.content, bytes):
        yield source.content
        return
    with source.content.open("rb") as file:
        left = size
        while left:
            part = file.read(min(left, _CHUNK))
            if not part:
                raise UsageError(
                    f"{source.content}: became shorter while it was copied",
                    expected="a file that nobody changes",
                    way_out="Run it again.",
                )
            left -= len(part)
            yield part
