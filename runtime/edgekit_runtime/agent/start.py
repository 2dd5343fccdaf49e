"""From the options of the command line to an agent that runs."""

from __future__ import annotations

import hashlib
import logging
import math
import platform
import re
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from edgekit_runtime.agent.fetcher import METADATA, TARGETS, Fetcher
from edgekit_runtime.agent.loop import Agent
from edgekit_runtime.agent.transport import HttpTransport
from edgekit_runtime.errors import InputError
from edgekit_runtime.labels import Labels, read_labels
from edgekit_runtime.logs import JsonLines
from edgekit_runtime.store import Store
from edgekit_runtime.strict_json import ContractError
from edgekit_runtime.trial import stage
from edgekit_runtime.trust import Trust

log = logging.getLogger(__name__)

MACHINE_ID: Final = Path("/etc/machine-id")
# A device is named in the addresses of its server.
NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


def serve(
    store: Store,
    *,
    server: str,
    device: str,
    channel: str,
    root: Path | None,
    token_file: Path | None,
    interval_s: float,
    insecure: bool,
    once: bool,
    json_logs: bool,
    labels: Labels,
    payload: bool = True,
) -> dict[str, Any]:
    """Run an agent until SIGTERM or Ctrl-C, or for one poll.

    Returns:
        What came of it.

    Raises:
        InputError: an option that cannot be used.
        StoreError: the store cannot be used, or another agent tends it.
        TrustError: the root is none, or is not the one that this device trusts.
    """
    device = _checked("device", device or device_id())
    channel = _checked("channel", channel)
    try:
        read_labels(dict(labels), "label")
    except ContractError as wrong:
        raise _bad_option("label", f"{wrong.key}: {wrong.found}", wrong.expected) from wrong
    if not 0 < interval_s < math.inf:
        raise _bad_option("interval", f"{interval_s:g}", "a number of seconds above 0")
    transport = HttpTransport(server, token=_token(token_file), insecure=insecure)
    _log(as_json=json_logs)
    store.make()
    with store.tended():
        trust = Trust(store.trust, metadata_url=METADATA, targets_url=TARGETS, fetcher=Fetcher(transport))
        if root is not None:
            trust.init(_read(root))
        agent = Agent(
            store, trust, transport, device=device, channel=channel,
            stage=stage(store, going_on=lambda: agent.going_on()),  # noqa: PLW0108 - it is not there yet
            interval_s=interval_s, about=_about(), labels=labels, payload=payload,
        )  # fmt: skip
        if once:
            polled = agent.poll()
            for error in polled.errors:
                raise error
            return {
                "store": str(store.path),
                "device": device,
                "decided": polled.said,
                "phase": store.state().phase,
            }
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: agent.stop())
        log.info("the agent begins", extra={"device": device, "server": transport.url, "channel": channel})
        agent.run()
    return {"store": str(store.path), "device": device, "decided": "stopped"}


def device_id(machine_id: Path = MACHINE_ID) -> str:
    """A name for this device that stays, and from which nobody finds out the machine-id (machine-id(5) asks for that).

    Args:
        machine_id: file of the system.

    Raises:
        InputError: the system has none.
    """
    try:
        own = machine_id.read_text("ascii").strip()
    except (OSError, ValueError):
        own = ""
    if not own:
        raise _bad_option("device", f"no {machine_id}", "an id of this device, such as kitchen-17")
    return hashlib.sha256(f"edgekit-device\0{own}".encode()).hexdigest()[:32]


def _checked(option: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise _bad_option(option, repr(value), "letters, digits and ._-, at most 128")
    return value


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    token = _read(path).decode("ascii", "replace").strip()
    if not token.isprintable() or not token or " " in token or not token.isascii():
        raise _bad_option("token-file", str(path), "a file with one line of ASCII without spaces")
    return token


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}",
            expected="a file that can be read",
            way_out="Take the one that your fleet gives out for this device.",
            code="input",
        ) from error


def _about() -> dict[str, Any]:
    return {
        "runtime": metadata.version("edgekit-runtime"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _log(*, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _bad_option(option: str, found: str, expected: str) -> InputError:
    return InputError(
        f"--{option}: {found}",
        expected=expected,
        way_out=f"Give another --{option}; `edgekit-runtime agent --help` names them all.",
        code="option",
    )
