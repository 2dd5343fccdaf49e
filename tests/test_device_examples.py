"""What a stranger starts from on a device: the examples, the installation, the unit of systemd."""

from __future__ import annotations

import configparser
import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from examples.device import camera, classify
from examples.device.frames import frames, pictures, read

from edgekit_runtime.cli import _parser
from edgekit_runtime.state import PROBATION
from support.colours import colours, write_bundle, write_pictures
from support.device import Device

PROVISION = Path(__file__).parents[1] / "devices" / "edgekit_devices" / "provision"
UNIT = PROVISION / "edgekit-agent.service"


# Examples


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """An example may take signals for itself; the tests want them back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_pictures_of_a_folder_are_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(colours(), tmp_path / "bundle")
    assert classify.main([str(bundle), str(write_pictures(tmp_path / "photos"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "colours 1.0.0 in onnx: as where it was evaluated on 4 known inputs"
    assert lines[-1] == "right: 3 of 3"
    assert lines[1].startswith("blue/blue.ppm: blue 100%, ")


def test_what_is_no_bundle_or_no_picture_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify.main([str(tmp_path / "none"), str(tmp_path)]) == 2
    assert "way out" in capsys.readouterr().err
    bundle = write_bundle(colours(), tmp_path / "bundle")
    (tmp_path / "photos").mkdir()
    with pytest.raises(SystemExit, match="no pictures"):
        classify.main([str(bundle), str(tmp_path / "photos")])
    (tmp_path / "photos" / "torn.ppm").write_bytes(b"P6\n10")
    assert classify.main([str(bundle), str(tmp_path / "photos")]) == 2


def test_a_picture_is_read_from_every_kind_of_file(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.save(tmp_path / "a.npy", pixels)
    (tmp_path / "b.ppm").write_bytes(b"P6 3 2 255\n" + pixels.tobytes())
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "c.png")
    assert [path.name for path in pictures(tmp_path)] == ["a.npy", "b.ppm", "c.png"]
    for path in pictures(tmp_path):
        assert np.array_equal(read(path), pixels)
    assert len(list(frames(tmp_path, rounds=3))) == 9


class Heard(io.StringIO):
    """What was printed; something else may wait for a part of it."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.awaited, self.said = awaited, threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.awaited in self.getvalue():
            self.said.set()
        return count


def test_a_camera_loop_goes_on_while_its_model_changes(tmp_path: Path) -> None:
    device = Device(tmp_path / "store")
    device.install(colours(), good=True)
    photos = write_pictures(tmp_path / "photos")
    second = colours("2.0.0", gain=30.0)
    out = Heard("2.0.0 does well\n")

    def change() -> None:
        device.install(second)
        out.said.wait(120)
        os.kill(os.getpid(), signal.SIGTERM)

    changing = threading.Timer(0.5, change)
    changing.start()
    # Only the signal ends it in time, as it ends a service.
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        camera.main([str(device.store.path), str(photos), "--rounds", "100000", "--fps", "150"])
    changing.join()
    assert ended.value.code == 0
    assert "serving colours 1.0.0" in out.getvalue()
    assert "now colours 2.0.0" in out.getvalue()
    assert out.said.is_set()
    assert device.store.state().live == second.release.id
    assert device.store.state().phase != PROBATION


def test_a_camera_loop_without_a_store_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camera.main([str(tmp_path / "store"), str(tmp_path)]) == 2
    assert "edgekit-runtime install" in capsys.readouterr().err


# Installation


def unit() -> configparser.ConfigParser:
    made = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",))
    made.optionxform = str  # type: ignore[assignment,method-assign]
    made.read_string(UNIT.read_text(encoding="utf-8"))
    return made


def test_the_unit_starts_an_agent_that_the_command_line_knows() -> None:
    service = unit()["Service"]
    program, option, module, *arguments = shlex.split(service["ExecStart"])
    assert (program, option, module) == ("/opt/edgekit/bin/python", "-m", _parser.__module__)
    options = _parser().parse_args(arguments)
    assert str(options.root) == "/etc/edgekit/root.json"
    assert (service["Type"], service["Restart"], service["StateDirectory"]) == ("notify", "always", "edgekit")


def test_the_unit_waits_longer_for_a_sign_of_life_than_a_trial_takes() -> None:
    from edgekit_runtime.trial import TIMEOUT_S

    assert unit()["Service"]["WatchdogSec"] == "15min"
    assert 2 * TIMEOUT_S <= 15 * 60


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8").replace("/opt/edgekit/bin/python", "/bin/true")
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    # Whatever else is wrong with the units of this machine is not ours.
    assert not [line for line in done.stderr.splitlines() if copy.name in line and "edgekit" in line]


def install(prefix: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script below a folder; pip is a fake that notes what it is asked for."""
    python = prefix / "opt" / "edgekit" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\necho "$@" >>{shlex.quote(str(prefix / "asked"))}\n')
    python.chmod(0o755)
    return subprocess.run(
        ["sh", str(PROVISION / "install.sh"), *options],
        capture_output=True, text=True, check=False, env={**os.environ, "PREFIX": str(prefix)},
    )  # fmt: skip


def test_the_script_installs_again_and_again_and_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    prefix, root = tmp_path / "größe", tmp_path / "root.json"
    root.write_text("{}")
    first = install(prefix, "--server", "https://fleet.example.com", "--root", str(root))
    assert first.returncode == 0, first.stderr
    settings = prefix / "etc" / "edgekit" / "agent.env"
    assert "EDGEKIT_SERVER=https://fleet.example.com" in settings.read_text()
    assert (prefix / "etc" / "edgekit" / "root.json").read_text() == "{}"
    assert (prefix / "etc" / "systemd" / "system" / UNIT.name).read_bytes() == UNIT.read_bytes()
    written = "EDGEKIT_SERVER=https://other.example.com\nEDGEKIT_CHANNEL=beta\n"
    settings.write_text(written)
    again = install(prefix, "--server", "https://fleet.example.com", "--root", str(root), "--format", "onnx")
    assert again.returncode == 0
    assert settings.read_text() == written
    asked = (prefix / "asked").read_text().splitlines()
    installed = [line.split()[-1] for line in asked if "install" in line]
    assert installed == ["edgekit-runtime[tflite]", "edgekit-runtime[onnx]"]
    assert "agent.env stays as it is; write EDGEKIT_SERVER=https://fleet.example.com there" in again.stderr
    assert "EDGEKIT_CHANNEL" not in again.stderr, "nobody asked for another channel"


def test_the_first_root_stays_as_newer_ones_come_from_the_server(tmp_path: Path) -> None:
    prefix, root = tmp_path / "prefix", tmp_path / "root.json"
    for text in ("first", "rotated"):
        root.write_text(text)
        done = install(prefix, "--server", "https://fleet.example.com", "--root", str(root))
        assert done.returncode == 0
        assert ("root.json stays as it is" in done.stderr) == (text == "rotated")
    assert (prefix / "etc" / "edgekit" / "root.json").read_text() == "first"


def test_an_image_that_is_built_elsewhere_starts_the_agent_as_its_user_when_it_boots(tmp_path: Path) -> None:
    prefix, root = tmp_path / "image", tmp_path / "root.json"
    root.write_text("{}")
    (prefix / "etc").mkdir(parents=True)
    (prefix / "etc" / "group").write_text("root:x:0:\nvideo:x:44:\n")
    command = prefix / "opt" / "edgekit" / "bin" / "edgekit-runtime"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!{prefix}/opt/edgekit/bin/python\n")
    done = install(prefix, "--server", "https://fleet.example.com", "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert command.read_text() == "#!/opt/edgekit/bin/python\n"
    units = prefix / "etc" / "systemd" / "system"
    wanted = units / "multi-user.target.wants" / UNIT.name
    assert wanted.readlink() == Path("/etc/systemd/system") / UNIT.name
    assert (units / f"{UNIT.name}.d" / "groups.conf").read_text() == "[Service]\nSupplementaryGroups=video\n"
    user = unit()["Service"]["User"]
    assert f"\nu {user} " in (prefix / "etc" / "sysusers.d" / "edgekit.conf").read_text()


def test_what_was_installed_goes_and_models_and_settings_stay_unless_they_shall_go_too(
    tmp_path: Path,
) -> None:
    prefix, root = tmp_path / "prefix", tmp_path / "root.json"
    root.write_text("{}")
    model, other = prefix / "var" / "lib" / "edgekit" / "model", prefix / "opt" / "other"
    for path in (model, other):
        path.parent.mkdir(parents=True)
        path.write_text("of somebody")
    assert install(prefix, "--server", "https://fleet.example.com", "--root", str(root)).returncode == 0
    assert install(prefix, "--uninstall").returncode == 0
    assert not (prefix / "opt" / "edgekit").exists()
    assert not [path for path in prefix.rglob("*") if path.name.startswith(UNIT.name)]
    assert (prefix / "etc" / "edgekit" / "agent.env").exists()
    assert install(prefix, "--uninstall", "--purge").returncode == 0
    assert not (prefix / "etc" / "edgekit").exists()
    assert not model.exists()
    assert other.read_text() == "of somebody"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--server https"),
        (["--purge", "--server", "https://x", "--root", "/dev/null"], "--uninstall"),
        (["--server", "https://x"], "--server https"),
        (["--server"], "--server https"),
        (["--server", "https://x", "--root", "/nowhere"], "/nowhere cannot be read"),
        (["--server", "https://x", "--root", "/dev/null", "--format", "coreml"], "no backend for coreml"),
        (["--surplus"], "--server https"),
    ],
)
def test_a_script_without_what_it_needs_changes_nothing(
    tmp_path: Path, options: list[str], said: str
) -> None:
    done = install(tmp_path, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "etc").exists()
