"""`edgekit fleet code | devices | device | token | audit | webhook`: who is in the fleet, and what they did."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgekit.fleet.commands import terminal
from edgekit.fleet.commands.common import Json, Server, call, client, named

tokens_app = typer.Typer(help="Tokens of people and programs.", no_args_is_help=True)
audit_app = typer.Typer(help="Who did what.", no_args_is_help=True)
webhooks_app = typer.Typer(help="Tell decisions to addresses outside.", no_args_is_help=True)
device_app = typer.Typer(help="Change one device.", no_args_is_help=True)
_app = typer.Typer()

Device = Annotated[str, typer.Argument(help="Id of the device.")]


def mount(app: typer.Typer) -> None:
    """Add these commands."""
    app.registered_commands += _app.registered_commands
    groups = {"device": device_app, "token": tokens_app, "audit": audit_app, "webhook": webhooks_app}
    for name, group in groups.items():
        app.add_typer(group, name=name)


@_app.command(epilog="Example: edgekit fleet code --label region=eu --label site=hamburg --count 20")
def code(
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the device; repeatable.")
    ] = None,
    channel: Annotated[str, typer.Option(help="That it follows.")] = "stable",
    valid: Annotated[str, typer.Option(metavar="TIME", help="Until the code expires.")] = "1d",
    count: Annotated[int, typer.Option(help="One for each device.")] = 1,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Make enrolment codes, each good for one device, once."""

    def work() -> None:
        body = {
            "labels": terminal.pairs(label or ()), "channel": channel, "seconds": terminal.seconds(valid),
            "count": count,
        }  # fmt: skip
        with client(server) as connection:
            found = connection.post("codes", body)["codes"]
        if as_json:
            terminal.tell(found)
        else:
            for each in found:
                typer.echo(each["code"])

    terminal.run(work)


@_app.command(epilog="Example: edgekit fleet devices --cohort 'region == \"eu\"'")
def devices(
    search: Annotated[str, typer.Option(help="Part of the id.")] = "",
    cohort: Annotated[str, typer.Option(help="Expression over labels.")] = "",
    channel: Annotated[str, typer.Option(help="That they follow.")] = "",
    limit: Annotated[int, typer.Option(help="At most.")] = 50,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """List devices by id."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("devices", search=search, cohort=cohort, channel=channel, limit=limit)[
                "devices"
            ]
        if as_json:
            terminal.tell(found)
            return
        rows = [
            (
                each["id"], each["channel"], ", ".join(f"{k}={v}" for k, v in sorted(each["labels"].items())),
                each["live"][:16], each["phase"], terminal.moment(each["seen_s"]), "revoked" if each["revoked"] else "",
            )
            for each in found
        ]  # fmt: skip
        terminal.listing(("id", "channel", "labels", "live", "phase", "seen", ""), rows)

    terminal.run(work)


@device_app.command(epilog="Example: edgekit fleet device show kiln-7")
def show(device: Device, server: Server = "") -> None:
    """Show all that is known of a device."""
    call(server, lambda connection: terminal.tell(connection.get(f"devices/{named(device)}")))


@device_app.command(epilog="Example: edgekit fleet device label kiln-7 region=eu site=hamburg")
def label(
    device: Device,
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="All that it has from now on.")
    ] = None,
    server: Server = "",
) -> None:
    """Give a device other labels."""

    def change(connection: Any) -> None:
        terminal.tell(
            connection.put(f"devices/{named(device)}/labels", {"labels": terminal.pairs(labels or ())})
        )

    call(server, change)


@device_app.command(epilog="Example: edgekit fleet device revoke kiln-7")
def revoke(device: Device, server: Server = "") -> None:
    """Refuse a device from now on."""
    call(server, lambda connection: connection.post(f"devices/{named(device)}/revoke"))


@device_app.command(epilog="Example: edgekit fleet device allow kiln-7")
def allow(device: Device, server: Server = "") -> None:
    """Let a device that lost its token enrol again, with a new code."""
    call(server, lambda connection: connection.post(f"devices/{named(device)}/allow"))


@device_app.command(epilog="Example: edgekit fleet device forget kiln-7")
def forget(device: Device, server: Server = "") -> None:
    """Delete a device and all that it told."""
    call(server, lambda connection: connection.delete(f"devices/{named(device)}"))


@device_app.command("erase-payloads", epilog="Example: edgekit fleet device erase-payloads kiln-7")
def erase_payloads(device: Device, server: Server = "") -> None:
    """Delete all inputs that a device sent, and take none of rollouts that began until now."""
    call(server, lambda connection: connection.delete(f"devices/{named(device)}/disagreements"))


# Tokens, log, webhooks


@tokens_app.command("create", epilog="Example: edgekit fleet token create ci --role publisher --days 90")
def token_create(
    name: Annotated[str, typer.Argument(help="Who gets it, for the log.")],
    role: Annotated[str, typer.Option(help="viewer, publisher, operator or admin.")],
    days: Annotated[int, typer.Option(help="Until it expires.")] = 365,
    server: Server = "",
) -> None:
    """Make a token; it is shown this once."""

    def work() -> None:
        with client(server) as connection:
            typer.echo(connection.post("tokens", {"name": name, "role": role, "days": days})["token"])

    terminal.run(work)


@tokens_app.command("list", epilog="Example: edgekit fleet token list")
def token_list(server: Server = "", as_json: Json = False) -> None:
    """List tokens, without their secrets."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("tokens")["tokens"]
        if as_json:
            terminal.tell(found)
            return
        rows = [
            (
                each["id"],
                each["name"],
                each["role"],
                terminal.moment(each["expires_s"]),
                "revoked" if each["revoked"] else "",
            )
            for each in found
        ]
        terminal.listing(("id", "name", "role", "expires", ""), rows)

    terminal.run(work)


@tokens_app.command("revoke", epilog="Example: edgekit fleet token revoke 3f0a9c1d2b4e5f60")
def token_revoke(
    token: Annotated[str, typer.Argument(help="Id, as `list` shows it.")], server: Server = ""
) -> None:
    """Take a token back, for good."""
    call(server, lambda connection: connection.delete(f"tokens/{named(token)}"))


@audit_app.command("verify", epilog="Example: edgekit fleet audit verify --sequence 812 --hash 9f…")
def audit_verify(
    sequence: Annotated[int, typer.Option(help="Of a row that was noted before.")] = 0,
    digest: Annotated[str, typer.Option("--hash", help="Its hash.")] = "",
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Check that no row of the log was changed, removed or put in; exit code 3 where one was."""

    def work() -> int:
        with client(server) as connection:
            found = connection.get("audit/verify", sequence=sequence, hash=digest)
        if as_json:
            terminal.tell(found)
        elif found["whole"]:
            terminal.say(
                f"the log is whole; its end, to be noted elsewhere: {found['sequence']} {found['hash']}"
            )
        else:
            terminal.say(f"the log is broken at row {found['broken_at']}: {found['why']}")
        return terminal.OK if found["whole"] else terminal.MISSED

    terminal.run(work)


@audit_app.command("list", epilog="Example: edgekit fleet audit list --limit 20")
def audit_list(
    limit: Annotated[int, typer.Option(help="Rows, the newest.")] = 50,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Show who did what, newest first."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("audit", limit=limit)["rows"]
        if as_json:
            terminal.tell(found)
            return
        rows = [
            (each["sequence"], terminal.moment(each["at_s"]), each["actor"], each["action"], each["subject"])
            for each in found
        ]
        terminal.listing(("row", "at", "who", "what", "upon"), rows)

    terminal.run(work)


@webhooks_app.command(
    "add", epilog="Example: edgekit fleet webhook add https://chat.example/hook --event failed --event held"
)
def webhook_add(
    url: Annotated[str, typer.Argument(help="That is told.")],
    event: Annotated[
        list[str] | None, typer.Option(help="That it hears of, repeatable; all without.")
    ] = None,
    server: Server = "",
    as_json: Json = False,
) -> None:
    """Tell decisions to an address; the secret that signs them is shown this once."""

    def work() -> None:
        with client(server) as connection:
            made = connection.post("webhooks", {"url": url, "events": list(event or ())})
        terminal.tell(made) if as_json else terminal.say(f"{made['id']}\nsecret: {made['secret']}")

    terminal.run(work)


@webhooks_app.command("list", epilog="Example: edgekit fleet webhook list")
def webhook_list(server: Server = "", as_json: Json = False) -> None:
    """List webhooks, and how the last deliveries went."""

    def work() -> None:
        with client(server) as connection:
            found = connection.get("webhooks")["webhooks"]
        if as_json:
            terminal.tell(found)
            return
        rows = [
            (
                each["id"],
                each["url"],
                ", ".join(each["events"]) or "all",
                each["waiting"],
                each["failed"],
                each["failure"],
            )
            for each in found
        ]
        terminal.listing(("id", "address", "events", "waiting", "given up", "last failure"), rows)

    terminal.run(work)


@webhooks_app.command("remove", epilog="Example: edgekit fleet webhook remove 3f0a9c1d2b4e5f60")
def webhook_remove(
    webhook: Annotated[str, typer.Argument(help="Id, as `list` shows it.")], server: Server = ""
) -> None:
    """Tell an address nothing more."""
    call(server, lambda connection: connection.delete(f"webhooks/{named(webhook)}"))
