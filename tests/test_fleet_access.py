"""Tokens: only their hash is kept, each role may do what the table says, and what is over is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from edgekit.fleet.identity.access import (
    ADMINISTER,
    DAY_S,
    OPERATE,
    PUBLISH,
    READ,
    ROLES,
    Actor,
    authenticated,
    device_of,
    first_token,
    listed_tokens,
    make_token,
    revoke_token,
)
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import tokens
from support.served_fleet import ADA, VIEWER, a_fleet, enrolled, moved


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request, tmp_path) -> Iterator[Fleet]:
    with a_fleet(tmp_path, request.param) as found:
        yield found


def who(fleet: Fleet, token: str) -> Actor:
    with fleet.database.reading() as connection:
        return authenticated(connection, token, fleet.now())


def test_a_token_names_its_owner_and_role_and_is_kept_as_a_hash_only(fleet):
    token = make_token(fleet, ADA, name="ci", role="publisher")
    assert who(fleet, token) == Actor("ci", "publisher")
    with fleet.database.reading() as connection:
        row = connection.execute(select(tokens)).one()
        assert token.split("_", 2)[2] not in str(row)
        assert [each.name for each in listed_tokens(connection)] == ["ci"]
        assert audit.verify(connection) is None


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), lambda t: t + "x", str.upper]
)
def test_a_token_that_differs_anywhere_is_none(fleet, change):
    token = make_token(fleet, ADA, name="ci", role="viewer")
    with pytest.raises(DeniedError) as caught:
        who(fleet, change(token))
    assert caught.value.status == 401


@pytest.mark.parametrize(
    "token", ["", "edgk_", "edgk__", "edgd_x", "edgk_" + "x" * 10_000, "edgk_\ud800_x", "edgk_a_\0"]
)
def test_what_is_no_token_is_refused(fleet, token):
    with pytest.raises(DeniedError), fleet.database.reading() as connection:
        authenticated(connection, token.encode("utf-8", "replace").decode().replace("\0", "?"), fleet.now())


def test_a_token_ends_when_it_expires_and_when_it_is_revoked(fleet):
    token = make_token(fleet, ADA, name="ci", role="viewer", days=1)
    with pytest.raises(DeniedError, match="expired"):
        who(moved(fleet, DAY_S), token)
    revoke_token(fleet, ADA, token.split("_")[1])
    with pytest.raises(DeniedError, match="taken back"):
        who(fleet, token)
    with pytest.raises(NotFoundError):
        revoke_token(fleet, ADA, "none")


def test_the_first_token_is_made_once(fleet):
    assert who(fleet, first_token(fleet)).role == "admin"
    with pytest.raises(ConflictError):
        first_token(fleet)


def test_roles_allow_what_the_table_says():
    allowed = {
        role: {each for each in (READ, PUBLISH, OPERATE, ADMINISTER) if Actor("x", role).may(each)}
        for role in ROLES
    }
    assert allowed == {
        "viewer": {READ}, "publisher": {READ, PUBLISH}, "operator": {READ, OPERATE},
        "admin": {READ, PUBLISH, OPERATE, ADMINISTER},
    }  # fmt: skip
    assert not Actor("x", "root").may(READ)


def test_only_an_admin_makes_tokens(tmp_path):
    with a_fleet(tmp_path) as fleet, pytest.raises(DeniedError, match="admin") as caught:
        make_token(fleet, VIEWER, name="x", role="admin")
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "wrong",
    [{"role": "root"}, {"name": ""}, {"name": "a\nb"}, {"name": "a" * 101}, {"days": 0}, {"days": 10**6}],
)
def test_a_token_with_a_wrong_name_role_or_time_is_not_made(tmp_path, wrong):
    with a_fleet(tmp_path) as fleet, pytest.raises(InvalidError):
        make_token(fleet, ADA, **{"name": "x", "role": "viewer", **wrong})


def test_a_device_is_known_by_its_token_and_by_no_other(fleet):
    device, token = enrolled(fleet, "kitchen-1", region="eu")
    assert (device.id, device.channel, device.labels) == ("kitchen-1", "stable", {"region": "eu"})
    api = make_token(fleet, ADA, name="ci", role="admin")
    for wrong in (token + "x", api, "edgd_", ""):
        with pytest.raises(DeniedError), fleet.database.reading() as connection:
            device_of(connection, wrong)
    with pytest.raises(DeniedError):
        who(fleet, token)
