"""`edgekit rollout disagreements | erase-disagreements`: inputs on which two versions differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.fleet.commands import terminal
from edgekit.fleet.commands.common import Json, Server, client, usage

Id = Annotated[str, typer.Argument(help="Of the rollout; without it, the only one that is open.")]


def mount(app: typer.Typer, which: Callable[[Any, str], str]) -> None:
    """Add these commands.

    Args:
        app: `edgekit rollout`.
        which: (connection, id or "") → id of the rollout that is meant.
    """

    @app.command(epilog="Example: edgekit rollout disagreements --save inputs")
    def disagreements(
        rollout: Id = "",
        save: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Where each is written to as .npz; the log tells of it."),
        ] = None,
        limit: Annotated[int, typer.Option(help="The newest, at most.")] = 100,
        server: Server = "",
        as_json: Json = False,
    ) -> None:
        """List inputs on which the two versions differ, newest first."""

        def work() -> None:
            with client(server) as connection:
                name = which(connection, rollout)
                found = connection.get(f"rollouts/{name}/disagreements", limit=limit)["disagreements"]
                if save is not None:
                    _save(connection, found, save)
            _show(found, as_json=as_json)

        terminal.run(work)

    @app.command(
        "erase-disagreements", epilog="Example: edgekit rollout erase-disagreements 3f0a9c1d2b4e5f60"
    )
    def erase(
        rollout: Annotated[str, typer.Argument(help="Id of the rollout.")], server: Server = ""
    ) -> None:
        """Delete all inputs of a rollout, and let it ask devices for no more."""

        def work() -> None:
            with client(server) as connection:
                connection.delete(f"rollouts/{which(connection, rollout)}/disagreements")

        terminal.run(work)


def _save(connection: Any, found: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write those that are not there yet; nobody else on this machine may read them."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in found:
            path = folder / f"disagreement-{int(each['id'])}.npz"
            if path.exists():
                continue
            content = connection.content(f"disagreements/{int(each['id'])}/payload")
            path.touch(0o600)
            path.write_bytes(content)
    except OSError as error:
        raise usage(f"{folder}: {error.strerror or error}", "a folder that can be written") from error


def _show(found: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        terminal.tell(found)
        return
    rows = [
        (
            each["id"], each["device"], f"{each['live_label'] or '?'} → {each['candidate_label'] or '?'}",
            terminal.moment(each["at_s"]), f"{each['size_bytes']:,}",
        )
        for each in found
    ]  # fmt: skip
    terminal.listing(("id", "device", "live → candidate", "at", "bytes"), rows)
