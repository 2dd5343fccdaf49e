"""The commands, against a real server: from a new fleet to a version that devices may take, and steering."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, update
from typer.testing import CliRunner, Result

from edgekit.cli import app
from edgekit.fleet.conduct import steering
from edgekit.fleet.context import Fleet
from edgekit.fleet.operations.setup import Made
from edgekit.fleet.rules import rollouts as rollout_rules
from edgekit.fleet.storage.tables import channels
from support.fleet_api import serving
from support.fleets import Clock, World
from support.releases import publish


def call(*words: object, text: str = "") -> Result:
    return CliRunner().invoke(app, [str(each) for each in words], prog_name="edgekit", input=text)


def ok(*words: object, text: str = "") -> str:
    result = call(*words, text=text)
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*words: object) -> object:
    return json.loads(ok(*words, "--json"))


def bundle(folder: Path, version: str, weights: bytes) -> Path:
    """A bundle on disk."""
    folder.mkdir()
    for name, content in publish(version, weights).content.items():
        (folder / name).write_bytes(content)
    (folder / "report.json").write_text(
        json.dumps({"accepted": True, "provenance": {"recipe_sha256": "a" * 64}})
    )
    return folder


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Made by the command, served, and named by the environment."""
    folder = tmp_path_factory.mktemp("cli") / "fleet"
    made = json.loads(
        ok("fleet", "init", folder, "--plain-keys", "--targets-keys", 2, "--targets-threshold", 2, "--json")
    )
    found = Made(folder, folder / "root.json", tuple(map(Path, made["offline"])), False, made["token"])
    world = World(found, Fleet.open(folder), Clock(time.time()))
    before = dict(os.environ)
    with serving(world) as address:
        os.environ |= {"EDGEKIT_SERVER": address, "EDGEKIT_TOKEN": made["token"]}
        yield world
    os.environ.clear()
    os.environ |= before
    world.fleet.close()


@pytest.fixture(scope="module")
def keys(fleet: World) -> tuple[Path, Path]:
    folder = fleet.made.folder / "keys" / "offline"
    return folder / "targets-1.pem", folder / "targets-2.pem"


@pytest.fixture(scope="module")
def versions(
    fleet: World, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Two versions that are signed."""
    folder, found = tmp_path_factory.mktemp("bundles"), {}
    for number in ("1.0.0", "1.1.0"):
        path = bundle(folder / number, number, number.encode() * 100)
        made = told(
            "publish", path, "--model", "kiln", "--version", number, "--key", keys[0], "--key", keys[1]
        )
        assert made["missing"] == []
        assert made["version"]["state"] == "signed"
        found[number] = made["version"]["id"]
    return found


def settle(fleet: World, release: str, channel: str = "stable") -> None:
    rows = [{"cohort": "", "release": release}]
    with fleet.fleet.database.writing() as connection:
        if not connection.execute(
            update(channels).where(channels.c.name == channel).values(settled=rows)
        ).rowcount:
            connection.execute(insert(channels).values(name=channel, model="kiln", settled=rows, revision=0))


def test_a_version_is_published_by_two_people(fleet: World, keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = bundle(tmp_path / "bundle", "0.1.0", b"weights")
    first = ok("publish", path, "--model", "two", "--version", "0.1.0", "--key", keys[0])
    assert "two 0.1.0 is pending" in first
    assert "1 more signature(s) of targets are needed" in first
    assert "+ release two 0.1.0" in ok("fleet", "pending")
    assert "not signed" in call("fleet", "sign", "--key", keys[1], text="n\n").output
    assert "published" in ok("fleet", "sign", "--key", keys[1], "--yes", "--root", fleet.made.root)
    assert "nothing waits" in ok("fleet", "pending")
    again = told("publish", path, "--model", "two", "--version", "0.1.0")
    assert (again["version"]["state"], again["sent_bytes"]) == ("signed", 0)
    assert again["version"]["lineage"] == {"recipe_sha256": "a" * 64}
    assert "two" in ok("fleet", "versions")


def test_a_version_is_signed_on_machines_that_are_offline(
    fleet: World, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    path = bundle(tmp_path / "bundle", "0.2.0", b"other weights")
    ok("publish", path, "--model", "two", "--version", "0.2.0")
    file = tmp_path / "change.json"
    ok("fleet", "pending", "-o", file)
    assert "+ release two 0.2.0" in ok("fleet", "sign", file, "--key", keys[0], "--yes")
    assert "bring it to the server" in ok("fleet", "sign", file, "--key", keys[1], "--yes")
    assert "published" in ok("fleet", "submit", file)
    ok("fleet", "retire", "two", "0.2.0", "--why", "a slip")
    assert "retired" in ok("fleet", "sign", "--key", keys[0], "--key", keys[1], "--yes")


def test_other_content_under_a_version_is_refused(versions: dict[str, str], tmp_path: Path) -> None:
    path = bundle(tmp_path / "bundle", "1.0.0", b"other")
    result = call("publish", path, "--model", "kiln", "--version", "1.0.0")
    assert result.exit_code == 2
    assert "Give this one a version of its own" in result.stderr


def test_a_rollout_is_made_shown_steered_and_taken_back(
    fleet: World, versions: dict[str, str], tmp_path: Path
) -> None:
    settle(fleet, versions["1.0.0"])
    made = told(
        "rollout", "create", "--model", "kiln", "--version", "1.1.0", "--stages", "5,100", "--cohort", 'region == "eu"',
        "--mode", "canary", "--soak", "2m", "--timeout", "2d", "--agreement", "0.9", "--min-devices", "3",
    )  # fmt: skip
    assert (made["plan"]["soak_s"], made["plan"]["stages"], made["plan"]["limits"]["agreement"]) == (
        120,
        [5, 100],
        0.9,
    )
    assert made["id"] in ok("rollout", "list", "--open")
    shown = ok("rollout", "status")
    assert "kiln 1.1.0" in shown
    assert 'region == "eu"' in shown
    assert "paused" in ok("rollout", "pause", "--why", "lunch")
    assert "running" in ok("rollout", "resume", made["id"])
    assert told("rollout", "promote")["stage"] == 1
    assert fleet.policy(tmp_path / "device").rules[0].release == versions["1.1.0"]
    ok("rollout", "rollback", "--why", "wrong labels")
    result = call("rollout", "watch", made["id"])
    assert result.exit_code == 3
    assert "aborted" in result.stdout
    assert [each.release for each in fleet.policy(tmp_path / "device").rules] == [versions["1.0.0"]]


def test_a_rollout_that_completed_is_rolled_back_to_the_version_before(
    fleet: World, versions: dict[str, str], tmp_path: Path
) -> None:
    settle(fleet, versions["1.0.0"])
    made = told(
        "rollout", "create", "--model", "kiln", "--version", "1.1.0", "--stages", "100", "--mode", "canary"
    )
    told("rollout", "promote")
    with fleet.fleet.database.reading() as connection:
        assert steering.read(connection, made["id"])[0].state == rollout_rules.COMPLETED
    assert call("rollout", "watch", made["id"], "--json").exit_code == 0
    assert "stable is settled on 1.0.0 again" in ok("rollout", "rollback")
    assert [each.release for each in fleet.policy(tmp_path / "device").rules] == [versions["1.0.0"]]
    assert "1.1.0" in ok("rollout", "rollback", "--to", "1.1.0")
    assert "1.0.0" in ok("rollout", "rollback", "--to", "1.0.0")


def test_two_open_rollouts_have_to_be_named(fleet: World, versions: dict[str, str]) -> None:
    assert "no rollout is open" in call("rollout", "status").stderr
    assert call("rollout", "status", "../../etc").exit_code == 2


def test_codes_devices_tokens_webhooks_and_the_log(fleet: World) -> None:
    assert len(ok("fleet", "code", "--label", "region=eu", "--count", "3").split()) == 3
    assert "id" in ok("fleet", "devices")
    assert told("fleet", "devices", "--cohort", 'region == "eu"') == []
    token = ok("fleet", "token", "create", "ci", "--role", "publisher", "--days", "9").strip()
    assert token.startswith("edgk_")
    listed = told("fleet", "token", "list")
    made = next(each["id"] for each in listed if each["name"] == "ci")
    ok("fleet", "token", "revoke", made)
    assert "revoked" in ok("fleet", "token", "list")
    hook = told("fleet", "webhook", "add", "https://chat.example/x", "--event", "failed")
    assert "chat.example" in ok("fleet", "webhook", "list")
    ok("fleet", "webhook", "remove", hook["id"])
    assert "token.revoked" in ok("fleet", "audit", "list")
    whole = told("fleet", "audit", "verify")
    assert whole["whole"]
    assert (
        call("fleet", "audit", "verify", "--sequence", whole["sequence"], "--hash", "0" * 64).exit_code == 3
    )
    assert call("fleet", "device", "show", "nobody").exit_code == 2
    assert call("fleet", "device", "forget", "a/b").exit_code == 2


def test_a_backup_is_made_and_brought_back(fleet: World, versions: dict[str, str], tmp_path: Path) -> None:
    saved = ok("fleet", "backup", fleet.made.folder, tmp_path / "fleet.tar", "--keys")
    assert "end of the audit log" in saved
    assert "all verified" in ok("fleet", "restore", tmp_path / "fleet.tar", tmp_path / "again")
    assert "→" in ok("fleet", "migrate", tmp_path / "again")
    Fleet.open(tmp_path / "again").close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fleet", "init", "{fleet}", "--plain-keys"), "holds something"),
        (("fleet", "init", "{new}", "--plain-keys", "--root-threshold", "3"), "3 of 1 keys"),
        (("fleet", "serve", "{new}"), "fleet.toml is not there"),
        (("fleet", "serve", "{fleet}", "--processes", "0"), "0 processes"),
        (("fleet", "migrate", "{new}"), "fleet.toml is not there"),
        (("fleet", "restore", "{fleet}/fleet.toml", "{new}"), "fleet.toml"),
        (("fleet", "sign"), "no key"),
        (("fleet", "sign", "{new}", "--key", "{new}"), "not there"),
        (("fleet", "retire", "kiln", "9"), "no version '9'"),
        (("fleet", "code", "--label", "eu"), "NAME=VALUE"),
        (("fleet", "code", "--valid", "soon"), "the time 'soon'"),
        (("publish", "{new}"), "nothing of this name"),
        (("publish", "{fleet}"), "manifest.json"),
        (("rollout", "create", "--model", "kiln", "--version", "9"), "no version"),
        (("rollout", "create", "--model", "kiln", "--version", "9", "--stages", "a"), "the stages 'a'"),
        (("rollout", "create", "--model", "kiln", "--version", "9", "--cohort", "x ="), "cohort"),
        (("rollout", "pause", "ffff"), "no rollout"),
        (("rollout", "rollback", "--channel", "nobody"), "no channel"),
        (("rollout", "list", "--server", "fleet.example"), "the server 'fleet.example'"),
        (("rollout", "list", "--server", "http://127.0.0.1:9"), "127.0.0.1:9"),
    ],
)
def test_what_cannot_be_done_is_told_in_words(
    fleet: World, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    filled = [each.format(fleet=fleet.made.folder, new=tmp_path / "new") for each in words]
    result = call(*filled)
    assert result.exit_code == 2, result.output
    assert says.lower() in result.stderr.lower()
    assert "way out" in result.stderr


def test_a_token_that_may_not_is_told_so(
    fleet: World, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = ok("fleet", "token", "create", "eye", "--role", "viewer").strip()
    monkeypatch.setenv("EDGEKIT_TOKEN", token)
    assert ok("rollout", "list")
    result = call("fleet", "code")
    assert (result.exit_code, "eye is viewer" in result.stderr) == (2, True)


def test_every_command_has_help_with_an_example() -> None:
    import typer

    root = typer.main.get_command(app)
    seen = 0

    def walk(command: object, words: tuple[str, ...]) -> None:
        nonlocal seen
        for name, each in getattr(command, "commands", {}).items():
            walk(each, (*words, name))
        if not hasattr(command, "commands") and words[0] in {"publish", "rollout", "fleet"}:
            text = call(*words, "--help").output
            seen += 1
            assert f"Example: edgekit {' '.join(words)}" in " ".join(text.split()), words

    walk(root, ())
    assert seen > 30


def test_what_others_wrote_does_not_command_the_terminal(fleet: World) -> None:
    from rich.console import Console

    from edgekit.fleet.commands.terminal import rollout_view

    console = Console(record=True, width=100)
    view = {
        "model": "\x1b[2Jx", "version": "[red]1[/red]", "channel": "c", "state": "running", "id": "ab", "stage": 0,
        "plan": {"stages": [1], "cohort": ""}, "live_bound": 1, "shadow_bound": 1, "phase": "live", "why": "\x07",
        "look": None,
    }  # fmt: skip
    with console.capture() as capture:
        console.print(rollout_view(view))
    assert "\x1b[2J" not in capture.get()
    assert "[red]1[/red]" in capture.get()
