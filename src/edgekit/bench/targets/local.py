"""Benchmarks on this machine, in a process of their own: the workbench's libraries and threads are not in it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import replace
from importlib import resources
from typing import Final

from edgekit.bench.results import Result, Spec
from edgekit.bench.targets import Told, progress_of, silent
from edgekit.errors import UsageError

NAME: Final = "local"
# What the harness has after Ctrl-C to sum up what there is.
GRACE_S: Final = 20.0


def measure(spec: Spec, *, told: Told = silent) -> Result:
    """Measure here.

    After Ctrl-C the result has what was measured by then, and says so.

    Args:
        spec: what to measure.
        told: how far it is.

    Raises:
        UsageError: the harness ended without a result.
        KeyboardInterrupt: Ctrl-C came before anything was measured, or twice.
    """
    harness = resources.files("edgekit_devices").joinpath("harness.py")
    words: deque[str] = deque(maxlen=5)
    parts: list[str] = []
    # In a session of its own it hears of Ctrl-C from here alone, and once.
    with subprocess.Popen(  # noqa: S603 - our own file, by our own interpreter
        [sys.executable, "-P", str(harness)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: parts.append(process.stdout.read()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        interrupted = False
        try:
            process.stdin.write(spec.to_json())
            process.stdin.close()
            _follow(process, told, words)
        except KeyboardInterrupt:
            interrupted = True
            _end(process, words)
        except BaseException:
            process.kill()
            raise
        reader.join()
    if process.returncode == 0 and parts:
        result = Result.from_json(parts[0], "the harness")
        if result.runs or not interrupted:
            return replace(result, device=NAME, interrupted=interrupted or result.interrupted)
    if interrupted:
        raise KeyboardInterrupt
    raise UsageError(
        f"the benchmark ended with status {process.returncode}: {' / '.join(words) or 'it said nothing'}",
        expected="a result",
        way_out="Measure the files one by one, with one thread and batch 1, to find the one that does this.",
    )


def _follow(process: subprocess.Popen[str], told: Told, words: deque[str]) -> None:
    """Pass progress on, and keep the last of what the runtimes say, until the harness is done."""
    assert process.stderr is not None
    for line in process.stderr:
        if (news := progress_of(line)) is not None:
            told(*news)
        elif line.strip():
            words.append(line.strip()[:200])


def _end(process: subprocess.Popen[str], words: deque[str]) -> None:
    """Ask for what there is, and wait for it a while."""
    process.send_signal(signal.SIGINT)
    late = threading.Timer(GRACE_S, process.kill)
    late.daemon = True
    late.start()
    try:
        _follow(process, silent, words)
        process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        late.cancel()
