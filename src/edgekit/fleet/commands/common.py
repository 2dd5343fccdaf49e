"""What the commands of `edgekit fleet` share: options, the server that is asked, words for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.fleet.commands import terminal

Server = Annotated[str, typer.Option(help="Address of the server; EDGEKIT_SERVER without.")]
Json = Annotated[bool, typer.Option("--json", help="Print plain JSON to stdout, nothing else.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the fleet.")]


def client(server: str) -> Any:
    """A connection to the server that is meant; a context that closes it."""
    from edgekit.fleet.client import Client, place

    return Client(place(server))


def call(server: str, work: Any) -> None:
    """Do something with a connection, as a command."""

    def run() -> None:
        with client(server) as connection:
            work(connection)

    terminal.run(run)


def named(text: str) -> str:
    """A name that stands in an address.

    Raises:
        InvalidError: it is none.
    """
    if (
        not text
        or text[0] == "."
        or any(not (each.isascii() and (each.isalnum() or each in "._-")) for each in text)
    ):
        raise usage(f"the id {text[:80]!r}", "letters, digits and ._-")
    return text


def usage(found: str, expected: str) -> Exception:
    """An option or argument that cannot be used."""
    from edgekit.fleet.errors import InvalidError

    return InvalidError(found, expected=expected, way_out="See --help.", code="usage")


def no_version(model: str, version: str) -> Exception:
    """A version that there is not."""
    from edgekit.fleet.errors import NotFoundError

    return NotFoundError(
        f"no version {version!r} of {model!r}", expected="a version that was published",
        way_out="`edgekit fleet versions` lists them.", code="unknown",
    )  # fmt: skip


def tell_missing(missing: Any) -> None:
    """Say which signatures are still needed."""
    for each in missing:
        keys = ", ".join(name[:16] for name in each["keys"])
        terminal.say(f"{each['count']} more signature(s) of {each['role']} are needed, by any of {keys}")
