"""`edgekit fleet init | serve | migrate | backup | restore | simulate`: what runs where the fleet lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.fleet.commands import terminal
from edgekit.fleet.commands.common import Folder, Json


def mount(app: typer.Typer) -> None:
    """Add these commands."""
    app.registered_commands += _app.registered_commands


_app = typer.Typer()


@_app.command(epilog="Example: edgekit fleet init /srv/fleet --targets-keys 3 --targets-threshold 2")
def init(
    folder: Folder,
    root_keys: Annotated[int, typer.Option(help="Keys that sign changes of keys.")] = 1,
    root_threshold: Annotated[int, typer.Option(help="Signatures that it takes.")] = 1,
    targets_keys: Annotated[int, typer.Option(help="Keys that sign versions.")] = 1,
    targets_threshold: Annotated[int, typer.Option(help="Signatures that it takes.")] = 1,
    plain_keys: Annotated[
        bool, typer.Option("--plain-keys", help="No passphrase on the offline keys; for trying out.")
    ] = False,
    database_url: Annotated[str, typer.Option(help="postgresql://…; a file in DIR without.")] = "",
    blobs_url: Annotated[str, typer.Option(help="s3://bucket/prefix or a folder; in DIR without.")] = "",
    public_url: Annotated[str, typer.Option(help="Address at which the server will be reached.")] = "",
    as_json: Json = False,
) -> None:
    """Make a fleet: keys, database, first signed metadata, and the token of the first admin."""

    def work() -> None:
        from edgekit.fleet.operations import setup
        from edgekit.fleet.trust.keys import new_passphrase

        setup.check_empty(folder)
        given = {"database_url": database_url, "blobs_url": blobs_url, "public_url": public_url}
        made = setup.init(
            folder, root_keys=root_keys, root_threshold=root_threshold, targets_keys=targets_keys,
            targets_threshold=targets_threshold, settings=given,
            passphrase=None if plain_keys else new_passphrase(folder / "keys" / "offline"),
        )  # fmt: skip
        if as_json:
            offline = [str(each) for each in made.offline]
            terminal.tell(
                {"folder": str(folder), "root": str(made.root), "offline": offline, "token": made.token}
            )
        else:
            terminal.say(made.words())

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet serve /srv/fleet --host 0.0.0.0 --processes 4")
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8080,
    processes: Annotated[int, typer.Option(help="That answer.")] = 1,
) -> None:
    """Serve a fleet until Ctrl-C; several servers may share a database."""

    def work() -> None:
        from edgekit.fleet.server.serve import serve as run

        def told(address: str) -> None:
            said = f"{folder} is served at {address}, its dashboard at {address}/dashboard"
            terminal.errors.print(said, markup=False, soft_wrap=True)

        run(folder, told=told, host=host, port=port, processes=processes)

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet migrate /srv/fleet")
def migrate(folder: Folder) -> None:
    """Bring the tables of the database to this version of edgekit; make a backup first."""

    def work() -> None:
        from edgekit.fleet.settings import Settings
        from edgekit.fleet.storage.database import Database

        settings = Settings.read(folder)
        database = Database.open(settings.database_url, create=True)
        try:
            before = database.revision()
            database.migrate()
            terminal.say(f"{database.place}: revision {before} → {database.revision()}")
        finally:
            database.close()

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet backup /srv/fleet fleet-2026-01-31.tar")
def backup(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="That is written; not there yet.")],
    keys: Annotated[bool, typer.Option("--keys", help="With the server's private keys.")] = False,
    as_json: Json = False,
) -> None:
    """Write database, blobs and settings into one file, of one moment, while the server runs."""

    def work() -> None:
        from dataclasses import asdict

        from edgekit.fleet.context import Fleet
        from edgekit.fleet.operations.backup import save

        fleet = Fleet.open(folder)
        try:
            saved = save(fleet, file, keys=keys)
        finally:
            fleet.close()
        if as_json:
            terminal.tell(asdict(saved))
            return
        terminal.say(f"{file}: {saved.rows:,} rows and {saved.blobs:,} blobs, {saved.size_bytes:,} bytes")
        terminal.say(f"end of the audit log, to be noted elsewhere: {saved.head.sequence} {saved.head.hash}")

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet restore fleet-2026-01-31.tar /srv/fleet")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="That `edgekit fleet backup` wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty.")],
    database_url: Annotated[str, typer.Option(help="Another database than before; empty.")] = "",
    blobs_url: Annotated[str, typer.Option(help="Another place for blobs than before; empty.")] = "",
    newer: Annotated[
        str,
        typer.Option(help="Where newer signed metadata may have survived: https://cdn…, a folder, s3://…."),
    ] = "",
) -> None:
    """Bring a backup into an empty place, and verify hashes and the audit log."""

    def work() -> None:
        from edgekit.fleet.operations.backup import restore as bring

        given = {"database_url": database_url, "blobs_url": blobs_url}
        found = bring(file, folder, given, newer=newer)
        terminal.say(f"{folder}: {found.rows:,} rows and {found.blobs:,} blobs, all verified")
        if found.newer is not None:
            targets = found.newer.targets or "none newer"
            terminal.say(f"from {newer}: {found.newer.roots} newer roots, targets version {targets}")
        if not (folder / "keys" / "online").is_dir():
            terminal.say(
                f"The backup has no keys: put those of the server into {folder / 'keys' / 'online'}."
            )

    terminal.run(work)


@_app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help="Try a rollout on virtual devices, on the real policy, gates and merging.",
)  # fmt: skip
def simulate(context: typer.Context) -> None:
    """Hand on to the simulation, which is imported only here."""
    from edgekit.fleet.simulate.command import command

    inner = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    inner.command(epilog="Example: edgekit fleet simulate --devices 2000 --fault slow=0.1")(command)
    inner(args=context.args, prog_name="edgekit fleet simulate")
