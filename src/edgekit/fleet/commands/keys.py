"""`edgekit fleet key | keys | rotate`: keys are made, shown, and replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.fleet.commands import terminal
from edgekit.fleet.commands.common import Json, Server, client, usage


def mount(app: typer.Typer) -> None:
    """Add these commands."""
    app.registered_commands += _app.registered_commands


_app = typer.Typer()


@_app.command(epilog="Example: edgekit fleet key targets-anna.pem")
def key(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Of the private key; the public one is beside it.")
    ],
    plain: Annotated[
        bool, typer.Option("--plain", help="No passphrase, for keys that a server signs with.")
    ] = False,
) -> None:
    """Make a key, where it will be used: its private half goes nowhere else."""

    def work() -> None:
        from edgekit.fleet.trust import keys as trust_keys

        made = trust_keys.create(file, None if plain else trust_keys.new_passphrase(file))
        terminal.say(f"{file} is private: keep a copy of it offline")
        terminal.say(f"{file.with_suffix('.pub')} is for `edgekit fleet rotate --add`: key {made.keyid}")

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet keys")
def keys(server: Server = "", as_json: Json = False) -> None:
    """Show who signs what, until when, and which of the keys the server that answers holds."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("keys")["roles"]
        if as_json:
            terminal.tell(found)
            return
        rows = []
        for each in found:
            for keyid in dict.fromkeys([*each["keys"], *each["held"]]):
                signs = "signs" if keyid in each["keys"] else "counts nothing"
                where = "server" if keyid in each["held"] else "not here"
                needed = f"{each['threshold']} of {len(each['keys'])}"
                rows.append((each["role"], needed, terminal.moment(each["expires_s"]), keyid, signs, where))
        terminal.listing(("role", "needed", "expires", "key", "", "held"), rows)

    terminal.run(work)


@_app.command(
    epilog="Example: edgekit fleet rotate timestamp snapshot rollout"
    "\n\nExample: edgekit fleet rotate targets --add anna-2.pub --remove 3f0a9c1d"
)
def rotate(
    roles: Annotated[
        list[str] | None,
        typer.Argument(metavar="ROLE…", help="root or targets; or any of timestamp, snapshot, rollout."),
    ] = None,
    add: Annotated[list[Path] | None, typer.Option("--add", help="Public key, .pub; repeatable.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Key id, or its start; repeatable.")
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="Signatures that it takes from now on.")] = None,
    lost: Annotated[
        bool,
        typer.Option("--lost", help="Too few keys of targets are left to sign: root replaces them alone."),
    ] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take back what waits.")] = False,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Propose other keys, which the owners of the offline keys sign: edgekit fleet sign.

    Of a role that the server signs, the server makes a new key that takes the place of all others.
    """

    def work() -> None:
        from edgekit.fleet.trust.keys import load_public

        for path in add or ():
            load_public(path)
        body = {
            "roles": roles or [], "add": [path.read_text() for path in add or ()], "remove": remove or [],
            "threshold": threshold, "lost": lost,
        }  # fmt: skip
        if withdraw == bool(roles):
            raise usage("a role to withdraw" if withdraw else "no role", "roles, or --withdraw alone")
        with client(server) as connection:
            if withdraw:
                connection.delete("rotation")
                terminal.say("withdrawn; nothing was changed")
                return
            found = connection.post("rotation", body)
        if as_json:
            terminal.tell(found)
            return
        for line in found["lines"]:
            terminal.say(line)
        for path in found["made"]:
            terminal.say(
                f"new on the server: {path}; before people sign, copy it to every server of this fleet"
            )
        terminal.say("waits for signatures: edgekit fleet sign --key KEY")

    terminal.run(work)
