"""A job on a machine that OpenSSH reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from edgekit.remote.hosts import Host
from edgekit.remote.refusals import ssh_failure
from edgekit.remote.session import BEAT_S, SILENCE_S, Ended, Job, run


def run_over_ssh(
    host: Host,
    job: Job,
    *,
    told: Callable[[str], None],
    copied: Callable[[int, int], None] = lambda done, size: None,  # noqa: ARG005
    beat_s: float = BEAT_S,
    silence_s: int = SILENCE_S,
) -> Ended:
    """As `run`, on a host, with the interpreter that its address names.

    Raises:
        UsageError: it cannot be reached, it cannot be done there, or the line was cut.
    """
    if host.python:
        job = replace(job, pythons=(host.python,))
    return run(
        host.argv(), job, where=str(host), explain=partial(ssh_failure, host), told=told, copied=copied,
        beat_s=beat_s, silence_s=silence_s,
    )  # fmt: skip
