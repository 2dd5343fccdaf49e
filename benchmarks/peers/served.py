"""This side of an engine that runs in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.environments import ROOT, Environment

# Seconds that an answer may take: 10,000 predictions of a small network, or a few hundred of a large one.
PATIENCE_S = 1200


class PeerError(Exception):
    """A peer that ended or hung; the message is what it said last."""


def environ() -> dict[str, str]:
    """What the processes of peers run with: one thread each, and this checkout's benchmarks."""
    import os

    kept = {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONHOME"}}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Served:
    """A process of `engine` that answers requests.

    Args:
        environment: with the runtime.
        file: that it opens.
    """

    def __init__(self, environment: Environment, file: Path) -> None:
        self._log = file.with_suffix(".log").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [str(environment.python), "-m", "benchmarks.peers.engine", str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT, env=environ(),
        )  # fmt: skip

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """One answer.

        Raises:
            PeerError: the process ended instead, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            print(json.dumps({"do": do, **request}), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            watchdog.cancel()
        if not answer:
            raise PeerError(self._said())
        found: dict[str, Any] = json.loads(answer)
        return found

    def _said(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return (lines or [f"ended with status {status}"])[-1][:300]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()
