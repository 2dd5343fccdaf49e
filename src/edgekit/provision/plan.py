"""What is on a device and what is wanted of it → the steps between. Pure: nothing is read and nothing done here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import UsageError

# Where an installation was cut off before it started the agent anew.
CUT_OFF: Final = "opt/edgekit/changed"
ROOM_BYTES: Final = 400 << 20
# `putenv` of systemd's EnvironmentFile knows quotes and escapes, and a comma parts labels; none of them is let in.
_LABEL: Final = re.compile(r"[\w.:/@+=-]*")


@dataclass(frozen=True, slots=True)
class Facts:
    """What `probe.py` found.

    Attributes:
        machine: system and architecture.
        python: version of the interpreter that the environment is made with.
        venv: it can make one.
        systemd: runs there.
        free_bytes: where the environment goes.
        hashes: SHA-256 of files by name, None for one that is not there.
        texts: content of those that are no secret.
        user: `edgekit` is there.
        devices: groups of accelerators.
        works: the environment has the runtime.
        there: folders of ours, and `CUT_OFF`.
        enabled: the agent starts at boot.
        active: it runs.
    """

    machine: str
    python: str
    venv: bool
    systemd: bool
    free_bytes: int
    hashes: Mapping[str, str | None]
    texts: Mapping[str, str]
    user: bool
    devices: tuple[str, ...]
    works: bool
    there: tuple[str, ...]
    enabled: bool
    active: bool

    @staticmethod
    def from_json(document: str, where: str) -> Facts:
        """Read what `probe.py` printed.

        Raises:
            UsageError: it is something else.
        """
        try:
            tree: dict[str, Any] = json.loads(document)
            return Facts(**{**tree, "devices": tuple(tree["devices"]), "there": tuple(tree["there"])})
        except (ValueError, TypeError, LookupError) as error:
            raise UsageError(
                f"{where}: the device does not say what is on it: {str(error)[:200]}",
                expected="a line of JSON",
                way_out="Run it again.",
            ) from error


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a device shall have.

    Attributes:
        server: address of the fleet.
        format: whose backend is installed.
        package: hash of the wheel and the format, as the device notes it.
        version: of the wheel.
        hashes: SHA-256 of the files that are put there, by the names of `Facts`.
        code: it enrols by a code.
        token: SHA-256 of the token that it gets, "" for none.
        labels: name to value.
        prefix: folder that everything goes below, "" for a device that runs.
    """

    server: str
    format: str
    package: str
    version: str
    hashes: Mapping[str, str]
    code: bool
    token: str
    labels: Mapping[str, str]
    prefix: str = ""

    def __post_init__(self) -> None:
        for name, value in self.labels.items():
            if not _LABEL.fullmatch(value):
                raise UsageError(
                    f"--label {name}={value}",
                    expected="a value of letters, digits and .:/@+=_-",
                    way_out="Write it so, or set it on the server: edgekit fleet device label.",
                )

    @property
    def settings(self) -> dict[str, str]:
        """Lines of agent.env that have to be there, but for the channel, which the fleet may choose."""
        found = {"EDGEKIT_SERVER": self.server, "EDGEKIT_TOKEN_FILE": "/etc/edgekit/token"}
        return {**found, "EDGEKIT_LABELS": labels_line(self.labels)} if self.labels else found


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        steps: in order; none where everything is as it is wanted.
        notes: what stays otherwise than one may expect.
    """

    steps: tuple[str, ...]
    notes: tuple[str, ...]


def labels_line(labels: Mapping[str, str]) -> str:
    """Labels as the agent reads them: `region=eu,hardware=pi4`."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def plan_install(facts: Facts, wanted: Wanted, where: str) -> Plan:
    """The steps to a device that has what is wanted.

    Args:
        facts: of the device.
        wanted: of it.
        where: the device, for messages.

    Raises:
        UsageError: it cannot have that.
    """
    _check(facts, wanted, where)
    steps = [*_steps(facts, wanted)]
    if not facts.enabled:
        steps.append("let the agent start at every boot")
    if not wanted.prefix and (steps or not facts.active or CUT_OFF in facts.there):
        steps.append("start the agent anew" if facts.active else "start the agent")
    return Plan(tuple(steps), tuple(_notes(facts, wanted)))


def plan_uninstall(facts: Facts, *, purge: bool, prefix: str = "") -> Plan:
    """The steps to a device that has nothing of edgekit, but for its models and settings unless `purge`."""
    units = [name for name in ("unit", "groups", "sysusers", "tmpfiles") if facts.hashes[name]]
    steps: list[str] = []
    notes: list[str] = []
    if facts.active:
        steps.append("stop the agent")
    if units or facts.enabled:
        steps.append("remove the unit edgekit-agent")
    if "opt/edgekit" in facts.there:
        steps.append("remove /opt/edgekit")
    kept = {"etc/edgekit": "settings, root and token", "var/lib/edgekit": "models"}
    for folder, what in kept.items():
        if folder in facts.there:
            (steps if purge else notes).append(
                f"remove /{folder}: {what}" if purge else f"/{folder} stays: {what}; --purge takes it along"
            )
    if purge and facts.user and not prefix:
        steps.append("remove the user edgekit")
    return Plan(tuple(steps), tuple(notes))


def _check(facts: Facts, wanted: Wanted, where: str) -> None:
    if not facts.machine.startswith("Linux"):
        raise _cannot(
            where, f"it is {facts.machine}", "a Linux with systemd", "Install the runtime there by hand."
        )
    if not facts.systemd and not wanted.prefix:
        way_out = "Build an image with --prefix FOLDER, or run `edgekit-runtime agent` by other means."
        raise _cannot(where, "systemd does not run there", "a device that systemd started", way_out)
    if not facts.works and not facts.venv:
        raise _cannot(
            where, "its python3 makes no virtual environments", "the modules venv and ensurepip",
            "There: sudo apt-get install python3-venv",
        )  # fmt: skip
    if not facts.works and facts.free_bytes < ROOM_BYTES:
        raise _cannot(
            where, f"{facts.free_bytes / 1e6:,.0f} MB are free in /opt", f"{ROOM_BYTES / 1e6:,.0f} MB",
            "Make room there.",
        )  # fmt: skip
    if not (wanted.code or wanted.token or facts.hashes["token"]):
        raise _cannot(
            where,
            "it is not enrolled",
            "a code or a token",
            "Give --code, from `edgekit fleet code`, or --token-file.",
        )


def _steps(facts: Facts, wanted: Wanted) -> Iterator[str]:
    if not facts.user and not wanted.prefix:
        yield "make the user edgekit"
    if not facts.works or facts.texts["package"].strip() != wanted.package:
        yield f"install edgekit-runtime {wanted.version} with its {wanted.format} backend into /opt/edgekit"
    if facts.hashes["root"] is None:
        yield "put the root.json that it trusts first"
    if wanted.token and wanted.token != facts.hashes["token"]:
        yield "replace its token" if facts.hashes["token"] else "put its token"
    elif wanted.code and facts.hashes["token"] is None:
        yield f"change the code for a token at {wanted.server}"
    if missing := [line for name, line in _lines(wanted) if name not in _settings(facts)]:
        yield f"set {', '.join(missing)} in /etc/edgekit/agent.env"
    if any(facts.hashes[name] != wanted.hashes[name] for name in ("unit", "sysusers", "tmpfiles")):
        yield "put the unit edgekit-agent, and whose files are whose"
    groups = f"[Service]\nSupplementaryGroups={' '.join(facts.devices)}" if facts.devices else ""
    if facts.texts["groups"].strip() != groups:
        yield f"let the agent use accelerators: {', '.join(facts.devices) or 'none'}"


def _notes(facts: Facts, wanted: Wanted) -> Iterator[str]:
    if facts.hashes["root"] not in (None, wanted.hashes["root"]):
        yield "root.json stays as it is; a newer one comes from the server"
    if wanted.code and facts.hashes["token"]:
        yield "it is enrolled; the code is not used"
    there = _settings(facts)
    for name, line in _lines(wanted):
        if name in there and line != f"{name}={there[name]}":
            yield f"agent.env stays as it is; write {line} there if you mean that"


def _lines(wanted: Wanted) -> list[tuple[str, str]]:
    return [(name, f"{name}={value}") for name, value in wanted.settings.items()]


def _settings(facts: Facts) -> dict[str, str]:
    lines = [line for line in facts.texts["settings"].splitlines() if not line.startswith("#")]
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}


def _cannot(where: str, what: str, expected: str, way_out: str) -> UsageError:
    return UsageError(f"{where}: {what}", expected=expected, way_out=way_out)
