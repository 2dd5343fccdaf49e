"""Tells systemd that the agent is ready and alive (sd_notify(3)); says nothing where there is no systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
ALIVE: Final = "WATCHDOG=1"


def tell_systemd(*lines: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send lines such as `READY=1` to whoever supervises this process.

    Args:
        lines: of the message.
        environment: holds the address of the supervisor.

    Returns:
        Whether somebody was told.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # An address that begins with @ lies outside of the file system; its first byte is zero.
    place = f"\0{address[1:]}" if address[0] == "@" else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as talk:
        talk.sendto("\n".join(lines).encode(), place)
        return True
    return False


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two signs of life that systemd waits for at most, None where it does not wait."""
    said, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not said.isdecimal() or not int(said) or pid not in {"", str(os.getpid())}:
        return None
    return int(said) / 1e6
