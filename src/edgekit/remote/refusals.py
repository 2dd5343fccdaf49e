"""What went wrong on the way to a machine, or there → an error that says the way out. Nothing here does any I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from edgekit.errors import UsageError
from edgekit.remote.hosts import CONNECT_S, Host

# Module that is imported → distribution that brings it.
DISTRIBUTIONS: Final[Mapping[str, str]] = {
    "ai_edge_litert": "ai-edge-litert",
    "onnxruntime": "onnxruntime",
    "tflite_runtime": "tflite-runtime",
    "numpy": "numpy",
}
_SHOWN: Final = 12


def refused(event: Mapping[str, Any], where: str, needs: Sequence[Sequence[str]]) -> UsageError:
    """The error for what the other end refuses.

    Args:
        event: of the supervisor.
        where: the machine.
        needs: modules of the job.
    """
    return _REFUSALS[event["refused"]](event, where, needs)


def _python(_: Mapping[str, Any], where: str, __: object) -> UsageError:
    return UsageError(
        f"{where}: there is no python3",
        expected="Python 3.10 or newer, in the PATH of a session without a terminal",
        way_out="sudo apt-get install python3; or name another: ssh://user@host/path/of/python",
    )


def _old(event: Mapping[str, Any], where: str, _: object) -> UsageError:
    version = ".".join(map(str, event["version"]))
    return UsageError(
        f"{where}: {event['python']} is Python {version}",
        expected="Python 3.10 or newer",
        way_out="Install a newer one beside it, and name it: ssh://user@host/path/of/python",
    )


def _modules(event: Mapping[str, Any], where: str, needs: Sequence[Sequence[str]]) -> UsageError:
    missing = [" or ".join(each) for each in event["missing"]]
    wanted = " ".join(DISTRIBUTIONS.get(each[0], each[0]) for each in needs)
    python = str(event["python"])
    # A system's own interpreter takes no packages from pip (PEP 668); a folder of one's own does on every system.
    line = (
        f"{python} -m pip install {wanted}"
        if event["venv"]
        else f"python3 -m venv ~/edgekit && ~/edgekit/bin/pip install {wanted}"
    )
    return UsageError(
        f"{where}: {python} has no {', no '.join(missing)}",
        expected=f"a Python with {wanted}",
        way_out=f"There: {line}",
    )


def _room(event: Mapping[str, Any], where: str, _: object) -> UsageError:
    looked = "; ".join(
        f"{place}: {_mb(free)} free" if isinstance(free, int) else f"{place}: {free}"
        for place, free in event["places"].items()
    )
    return UsageError(
        f"{where}: no room for what is copied ({looked})",
        expected=f"{_mb(event['size_bytes'])} for the time of the run",
        way_out="Make room there, or set TMPDIR to a folder on another disk. Nothing was left.",
    )


def _root(event: Mapping[str, Any], where: str, _: object) -> UsageError:
    return UsageError(
        f"{where}: this user may not become root: {event['what']}",
        expected="root, or a user whose sudo asks for no password",
        way_out="Give root@host, or let sudo do so: a line `USER ALL=(ALL) NOPASSWD: ALL` below /etc/sudoers.d.",
    )


def _folder(event: Mapping[str, Any], where: str, _: object) -> UsageError:
    return UsageError(
        f"{where}: {event['what']}",
        expected="a folder for temporary files, and commands that can be started",
        way_out="Mend that there, and run it again. Nothing was left.",
    )


_REFUSALS: Final[Mapping[str, Callable[[Mapping[str, Any], str, Sequence[Sequence[str]]], UsageError]]] = {
    "python": _python,
    "old": _old,
    "modules": _modules,
    "room": _room,
    "root": _root,
    "folder": _folder,
}


def no_program(name: str, error: OSError) -> UsageError:
    """A command of this machine that cannot be started."""
    return UsageError(
        f"{name}: {error.strerror}",
        expected="OpenSSH's client" if name == "ssh" else "a command that can be started",
        way_out="Debian: apt-get install openssh-client" if name == "ssh" else "Install it.",
    )


def left(where: str, folder: str) -> UsageError:
    """A folder of the other machine that could not be removed."""
    return UsageError(
        f"{where}: {folder} could not be removed",
        expected="a folder that nobody else writes to",
        way_out=f"Remove it there: rm -rf {folder}",
    )


def crashed(where: str, what: str, status: int, lines: Sequence[str]) -> UsageError:
    """A command that ended as it should not.

    Args:
        where: it ran.
        what: it is.
        status: of it; below 0 the signal that ended it.
        lines: the last that it said.
    """
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    memory = " Signal 9 is mostly the system's, for want of memory." if status in (-9, 137) else ""
    said = "".join(f"\n    {line}" for line in lines[-_SHOWN:])
    return UsageError(
        f"{where}: {what} {ended}{':' if said else ''}{said}",
        expected="status 0",
        way_out=f"The last line above says why.{memory} Nothing was left there."
        if said
        else f"Run it again.{memory}",
    )


def ssh_failure(host: Host, status: int, lines: Sequence[str], doing: str) -> UsageError:
    """The error for an end of OpenSSH's client before the end of the job.

    Args:
        host: that was to be reached.
        status: of the client.
        lines: the last that it said; `LC_ALL` was C.
        doing: "connecting", "copying" or "running".
    """
    said = "\n".join(lines)
    if doing == "connecting":
        for pattern, explain in _CONNECTING:
            if re.search(pattern, said):
                return explain(host, said)
        if status not in (0, 255):
            return UsageError(
                f"{host}: no shell of POSIX answers there{_quoted(lines)}",
                expected="Linux, or another system with sh and Python",
                way_out=f"Look what `{host.by_hand} sh -c true` says.",
            )
        return UsageError(
            f"{host}: no connection{_quoted(lines)}",
            expected="a server of SSH that lets this user in",
            way_out=f"Look what `{host.by_hand}` says.",
        )
    return UsageError(
        f"{host}: the line was cut while {doing}{_quoted(lines)}",
        expected="a connection that lasts until the end",
        way_out="Run it again. What was there removes itself when the line is cut, at the latest after a minute.",
    )


def _unknown(host: Host, said: str) -> UsageError:
    found = re.search(r"Could not resolve hostname .*", said)
    return UsageError(
        f"{host}: {found[0] if found else 'unknown host'}",
        expected="a name that this machine or ~/.ssh/config knows",
        way_out="Look for a slip in the name, or give the address.",
    )


def _refuses(host: Host, _: str) -> UsageError:
    return UsageError(
        f"{host}: the connection is refused",
        expected=f"a server of SSH on port {host.port or 22}",
        way_out="Switch it on there (Raspberry Pi: sudo raspi-config nonint do_ssh 0), or give its port.",
    )


def _silent(host: Host, _: str) -> UsageError:
    return UsageError(
        f"{host}: no answer in {CONNECT_S} s",
        expected="a machine that is on and can be reached from here",
        way_out="Is it on, in this network, and let through by firewalls?",
    )


def _no_route(host: Host, said: str) -> UsageError:
    found = re.search(r"No route to host|Network is unreachable", said)
    return UsageError(
        f"{host}: {found[0] if found else 'no way there'}",
        expected="a machine that can be reached from here",
        way_out="Is it on, and in this network?",
    )


def _changed(host: Host, said: str) -> UsageError:
    found = re.search(r"Offending (\S+) key in (.+):([0-9]+)", said)
    line = f"; the other one is in {found[2]}, line {found[3]}" if found else ""
    name = f"[{host.name}]:{host.port}" if host.port and host.port != 22 else host.name
    file = f" -f {found[2]}" if found else ""
    return UsageError(
        f"{host}: it has another host key than the one that is known{line}",
        expected="the key that was known, or somebody listens in",
        way_out=f"If it was set up anew: ssh-keygen -R '{name}'{file}, and compare the fingerprint at "
        f"`{host.by_hand}`.",
    )


def _unknown_key(host: Host, _: str) -> UsageError:
    return UsageError(
        f"{host}: its host key is not known",
        expected="a key in known_hosts",
        way_out=f"Run `{host.by_hand}` once, and compare the fingerprint with the device's own.",
    )


def _denied(host: Host, said: str) -> UsageError:
    found = re.search(r"Permission denied \(.*\)|Too many authentication failures", said)
    return UsageError(
        f"{host}: {found[0] if found else 'not let in'}",
        expected="a key that lets this user in without a question",
        way_out=f"{host.by_hand.replace('ssh', 'ssh-copy-id', 1)}; ssh-add where the key has a passphrase.",
    )


def _settings(host: Host, said: str) -> UsageError:
    found = re.search(r".*(?:Bad owner or permissions|Bad configuration option|terminating, \d+ bad).*", said)
    return UsageError(
        f"{host}: {found[0] if found else 'a wrong setting of OpenSSH'}",
        expected="a configuration that OpenSSH reads",
        way_out="Correct ~/.ssh/config.",
    )


_CONNECTING: Final[tuple[tuple[str, Callable[[Host, str], UsageError]], ...]] = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", _changed),
    (r"Host key verification failed", _unknown_key),
    (r"Could not resolve hostname", _unknown),
    (r"Connection refused", _refuses),
    (r"[Tt]imed out", _silent),
    (r"No route to host|Network is unreachable", _no_route),
    (r"Permission denied|Too many authentication failures", _denied),
    (r"Bad owner or permissions|Bad configuration option|bad configuration options", _settings),
)


def _quoted(lines: Sequence[str]) -> str:
    return f": {lines[-1]}" if lines else ""


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
