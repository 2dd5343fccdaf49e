"""The command line: reads options, shows progress, turns errors into messages and exit codes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from edgekit import __version__
from edgekit.doctor import check_here, table
from edgekit.errors import EdgekitError, LoweringError
from edgekit.fleet.commands import cli as fleet_commands
from edgekit.provision import command as provisioning
from edgekit_devices import ProfileError

app = typer.Typer(
    name="edgekit",
    help="One INT8 grid, three formats, proven on the saved files.",
    epilog="Exit codes: 0 accepted · 2 wrong usage or unreadable input · 3 budget or proof missed · "
    "4 the model cannot be lowered · 130 interrupted, resumable.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
errors = Console(stderr=True, highlight=False)

ACCEPTED, USAGE, MISSED, NOT_LOWERED = 0, 2, 3, 4
Number = TypeVar("Number", int, float)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One INT8 grid, three formats, proven on the saved files."""
    del version


@app.command(epilog="Example: edgekit compress model.pt --data digits.npz -o digits-edge --max-drop 0.005")
def compress(
    model: Annotated[
        Path, typer.Argument(help="Exported program, TorchScript, pickled module or state dict.")
    ],
    data: Annotated[
        str | None, typer.Option(help=".npz, folder of class folders of images, or module:callable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Directory of the bundle.")] = None,
    factory: Annotated[str | None, typer.Option(help="module:callable that builds the network.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Unpickle the file, which runs code in it.")] = False,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="1,3,224,224; once per input, in order.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file; options win over it.")] = None,
    preset: Annotated[str | None, typer.Option(help="fast, balanced or max.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Of onnx,tflite,coreml.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Device profile; see `edgekit devices`.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(metavar="X", help="Largest loss of the metric, e.g. 0.01.")
    ] = None,
    max_latency_ms: Annotated[
        str | None, typer.Option(metavar="T", help="Largest median latency here.")
    ] = None,
    max_size_mb: Annotated[str | None, typer.Option(metavar="S", help="Largest file in 10^6 bytes.")] = None,
    allow_slower: Annotated[
        bool, typer.Option("--allow-slower", help="Accept INT8 that is slower than float.")
    ] = False,
    prune: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Remove this share of the cost first, e.g. 0.5.")
    ] = None,
    distill: Annotated[
        bool | None, typer.Option("--distill/--no-distill", help="Learn from the original after pruning.")
    ] = None,
    qat: Annotated[bool | None, typer.Option("--qat/--no-qat", help="Train on the INT8 grid.")] = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Passes over the training inputs.")] = None,
    student: Annotated[
        str | None, typer.Option(help="module:callable of another network to train instead.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="top1, f1, mae, agreement or module:callable.")] = None,
    io: Annotated[str | None, typer.Option(help="float32 or int8 ends of the TFLite file.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc input of the TFLite file.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Of every random choice.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interrupt.")] = False,
    from_trial: Annotated[
        str | None, typer.Option(metavar="N", help="Make trial N of the report at the output again.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report to stdout, nothing else.")
    ] = False,
) -> None:
    """Make a trained model smaller, quantize it to INT8 once, write three formats, and prove each saved file."""
    _exit(
        lambda: _compress(
            as_json,
            model=model,
            data=data,
            out=out,
            factory=factory,
            trust=trust,
            input_shape=[_shape(s) for s in input_shape] if input_shape else None,
            recipe=recipe,
            preset=preset,
            formats=[f.strip() for f in format.split(",") if f.strip()] if format is not None else None,
            target=target or (),
            max_drop=_number("--max-drop", max_drop, float),
            max_latency_ms=_number("--max-latency-ms", max_latency_ms, float),
            max_size_mb=_number("--max-size-mb", max_size_mb, float),
            allow_slower=allow_slower or None,
            prune=_number("--prune", prune, float),
            distill=distill,
            qat=qat,
            epochs=_number("--epochs", epochs, int),
            student=student,
            metric=metric,
            io=io,
            layout=layout,
            seed=_number("--seed", seed, int),
            resume=resume,
            from_trial=_number("--from-trial", from_trial, int),
            command=shlex.join(["edgekit", *sys.argv[1:]]),
        )
    )


@app.command(epilog="Example: edgekit verify digits-edge")
def verify(
    bundle: Annotated[Path, typer.Argument(help="Directory that `edgekit compress` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the proofs to stdout.")] = False,
) -> None:
    """Check hashes and run every proof again on the saved files."""

    def work() -> int:
        from edgekit.verify import verify_bundle

        with errors.status("proving the saved files"):
            result = verify_bundle(bundle)
        _print(result.to_dict() if as_json else result.table())
        return ACCEPTED if result.holds else MISSED

    _exit(work)


@app.command(epilog="Example: edgekit bench digits-edge --threads 1,2 --html bench.html")
def bench(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Bundles, .onnx and .tflite files; or `calibrate`: time operators, write a profile."
        ),
    ],
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="local, ssh://user@host, arm64 (emulated), or a profile for an estimate; repeatable. Default: local."
        ),
    ] = None,
    threads: Annotated[str | None, typer.Option(metavar="N,…", help="Threads of the runtime.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="N,…", help="Samples a call.")] = None,
    seconds: Annotated[str | None, typer.Option(metavar="S", help="Least time for each run, 5.")] = None,
    sustained: Annotated[
        str | None,
        typer.Option(metavar="S", help="Then run each file without pauses, and watch heat and clock."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="The file that the others are held against; the first without.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
    like: Annotated[
        str | None, typer.Option(metavar="NAME", help="With calibrate: the profile whose data sheet is kept.")
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(metavar="N", help="With calibrate: how often; the quickest time counts. 1 without."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the result as JSON.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result to stdout, nothing else.")
    ] = False,
) -> None:
    """Measure latency, throughput, start and memory of files, here or on a device, and compare them."""

    def work() -> int:
        if [str(path) for path in paths] == ["calibrate"]:
            from edgekit.bench.predict.command import calibrate_command

            return calibrate_command(
                devices=device or (),
                threads=threads,
                like=like,
                passes=_number("--passes", passes, int),
                out=out,
                as_json=as_json,
                console=errors,
            )
        from edgekit.bench.command import bench as run

        return run(
            paths,
            devices=device or (),
            threads=threads,
            batch=batch,
            seconds=_number("--seconds", seconds, float),
            sustained=_number("--sustained", sustained, float),
            against=against,
            html=html,
            png=png,
            out=out,
            as_json=as_json,
            console=errors,
        )

    _exit(work)


@app.command(epilog="Example: edgekit inspect model.pt")
def inspect(
    path: Annotated[Path, typer.Argument(help="A model file or a bundle.")],
    trust: Annotated[bool, typer.Option("--trust", help="Unpickle the file, which runs code in it.")] = False,
    input_shape: Annotated[list[str] | None, typer.Option(help="1,3,224,224; once per input.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON to stdout.")] = False,
) -> None:
    """Say what a model file or a bundle is."""

    def work() -> int:
        from edgekit.inspect import inspect_path

        found = inspect_path(path, trust=trust, input_shapes=[_shape(s) for s in input_shape or ()] or None)
        _print(found.to_dict() if as_json else found.table())
        return ACCEPTED

    _exit(work)


@app.command(epilog="Example: edgekit doctor")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON to stdout.")] = False,
) -> None:
    """Say what is installed, what works here, and the pip line that mends the rest."""

    def work() -> int:
        from dataclasses import asdict

        checks = check_here()
        _print([asdict(c) for c in checks] if as_json else table(checks))
        return ACCEPTED

    _exit(work)


devices_app = typer.Typer(
    cls=provisioning.NamesToo,
    subcommand_metavar="[NAME] | COMMAND [ARGS]...",
    help="Device profiles: all of them, or one by NAME. And devices of one's own: provision.",
    epilog="Example: edgekit devices raspberry-pi-5",
)


@devices_app.command("show", hidden=True, epilog="Example: edgekit devices raspberry-pi-5")
def devices(
    name: Annotated[str | None, typer.Argument(help="A profile; all of them without.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON to stdout.")] = False,
) -> None:
    """List the device profiles that --target takes, or show one."""

    def work() -> int:
        from dataclasses import asdict

        from edgekit.bench.sheets import device_list, device_sheet
        from edgekit_devices import find_profile, names

        profiles = [find_profile(n) for n in ([name] if name else names())]
        if as_json:
            _print([asdict(p) for p in profiles])
            return ACCEPTED
        _print(device_sheet(profiles[0]) if name else device_list(profiles))
        return ACCEPTED

    _exit(work)


def _compress(as_json: bool, **options: Any) -> int:
    from edgekit.api import compress as run
    from edgekit.progress import shown
    from edgekit.report import summary

    with shown(errors) as progress:
        bundle = run(progress=progress, **options)
    report = bundle.report
    if as_json:
        _print(dict(report))
    else:
        out = Console(highlight=False)
        out.print(summary(report))
        out.print(f"report: {bundle.path / 'report.html'}", soft_wrap=True)
    if report["failures"]:
        for failure in report["failures"]:
            errors.print(f"error: {LoweringError(**failure)}", style="red", markup=False, soft_wrap=True)
        return NOT_LOWERED
    return ACCEPTED if report["accepted"] else MISSED


def _shape(text: str) -> tuple[int, ...]:
    from edgekit.errors import UsageError

    try:
        shape = tuple(int(n) for n in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(
            f"--input-shape {text}",
            expected="whole numbers above 0 with commas, batch first, e.g. 1,3,224,224",
            way_out="Give the option once per input.",
        )
    return shape


def _number(option: str, text: str | None, kind: type[Number]) -> Number | None:
    """Read the value of an option here and not in the parser, so that a wrong one is told like all others."""
    from edgekit.errors import UsageError

    try:
        return None if text is None else kind(text)
    except ValueError:
        raise UsageError(
            f"{option} {text}",
            expected="a whole number" if kind is int else "a number, with a point for fractions, e.g. 0.01",
            way_out="Correct the value, or leave the option out for its default.",
        ) from None


def _print(value: Any) -> None:
    if isinstance(value, (dict, list)):
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(value)


def _exit(work: Any) -> NoReturn:
    """Run a command; every error that we raise on purpose becomes a message and its exit code."""
    try:
        code = work()
    except (EdgekitError, ProfileError) as error:
        for text in (error, *getattr(error, "__notes__", ())):
            errors.print(f"error: {text}", style="red", markup=False, soft_wrap=True)
        code = error.exit_code
    except KeyboardInterrupt:
        errors.print("error: interrupted", style="red")
        code = 130
    except BrokenPipeError:
        # The reader of a pipe left early; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    raise typer.Exit(code)


provisioning.mount(devices_app, _exit, _print, errors)
app.add_typer(devices_app, name="devices")
fleet_commands.mount(app)


def main() -> None:
    """Entry point of the `edgekit` command."""
    if not sys.warnoptions:
        # What libraries tell one another about their future says nothing about the user's model.
        warnings.simplefilter("ignore", FutureWarning)
    app()


if __name__ == "__main__":
    main()
