"""Benchmarks on a machine that OpenSSH reaches; nothing is left there."""

from __future__ import annotations

from edgekit.bench.results import MEASURED, Result, Spec
from edgekit.bench.targets import Told, silent
from edgekit.bench.targets.parcels import pack, teller, unpack
from edgekit.remote.hosts import read_host
from edgekit.remote.over_ssh import run_over_ssh


def measure(spec: Spec, url: str, *, told: Told = silent) -> Result:
    """Measure on another machine.

    Its SSH server, Python, numpy and a backend have to be there. The harness, the runtime and the files go into a fresh
    folder, which goes away however this ends. After Ctrl-C the result has what was measured by then, and says so.

    Args:
        spec: what to measure, with paths of this machine.
        url: `ssh://[user@]host[:port][/path/of/python]`.
        told: how far it is.

    Raises:
        UsageError: the machine cannot be reached, lacks something, or the line was cut.
        KeyboardInterrupt: Ctrl-C came before anything was measured, or twice.
    """
    host, job = read_host(url), pack(spec)
    line, copied = teller(job, str(host), told)
    ended = run_over_ssh(host, job, told=line, copied=copied)
    return unpack(ended, str(host), MEASURED, url)
