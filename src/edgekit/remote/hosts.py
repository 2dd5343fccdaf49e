"""An address of a machine, and the command that reaches it: OpenSSH's own client, with the user's configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from edgekit.errors import UsageError

CONNECT_S: Final = 15
# A connection that gives no sign of life for a minute is over.
ALIVE_S, ALIVE_TIMES = 15, 4
# Names may hold little: OpenSSH hands them to commands of the configuration (`ProxyCommand`, `Match exec`).
_NAME: Final = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]+(%[0-9A-Za-z_.-]+)?")
_PATH: Final = re.compile(r"(/[^\0-\x1f/]+)+")
_SHORT: Final = re.compile(r"(?:[^@/\s]+@)?(?:\[[^\]\s]+\]|[^:@/\s]+)(?::[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that OpenSSH reaches.

    Attributes:
        name: of the machine, or as the user's configuration of OpenSSH calls it.
        user: "" for what the configuration says.
        port: None for what the configuration says.
        python: path of the interpreter there; "" for the first of the usual ones that has what is needed.
    """

    name: str
    user: str = ""
    port: int | None = None
    python: str = ""

    def __str__(self) -> str:
        """As people write it."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        user = f"{self.user}@" if self.user else ""
        return f"{user}{name}{f':{self.port}' if self.port else ''}"

    @property
    def by_hand(self) -> str:
        """The command that a person runs to get there."""
        port = f"-p {self.port} " if self.port else ""
        return f"ssh {port}{f'{self.user}@' if self.user else ''}{self.name}"

    def argv(self) -> list[str]:
        """The command that gets there; what is to be run follows as one word.

        It never asks anything, and host keys are checked as the user's configuration says.
        """
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": str(ALIVE_S),
            "ServerAliveCountMax": str(ALIVE_TIMES),
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
            # What went wrong is told from what ssh says.
            "LogLevel": "INFO",
        }
        set_ = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        port = ["-p", str(self.port)] if self.port else []
        user = ["-l", self.user] if self.user else []
        return ["ssh", "-T", *set_, *port, *user, "--", self.name]


def read_host(text: str) -> Host:
    """Read `ssh://[user@]host[:port][/path/of/python]`, or the same without the beginning.

    Raises:
        UsageError: it is none.
    """
    given = text.removeprefix("ssh://")
    place, slash, path = given.partition("/")
    path = unquote(slash + path) if slash and path else ""
    if not _SHORT.fullmatch(place) or (path and not _PATH.fullmatch(path)):
        raise _no_host(text)
    try:
        parts = urlsplit(f"ssh://{place}")
        port = parts.port
    except ValueError:
        raise _no_host(text) from None
    # Not `hostname`, which is in lower case: names of the configuration are what they are.
    name = re.sub(r":[0-9]+\Z", "", place.rpartition("@")[2]).removeprefix("[").removesuffix("]")
    user = parts.username or ""
    known = _ADDRESS.fullmatch(name) if ":" in name else _NAME.fullmatch(name)
    if parts.password is not None or not known or port == 0 or (user and not _NAME.fullmatch(user)):
        raise _no_host(text)
    return Host(name, user, port, path)


def _no_host(text: str) -> UsageError:
    shown = re.sub(r":[^:@/]*@", ":…@", text)  # a password is nothing for a log
    return UsageError(
        f"the device {shown[:200]!r}",
        expected="ssh://user@host, ssh://user@host:port, or with a /path/of/python behind",
        way_out="Keys and other settings belong into ~/.ssh/config; passwords are never taken.",
    )
