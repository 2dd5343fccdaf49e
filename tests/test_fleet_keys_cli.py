"""Keys by the commands that people type: made, shown, replaced, and taken back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgekit.cli import app
from edgekit.fleet.context import Fleet
from edgekit.fleet.operations import setup
from support.fleet_api import serving
from support.fleets import Clock, World


def call(*words: object, text: str = "") -> Result:
    return CliRunner().invoke(app, [str(each) for each in words], prog_name="edgekit", input=text)


def ok(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = setup.init(tmp_path_factory.mktemp("keys") / "fleet", root_keys=2, targets_keys=2)
    world = World(made, Fleet.open(made.folder), Clock(time.time()))
    with serving(world) as address, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("EDGEKIT_SERVER", address)
        monkeypatch.setenv("EDGEKIT_TOKEN", made.token)
        yield world
    world.fleet.close()


def by_role() -> dict[str, dict[str, object]]:
    return {each["role"]: each for each in json.loads(ok("fleet", "keys", "--json"))}


def test_new_keys_of_the_server_from_the_proposal_to_the_signatures(fleet: World) -> None:
    offline = fleet.made.folder / "keys" / "offline"
    before = by_role()
    said = ok("fleet", "rotate", "timestamp", "snapshot", "rollout")
    assert "+ key of timestamp" in said
    assert "keys/online/rollout-2.pem" in said
    assert "copy it to every server" in said
    assert "+ key of rollout" in ok("fleet", "pending")
    words = ("--key", offline / "root-2.pem", "--key", offline / "targets-1.pem", "--root", fleet.made.root)
    assert "published" in ok("fleet", "sign", "--yes", *words)
    after = by_role()
    for role in ("timestamp", "snapshot", "rollout"):
        assert set(after[role]["keys"]).isdisjoint(before[role]["keys"])  # type: ignore[arg-type]
        assert len(after[role]["held"]) == 2  # type: ignore[arg-type]
    shown = ok("fleet", "keys")
    assert "counts nothing" in shown
    assert "not here" in shown


def test_a_person_gets_a_key_in_the_place_of_another(
    fleet: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = fleet.made.folder / "keys" / "offline"
    monkeypatch.setenv("EDGEKIT_KEY_PASSPHRASE", "four random words here")
    made = ok("fleet", "key", tmp_path / "anna.pem")
    assert "anna.pub is for" in made
    assert b"ENCRYPTED" in (tmp_path / "anna.pem").read_bytes()
    assert b"ENCRYPTED" not in (
        ok("fleet", "key", tmp_path / "s.pem", "--plain") and (tmp_path / "s.pem").read_bytes()
    )
    lost = by_role()["root"]["keys"][1]  # type: ignore[index]
    ok("fleet", "rotate", "root", "--add", tmp_path / "anna.pub", "--remove", lost[:8])
    root = next(each for each in ("root-1.pem", "root-2.pem") if "published" in _signed(offline / each))
    assert root
    assert lost not in by_role()["root"]["keys"]  # type: ignore[operator]


def _signed(key: Path) -> str:
    result = call("fleet", "sign", "--yes", "--key", key)
    return result.stdout if result.exit_code == 0 else ""


def test_what_waits_is_taken_back(fleet: World) -> None:
    assert call("fleet", "rotate", "--withdraw").exit_code == 2
    ok("fleet", "rotate", "snapshot")
    assert "withdrawn" in ok("fleet", "rotate", "--withdraw")
    assert "nothing waits" in ok("fleet", "pending")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no role"),
        (("root",), "no change of root"),
        (("nobody",), "roles"),
        (("timestamp", "--withdraw"), "a role to withdraw"),
        (("targets", "--remove", "zz"), "remove"),
        (("targets", "--add", "{fleet}/root.json"), "not the key"),
        (("targets", "--add", "{fleet}/nowhere.pub"), "not there"),
        (("root", "--threshold", "3"), "2 keys and a threshold of 3"),
    ],
)
def test_what_is_no_change_is_told_in_words(fleet: World, words: tuple[str, ...], says: str) -> None:
    result = call("fleet", "rotate", *(each.format(fleet=fleet.made.folder) for each in words))
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "way out" in result.stderr
