"""`edgekit-runtime`: versions on this device, and models from the command line.

Exit status: 0 done; 2 wrong usage, or a store or file that cannot be used; 3 refused by the rules or by a check; 130
interrupted, and gone on with by the next command.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from edgekit_runtime.backends import BACKENDS, Settings
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.errors import DeviceError, InputError, StoreError
from edgekit_runtime.events import Activated, MarkedGood, Pinned, RolledBack, Step
from edgekit_runtime.manager import Manager, refusal
from edgekit_runtime.state import FETCH, IDLE, PROBATION, SHADOW, State
from edgekit_runtime.store import Store
from edgekit_runtime.trial import stage

STORE_VARIABLE: Final = "EDGEKIT_STORE"
SYSTEM_STORE: Final = Path("/var/lib/edgekit")
INTERRUPTED: Final = 130
EXAMPLE: Final = """examples:
  edgekit-runtime install bundle/          take a bundle in, try it out here, let it serve on probation
  edgekit-runtime activate --good          it does well: keep it
  edgekit-runtime status                   what serves, and where an update is
  edgekit-runtime run bundle/ x.npy        one prediction
  edgekit-runtime agent --server URL --root root.json
                                           be kept up to date by a fleet
"""

# What was named is no model, or has no file of the format: wrong usage, where a release that lies would be refused.
NOT_USABLE: Final = frozenset({"unknown_file", "no_artifact"})
AGENT: Final = "Keep this device as its fleet says: fetch, verify, try out, roll back, and tell what happens."

Answer = dict[str, Any]


def default_store() -> Path:
    """`EDGEKIT_STORE`; else /var/lib/edgekit for root, and a folder of one's own for others."""
    if named := os.environ.get(STORE_VARIABLE):
        return Path(named)
    if os.geteuid() == 0:
        return SYSTEM_STORE
    try:
        return Path.home() / ".local" / "share" / "edgekit"
    except RuntimeError as error:
        raise InputError(
            f"no store is named: {error}", expected="a folder", way_out=f"Give --store, or {STORE_VARIABLE}.",
            code="option",
        ) from error  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        answer = options.do(options)
    except DeviceError as error:
        if options.json:
            print(json.dumps({"error": error.code, "what": error.what, "way_out": error.way_out}))
        else:
            print(f"edgekit-runtime: {error}", file=sys.stderr)
        return 2 if error.code in NOT_USABLE else error.exit_code
    except MemoryError:
        print("edgekit-runtime: memory ran out", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("edgekit-runtime: interrupted; the next command goes on", file=sys.stderr)
        return INTERRUPTED
    _show(answer, as_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgekit-runtime",
        description="Versions of a model on this device, and models from the command line.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"edgekit-runtime {_version('edgekit-runtime')}"
    )
    parser.add_argument(
        "--store",
        type=_folder,
        default=None,
        help=f"folder of the versions (default: {STORE_VARIABLE}, or {SYSTEM_STORE} for root)",
    )
    parser.add_argument("--json", action="store_true", help="answer as JSON on standard output")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Callable[[argparse.Namespace], Answer], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(do=do)
        return made

    command("status", _status, "What serves, what is on its way, and what failed; only reads.")
    install = command(
        "install", _install, "Take a bundle in, try it out on this device, and let it serve on probation."
    )
    install.add_argument("bundle", type=Path, help="directory that `edgekit compress` wrote")
    install.add_argument("--shadow", action="store_true", help="wait beside the live version for `activate`")
    install.add_argument(
        "--forced", action="store_true", help="though it failed here before, or the device is pinned"
    )
    activate = command("activate", _activate, "Let the candidate serve, or say that what serves does well.")
    activate.add_argument("--good", action="store_true", help="what is on probation does well: keep it")
    command("rollback", _rollback, "Let the version before serve again, or drop the candidate.")
    pin = command("pin", _pin, "Take no other version.")
    pin.add_argument("--off", action="store_true", help="take versions again")
    command("gc", _collect, "Go on with what was cut off, and remove what no version needs.")
    for name, do, text in (
        ("run", _run, "Predict once, and print the outputs."),
        ("bench", _bench, "Measure the latency of a model here."),
    ):
        each = command(name, do, text)
        each.add_argument("model", type=Path, help="a bundle, a .tflite, an .onnx or an .mlpackage")
        each.add_argument("--format", choices=sorted(BACKENDS), help="of the bundle's files to run")
        each.add_argument("--threads", type=_count, default=1)
        if name == "run":
            each.add_argument(
                "input",
                type=Path,
                help=".npy with the input, pixels or samples, or .npz with one array for each",
            )
        else:
            each.add_argument("--seconds", type=_positive, default=2.0)
    command("doctor", _doctor, "What is installed here, and what it can run.")
    _agent_options(command("agent", _agent, AGENT))
    return parser


def _agent_options(agent: argparse.ArgumentParser) -> None:
    environment = os.environ.get
    agent.add_argument(
        "--server", default=environment("EDGEKIT_SERVER"), help="address of the fleet (EDGEKIT_SERVER)"
    )
    agent.add_argument(
        "--device",
        default=environment("EDGEKIT_DEVICE"),
        help="id of this device (EDGEKIT_DEVICE; default: made from /etc/machine-id)",
    )
    agent.add_argument(
        "--channel",
        default=environment("EDGEKIT_CHANNEL", "stable"),
        help="whose policy holds here (EDGEKIT_CHANNEL)",
    )
    agent.add_argument(
        "--root", type=Path, default=None, help="root.json of the fleet; needed once, at the first start"
    )
    agent.add_argument(
        "--token-file",
        type=Path,
        default=environment("EDGEKIT_TOKEN_FILE") or None,
        help="file with what the server knows this device by (EDGEKIT_TOKEN_FILE)",
    )
    agent.add_argument(
        "--interval",
        type=_positive,
        default=environment("EDGEKIT_INTERVAL") or 300.0,
        help="seconds between polls (EDGEKIT_INTERVAL; default: 300)",
    )
    agent.add_argument(
        "--quota-mb",
        type=_positive,
        default=environment("EDGEKIT_QUOTA_MB") or None,
        help="megabytes that all versions may take (EDGEKIT_QUOTA_MB)",
    )
    agent.add_argument(
        "--label",
        type=_label,
        action="append",
        metavar="NAME=VALUE",
        help="of this device, such as region=eu; repeatable (EDGEKIT_LABELS: region=eu,hardware=pi4). "
        "Those that the server sets come before them",
    )
    agent.add_argument(
        "--no-payload",
        action="store_true",
        help="no input of this device is kept or sent, whatever a policy asks for (EDGEKIT_NO_PAYLOAD=1, which the "
        "application that serves obeys as well)",
    )
    agent.add_argument("--insecure", action="store_true", help="plain HTTP to another host: for tests only")
    agent.add_argument("--once", action="store_true", help="poll once, and say what came of it")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:5]) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of threads from 1 to 1024")
    return int(text)


def _label(text: str) -> tuple[str, str]:
    from edgekit_runtime.labels import read_label
    from edgekit_runtime.strict_json import ContractError

    try:
        return read_label(text)
    except ContractError as error:
        raise argparse.ArgumentTypeError(f"{error.found}: expected {error.expected}") from None


def _labels_of_environment() -> dict[str, str]:
    given = os.environ.get("EDGEKIT_LABELS", "")
    try:
        return dict(_label(each) for each in given.split(",") if each.strip())
    except argparse.ArgumentTypeError as error:
        raise InputError(
            f"EDGEKIT_LABELS: {error}",
            expected="labels with commas between them, such as region=eu,hardware=pi4",
            way_out="Set it anew, or give each with --label.",
            code="option",
        ) from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'': expected the name of a folder")
    return Path(text)


# Versions


def _manager(options: argparse.Namespace, bundle: Bundle | None = None, *, make: bool = False) -> Manager:
    store = Store(options.store or default_store())
    if make:
        store.make()

    def fetch(release: str) -> None:
        if bundle is None or bundle.release().id != release:
            raise DeviceError(
                "the bundle of an install that was cut off is not at hand",
                expected="the same bundle",
                way_out="Run `edgekit-runtime install BUNDLE` again.",
                code="source_gone",
            )
        store.add_release(bundle.release(), bundle.read)

    def told(error: DeviceError) -> None:
        if not options.json:
            print(f"edgekit-runtime: {error}", file=sys.stderr)

    return Manager(store, fetch=fetch, stage=stage(store), told=told)


def _status(options: argparse.Namespace) -> Answer:
    store = Store(options.store or default_store())
    return _told(store, store.state())


def _install(options: argparse.Namespace) -> Answer:
    bundle = Bundle.open(options.bundle)
    release = bundle.release()
    manager = _manager(options, bundle, make=True)
    state = manager.install(release.id, shadow=options.shadow, forced=options.forced)
    if release.id not in (state.live, state.candidate):
        # An agent beside may have sent the report of it already.
        why = next((each.reason for each in reversed(state.reports) if each.release == release.id), "not_now")
        raise refusal(state.failed.get(release.id, why), f"{release.name} {release.version} was not taken")
    return _told(manager.store, state)


def _activate(options: argparse.Namespace) -> Answer:
    manager = _manager(options)
    state = manager.store.state()
    step = manager.tell(MarkedGood(state.live or "") if options.good else Activated())
    if step.refused:
        wanted = PROBATION if options.good else SHADOW
        raise refusal(step.refused, f"nothing is in {wanted}; the phase is {state.phase}")
    return _told(manager.store, _carried_out(manager, step))


def _rollback(options: argparse.Namespace) -> Answer:
    manager = _manager(options)
    step = manager.tell(RolledBack())
    if step.refused:
        raise refusal(step.refused, "no roll back")
    return _told(manager.store, _carried_out(manager, step))


def _carried_out(manager: Manager, step: Step) -> State:
    """What was decided stands; where an agent drives this store, the rest of it is done there."""
    try:
        return manager.go_on()
    except StoreError as error:
        if error.code != "store_busy":
            raise
        return step.state


def _pin(options: argparse.Namespace) -> Answer:
    manager = _manager(options)
    return _told(manager.store, manager.tell(Pinned(on=not options.off)).state)


def _collect(options: argparse.Namespace) -> Answer:
    manager = _manager(options)
    if manager.store.state().phase != FETCH:
        # What comes in is gone on with by whoever brings it.
        manager.go_on()
    with manager.store.driven():
        state = manager.store.state()
        freed = manager.store.collect(state)
    return {**_told(manager.store, state), "freed_bytes": freed}


def _told(store: Store, state: State) -> Answer:
    answer: Answer = {"store": str(store.path), "phase": state.phase}
    for slot in ("live", "candidate", "last_good"):
        answer[slot] = _named(store, getattr(state, slot))
    if state.phase == IDLE and state.live is None:
        answer["hint"] = "nothing serves yet: edgekit-runtime install BUNDLE"
    answer["pinned"] = state.pinned
    answer["failed"] = {release[:12]: why for release, why in state.failed.items()}
    # Listed and not opened: this only reads.
    answer["windows"] = sum(1 for _ in store.spool.glob("*-*-*")) if store.spool.exists() else 0
    if store.payloads.exists():
        answer["payloads"] = sum(1 for _ in store.payloads.glob("*-*-*"))
    answer["reports"] = [f"{each.kind} {each.release[:12]} {each.reason}".strip() for each in state.reports]
    return answer


def _named(store: Store, release: str | None) -> str | None:
    if release is None:
        return None
    try:
        found = store.release(release)
    except DeviceError as error:
        return f"{release[:12]} ({error.code})"
    return f"{found.name} {found.version} ({release[:12]})"


# Models


def _run(options: argparse.Namespace) -> Answer:
    from edgekit_runtime.model import Model
    from edgekit_runtime.postprocessing import top

    model = Model.load(options.model, format=options.format, settings=Settings(threads=options.threads))
    x = _read_input(options.input)
    if model.info.preprocessing is not None and _is_raw(x):
        x = model.prepare(x)
    found = model.predict(x)
    if not isinstance(found, dict):
        found = {model.info.outputs[0].name: found}
    answer: Answer = {"model": f"{model.info.name} {model.info.version}".strip(), "format": model.info.format}
    answer["outputs"] = {name: _plain(array.tolist()) for name, array in found.items()}
    first = next(iter(found.values()))
    if model.info.labels and first.size == len(model.info.labels):
        answer["label"] = top(first, model.info.labels, 1)[0][0]
    return answer


def _plain(value: Any) -> Any:
    """Without what JSON has no word for."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _is_raw(x: Any) -> bool:
    """Pixels or samples, and not yet the input of a model."""
    kind, rank = getattr(x, "dtype", None), getattr(x, "ndim", None)
    return (kind == "uint8" and rank in (2, 3)) or (kind in ("int16", "float32") and rank == 1)


def _read_input(path: Path) -> Any:
    import numpy as np

    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: {getattr(error, 'strerror', None) or error}",
            expected="an array in .npy, or one array for each input in .npz",
            way_out="Write it with numpy.save or numpy.savez.",
            code="input",
        ) from error


def _bench(options: argparse.Namespace) -> Answer:
    import numpy as np

    from edgekit_runtime.model import Model

    model = Model.load(options.model, format=options.format, settings=Settings(threads=options.threads))
    feed = {e.name: np.zeros([1 if n == -1 else n for n in e.shape], e.dtype) for e in model.info.inputs}
    times: list[float] = []
    end = time.perf_counter() + options.seconds
    while len(times) < 10 or time.perf_counter() < end:
        began = time.perf_counter()
        model.predict(feed)
        times.append(1e3 * (time.perf_counter() - began))
    low, mid, high = np.percentile(times, (50, 90, 99))
    return {
        "model": f"{model.info.name} {model.info.version}".strip(),
        "format": model.info.format,
        "threads": options.threads,
        "calls": len(times),
        "latency_ms": {"p50": round(low, 4), "p90": round(mid, 4), "p99": round(high, 4)},
    }


# The agent


def _agent(options: argparse.Namespace) -> Answer:
    # What it needs is no part of a device that is updated by hand.
    from edgekit_runtime.agent.start import serve
    from edgekit_runtime.payloads import vetoed

    quota = None if options.quota_mb is None else round(1e6 * options.quota_mb)
    store = Store(options.store or default_store(), quota_bytes=quota)
    return serve(
        store,
        server=options.server or "",
        device=options.device or "",
        channel=options.channel,
        root=options.root,
        token_file=options.token_file,
        interval_s=options.interval,
        insecure=options.insecure,
        once=options.once,
        json_logs=options.json,
        labels={**_labels_of_environment(), **dict(options.label or ())},
        payload=not (options.no_payload or vetoed()),
    )


def _doctor(options: argparse.Namespace) -> Answer:
    del options
    answer: Answer = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "edgekit-runtime": _version("edgekit-runtime"),
        "numpy": _version("numpy"),
    }
    for backend in BACKENDS.values():
        there = [f"{name} {version}" for name in backend.distributions if (version := _version(name))]
        answer[backend.format] = ", ".join(there) or f"none; pip install 'edgekit-runtime[{backend.format}]'"
    return answer


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _show(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    width = max(map(len, answer))
    for key, value in answer.items():
        if value in (None, {}, []):
            continue
        parts = (
            value
            if isinstance(value, list)
            else [f"{k}: {v}" for k, v in value.items()]
            if isinstance(value, dict)
            else [value]
        )
        for number, part in enumerate(parts):
            print(f"{key if number == 0 else '':<{width}}  {part}")


if __name__ == "__main__":
    sys.exit(main())
