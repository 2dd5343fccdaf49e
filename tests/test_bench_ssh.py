"""Benchmarks on another machine: a real sshd on loopback, cut lines, wrong keys, what is missing, full disks."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bench.predict import calibrate
from edgekit.bench.predict.rates import CROWD
from edgekit.bench.results import EMULATED, MEASURED, ModelFile, Result, Spec
from edgekit.bench.targets import emulated, silent, ssh
from edgekit.bench.targets.parcels import pack
from edgekit.errors import UsageError
from edgekit.remote import hosts
from edgekit_devices import load_profile
from support.colours import colours, write_bundle
from support.sshd import Sshd, sshd, write_script

SCRIPT = Path(emulated.enter(Path("folder"))[3])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("ssh") / "d") as found:
        yield found


@pytest.fixture
def device(running: Sshd) -> Iterator[Sshd]:
    """One that is as it was at the beginning, and on which nothing is left in the end."""
    yield running
    running.session()
    running.python(f'{sys.executable} "$@"')
    gone(running)


def gone(device: Sshd) -> None:
    end_s = time.monotonic() + 20
    while device.left() and time.monotonic() < end_s:
        time.sleep(0.02)
    assert device.left() == []


def spec(folder: Path, **options: object) -> Spec:
    bundle = folder / "bundle"
    if not bundle.exists():
        write_bundle(colours(), bundle)
    quick = {"seconds": 0.05, "min_rounds": 5, "warmup": 1, "cold_starts": 1, **options}
    return Spec((ModelFile("colours", str(bundle)),), **quick)  # type: ignore[arg-type]


# What goes along


def test_of_a_bundle_only_what_is_measured_goes_along(tmp_path: Path) -> None:
    wanted = spec(tmp_path)
    (tmp_path / "bundle" / "report.html").write_text("large")
    job = pack(wanted)
    names = [each.name for each in job.files]
    assert names[0] == "harness.py"
    assert [name for name in names if name.startswith("models/")] == [
        "models/0/manifest.json", "models/0/model.onnx", "models/0/golden.npz",
    ]  # fmt: skip
    assert job.needs == (("numpy",), ("onnxruntime",))
    assert '"path": "models/0"' in job.files[2].content.decode()  # type: ignore[union-attr]


def test_two_files_of_one_name_stay_two(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.tflite").write_bytes(folder.encode())
    files = tuple(ModelFile(each, str(tmp_path / each / "model.tflite")) for each in ("a", "b"))
    job = pack(Spec(files))
    assert [each.name for each in job.files[3:]] == ["models/0/model.tflite", "models/1/model.tflite"]
    assert job.needs == (("numpy",), ("ai_edge_litert", "tflite_runtime"))


@pytest.mark.parametrize(
    ("name", "found"),
    [("none.onnx", "no such file"), ("a.mlpackage", "cannot be measured"), ("empty", "manifest.json")],
)
def test_what_cannot_be_measured_there_is_refused_here(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "a.mlpackage").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=found):
        pack(Spec((ModelFile("a", str(tmp_path / name)),)))


def outside(folder: Path) -> Path:
    """An ONNX file with its weights in another one."""
    import onnx
    from onnx.external_data_helper import set_external_data

    write_bundle(colours(), folder / "whole")
    model, path = onnx.load(folder / "whole" / "model.onnx"), folder / "apart.onnx"
    # What shapes follow from has to stay inside.
    set_external_data(next(each for each in model.graph.initializer if each.name == "gain"), "apart.weights")
    onnx.save(model, path)
    return path


def test_weights_outside_an_onnx_file_go_along_and_are_missed_here_already(tmp_path: Path) -> None:
    wanted = Spec((ModelFile("apart", str(outside(tmp_path))),))
    assert [each.name for each in pack(wanted).files[3:]] == ["models/0/apart.onnx", "models/0/apart.weights"]
    (tmp_path / "apart.weights").unlink()
    with pytest.raises(UsageError, match=r"its weights are in apart\.weights"):
        pack(wanted)


def test_weights_that_lie_above_the_folder_are_not_taken(tmp_path: Path) -> None:
    path = outside(tmp_path)
    content = path.read_bytes()
    assert content.count(b"apart.weights") >= 1
    path.write_bytes(content.replace(b"apart.weights", b"../weights.xy"))
    (tmp_path.parent / "weights.xy").write_bytes(b"secret")
    with pytest.raises(UsageError, match=r"\.\./weights\.xy"):
        pack(Spec((ModelFile("apart", str(path)),)))


# A real sshd


def test_a_device_is_calibrated_without_a_process_for_every_file(
    device: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = calibrate.probes
    monkeypatch.setattr(calibrate, "probes", lambda *given: known(*given)[:2])
    profile = calibrate.calibrate(load_profile("generic"), device=device.url, formats=("tflite",))
    assert [(each.format, each.precision) for each in profile.calibration] == [
        ("tflite", "int8"),
        ("tflite", "float32"),
    ]
    assert [sum(point.kind != CROWD for point in each.points) for each in profile.calibration] == [2, 2]
    assert all(point.ms > 0 for each in profile.calibration for point in each.points)


def test_what_no_fresh_process_opened_has_no_cold_start(device: Sshd, tmp_path: Path) -> None:
    path = outside(tmp_path)
    wanted = replace(spec(tmp_path, alone=False), files=(ModelFile("apart", str(path)),))
    result = ssh.measure(wanted, device.url)
    assert result.errors == ()
    (run,) = result.runs
    assert (run.load_ms, run.cold_start_ms, run.memory_mb.steady) == (None, None, None)
    assert run.latency_ms.p50 > 0


def test_a_bundle_is_measured_there_and_nothing_is_left(device: Sshd, tmp_path: Path) -> None:
    told: list[str] = []
    result = ssh.measure(spec(tmp_path), device.url, told=lambda _, what: told.append(what))
    assert (result.kind, result.device, result.errors) == (MEASURED, device.url, ())
    assert [(run.name, run.format, run.batch) for run in result.runs] == [("colours", "onnx", 1)]
    assert result.runs[0].cold_start_ms is not None
    assert device.left() == []
    assert "MB are to be copied" in told[0]
    assert any(what.startswith("copying") and what.endswith("100%") for what in told)


def interrupting(at: str) -> Callable[[float, str], None]:
    """Ctrl-C, once, when this begins."""
    left = [signal.SIGINT]

    def told(_: float, what: str) -> None:
        if what.startswith(at) and left:
            signal.raise_signal(left.pop())

    return told


def test_an_interrupt_brings_back_what_there_is(device: Sshd, tmp_path: Path) -> None:
    result = ssh.measure(spec(tmp_path, seconds=600.0), device.url, told=interrupting("rounds"))
    assert result.interrupted
    assert len(result.runs) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("at", ["connecting", "copying", "fresh process"])
def test_an_interrupt_before_anything_is_measured_ends_it(device: Sshd, tmp_path: Path, at: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        ssh.measure(spec(tmp_path, seconds=600.0), device.url, told=interrupting(at))


def test_a_line_that_is_cut_while_it_measures_leaves_nothing(device: Sshd, tmp_path: Path) -> None:
    def told(_: float, what: str) -> None:
        if device.left() and not what.startswith("copying"):
            device.cut()

    with pytest.raises(UsageError, match="the line was cut while running"):
        ssh.measure(spec(tmp_path, seconds=600.0), device.url, told=told)
    gone(device)


def test_a_line_that_is_cut_while_files_are_copied_leaves_nothing(device: Sshd, tmp_path: Path) -> None:
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(256 << 20)
    seen: list[int] = []

    def told(_: float, what: str) -> None:
        if what.startswith("copying") and "10%" in what:
            seen.extend(each.stat().st_size for each in device.left()[0].rglob("*.onnx"))
            device.cut()

    with pytest.raises(UsageError, match="the line was cut while copying"):
        ssh.measure(Spec((ModelFile("large", str(large)),)), device.url, told=told)
    gone(device)
    assert not seen or seen[0] < 256 << 20


def test_another_host_key_is_named_with_the_line_that_knows_the_first(device: Sshd, tmp_path: Path) -> None:
    known = device.known_hosts.read_text()
    kind, key = (device.folder / "user_key.pub").read_text().split()[:2]
    device.known_hosts.write_text(f"# comment\n[127.0.0.1]:{device.port} {kind} {key}\n")
    try:
        with pytest.raises(UsageError, match="another host key") as caught:
            ssh.measure(spec(tmp_path), device.url)
        assert f"{device.known_hosts}, line 2" in caught.value.what
        assert f"ssh-keygen -R '[127.0.0.1]:{device.port}'" in caught.value.way_out
        device.known_hosts.write_text("")
        with pytest.raises(UsageError, match="its host key is not known"):
            ssh.measure(spec(tmp_path), device.url)
    finally:
        device.known_hosts.write_text(known)


def test_who_is_not_let_in_is_told_how_to_be(device: Sshd, tmp_path: Path) -> None:
    allowed = device.folder / "authorized_keys"
    before = allowed.read_text()
    allowed.write_text("")
    try:
        with pytest.raises(UsageError, match="Permission denied") as caught:
            ssh.measure(spec(tmp_path), device.url)
        assert "ssh-copy-id" in caught.value.way_out
    finally:
        allowed.write_text(before)


def test_machines_that_are_not_there_are_told_apart(
    device: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "CONNECT_S", 1)
    with pytest.raises(UsageError, match="Could not resolve"):
        ssh.measure(spec(tmp_path), "ssh://nobody@nowhere.invalid")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        with pytest.raises(UsageError, match="no answer in"):
            ssh.measure(spec(tmp_path), f"ssh://127.0.0.1:{port}")
    with pytest.raises(UsageError, match="refused"):
        ssh.measure(spec(tmp_path), f"ssh://127.0.0.1:{port}")


def test_a_device_without_python_is_told_so(device: Sshd, tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "sh").symlink_to("/bin/sh")
    device.session(PATH=str(bare))
    with pytest.raises(UsageError, match="there is no python3"):
        ssh.measure(spec(tmp_path), device.url)


def test_a_device_without_a_backend_gets_the_line_that_brings_it(device: Sshd, tmp_path: Path) -> None:
    device.python(f'{sys.executable} -S "$@"')
    with pytest.raises(UsageError, match="has no numpy, no onnxruntime") as caught:
        ssh.measure(spec(tmp_path), device.url)
    assert "pip install numpy onnxruntime" in caught.value.way_out


def test_an_interpreter_may_be_named(device: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "other python"
    write_script(other, f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    with pytest.raises(UsageError, match="no numpy"):
        ssh.measure(spec(tmp_path), device.url + str(other).replace(" ", "%20"))


def test_a_harness_that_crashes_says_its_last_lines(device: Sshd, tmp_path: Path) -> None:
    # The supervisor starts the harness by the interpreter that it finds itself in.
    code = f"import sys; sys.executable = '{device.folder}/there-bin/python3'; exec(sys.argv[1])"
    write_script(
        device.folder / "there-bin" / "python3",
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{code}" "$2"\necho out of luck >&2\nexit 7\n',
    )
    with pytest.raises(UsageError, match="the benchmark ended with status 7") as caught:
        ssh.measure(spec(tmp_path), device.url)
    assert "out of luck" in caught.value.what


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB and 12 files."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=12", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    left = list(place.iterdir())
    subprocess.run(["umount", str(place)], check=True)
    assert left == []


def test_a_disk_that_is_too_small_or_fills_up_leaves_nothing(
    device: Sshd, small: Path, tmp_path: Path
) -> None:
    device.session(TMPDIR=str(small))
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(20 << 20)
    with pytest.raises(UsageError, match=r"no room .*small: 16\.\d MB free"):
        ssh.measure(Spec((ModelFile("large", str(large)),)), device.url)
    # There is room, and then there is none any more.
    one = spec(tmp_path).files[0]
    many = replace(spec(tmp_path), files=tuple(replace(one, name=str(number)) for number in range(8)))
    with pytest.raises(UsageError, match="No space left on device"):
        ssh.measure(many, device.url)


# The emulated machine


def test_the_emulated_machine_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("env", "bash"):
        (tools / name).symlink_to(shutil.which(name) or "/nowhere")
    write_script(tools / "id", "#!/bin/sh\necho 0\n")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(UsageError, match="there is no qemu-aarch64-static") as caught:
        emulated.measure(spec(tmp_path), tmp_path / "root")
    assert "apt-get install mmdebstrap qemu-user-static" in caught.value.way_out
    write_script(tools / "id", "#!/bin/sh\necho 1000\n")
    with pytest.raises(UsageError, match="only root may enter"):
        emulated.measure(spec(tmp_path), tmp_path / "root")


def test_the_script_of_the_emulated_machine_parses() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.mark.slow
def test_a_result_of_the_emulated_machine_says_that_it_is_one(tmp_path: Path) -> None:
    folder = emulated.default_folder()
    if not (folder / "root" / "opt" / "site" / "wheels-are-there").exists():
        pytest.skip("sudo scripts/arm64 makes the root")
    result: Result = emulated.measure(spec(tmp_path, cold_starts=0), folder, told=silent)
    assert (result.kind, result.device, result.machine.machine) == (EMULATED, "arm64", "aarch64")
    assert len(result.runs) == 1
    assert not list((folder / "root" / "tmp").glob("edgekit-*"))
