"""A new fleet: what is made, what devices believe of it at once, and places that are not empty."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, DeniedError, FleetError, InvalidError
from edgekit.fleet.identity import access
from edgekit.fleet.operations import setup
from edgekit.fleet.trust import keys
from edgekit_runtime.errors import TrustError
from support.fleets import make
from support.postgres import postgres

SECRET = "correct horse battery"


def test_a_device_trusts_a_new_fleet_at_once(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet")
    trust = world.device(tmp_path / "device")
    trust.refresh()
    with pytest.raises(TrustError, match="rollout/stable"):
        trust.target("rollout/stable.json")


def test_the_first_token_is_of_an_admin_and_not_kept(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet")
    with world.fleet.database.reading() as connection:
        assert access.authenticated(connection, world.made.token, world.clock()).role == "admin"
    everything = b"".join(each.read_bytes() for each in (tmp_path / "fleet").rglob("*") if each.is_file())
    assert world.made.token.encode() not in everything


def test_keys_lie_where_they_are_said_to_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet", root_keys=2, root_threshold=2, targets_keys=3, targets_threshold=2)
    names = sorted(each.name for each in world.made.offline)
    assert names == ["root-1.pem", "root-2.pem", "targets-1.pem", "targets-2.pem", "targets-3.pem"]
    for each in (*world.made.offline, tmp_path / "fleet" / "fleet.toml"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert "Move these keys" in world.made.words()
    assert "NOT encrypted" in world.made.words()


def test_offline_keys_open_with_their_passphrase_alone(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet", passphrase=SECRET)
    assert "NOT encrypted" not in world.made.words()
    assert keys.load(world.made.offline[0], lambda _: SECRET)
    with pytest.raises(DeniedError):
        keys.load(world.made.offline[0], lambda _: "another one, as long")


def test_the_server_starts_without_the_offline_keys(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet")
    for each in world.made.offline:
        each.unlink()
    Fleet.open(tmp_path / "fleet").close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"root_threshold": 2}, "2 of 1 keys of root"),
        ({"targets_keys": 0}, "1 of 0 keys of targets"),
        ({"targets_keys": 99}, "keys of targets"),
        ({"passphrase": "short"}, "passphrase"),
        ({"settings": {"databse": "x"}}, "databse"),
        ({"settings": {"database_url": "mysql://x/y"}}, "names no database"),
        ({"settings": {"blobs_url": "ftp://x"}}, "names no blobs"),
    ],
)
def test_what_cannot_be_made_leaves_nothing_behind(tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(FleetError, match=says):
        setup.init(tmp_path / "fleet", **options)
    assert not (tmp_path / "fleet").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FleetError, match=says):
        setup.init(tmp_path / "empty", **options)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConflictError, match="holds something"):
        setup.init(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["notes"]
    with pytest.raises(ConflictError, match="is a file"):
        setup.init(tmp_path / "notes")


def test_a_folder_below_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError):
        setup.init(tmp_path / "file" / "fleet")


def test_blobs_of_another_fleet_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "one")
    before = sorted((tmp_path / "one" / "blobs").rglob("*"))
    with pytest.raises(ConflictError, match="holds something"):
        setup.init(tmp_path / "two", settings={"blobs_url": str(tmp_path / "one" / "blobs")})
    assert sorted((tmp_path / "one" / "blobs").rglob("*")) == before


def test_postgresql_holds_a_fleet_and_is_not_given_to_a_second_one(tmp_path: Path) -> None:
    with postgres().database() as url:
        world = make(tmp_path / "fleet", database_url=url)
        try:
            world.device(tmp_path / "device").refresh()
            with pytest.raises(ConflictError, match="tokens already"):
                setup.init(tmp_path / "other", settings={"database_url": url})
            assert not (tmp_path / "other").exists()
        finally:
            world.fleet.close()


def test_settings_hold_what_text_there_may_be(tmp_path: Path) -> None:
    world = make(tmp_path / 'a "b" \\ größe')
    assert world.fleet.settings.folder.name == 'a "b" \\ größe'
    made = setup.init(tmp_path / "url", settings={"public_url": 'https://x/"\\ö'})
    assert Fleet.open(made.folder).settings.public_url == 'https://x/"\\ö'


def test_a_threshold_of_one_needs_one_key() -> None:
    with pytest.raises(InvalidError, match="0 of 1"):
        setup.init(Path("/nonexistent/x"), root_threshold=0)
