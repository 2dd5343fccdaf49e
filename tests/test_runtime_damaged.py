"""Damaged and lying bundles: none serves, none disturbs what does, and each is refused with a code.

A process of its own serves good versions in ONNX Runtime and in LiteRT. Beside it every damage is offered to the stores
that it serves from, and after each one it has to answer as before.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgekit_runtime.bundle import Bundle
from edgekit_runtime.cli import main
from edgekit_runtime.contract import ContractError, File, Release
from edgekit_runtime.disk import Disk
from edgekit_runtime.errors import ArtifactError
from edgekit_runtime.events import Activated, MarkedGood, RolledBack
from edgekit_runtime.manager import Manager
from edgekit_runtime.model import Model
from edgekit_runtime.state import IDLE, PROBATION, SHADOW, State
from edgekit_runtime.store import Store
from edgekit_runtime.strict_json import UNPRINTABLE
from edgekit_runtime.trial import stage
from support import damage
from support import damaged_answers as answers
from support import damaged_documents as documents
from support import damaged_models as models
from support.damage import Bytes, Content, Damage
from support.releases import Published

pytestmark = pytest.mark.slow

# Far more than any damage takes on a busy machine: what takes longer hangs.
LIMIT_S = 120
# What the process that serves may grow by while others are tried out beside it.
GROWTH_BYTES = 64 << 20
GOOD = {"onnx": 1.0, "tflite": 0.0}
# How many bits that flipped before the hashes were made reach the backends.
FLIPS = int(os.environ.get("EDGEKIT_DAMAGES", "20"))
# The rest of the known answers that are none is read in this process, as the trial's process reads them.
TRIED_OUT = (
    "text",
    "half",
    "pickled objects",
    "other answers",
    "no inputs",
    "inputs of another shape",
    "a tolerance for anything",
    "a shape of 2^93",
    "a header of brackets",
    "a header of minus signs",
    "zeros that unpack to 2 GB",
    "zeros that unpack to 2 GB and deny it",
    "4096 entries of the same bytes",
    "packed bytes that are none",
    "enciphered",
)
AT_THE_BACKEND: dict[tuple[str, str], Damage] = {
    **{
        (format, f"model: {name}"): damage.in_model(change)
        for (format, name), change in models.WRONG_FORMAT.items()
    },
    **{("onnx", f"model: {name}"): damage.in_model(change) for name, change in models.ONNX.items()},
    **{("tflite", f"model: {name}"): damage.in_model(change) for name, change in models.TFLITE.items()},
    **{("onnx", f"golden: {name}"): damage.in_file("golden.npz", answers.GOLDEN[name]) for name in TRIED_OUT},
    **{
        (format, f"manifest: {name}"): damage.in_file("manifest.json", change)
        for (format, name), change in documents.LIES.items()
    },
}

SERVES = """
import json, os, sys
import numpy as np
from edgekit_runtime import Runtime
with Runtime(sys.argv[1], poll_s=3600) as onnx, Runtime(sys.argv[2], poll_s=3600) as tflite:
    x = dict(np.load(sys.argv[3]))
    for _ in sys.stdin:
        said = {"pid": os.getpid()}
        for name, runtime in (("onnx", onnx), ("tflite", tflite)):
            runtime.look()
            said[name] = runtime.release, runtime.predict_batch(x[name]).tolist()
        print(json.dumps(said), flush=True)
"""


def documented() -> dict[str, bool]:
    """Codes of `docs/device.md`, and whether a version that is refused with one may be tried again."""
    text = (Path(__file__).parents[1] / "docs" / "device.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \|.*\| (yes|no) \|$", text, re.MULTILINE)
    return {code: again == "yes" for codes, again in rows for code in re.findall(r"`(\w+)`", codes)}


CODES = documented()


class Unsynced:
    """A disk that returns before anything is safe: power cuts are not what is tested here, and syncing takes long."""

    def __init__(self) -> None:
        disk = Disk()
        self.make_folder, self.write, self.rename, self.remove = (
            disk.make_folder, disk.write, disk.rename, disk.remove,
        )  # fmt: skip

    def sync(self, path: Path) -> None:
        assert path.is_file()

    def sync_folder(self, path: Path) -> None:
        assert path.is_dir()


@dataclass
class Device:
    """Two stores, and the process that serves from them."""

    stores: dict[str, Store]
    good: dict[str, str]
    server: subprocess.Popen[str]
    resident_bytes: int = 0

    def ask(self) -> dict[str, Any]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print("", file=self.server.stdin, flush=True)
        found: dict[str, Any] = json.loads(self.server.stdout.readline())
        assert found["pid"] == self.server.pid
        return found

    def serves_as_before(self) -> None:
        said = self.ask()
        for name, constant in GOOD.items():
            release, y = said[name]
            assert release == self.good[name]
            assert is_right(damage.whole(name, constant), y)
        resident = psutil.Process(self.server.pid).memory_info().rss
        self.resident_bytes = self.resident_bytes or resident
        assert resident < self.resident_bytes + GROWTH_BYTES

    def manager(self, name: str, fetch: Callable[[], object], timeout_s: float = LIMIT_S) -> Manager:
        store = self.stores[name]
        return Manager(store, fetch=lambda _: fetch() and None, stage=stage(store, timeout_s=timeout_s))

    def offer(self, name: str, release: str, fetch: Callable[[], object], timeout_s: float = LIMIT_S) -> str:
        """Offer a release that has to be refused; returns the code.

        It is forced, so that nothing that the rules remember of another damage decides.
        """
        self.manager(name, fetch, timeout_s).install(release, forced=True)
        return self.refused(name, release)

    def refused(self, name: str, release: str) -> str:
        store = self.stores[name]
        state = store.state()
        assert (state.phase, state.live, state.candidate) == (IDLE, self.good[name], None)
        report = state.reports[-1]
        assert (report.kind, report.release) == ("refused", release)
        assert report.reason in CODES
        assert state.failed.get(release) == (None if CODES[report.reason] else report.reason)
        assert names(store.incoming) == set()
        if not CODES[report.reason]:
            assert names(store.blobs) == store.reachable(state), "what was refused for good takes no room"
        self.serves_as_before()
        return report.reason

    def rest(self) -> None:
        """What is on its way is dropped, reports are told, and what nobody needs is removed."""
        for name, store in self.stores.items():
            manager = self.manager(name, lambda: None)
            if store.state().phase != IDLE:
                manager.tell(RolledBack())
            store.collect(manager.go_on())
            # Reading sixty reports again and again would be most of the time.
            with store.locked():
                store.save(replace(store.state(), reports=()))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def is_right(content: Content, y: Any) -> bool:
    """Whether these are the known answers of a bundle, as its self-test counts."""
    known = damage.arrays_of(content["golden.npz"])
    far = np.abs(np.asarray(y, np.float64) - known["output_0"]) / known["step"]
    return bool((far <= known["tolerance_steps"] + 1e-3).all())


def bring(store: Store, published: Published) -> Callable[[], object]:
    return lambda: store.add_release(published.release, published.read)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("device")
    stores, good = {}, {}
    for name, constant in GOOD.items():
        disk: Any = Unsynced()
        store = stores[name] = Store(folder / name, disk=disk)
        store.make()
        # Another release than the whole bundle that is damaged.
        published = damage.publish({**damage.whole(name, constant), "serves.txt": b"serves"})
        good[name] = published.release.id
        manager = Manager(
            store, fetch=lambda _, p=published, s=store: bring(s, p)() and None, stage=stage(store)
        )
        assert manager.install(good[name]).phase == PROBATION
        manager.tell(MarkedGood(good[name]))
        manager.go_on()
    x = {name: damage.arrays_of(damage.whole(name)["golden.npz"])["input_0"] for name in GOOD}
    (folder / "x.npz").write_bytes(damage.npz(**x))
    arguments = (*(stores[name].path for name in ("onnx", "tflite")), folder / "x.npz")
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        made = Device(stores, good, server)
        try:
            yield made
            made.serves_as_before()
            _, _ = server.communicate(timeout=LIMIT_S)
            assert server.returncode == 0
        finally:
            server.kill()


@pytest.fixture
def device(served: Device) -> Iterator[Device]:
    """What one test left, whether it passed or not, is not there for the next."""
    yield served
    served.rest()


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A test that hangs fails, wherever it waits."""

    def late(*_: object) -> None:
        # No error that anything below would take for one of its own, as it might a TimeoutError.
        pytest.fail(f"did not end within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder with a whole bundle in ONNX."""
    return written(tmp_path / "bundle", damage.whole("onnx"))


def written(folder: Path, content: Content) -> Path:
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def install(capsys: pytest.CaptureFixture[str], store: Store, bundle: Path) -> tuple[int, dict[str, Any]]:
    """`edgekit-runtime install`: its exit status, and what it says."""
    capsys.readouterr()
    status = main(["--json", "--store", str(store.path), "install", "--forced", str(bundle)])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, answer


def params(table: dict[tuple[str, str], Any]) -> Any:
    return [pytest.param(format, change, id=f"{format}-{name}") for (format, name), change in table.items()]


# What would be taken if it were whole


@pytest.mark.parametrize("name", GOOD)
def test_the_whole_bundle_is_taken(device: Device, name: str) -> None:
    store, published = device.stores[name], damage.publish({**damage.whole(name), "more.txt": b"more"})
    manager = device.manager(name, bring(store, published))
    assert manager.install(published.release.id, shadow=True, forced=True).phase == SHADOW
    manager.tell(RolledBack())
    device.serves_as_before()


def test_there_are_at_least_three_hundred_damages_and_no_two_are_the_same() -> None:
    made = set()
    count = 0
    for table in (damage.IN_TRANSFER, AT_THE_BACKEND):
        for (format, _), change in table.items():
            made.add((table is damage.IN_TRANSFER, *sorted(change(damage.whole(format)).items())))
            count += 1
    for change in documents.MANIFESTS.values():
        made.add(("manifest", *sorted(change(damage.whole("onnx")).items())))
        count += 1
    document = damage.publish(damage.whole("onnx")).release.to_json().encode()
    for change in documents.RELEASES.values():
        made.add(("release", change(document)))
        count += 1
    assert len(made) == count >= 300


# On the way


@pytest.mark.parametrize(("name", "change"), params(damage.IN_TRANSFER))
def test_what_broke_on_the_way_is_refused_and_may_come_again(
    device: Device, name: str, change: Damage
) -> None:
    whole = damage.whole(name)
    released = damage.publish(whole).release
    assert change(whole) != whole
    code = device.offer(name, released.id, bring(device.stores[name], Published(released, change(whole))))
    assert code == "damaged"


@pytest.mark.parametrize("k", range(12))
def test_a_release_whose_document_broke_is_refused_and_may_come_again(device: Device, k: int) -> None:
    store, released = device.stores["onnx"], damage.publish(damage.whole("onnx")).release
    document = released.to_json().encode()
    broken = (damage.flip(k, 9) if k < 9 else damage.cut((0, 0.5, -1)[k - 9]))(document)
    assert (
        device.offer("onnx", released.id, lambda: store.add(released.id, len(document), [broken]))
        == "damaged"
    )


@pytest.mark.parametrize("path", ["model.onnx", "golden.npz", "manifest.json", ""])
@pytest.mark.parametrize(
    "change", [damage.flip(1, 3), damage.cut(0.5), damage.cut(0)], ids=["flip", "cut", "empty"]
)
def test_what_rots_before_it_is_verified_is_refused_and_brought_again(
    device: Device, path: str, change: Bytes
) -> None:
    store, published = device.stores["onnx"], damage.publish(damage.whole("onnx"))
    released = published.release
    blob = store.blob(released.files[path].sha256 if path else released.id)

    def rotten() -> None:
        bring(store, published)()
        blob.write_bytes(change(blob.read_bytes()))

    manager = device.manager("onnx", rotten)
    manager.install(released.id, forced=True)
    assert store.state().reports[-1].reason == "damaged"
    whole = device.manager("onnx", bring(store, published))
    whole._deeds = {**whole._deeds, "stage": lambda _: None}
    assert whole.install(released.id, shadow=True, forced=True).phase == SHADOW
    whole.tell(RolledBack())
    device.serves_as_before()


# Publishers who lie


@pytest.mark.parametrize("change", documents.MANIFESTS.values(), ids=documents.MANIFESTS)
def test_a_manifest_that_breaks_the_contract_is_refused_from_a_store_and_from_a_folder(
    device: Device, change: Damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, content = device.stores["onnx"], change(damage.whole("onnx"))
    published = damage.publish(content)
    assert device.offer("onnx", published.release.id, bring(store, published)) == "manifest"
    before = store.state()
    status, answer = install(capsys, store, written(tmp_path / "bundle", content))
    assert (status, answer["error"]) == (3, "bundle")
    assert main(["--store", str(store.path), "install", str(tmp_path / "bundle")]) == 3
    said = capsys.readouterr().err
    assert not UNPRINTABLE.search(said.replace("\n", "")), "what a stranger wrote moves no cursor"
    assert store.state() == before


@pytest.mark.parametrize("change", documents.RELEASES.values(), ids=documents.RELEASES)
def test_a_document_that_breaks_the_contract_is_refused_for_good(device: Device, change: Bytes) -> None:
    store = device.stores["onnx"]
    document = change(damage.publish(damage.whole("onnx")).release.to_json().encode())
    name = File(damage.sha256_of(document), len(document))
    assert (
        device.offer("onnx", name.sha256, lambda: store.add(name.sha256, name.size_bytes, [document]))
        == "manifest"
    )


def lying(change: Callable[[dict[str, File]], dict[str, File]]) -> Published:
    whole = damage.publish(damage.whole("onnx"))
    return replace(whole, release=replace(whole.release, files=change(dict(whole.release.files))))


RELEASE_LIES: dict[str, tuple[Callable[[dict[str, File]], dict[str, File]], set[str]]] = {
    "a model of 2^53 bytes": (lambda f: {**f, "model.onnx": replace(f["model.onnx"], size_bytes=2**53)}, {"no_room"}),
    "4 files of 2^53 bytes": (
        lambda f: {**f, **{str(k): File(f"{k:064x}", 2**53) for k in range(4)}}, {"no_room"},
    ),
    "a byte more": (lambda f: {**f, "model.onnx": replace(f["model.onnx"], size_bytes=91)}, {"damaged"}),
    "a byte less": (lambda f: {**f, "model.onnx": replace(f["model.onnx"], size_bytes=89)}, {"damaged"}),
    "no bytes": (lambda f: {**f, "model.onnx": replace(f["model.onnx"], size_bytes=0)}, {"damaged"}),
    "another hash": (lambda f: {**f, "model.onnx": replace(f["model.onnx"], sha256="0" * 64)}, {"damaged"}),
    "no model": (lambda f: {p: f[p] for p in f if p != "model.onnx"}, {"manifest"}),
    "no known answers": (lambda f: {p: f[p] for p in f if p != "golden.npz"}, {"manifest"}),
    "the manifest alone": (lambda f: {"manifest.json": f["manifest.json"]}, {"manifest"}),
    "the model as the manifest": (lambda f: {**f, "manifest.json": f["model.onnx"]}, {"manifest"}),
    "the known answers as the manifest": (lambda f: {**f, "manifest.json": f["golden.npz"]}, {"manifest"}),
    "the manifest as the model": (lambda f: {**f, "model.onnx": f["manifest.json"]}, {"manifest"}),
    "the known answers as the model": (lambda f: {**f, "model.onnx": f["golden.npz"]}, {"manifest"}),
    "the model as the known answers": (lambda f: {**f, "golden.npz": f["model.onnx"]}, {"golden_file"}),
    "a folder of the model's name": (
        lambda f: {**{p: f[p] for p in f if p != "model.onnx"}, "model.onnx/a": f["model.onnx"]}, {"manifest"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "codes"), RELEASE_LIES.values(), ids=RELEASE_LIES)
def test_a_release_that_lies_about_its_files_is_refused(
    device: Device, change: Callable[[dict[str, File]], dict[str, File]], codes: set[str]
) -> None:
    store, published = device.stores["onnx"], lying(change)
    content = {path: published.content.get(path, b"") for path in published.release.files}
    by_hash = {file.sha256: path for path, file in damage.publish(published.content).release.files.items()}
    for path, file in published.release.files.items():
        if file.sha256 in by_hash:
            content[path] = published.content[by_hash[file.sha256]]
    assert (
        device.offer("onnx", published.release.id, bring(store, replace(published, content=content))) in codes
    )


@pytest.mark.parametrize(("name", "change"), params(AT_THE_BACKEND))
def test_what_no_backend_takes_or_answers_wrong_is_refused(device: Device, name: str, change: Damage) -> None:
    published = damage.publish(change(damage.whole(name)))
    code = device.offer(name, published.release.id, bring(device.stores[name], published))
    assert code in {
        "load", "trial_crashed", "ends", "golden", "golden_file", "manifest", "preprocessing", "run", "latency",
        "old_runtime", "no_backend",
    }  # fmt: skip


@pytest.mark.parametrize("change", answers.GOLDEN.values(), ids=answers.GOLDEN)
def test_known_answers_that_are_none_are_told_and_nothing_else_is_raised(bundle: Path, change: Bytes) -> None:
    model = Model.load(bundle)
    assert model.self_test().ok
    (bundle / "golden.npz").write_bytes(change((bundle / "golden.npz").read_bytes()))
    code = "golden"
    try:
        ok = model.self_test().ok
    except ArtifactError as error:
        ok, code = False, error.code
    assert not ok
    assert code in {"golden", "golden_file"}


def test_a_model_that_never_answers_is_given_up(device: Device) -> None:
    change = damage.in_model(damage.onnx_of(models.endless))
    published = damage.publish(change(damage.whole("onnx")))
    code = device.offer("onnx", published.release.id, bring(device.stores["onnx"], published), timeout_s=4)
    assert code == "trial_hung"


def flips() -> Iterator[Any]:
    """Files whose hashes fit: most flips break them, and some mean nothing."""
    places = (
        ("onnx", "model.onnx"),
        ("tflite", "model.tflite"),
        ("onnx", "golden.npz"),
        ("onnx", "manifest.json"),
    )
    for k in range(FLIPS):
        name, path = places[min(k % 6, 5) % 2 if k % 6 < 4 else k % 6 - 2]
        dice = random.Random(k)
        yield pytest.param(name, path, dice.random(), dice.randrange(8), id=f"{path}-{k}")


@pytest.mark.parametrize(("name", "path", "share", "bit"), flips())
def test_a_bit_that_flipped_before_the_hashes_were_made_never_gives_a_wrong_answer(
    device: Device, name: str, path: str, share: float, bit: int
) -> None:
    store, whole = device.stores[name], damage.whole(name)

    def change(data: bytes) -> bytes:
        return damage.flipped(data, share, bit)

    content = (damage.in_model(change) if path.startswith("model") else damage.in_file(path, change))(whole)
    published = damage.publish(content)
    manager = device.manager(name, bring(store, published))
    state = manager.install(published.release.id, shadow=True, forced=True)
    if state.phase != SHADOW:
        device.refused(name, published.release.id)
        return
    # The flip means nothing, or so the self-test says: let the version serve, and look at what it answers.
    manager.tell(Activated())
    release, y = device.ask()[name]
    assert release == published.release.id
    assert is_right(whole, y)
    manager.tell(RolledBack())
    assert manager.go_on().live == device.good[name]
    device.serves_as_before()


# What is no plain file


def linked(name: str, target: str) -> Callable[[Path], None]:
    def damage_folder(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).symlink_to(target)

    return damage_folder


def elsewhere(name: str) -> Callable[[Path], None]:
    """The very file, but behind a link."""

    def damage_folder(bundle: Path) -> None:
        shutil.move(bundle / name, bundle.parent / "elsewhere")
        (bundle / name).symlink_to(bundle.parent / "elsewhere")

    return damage_folder


def pipe(name: str) -> Callable[[Path], None]:
    def damage_folder(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return damage_folder


def emptied(name: str) -> Callable[[Path], None]:
    def damage_folder(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).mkdir()

    return damage_folder


def filled(name: str, inside: str = "a") -> Callable[[Path], None]:
    def damage_folder(bundle: Path) -> None:
        data = (bundle / name).read_bytes()
        emptied(name)(bundle)
        (bundle / name / inside).write_bytes(data)

    return damage_folder


def gone(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def _loop(bundle: Path) -> None:
    linked("model.onnx", "model-2.onnx")(bundle)
    (bundle / "model-2.onnx").symlink_to("model.onnx")


def _through_a_folder(bundle: Path) -> None:
    """The model is in a folder of the bundle that leads out of it."""
    outside = bundle.parent / "outside"
    outside.mkdir()
    shutil.move(bundle / "model.onnx", outside / "model.onnx")
    (bundle / "sub").symlink_to(outside, target_is_directory=True)
    manifest = bundle / "manifest.json"
    manifest.write_bytes(damage.in_tree("artifacts/0/file", "sub/model.onnx")(manifest.read_bytes()))


def _package(inside: Callable[[Path], None]) -> Callable[[Path], None]:
    """A package, which is a folder, with something in it that is no plain file."""

    def damage_folder(bundle: Path) -> None:
        folder = bundle / "model.mlpackage"
        folder.mkdir()
        (folder / "Manifest.json").write_text("{}")
        inside(folder)
        manifest = bundle / "manifest.json"
        tree = json.loads(manifest.read_bytes())
        package = {**tree["artifacts"][0], "format": "coreml", "file": "model.mlpackage"}
        manifest.write_bytes(
            damage.in_tree("artifacts", [*tree["artifacts"], package])(manifest.read_bytes())
        )

    return damage_folder


FILES = ("manifest.json", "model.onnx", "golden.npz")
FOLDERS: dict[str, Callable[[Path], None]] = {
    **{f"{name} is gone": gone(name) for name in FILES},
    **{f"{name} is a folder": emptied(name) for name in FILES},
    **{f"{name} is a folder with itself in it": filled(name) for name in FILES},
    **{f"{name} is a pipe": pipe(name) for name in FILES},
    **{f"{name} is a link to itself elsewhere": elsewhere(name) for name in FILES},
    **{
        f"{name} is a link to {target}": linked(name, target)
        for name in FILES
        for target in ("/etc/passwd", "/dev/zero", "/nowhere", "..", name)
    },
    "the model is a circle of links": _loop,
    "the model is behind a folder that leads elsewhere": _through_a_folder,
    "a link in a package": _package(lambda p: (p / "weights").symlink_to("/etc/passwd")),
    "a pipe in a package": _package(lambda p: os.mkfifo(p / "weights")),
    "a circle of links in a package": _package(lambda p: (p / "a").symlink_to("a")),
    "a name with a backslash in a package": _package(lambda p: (p / "b\\c").write_text("")),
    "a name of two lines in a package": _package(lambda p: (p / "b\nc").write_text("")),
    "a name that is no UTF-8 in a package": _package(
        lambda p: Path(os.fsdecode(bytes(p) + b"/\xff")).write_text("")
    ),
    "too long a path in a package": _package(lambda p: (p / ("x" * 250)).write_text("")),
    "too many files in a package": _package(
        lambda p: [(p / str(k)).touch() for k in range(4096)] and None  # type: ignore[func-returns-value]
    ),
}


@pytest.mark.parametrize("change", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_holds_anything_but_plain_files_is_refused(
    device: Device, change: Callable[[Path], None], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = device.stores["onnx"]
    change(bundle)
    with suppress(ArtifactError):
        released = Bundle.open(bundle).release()
        assert device.offer(
            "onnx", released.id, lambda: store.add_release(released, Bundle.open(bundle).read)
        )
    status, answer = install(capsys, store, bundle)
    assert status == 3
    assert answer["error"] in {"bundle", "manifest"}
    assert "root:" not in json.dumps(answer), "nothing of a file elsewhere is shown"
    state: State = store.state()
    assert (state.phase, state.live, state.candidate) == (IDLE, device.good["onnx"], None)
    device.serves_as_before()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change", [damage.cut(0), damage.cut(0.5), damage.flip(1, 2)], ids=["empty", "half", "flip"]
)
def test_a_folder_with_a_damaged_file_is_refused(
    device: Device, name: str, change: Bytes, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    status, answer = install(capsys, device.stores["onnx"], bundle)
    assert status == 3
    assert answer["error"] in {"bundle", "damaged", "golden", "golden_file"}
    device.serves_as_before()


def test_a_document_that_is_refused_says_where() -> None:
    document = documents.in_tree("files", {"manifest.json": documents.A_FILE, "../up": documents.A_FILE})
    with pytest.raises(ContractError, match=r"\.\./up"):
        Release.from_json(document(damage.publish(damage.whole("onnx")).release.to_json().encode()))


# What a trial says of itself


@pytest.mark.parametrize(
    "said", ["", "7", "null", "[]", "{", '{"format": "onnx"}', '{"format": "onnx"}\nnoise']
)
def test_a_trial_that_dies_is_no_answer_whatever_it_said_before(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{said}'\nkill -ABRT $$\n")
    fake.chmod(0o755)
    published = damage.publish({**damage.whole("onnx"), "more.txt": said.encode()})
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(fake))
        code = device.offer("onnx", published.release.id, bring(device.stores["onnx"], published))
    assert code == "trial_crashed"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_where_memory_runs_out_the_trial_goes_and_not_what_serves(device: Device) -> None:
    program = (
        "import sys; from pathlib import Path; from edgekit_runtime.trial import main\n"
        "main(*sys.argv[1:]); print(Path('/proc/self/oom_score_adj').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(device.stores["onnx"].path), device.good["onnx"]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "1000"
    assert int(Path(f"/proc/{device.server.pid}/oom_score_adj").read_text()) < 1000
