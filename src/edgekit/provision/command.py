"""`edgekit devices provision`: options to an order; the work is elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from edgekit.errors import UsageError

Run = Callable[[Callable[[], int]], NoReturn]
Print = Callable[[Any], None]
_SHOW = "show"


class NamesToo(TyperGroup):
    """A group whose first word may be a name: what is none of its commands goes to `show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the group does, with the command that was left out."""
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if args and args[0] in known else [_SHOW, *args])


def mount(app: typer.Typer, run: Run, show: Print, errors: Console) -> None:
    """Add the command to `edgekit devices`.

    Args:
        app: of the group.
        run: does a command, and makes messages and exit codes of its errors.
        show: prints what comes of it.
        errors: console of stderr.
    """

    @app.command(
        epilog="Example: edgekit devices provision pi@kitchen.local --server https://fleet.example.com "
        "--root root.json --code $(edgekit fleet code)"
    )
    def provision(
        host: Annotated[
            str, typer.Argument(metavar="USER@HOST", help="The device; or ssh://user@host:port.")
        ],
        server: Annotated[str, typer.Option(help="Address of the fleet, as the device reaches it.")] = "",
        root: Annotated[Path | None, typer.Option(help="The fleet's root.json.")] = None,
        code: Annotated[
            str, typer.Option(help="Of `edgekit fleet code`; - reads it from standard input.")
        ] = "",
        token_file: Annotated[
            Path | None, typer.Option(help="File with the token that this device got before.")
        ] = None,
        format: Annotated[str, typer.Option("--format", help="Backend: tflite or onnx.")] = "tflite",
        label: Annotated[
            list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the device; repeatable.")
        ] = None,
        prefix: Annotated[
            str, typer.Option(metavar="FOLDER", help="Of the device: put all below it, start nothing.")
        ] = "",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
        uninstall: Annotated[bool, typer.Option("--uninstall", help="Take it away again.")] = False,
        purge: Annotated[
            bool, typer.Option("--purge", help="With --uninstall: models and settings too.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON to stdout.")] = False,
    ) -> None:
        """Install the runtime, its agent and an enrolment over SSH; again and again without harm."""

        def work() -> int:
            from edgekit.provision import carry_out
            from edgekit.remote.hosts import read_host

            place = read_host(host)
            if prefix and not prefix.startswith("/"):
                raise _wrong(f"--prefix {prefix}", "an absolute path on the device", "Write it from / on.")
            with errors.status(f"connecting to {place}") as status:

                def told(text: str) -> None:
                    status.update(f"{place}: {text[:160]}")
                    if not errors.is_terminal:
                        errors.print(f"{place}: {text}", markup=False, soft_wrap=True)

                if uninstall:
                    _check_alone(server, root, code, token_file)
                    plan = carry_out.uninstall(place, purge=purge, prefix=prefix, dry_run=dry_run, told=told)
                else:
                    order = _order(server, root, code, token_file, format, label or (), prefix, purge=purge)
                    plan = carry_out.provision(place, order, dry_run=dry_run, told=told)
            tree = {
                "host": str(place), "dry_run": dry_run, "changed": bool(plan.steps) and not dry_run,
                "steps": list(plan.steps), "notes": list(plan.notes),
            }  # fmt: skip
            show(tree if as_json else Text(_words(tree), no_wrap=True, overflow="ignore"))
            return 0

        run(work)


def _order(
    server: str,
    root: Path | None,
    code: str,
    token_file: Path | None,
    format: str,
    label: Sequence[str],
    prefix: str,
    *,
    purge: bool,
) -> Any:
    from edgekit.provision.carry_out import Order, read_secret

    if not server or root is None:
        raise _wrong(
            "no --server" if not server else "no --root",
            "--server URL and --root root.json of the fleet",
            "Give both, or --uninstall.",
        )
    if purge:
        raise _wrong("--purge without --uninstall", "both", "Give --uninstall, too.")
    if code and token_file:
        raise _wrong("--code and --token-file", "one of them", "A device that has a token needs no code.")
    try:
        content = root.read_bytes()
    except OSError as error:
        raise _wrong(
            f"--root {root}: {error.strerror}", "root.json of the fleet", "Check the path."
        ) from error
    return Order(
        server=server,
        root=content,
        format=format,
        code=sys.stdin.readline().strip() if code == "-" else code,
        token=read_secret(token_file) if token_file else "",
        labels=_labels(label),
        prefix=prefix,
    )


def _labels(given: Sequence[str]) -> dict[str, str]:
    from edgekit_runtime.labels import read_label
    from edgekit_runtime.strict_json import ContractError

    try:
        return dict(read_label(each) for each in given)
    except ContractError as error:
        raise _wrong(f"--label {error.found}", error.expected, "Write it so.") from error


def _check_alone(server: str, root: Path | None, code: str, token_file: Path | None) -> None:
    given = {"--server": server, "--root": root, "--code": code, "--token-file": token_file}
    if used := [name for name, value in given.items() if value]:
        raise _wrong(
            f"--uninstall with {used[0]}", "--uninstall, --purge and --prefix", f"Leave {used[0]} out."
        )


def _words(tree: dict[str, Any]) -> str:
    """The same for people."""
    head = (
        f"{tree['host']}: nothing to do"
        if not tree["steps"]
        else f"{tree['host']}: would do" if tree["dry_run"] else f"{tree['host']}: done"
    )  # fmt: skip
    steps = [f"  {number}. {step}" for number, step in enumerate(tree["steps"], 1)]
    return "\n".join([head, *steps, *(f"  note: {note}" for note in tree["notes"])])


def _wrong(what: str, expected: str, way_out: str) -> UsageError:
    return UsageError(what, expected=expected, way_out=way_out)
