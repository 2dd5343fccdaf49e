"""A device that is set up over SSH: the plan, what is done, what a second run does, and what is left in the end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cli import app
from edgekit.errors import UsageError
from edgekit.fleet.identity.enrolment import make_code
from edgekit.fleet.storage.tables import devices
from edgekit.provision.carry_out import FILES, Order, provision, uninstall
from edgekit.provision.plan import CUT_OFF, Facts, Plan, Wanted, plan_install, plan_uninstall
from edgekit.remote.hosts import read_host
from support.served_fleet import ADA, a_fleet, serving
from support.sshd import Sshd, sshd
from support.tiny_runs import call

ROOT = json.dumps({"signed": {"_type": "root"}, "signatures": []}).encode()
HASHES = {name: name * 4 for name in ("root", "unit", "sysusers", "tmpfiles")}
WANTED = Wanted(
    "https://fleet.example.com", "tflite", "abc tflite", "0.1.0", HASHES, code=True, token="", labels={}
)
NAMES = ("root", "settings", "token", "unit", "groups", "sysusers", "tmpfiles", "package")
FRESH = Facts(
    machine="Linux aarch64", python="3.11.2", venv=True, systemd=True, free_bytes=10**10,
    hashes=dict.fromkeys(NAMES), texts=dict.fromkeys(("settings", "package", "groups"), ""), user=False,
    devices=("video",), works=False, there=(), enabled=False, active=False,
)  # fmt: skip
SETTINGS = "# by hand\nEDGEKIT_SERVER=https://fleet.example.com\nEDGEKIT_TOKEN_FILE=/etc/edgekit/token\n"
DONE = replace(
    FRESH, hashes={**dict.fromkeys(NAMES, "x"), **HASHES}, user=True, works=True, enabled=True, active=True,
    texts={"settings": SETTINGS, "package": "abc tflite\n", "groups": "[Service]\nSupplementaryGroups=video\n"},
    there=("opt/edgekit", "etc/edgekit", "var/lib/edgekit"),
)  # fmt: skip


# The plan


def test_a_fresh_device_gets_everything() -> None:
    plan = plan_install(FRESH, replace(WANTED, labels={"region": "eu", "hardware": "pi4"}), "kitchen")
    assert plan.steps == (
        "make the user edgekit",
        "install edgekit-runtime 0.1.0 with its tflite backend into /opt/edgekit",
        "put the root.json that it trusts first",
        "change the code for a token at https://fleet.example.com",
        "set EDGEKIT_SERVER=https://fleet.example.com, EDGEKIT_TOKEN_FILE=/etc/edgekit/token, "
        "EDGEKIT_LABELS=region=eu,hardware=pi4 in /etc/edgekit/agent.env",
        "put the unit edgekit-agent, and whose files are whose",
        "let the agent use accelerators: video",
        "let the agent start at every boot",
        "start the agent",
    )
    assert plan.notes == ()


def test_a_device_that_has_everything_gets_nothing() -> None:
    assert plan_install(DONE, WANTED, "kitchen") == Plan((), ("it is enrolled; the code is not used",))
    assert plan_install(DONE, replace(WANTED, code=False), "kitchen") == Plan((), ())


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        ({"works": False}, "install edgekit-runtime"),
        ({"texts": {**DONE.texts, "package": "older tflite"}}, "install edgekit-runtime"),
        ({"hashes": {**DONE.hashes, "unit": "older"}}, "put the unit"),
        ({"hashes": {**DONE.hashes, "token": None}}, "change the code"),
        ({"hashes": {**DONE.hashes, "root": None}}, "put the root.json"),
        ({"devices": ()}, "let the agent use accelerators: none"),
        ({"enabled": False}, "let the agent start at every boot"),
    ],
)
def test_what_is_missing_is_done_and_the_agent_started_anew(facts: dict[str, object], step: str) -> None:
    plan = plan_install(replace(DONE, **facts), WANTED, "kitchen")  # type: ignore[arg-type]
    assert len(plan.steps) == 2
    assert plan.steps[0].startswith(step)
    assert plan.steps[1] == "start the agent anew"


def test_an_agent_that_only_does_not_run_is_started() -> None:
    assert plan_install(replace(DONE, active=False), WANTED, "kitchen").steps == ("start the agent",)
    cut_off = replace(DONE, there=(*DONE.there, CUT_OFF))
    assert plan_install(cut_off, WANTED, "kitchen").steps == ("start the agent anew",)


def test_a_token_that_is_given_takes_the_place_of_another_and_a_code_does_not() -> None:
    assert (
        plan_install(DONE, replace(WANTED, code=False, token="y"), "kitchen").steps[0] == "replace its token"
    )
    assert plan_install(DONE, replace(WANTED, code=False, token="x"), "kitchen").steps == ()


def test_what_a_person_wrote_stays_and_is_said() -> None:
    other = replace(DONE, texts={**DONE.texts, "settings": SETTINGS.replace("fleet.", "other.")})
    plan = plan_install(other, replace(WANTED, code=False), "kitchen")
    assert plan.steps == ()
    assert plan.notes == (
        "agent.env stays as it is; write EDGEKIT_SERVER=https://fleet.example.com there if you mean that",
    )


@pytest.mark.parametrize(
    ("facts", "wanted", "found"),
    [
        ({"machine": "Darwin arm64"}, {}, "it is Darwin"),
        ({"systemd": False}, {}, "systemd does not run"),
        ({"venv": False}, {}, "no virtual environments"),
        ({"free_bytes": 10**7}, {}, "10 MB are free"),
        ({}, {"code": False}, "it is not enrolled"),
    ],
)
def test_a_device_that_cannot_have_it_is_told_why(
    facts: dict[str, object], wanted: dict[str, object], found: str
) -> None:
    with pytest.raises(UsageError, match=f"kitchen: .*{found}") as caught:
        plan_install(replace(FRESH, **facts), replace(WANTED, **wanted), "kitchen")  # type: ignore[arg-type]
    assert caught.value.way_out


def test_below_a_prefix_nobody_is_made_and_nothing_is_started() -> None:
    steps = plan_install(replace(FRESH, systemd=False), replace(WANTED, prefix="/image"), "kitchen").steps
    assert not [step for step in steps if "user" in step or "start the agent" in step]
    assert "let the agent start at every boot" in steps


def test_an_uninstall_says_what_goes_and_what_stays() -> None:
    assert plan_uninstall(DONE, purge=False) == Plan(
        ("stop the agent", "remove the unit edgekit-agent", "remove /opt/edgekit"),
        (
            "/etc/edgekit stays: settings, root and token; --purge takes it along",
            "/var/lib/edgekit stays: models; --purge takes it along",
        ),
    )
    assert plan_uninstall(DONE, purge=True).steps[-3:] == (
        "remove /etc/edgekit: settings, root and token",
        "remove /var/lib/edgekit: models",
        "remove the user edgekit",
    )
    assert plan_uninstall(FRESH, purge=True) == Plan((), ())


@given(
    st.builds(
        replace, st.sampled_from([FRESH, DONE]), user=st.booleans(), works=st.booleans(), enabled=st.booleans(),
        active=st.booleans(), devices=st.sampled_from([(), ("video",), ("video", "render")]),
        hashes=st.fixed_dictionaries({name: st.sampled_from([None, "x", name * 4]) for name in NAMES}),
    )
)  # fmt: skip
def test_whatever_is_there_the_agent_is_started_last_and_only_where_something_is_done(facts: Facts) -> None:
    steps = plan_install(facts, WANTED, "kitchen").steps
    starts = [step for step in steps if step.startswith("start the agent")]
    assert starts == ([] if not steps else [steps[-1]])
    assert bool(steps) or facts.active


# Orders that cannot be


def order(**other: object) -> Order:
    usual = {"server": "https://fleet.example.com", "root": ROOT, "format": "onnx", "code": "c" * 32, "token": "",
             "labels": {}}  # fmt: skip
    return Order(**{**usual, **other})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"server": "http://fleet.example.com"}, "--server http"),
        ({"server": "https://fleet.example.com/a b"}, "--server"),
        ({"server": "https://x$(reboot)"}, "--server"),
        ({"server": "fleet"}, "--server fleet"),
        ({"format": "coreml"}, "--format coreml"),
        ({"code": "two words"}, "--code: no code"),
        ({"token": "größe", "code": ""}, "--token-file: no code or token"),
        ({"root": b"{}"}, "--root"),
        ({"root": b"\xff"}, "--root"),
    ],
)
def test_an_order_that_cannot_be_is_refused_and_shows_no_secret(wrong: dict[str, object], found: str) -> None:
    with pytest.raises(UsageError, match=found.replace("$", r"\$").replace("(", r"\(")) as caught:
        order(**wrong)
    assert "two words" not in str(caught.value)
    assert "größe" not in str(caught.value)


@pytest.mark.parametrize("value", ["a,b", "a b", "'", '"', "a\\", "$HOME", "#"])
def test_labels_that_the_settings_of_an_agent_cannot_hold_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--label site="):
        replace(WANTED, labels={"site": value})


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], "no --server"),
        (["--server", "https://x"], "no --root"),
        (["--server", "https://x", "--root", "/nowhere"], "/nowhere: No such file"),
        (["--uninstall", "--code", "x"], "--uninstall with --code"),
        (["--server", "https://x", "--root", "ROOT", "--purge"], "--purge without --uninstall"),
        (["--server", "https://x", "--root", "ROOT", "--code", "a", "--token-file", "b"], "--code and --token-file"),
        (["--server", "https://x", "--root", "ROOT", "--token-file", "/nowhere"], "/nowhere: No such file"),
        (["--server", "https://x", "--root", "ROOT", "--code", "a", "--label", "x"], "--label"),
        (["--uninstall", "--prefix", "image"], "--prefix image"),
    ],
)  # fmt: skip
def test_wrong_options_are_told(tmp_path: Path, options: list[str], found: str) -> None:
    (tmp_path / "root.json").write_bytes(ROOT)
    words = [str(tmp_path / "root.json") if each == "ROOT" else each for each in options]
    result = call("devices", "provision", "pi@kitchen", *words)
    assert result.exit_code == 2
    assert found in result.stderr
    assert "way out" in result.stderr


def test_devices_still_lists_and_shows_profiles() -> None:
    assert json.loads(call("devices", "--json").stdout) == json.loads(
        call("devices", "show", "--json").stdout
    )
    assert "raspberry-pi-5" in call("devices", "raspberry-pi-5").stdout
    assert call("devices", "no-such-board").exit_code == 2
    assert "provision" in call("devices", "--help").stdout


def test_the_page_of_the_command_line_lists_every_option() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.partition("### edgekit devices provision")[2].partition("\n## ")[0]
    listed = {
        word
        for row in section.splitlines()
        if row.startswith("| `--")
        for word in re.findall(r"`(--[a-z-]+)", row)
    }
    group = typer.main.get_command(app).commands["devices"]  # type: ignore[attr-defined]
    options = {
        word for each in group.commands["provision"].params for word in each.opts if word.startswith("--")
    }
    assert listed == options - {"--help"}


# A real sshd


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One whose pip fetches nothing: what a runtime needs beside itself is lent to it."""
    with sshd(tmp_path_factory.mktemp("provision") / "d") as found:
        found.session(
            PIP_NO_DEPS="1", PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null", PYTHONDONTWRITEBYTECODE="1",
            PYTHONPATH=str(lent(found.folder / "lent")),
        )  # fmt: skip
        yield found


def lent(folder: Path) -> Path:
    """What is installed here, without what a device installs itself."""
    folder.mkdir()
    for each in Path(np.__file__).parents[1].iterdir():
        own = each.name.startswith(("edgekit", "_editable", "pip", "setuptools", "__pycache__"))
        if not own and each.suffix not in {".pth", ".dist-info"}:
            (folder / each.name).symlink_to(each)
    return folder


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Everything below a folder: mode, time of the last change, content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        if not path.is_dir():
            found[str(path.relative_to(folder))] = (about.st_mode, about.st_mtime_ns, content)
    return found


def watched(secret: str, stop: threading.Event, seen: list[str]) -> None:
    """Look at the words of all processes, as anybody on the device may."""
    while not stop.is_set():
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes()
            except OSError:
                continue
            if secret.encode() in words:
                seen.append(words.decode("utf-8", "replace"))
        time.sleep(0.01)


@pytest.mark.slow
def test_a_device_is_set_up_once_and_taken_back_without_a_trace(device: Sshd, tmp_path: Path) -> None:
    host, prefix = read_host(device.url), tmp_path / "image"
    (tmp_path / "fleet").mkdir()
    settings = prefix / "etc" / "edgekit" / "agent.env"
    settings.parent.mkdir(parents=True)
    (prefix / "etc" / "group").write_text("root:x:0:\nvideo:x:44:\n")
    before = tree(prefix)
    # A name that a person gave it; it enrols by it.
    settings.write_text("EDGEKIT_DEVICE=kitchen-17\n")
    with a_fleet(tmp_path / "fleet") as fleet, serving(fleet) as address:
        code = make_code(fleet, ADA, labels={"site": "kitchen"}, channel="beta").code
        wanted = order(server=address, code=code, labels={"region": "eu"}, prefix=str(prefix))
        told: list[str] = []
        planned = provision(host, wanted, dry_run=True, told=told.append)
        assert f"change the code for a token at {address}" in planned.steps
        assert set(tree(prefix)) == {*before, "etc/edgekit/agent.env"}, "a dry run does nothing"
        with pytest.raises(UsageError, match="the code is not known") as caught:
            provision(host, replace(wanted, code="never-made"), dry_run=False, told=told.append)
        assert "never-made" not in str(caught.value)
        assert not list(settings.parent.glob("token*"))
        stop, seen = threading.Event(), list[str]()
        watcher = threading.Thread(target=watched, args=(code, stop, seen))
        watcher.start()
        try:
            done = provision(host, wanted, dry_run=False, told=told.append)
        finally:
            stop.set()
            watcher.join()
        assert set(done.steps) < set(planned.steps), "what was done before it failed is not done again"
        assert seen == []
        with fleet.database.reading() as connection:
            (row,) = connection.execute(devices.select()).all()
        assert (row.id, row.channel) == ("kitchen-17", "beta")
        token = prefix / "etc" / "edgekit" / "token"
        assert token.stat().st_mode & 0o777 == 0o400
        lines = settings.read_text().splitlines()
        assert set(lines) >= {
            "EDGEKIT_DEVICE=kitchen-17", f"EDGEKIT_SERVER={address}", "EDGEKIT_CHANNEL=beta",
            "EDGEKIT_LABELS=region=eu", "EDGEKIT_TOKEN_FILE=/etc/edgekit/token",
        }  # fmt: skip
        assert code not in settings.read_text() + "".join(told)
        command = prefix / "opt" / "edgekit" / "bin" / "edgekit-runtime"
        assert command.read_text().startswith("#!/opt/edgekit/bin/python")

        first = tree(prefix)
        again = provision(host, wanted, dry_run=False, told=told.append)
        assert again == Plan((), ("it is enrolled; the code is not used",))
        assert tree(prefix) == first

        script = subprocess.run(
            ["sh", str(scripts(tmp_path) / FILES["install"]), "--server", address, "--format", "onnx",
             "--root", str(tmp_path / "root.json")],
            env={**os.environ, "PREFIX": str(prefix), "PACKAGE": wheel(tmp_path), "PYTHON": sys.executable},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "nothing was started" in script.stdout
        assert tree(prefix) == first
    kept = uninstall(host, purge=False, prefix=str(prefix), dry_run=False, told=told.append)
    assert kept.notes == ("/etc/edgekit stays: settings, root and token; --purge takes it along",)
    assert set(tree(prefix)) == {
        *before,
        *(f"etc/edgekit/{name}" for name in ("agent.env", "root.json", "token")),
    }
    uninstall(host, purge=True, prefix=str(prefix), dry_run=False, told=told.append)
    assert tree(prefix) == before
    assert uninstall(host, purge=True, prefix=str(prefix), dry_run=False, told=told.append) == Plan((), ())
    assert device.left() == []


def scripts(folder: Path) -> Path:
    """The folder that a person copies to a device."""
    from importlib import resources

    (folder / "root.json").write_bytes(ROOT)
    return Path(str(resources.files("edgekit_devices").joinpath("provision")))


def wheel(folder: Path) -> str:
    from edgekit.remote.wheels import runtime_wheel

    made = runtime_wheel()
    (folder / made.name).write_bytes(made.content)
    return str(folder / made.name)


def test_a_device_without_systemd_is_told_so_and_one_without_sudo_too(device: Sshd) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here: nothing is tried on it")
    found = "systemd does not run there" if os.geteuid() == 0 else "may not become root"
    with pytest.raises(UsageError, match=found):
        provision(read_host(device.url), order(), dry_run=True, told=lambda _: None)
    assert device.left() == []


def test_the_command_prints_what_it_does_as_json(device: Sshd, tmp_path: Path) -> None:
    (tmp_path / "root.json").write_bytes(ROOT)
    (tmp_path / "token").write_text("edgd_" + "t" * 40 + "\n")
    result = call(
        "devices", "provision", device.url, "--server", "https://fleet.example.com", "--root", tmp_path / "root.json",
        "--token-file", tmp_path / "token", "--prefix", tmp_path / "image", "--dry-run", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["dry_run"], found["changed"]) == (True, False)
    assert "put its token" in found["steps"]
    assert not (tmp_path / "image").exists()
    plain = call("devices", "provision", device.url, "--uninstall", "--prefix", tmp_path / "image")
    assert plain.stdout.strip() == f"{read_host(device.url)}: nothing to do"
