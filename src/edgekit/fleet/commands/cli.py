"""`edgekit publish`, `edgekit rollout …` and `edgekit fleet …`: options to calls of the client; the work is elsewhere.

Nothing heavy is imported before a command runs, so that `edgekit compress` starts as fast as before.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edgekit.fleet.commands import disagreements as inputs
from edgekit.fleet.commands import planning, terminal
from edgekit.fleet.commands.common import Json, Server, tell_missing
from edgekit.fleet.commands.common import client as _client
from edgekit.fleet.commands.fleet import app as fleet_app

rollout_app = typer.Typer(help="Bring a version to devices, stage by stage.", no_args_is_help=True)

planning.mount(rollout_app)

Id = Annotated[str, typer.Argument(help="Of the rollout; without it, the only one that is open.")]
Why = Annotated[str, typer.Option(help="For the log.")]
# Between two looks of `watch`.
EVERY_S: Final = 2.0


def mount(app: typer.Typer) -> None:
    """Add the commands of the fleet to `edgekit`."""
    app.command(
        epilog="Example: edgekit publish digits-edge --model digits --version 1.2.0 --key targets-1.pem"
    )(publish)
    app.add_typer(rollout_app, name="rollout")
    app.add_typer(fleet_app, name="fleet")


def publish(
    bundle: Annotated[Path, typer.Argument(help="Directory that `edgekit compress` wrote.")],
    model: Annotated[str, typer.Option(help="Name of the model; as in the bundle without.")] = "",
    version: Annotated[str, typer.Option(help="Its version; as in the bundle without.")] = "",
    key: Annotated[
        list[Path] | None, typer.Option(help="Private key of targets to sign with; repeatable.")
    ] = None,
    parent: Annotated[str, typer.Option(help="Version that it was made from.")] = "",
    notes: Annotated[str, typer.Option(help="For people.")] = "",
    root: Annotated[
        Path | None,
        typer.Option(help="root.json that you trust: nothing is signed that it does not lead to."),
    ] = None,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Upload a bundle, propose it as a version, and sign it with the keys that are here."""

    def work() -> int:
        from edgekit.fleet.client import Client, place
        from edgekit.fleet.commands import publishing
        from edgekit.fleet.trust.keys import load

        prepared = publishing.prepare(bundle, model, version)
        signers = [load(each) for each in key or ()]
        with Client(place(server)) as client, _uploading() as progress:
            found = publishing.publish(
                client, prepared, parent=parent, notes=notes, signers=signers, progress=progress,
                first_root=root.read_bytes() if root else None,
            )  # fmt: skip
        if as_json:
            terminal.tell(found.to_tree())
            return terminal.OK
        named = f"{found.version['model']} {found.version['version']}"
        terminal.say(
            f"{named} is {found.version['state']}, id {found.version['id']}, {found.sent_bytes:,} bytes sent"
        )
        tell_missing(found.missing)
        if found.missing:
            terminal.say("Their owners run: edgekit fleet sign --key KEY")
        return terminal.OK

    terminal.run(work)


@rollout_app.command(
    epilog="Example: edgekit rollout create --model digits --version 1.2.0 --stages 1,10,50,100 "
    "--cohort 'region == \"eu\"' --mode shadow"
)
def create(
    model: Annotated[str, typer.Option(help="Name of the model.")],
    version: Annotated[str, typer.Option(help="Of the model; enough keys have signed it.")],
    stages: Annotated[str, typer.Option(help="Percent of the cohort, rising.")] = "1,10,50,100",
    cohort: Annotated[str, typer.Option(help="Expression over labels; everybody without.")] = "",
    mode: Annotated[str, typer.Option(help="shadow, canary or ab.")] = "shadow",
    channel: Annotated[str, typer.Option(help="That devices follow.")] = "stable",
    soak: Annotated[str, typer.Option(metavar="TIME", help="That each step takes at least.")] = "1h",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Without a verdict, before a person is asked.")
    ] = "7d",
    patience: Annotated[
        str, typer.Option(metavar="TIME", help="Of silence that counts as a failure.")
    ] = "1d",
    first_devices: Annotated[
        int, typer.Option(help="That get it first in each step; 0 for all at once.")
    ] = 100,
    disagreements: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Inputs of a window on which the two differ that each device may send; "
            "fleet.toml has to let the server take some.",
        ),
    ] = 0,
    agreement: Annotated[float | None, typer.Option(help="Mean share of the same answers, at least.")] = None,
    errors: Annotated[float | None, typer.Option(help="Mean share of inputs that fail, at most.")] = None,
    nans: Annotated[float | None, typer.Option(help="Mean share of answers with NaN, at most.")] = None,
    latency_ratio: Annotated[float | None, typer.Option(help="Of the medians, at most.")] = None,
    failures: Annotated[float | None, typer.Option(help="Share of devices that fail, at most.")] = None,
    drift: Annotated[float | None, typer.Option(help="Population stability index, at most.")] = None,
    min_devices: Annotated[int | None, typer.Option(help="That have to show enough.")] = None,
    min_samples: Annotated[int | None, typer.Option(help="Predictions of a device that are enough.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Chance to stop a version that is good.")] = None,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Begin a rollout; its gates open one stage after the other, or stop it."""

    def work() -> None:
        limits = {
            "agreement": agreement, "errors": errors, "nans": nans, "latency_ratio": latency_ratio,
            "failures": failures, "drift": drift, "devices": min_devices, "samples": min_samples, "alpha": alpha,
        }  # fmt: skip
        body = {
            "model": model, "version": version, "channel": channel, "stages": terminal.percents(stages), "mode": mode,
            "cohort": cohort, "soak_s": terminal.seconds(soak), "timeout_s": terminal.seconds(timeout),
            "patience_s": terminal.seconds(patience), "first_devices": first_devices,
            "disagreements": disagreements,
            "limits": {name: value for name, value in limits.items() if value is not None},
        }  # fmt: skip
        with _client(server) as client:
            made = client.post("rollouts", body)
        for each in made["warnings"]:
            terminal.errors.print(f"warning: {each}", style="yellow", markup=False, soft_wrap=True)
        _show(made, as_json)

    terminal.run(work)


@rollout_app.command("list", epilog="Example: edgekit rollout list --model digits")
def listed(
    model: Annotated[str, typer.Option(help="Of this model only.")] = "",
    only_open: Annotated[bool, typer.Option("--open", help="Those that are not over.")] = False,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """List rollouts, newest first."""

    def work() -> None:
        with _client(server) as client:
            found = client.get("rollouts", model=model, open=str(only_open).lower())["rollouts"]
        if as_json:
            terminal.tell(found)
            return
        terminal.listing(
            ("id", "model", "version", "channel", "state", "stage", "begun", "why"),
            [
                (
                    each["id"], each["model"], each["version"], each["channel"], each["state"],
                    f"{each['plan']['stages'][each['stage']]:g}% {each['phase']}",
                    terminal.moment(each["created_s"]), each["why"],
                )
                for each in found
            ],
        )  # fmt: skip

    terminal.run(work)


@rollout_app.command(epilog="Example: edgekit rollout status")
def status(rollout: Id = "", server: Server = "", as_json: Json = False) -> None:
    """Show a rollout and what its gates said last."""

    def work() -> None:
        with _client(server) as client:
            _show(client.get(f"rollouts/{_which(client, rollout)}"), as_json)

    terminal.run(work)


@rollout_app.command(epilog="Example: edgekit rollout watch")
def watch(rollout: Id = "", server: Server = "", as_json: Json = False) -> None:
    """Watch a rollout until it is over; exit code 3 where it was stopped."""

    def work() -> int:
        from rich.live import Live

        console = terminal.out()
        live = Live(console=console, auto_refresh=False) if not as_json and console.is_terminal else None
        with _client(server) as client, live or nullcontext():
            name, before = _which(client, rollout), None
            while True:
                found = client.get(f"rollouts/{name}")
                if live is not None:
                    live.update(terminal.rollout_view(found), refresh=True)
                elif found != before:
                    terminal.tell(found, line=True) if as_json else terminal.out().print(
                        terminal.rollout_view(found)
                    )
                if found["state"] not in {"running", "paused", "held"}:
                    return terminal.OK if found["state"] == "completed" else terminal.MISSED
                before = found
                time.sleep(EVERY_S)

    terminal.run(work)


def _word(word: str, says: str) -> None:
    def said(rollout: Id = "", why: Why = "", server: Server = "", as_json: Json = False) -> None:
        def work() -> None:
            with _client(server) as client:
                _show(client.post(f"rollouts/{_which(client, rollout)}/{word}", {"why": why}), as_json)

        terminal.run(work)

    rollout_app.command(word, help=says, epilog=f"Example: edgekit rollout {word} --why 'as agreed'")(said)


_word("pause", "Take no further step; devices that have the version keep it, unless a gate fails.")
_word("resume", "Go on after a pause, or where no verdict came in time.")
_word("promote", "Take the next step without waiting for the gates.")
_word("abort", "End it; devices return to what the channel is settled on.")


@rollout_app.command(epilog="Example: edgekit rollout rollback --channel stable --why 'wrong labels'")
def rollback(
    channel: Annotated[str, typer.Option(help="To take back.")] = "stable",
    to: Annotated[str, typer.Option(help="Version to return to; the one before without.")] = "",
    why: Why = "",
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Take devices back: abort what is open on a channel, else settle it on the version before."""

    def work() -> None:
        with _client(server) as client:
            opened = [
                each for each in client.get("rollouts", open="true")["rollouts"] if each["channel"] == channel
            ]
            if opened and not to:
                _show(
                    client.post(f"rollouts/{opened[0]['id']}/abort", {"why": why or "rolled back"}), as_json
                )
                return
            target = _target(client, channel, to)
            client.post(
                f"channels/{channel}/settle",
                {"release": target["release"], "cohort": target["cohort"], "why": why or "rolled back"},
            )
        if as_json:
            terminal.tell(target)
        else:
            terminal.say(f"{channel} is settled on {target['version']} again")

    terminal.run(work)


def _target(client: Any, channel: str, to: str) -> dict[str, Any]:
    """What a channel returns to: a version by name, else what its last completed rollout came in place of."""
    from edgekit.fleet.errors import NotFoundError

    known = next((each for each in client.get("channels")["channels"] if each["name"] == channel), None)
    if known is None:
        raise NotFoundError(
            f"no channel {channel!r}", expected="a channel that had a rollout",
            way_out="`edgekit rollout list` shows them.", code="unknown",
        )  # fmt: skip
    if to:
        found = client.get("versions", model=known["model"], version=to)["versions"]
        if found:
            return {"release": found[0]["id"], "version": to, "cohort": ""}
        raise NotFoundError(
            f"no version {to!r} of {known['model']}", expected="a version that was published",
            way_out="`edgekit fleet versions` lists them.", code="unknown",
        )  # fmt: skip
    now = {each["release"] for each in known["settled"]}
    for each in client.get("rollouts", model=known["model"], limit=500)["rollouts"]:
        if (
            each["state"] == "completed"
            and each["channel"] == channel
            and each["release"] in now
            and each["baseline"]
        ):
            before = client.get(f"versions/{each['baseline']}")
            return {"release": before["id"], "version": before["version"], "cohort": each["plan"]["cohort"]}
    raise NotFoundError(
        f"{channel} had no version before", expected="a rollout that completed over an earlier version",
        way_out="Name a version with --to.", code="no_before",
    )  # fmt: skip


def _which(client: Any, rollout: str) -> str:
    """The rollout that is meant."""
    from edgekit.fleet.errors import InvalidError

    if rollout:
        # It stands in an address.
        if rollout.isalnum() and rollout.isascii():
            return rollout
        raise InvalidError(
            f"the rollout {rollout[:64]!r}", expected="an id, as `edgekit rollout list` shows it",
            way_out="Correct it.", code="unknown",
        )  # fmt: skip
    found = client.get("rollouts", open="true")["rollouts"]
    if len(found) != 1:
        raise InvalidError(
            f"{len(found)} rollouts are open" if found else "no rollout is open", expected="one, or its id",
            way_out="`edgekit rollout list` shows their ids.", code="unknown",
        )  # fmt: skip
    return str(found[0]["id"])


inputs.mount(rollout_app, _which)


def _show(rollout: dict[str, Any], as_json: bool) -> None:
    if as_json:
        terminal.tell(rollout)
    else:
        terminal.out().print(terminal.rollout_view(rollout))


class _uploading:  # noqa: N801 - a context, used like a function
    """Progress of an upload on a terminal, nothing elsewhere."""

    def __enter__(self) -> Any:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("upload"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(
            *columns, console=terminal.errors, transient=True, disable=not terminal.errors.is_terminal
        )
        self._bar.start()
        task = self._bar.add_task("", total=None)
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
