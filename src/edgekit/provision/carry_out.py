"""From a device and what is wanted of it to a device that has it: look, plan, do, look again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from edgekit.errors import UsageError
from edgekit.provision.plan import Facts, Plan, Wanted, labels_line, plan_install, plan_uninstall
from edgekit.remote.hosts import Host
from edgekit.remote.over_ssh import run_over_ssh
from edgekit.remote.refusals import crashed
from edgekit.remote.session import Ended, Job, Source
from edgekit.remote.wheels import Wheel, runtime_wheel

FILES: Final[Mapping[str, str]] = {
    "unit": "edgekit-agent.service",
    "sysusers": "edgekit-sysusers.conf",
    "tmpfiles": "edgekit-tmpfiles.conf",
    "install": "install.sh",
    "enrol": "enrol.py",
}
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_ROOT_BYTES: Final = 1 << 20
# The environment that is made must not be the one that makes it.
PYTHONS: Final = ("python3",)

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What a device shall be given.

    Attributes:
        server: address of the fleet, as the device reaches it.
        root: content of the fleet's root.json.
        format: "tflite" or "onnx".
        code: for its enrolment, "" where it has a token.
        token: that it got before, "" where it has a code.
        labels: name to value.
        prefix: folder of the device that everything goes below, "" for the device itself.
    """

    server: str
    root: bytes
    format: str
    code: str
    token: str
    labels: Mapping[str, str]
    prefix: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.server)
        plain = parts.scheme == "http" and parts.hostname in LOOPBACK
        if not (plain or (parts.scheme == "https" and parts.hostname)) or not self.server.isprintable() or (
            set(self.server) & set(" \"'\\$`")
        ):  # fmt: skip
            raise UsageError(
                f"--server {self.server}",
                expected="https://…, as the device reaches it",
                way_out="Tokens travel in headers: give the fleet a certificate, see docs/operations.md.",
            )
        if self.format not in {"tflite", "onnx"}:
            raise UsageError(
                f"--format {self.format}", expected="tflite or onnx", way_out="Leave it out for tflite."
            )
        for option, secret in (("--code", self.code), ("--token-file", self.token)):
            if not (secret.isascii() and secret.isprintable()) or " " in secret or len(secret) > 256:
                raise UsageError(
                    f"{option}: no code or token",
                    expected="one line of ASCII without spaces",
                    way_out="Take it from `edgekit fleet code`.",
                )
        if not _is_root(self.root):
            raise UsageError(
                "--root: no root.json of a fleet",
                expected="signed metadata of the type root",
                way_out="Take keys/root.json of the fleet, or GET /metadata/1.root.json of its server.",
            )


def provision(host: Host, order: Order, *, dry_run: bool, told: Told) -> Plan:
    """Give a device the runtime, the agent and an enrolment; what is there already stays.

    Args:
        host: the device.
        order: what it shall have.
        dry_run: look, and do nothing.
        told: what goes on.

    Returns:
        What was done, or would be.

    Raises:
        UsageError: it cannot be reached, cannot have that, or a step failed.
    """
    wheel = runtime_wheel()
    wanted = _wanted(order, wheel)
    told("looking at what is there")
    plan = plan_install(_look(host, order.prefix), wanted, str(host))
    if dry_run or not plan.steps:
        return plan
    told("installing; minutes on a small board")
    _install(host, order, wheel, told)
    told("looking again")
    left = plan_install(_look(host, order.prefix), wanted, str(host)).steps
    if left:
        raise UsageError(
            f"{host}: it is still to be done: {'; '.join(left)}",
            expected="nothing that is left",
            way_out="Look there: journalctl -u edgekit-agent",
        )
    return plan


def uninstall(host: Host, *, purge: bool, prefix: str, dry_run: bool, told: Told) -> Plan:
    """Take from a device what `provision` gave it.

    Args:
        host: the device.
        purge: models and settings, too.
        prefix: as in `Order`.
        dry_run: look, and do nothing.
        told: what goes on.

    Returns:
        What was done, or would be.

    Raises:
        UsageError: it cannot be reached, or a step failed.
    """
    told("looking at what is there")
    plan = plan_uninstall(_look(host, prefix), purge=purge, prefix=prefix)
    if not dry_run and plan.steps:
        told("removing")
        options = ("--uninstall", *(("--purge",) if purge else ()))
        job = _script_job(prefix, "", (), options)
        _must(run_over_ssh(host, job, told=told), host, "the removal")
    return plan


def _look(host: Host, prefix: str) -> Facts:
    probe = Source("probe.py", _file("probe.py"))
    command = ("{python}", "{folder}/probe.py", *((prefix,) if prefix else ()))
    job = Job((probe,), command, root=not prefix, pythons=PYTHONS)
    ended = _must(run_over_ssh(host, job, told=_silent), host, "the look at what is there")
    return Facts.from_json(ended.out, str(host))


def _install(host: Host, order: Order, wheel: Wheel, told: Told) -> None:
    secret, option = (order.code, "--code") if order.code else (order.token, "--token")
    files = [Source(wheel.name, wheel.content), Source("root.json", order.root)]
    options = ["--server", order.server, "--root", "{folder}/root.json", "--format", order.format]
    if secret:
        # In a file that only this user reads: words of a command are for everybody.
        files.append(Source("secret", f"{secret}\n".encode()))
        options += [option, "{folder}/secret"]
    if order.labels:
        options += ["--labels", labels_line(order.labels)]
    job = _script_job(order.prefix, f"{{folder}}/{wheel.name}", tuple(files), tuple(options))
    _must(run_over_ssh(host, job, told=told), host, "the installation")


def _script_job(prefix: str, package: str, files: tuple[Source, ...], options: tuple[str, ...]) -> Job:
    """Run `install.sh`; sudo hands on no environment, so that it is given by `env`."""
    own = tuple(Source(name, _file(name)) for name in FILES.values())
    env = {"PREFIX": prefix, "PACKAGE": package, "PYTHON": "{python}"}
    return Job(
        (*own, *files),
        ("env", *(f"{name}={value}" for name, value in env.items() if value), "sh", "{folder}/install.sh", *options),
        root=not prefix,
        pythons=PYTHONS,
    )  # fmt: skip


def _wanted(order: Order, wheel: Wheel) -> Wanted:
    hashes = {name: _sha256(_file(FILES[name])) for name in ("unit", "sysusers", "tmpfiles")}
    return Wanted(
        server=order.server,
        format=order.format,
        package=f"{wheel.sha256} {order.format}",
        version=wheel.version,
        hashes={**hashes, "root": _sha256(order.root)},
        code=bool(order.code),
        token=_sha256(f"{order.token}\n".encode()) if order.token else "",
        labels=order.labels,
        prefix=order.prefix,
    )


def _must(ended: Ended, host: Host, what: str) -> Ended:
    if ended.status != 0:
        raise crashed(str(host), what, ended.status, ended.lines)
    return ended


def _is_root(content: bytes) -> bool:
    try:
        tree: Any = json.loads(content[: MAX_ROOT_BYTES + 1])
        return bool(tree["signed"]["_type"] == "root")
    except (ValueError, LookupError, TypeError):
        return False


def _file(name: str) -> bytes:
    return resources.files("edgekit_devices").joinpath("provision", name).read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _silent(_: str) -> None:
    pass


def read_secret(path: Path) -> str:
    """The one line of a file.

    Raises:
        UsageError: it cannot be read, or is more than a token.
    """
    try:
        with path.open("rb") as file:
            return file.read(1 << 12).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: {getattr(error, 'strerror', None) or 'no line of ASCII'}",
            expected="a file with the token of this device",
            way_out="Take it from where the device got it, or enrol it anew with --code.",
        ) from error
