"""`edgekit fleet versions | retire | pending | sign | submit`: what devices may run, and who signs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.fleet.commands import terminal
from edgekit.fleet.commands.common import Json, Server, client, no_version, tell_missing, usage

Keys = Annotated[list[Path] | None, typer.Option("--key", help="Private key; repeatable.")]
Root = Annotated[
    Path | None, typer.Option(help="root.json that you trust: nothing is signed that it does not lead to.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Sign without a question.")]


def mount(app: typer.Typer) -> None:
    """Add these commands."""
    app.registered_commands += _app.registered_commands


_app = typer.Typer()


@_app.command(epilog="Example: edgekit fleet versions --model digits")
def versions(
    model: Annotated[str, typer.Option(help="Of this model only.")] = "",
    server: Server = "",
    as_json: Json = False,
) -> None:
    """List versions, newest first."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("versions", model=model)["versions"]
        if as_json:
            terminal.tell(found)
            return
        columns = ("model", "version", "state", "formats", "bytes", "published", "by", "id")
        rows = [
            (
                each["model"], each["version"], each["state"], ", ".join(sorted(each["formats"])),
                f"{each['size_bytes']:,}", terminal.moment(each["published_s"]), each["published_by"], each["id"][:16],
            )
            for each in found
        ]  # fmt: skip
        terminal.listing(columns, rows)

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet retire digits 1.1.0 --why 'labels of the wrong plant'")
def retire(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str, typer.Argument(help="That no device shall take any more.")],
    why: Annotated[str, typer.Option(help="For the log.")] = "",
    server: Server = "",
) -> None:
    """Let no device take a version any more, once keys of targets signed that."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("versions", model=model, version=version)["versions"]
            if not found:
                raise no_version(model, version)
            connection.post(f"versions/{found[0]['id']}/retire", {"why": why})
        terminal.say(
            f"{model} {version} is retired; devices hear of it once it is signed: edgekit fleet sign --key KEY"
        )

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet pending -o change.json")
def pending(
    file: Annotated[
        Path | None, typer.Option("-o", "--out", help="To carry it to a machine that is offline.")
    ] = None,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Show what waits for signatures."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("targets/pending")
        if as_json:
            terminal.tell(found)
        elif found is None:
            terminal.say("nothing waits for signatures")
        else:
            for line in found["lines"]:
                terminal.say(line)
            tell_missing(found["missing"])
        if found is not None and file is not None:
            _write(file, found["document"].encode())

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet sign change.json --key targets-1.pem --root root.json")
def sign(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Of `pending`; the server's own without.")
    ] = None,
    key: Keys = None,
    root: Root = None,
    yes: Yes = False,
    server: Server = "",
) -> None:
    """Show what waits and sign it: in FILE, where this machine is offline, else on the server."""

    def work() -> None:
        from edgekit.fleet.commands import publishing
        from edgekit.fleet.trust.keys import load

        if not key:
            raise usage("no key", "--key KEY, once for each")
        signers = [load(each) for each in key]
        first_root = root.read_bytes() if root else None
        if file is not None:
            _sign_file(file, signers, first_root, yes)
            return
        with client(server) as connection:
            missing = publishing.sign_waiting(
                connection, signers, first_root=first_root, show=lambda lines: _ask(list(lines), yes)
            )
        terminal.say("published" if not missing else "signed")
        tell_missing(missing)

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet submit change.json")
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="That was signed.")], server: Server = ""
) -> None:
    """Bring a file that was signed back to the server."""

    def work() -> None:
        document = _read(file).decode(errors="replace")
        with client(server) as connection:
            found = connection.post("targets", {"document": document})
        terminal.say("published" if found["published"] else "taken")
        tell_missing(found["missing"])

    terminal.run(work)


def _sign_file(file: Path, signers: list[Any], first_root: bytes | None, yes: bool) -> None:
    from datetime import UTC, datetime

    from edgekit.fleet.trust import pending as proposals
    from edgekit.fleet.trust.pending import Pending

    found = Pending.from_bytes(_read(file))
    now = datetime.now(UTC)
    proposals.check(found, now, first_root)
    _ask(list(proposals.describe(found)), yes)
    for signer in signers:
        found = proposals.sign(found, signer, now, first_root=first_root)
    # A cut leaves the file as it was.
    new = file.with_name(f".{file.name}.new")
    _write(new, found.to_bytes())
    new.replace(file)
    missing = [
        {"role": each.role, "count": each.count, "keys": each.keys} for each in proposals.missing(found)
    ]
    terminal.say(f"{file} is signed" + ("" if missing else "; bring it to the server: edgekit fleet submit"))
    tell_missing(missing)


def _ask(lines: list[str], yes: bool) -> None:
    for line in lines:
        terminal.say(line)
    if not yes and not typer.confirm("Sign this?", err=True):
        raise usage("not signed", "a yes, or --yes")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise usage(f"{file}: {error.strerror}", "a file of `edgekit fleet pending`") from error


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise usage(f"{file}: {error.strerror}", "a file that can be written") from error
