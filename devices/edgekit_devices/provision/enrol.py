"""Changes an enrolment code into the token of this device: `python enrol.py --server URL --token FILE < CODE`.

It prints the channel that the fleet gives the device. Needs `edgekit-runtime` with what its agent needs. Neither the
code nor the token are ever words of a command, which anybody on the device may read.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from edgekit_runtime.agent.start import device_id
from edgekit_runtime.agent.transport import CONNECT_S, LOOPBACK, READ_S
from edgekit_runtime.errors import DeviceError, InputError, NetworkError

MAX_ANSWER_BYTES = 64 << 10


def main(arguments: Sequence[str]) -> int:
    """Enrol; returns the exit status."""
    parser = argparse.ArgumentParser(description="Change a code on standard input into a token.")
    parser.add_argument("--server", required=True, help="address of the fleet")
    parser.add_argument("--token", type=Path, required=True, help="file that is made; mode 400")
    parser.add_argument("--owner", default="", help="user whose file it is, where there is such a one")
    parser.add_argument(
        "--device", default="", help="id of this device; by default made from /etc/machine-id"
    )
    options = parser.parse_args(arguments)
    # Written before anything is asked: a code that is used up and a disk that is full would leave a device without.
    new = options.token.with_name(options.token.name + ".new")
    try:
        new.unlink(missing_ok=True)
        handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(" " * 4096)
            file.flush()
            os.fsync(handle)
            answer = ask(options.server, sys.stdin.read().strip(), options.device or device_id())
            file.seek(0)
            file.write(f"{answer['token']}\n")
            file.truncate()
            file.flush()
            os.fsync(handle)
        if options.owner:
            shutil.chown(new, options.owner, options.owner)
        new.chmod(0o400)
        new.replace(options.token)
    except (DeviceError, OSError, LookupError) as error:
        print(f"enrol: {error}", file=sys.stderr)
        return 2
    finally:
        new.unlink(missing_ok=True)
    print(answer["channel"])
    return 0


def ask(server: str, code: str, device: str) -> dict[str, Any]:
    """Enrol at the server.

    Args:
        server: address of the fleet.
        code: that an operator made.
        device: id.

    Returns:
        Its answer: "token", "channel", "labels".

    Raises:
        InputError: no such address.
        NetworkError: no answer, or one that says no.
    """
    parts = urlsplit(server)
    if parts.scheme not in {"http", "https"} or (parts.scheme == "http" and parts.hostname not in LOOPBACK):
        raise InputError(
            f"--server {server}",
            expected="https://…",
            way_out="Give it as the fleet names it.",
            code="server",
        )
    try:
        # Nothing is followed: the code is for this server alone.
        response = urllib3.PoolManager(retries=False).request(
            "POST", f"{server.rstrip('/')}/v1/enrol", json={"code": code, "device": device}, redirect=False,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S), preload_content=False,
        )  # fmt: skip
        body = response.read(MAX_ANSWER_BYTES)
        response.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _no_answer(
            server, str(error)[:300], "Is the server up, and can this device reach it?"
        ) from error
    try:
        tree = json.loads(body)
        if response.status == 200:
            return {"token": str(tree["token"]), "channel": str(tree["channel"])}
        raise _no_answer(server, str(tree["what"]), str(tree["way_out"]))
    except (ValueError, LookupError, TypeError) as error:
        found = f"status {response.status}, and no answer of a fleet"
        raise _no_answer(server, found, "Give the address of the fleet's server itself.") from error


def _no_answer(server: str, what: str, way_out: str) -> NetworkError:
    return NetworkError(f"{server}: {what}", expected="a token", way_out=way_out, code="enrol")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
