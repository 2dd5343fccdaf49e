"""Versions: what is taken in, what is refused, and how people's signatures bring them to devices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert

from edgekit.fleet.conduct import steering
from edgekit.fleet.errors import ConflictError, DeniedError, InvalidError, NotFoundError, TooMuchError
from edgekit.fleet.releases import registry, signing
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import channels
from edgekit.fleet.trust import keys
from edgekit.fleet.trust import pending as proposals
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.contract import File, Release
from edgekit_runtime.errors import TrustError
from support.fleets import ADMIN, PUBLISHER, REPORT, VIEWER, World, make, rows
from support.postgres import postgres
from support.releases import publish

MODEL = "größe"


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "sqlite":
        made = make(tmp_path / "fleet")
        yield made
        made.fleet.close()
        return
    with postgres().database() as url:
        made = make(tmp_path / "fleet", database_url=url)
        yield made
        made.fleet.close()


@pytest.fixture
def small(tmp_path: Path) -> World:
    return make(tmp_path / "fleet")


def test_a_version_reaches_devices_once_it_is_signed(world: World, tmp_path: Path) -> None:
    found = world.propose("1.0.0")
    assert found.state == "pending"
    trust = world.device(tmp_path / "device")
    trust.refresh()
    with pytest.raises(TrustError):
        trust.document(release_path(found.id), 1 << 20)

    assert world.sign().published

    trust.refresh()
    document = trust.document(release_path(found.id), 1 << 20)
    assert Release.from_json(document).id == found.id
    with world.fleet.database.reading() as connection:
        assert registry.one(connection, MODEL, "1.0.0").state == "signed"
        assert audit.verify(connection) is None
    assert signing.proposal(world.fleet) is None


def test_a_version_tells_where_it_comes_from_and_what_it_can(small: World) -> None:
    first = small.propose("1.0.0")
    second = small.propose("1.1.0", parent="1.0.0")
    assert second.parent == first.id
    assert second.lineage["recipe_sha256"] == "a" * 64
    assert second.accepted is True
    assert second.figures["tflite"]["latency_p50_ms"] == 2.0
    assert second.published_by == "pia"
    with small.fleet.database.reading() as connection:
        assert [each.version for each in registry.listed(connection)] == ["1.1.0", "1.0.0"]
        assert registry.listed(connection, "other") == []
        assert registry.report_of(connection, first.id) == REPORT
        assert registry.one(connection, MODEL, first.id) == registry.one(connection, MODEL, "1.0.0")


def test_figures_of_two_versions_stand_side_by_side(small: World) -> None:
    first = small.propose("1.0.0")
    second = replace(
        first, figures={"onnx": {"metric": 0.8}, "tflite": {**first.figures["tflite"], "metric": 0.91}}
    )
    found = {
        (each.format, each.figure): (each.before, each.after) for each in registry.compared(first, second)
    }
    assert found["tflite", "metric"] == (0.9, 0.91)
    assert found["onnx", "metric"] == (None, 0.8)


def test_the_same_again_changes_nothing_and_other_content_is_refused(world: World) -> None:
    found = world.propose("1.0.0", b"weights")
    before = rows(world.fleet.database, audit.audit)
    assert world.propose("1.0.0", b"weights") == found
    assert rows(world.fleet.database, audit.audit) == before
    with pytest.raises(ConflictError, match="other content"):
        world.propose("1.0.0", b"other weights")


def test_a_file_that_is_not_there_is_named(small: World) -> None:
    published = publish("1.0.0", b"weights")
    with pytest.raises(InvalidError, match=r"golden.npz is not there, and 2 more") as caught:
        registry.propose(small.fleet, PUBLISHER, release=published.release.to_json(), report={})
    assert caught.value.code == "not_uploaded"
    small.upload(published)
    files = {
        **published.release.files,
        "golden.npz": replace(published.release.files["golden.npz"], size_bytes=7),
    }
    wrong = replace(published.release, files=files)
    with pytest.raises(InvalidError, match=r"golden.npz has 6 bytes"):
        registry.propose(small.fleet, PUBLISHER, release=wrong.to_json(), report={})


def test_documents_have_to_fit_each_other(small: World) -> None:
    published = publish("1.0.0", b"weights")
    small.upload(published)
    other = replace(published.release, version="2.0.0")
    with pytest.raises(InvalidError, match=r"2.0.0 holds größe 1.0.0"):
        registry.propose(small.fleet, PUBLISHER, release=other.to_json(), report={})
    swapped = replace(
        published.release,
        files={**published.release.files, "model.tflite": published.release.files["golden.npz"]},
    )
    with pytest.raises(InvalidError, match="tflite"):
        registry.propose(small.fleet, PUBLISHER, release=swapped.to_json(), report={})
    bad = publish("1.0.1", b"w").content | {"manifest.json": b"{}"}
    small.fleet.blobs.put(
        "blobs/" + "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", (b"{}",), max_bytes=9
    )
    files = {
        **published.release.files,
        "manifest.json": File("44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", 2),
    }
    with pytest.raises(InvalidError, match="manifest"):
        registry.propose(
            small.fleet, PUBLISHER, release=replace(published.release, files=files).to_json(), report={}
        )
    assert bad


@pytest.mark.parametrize(
    "document", ["", "{}", "[]", "null", '{"schema": 1, "name": "x"}', "\x00", "{" * 5000]
)
def test_what_is_no_release_is_refused(small: World, document: str) -> None:
    with pytest.raises(InvalidError):
        registry.propose(small.fleet, PUBLISHER, release=document, report={})


def test_a_release_in_another_spelling_is_refused(small: World) -> None:
    published = publish("1.0.0", b"weights")
    small.upload(published)
    loose = json.dumps(json.loads(published.release.to_json()))
    with pytest.raises(InvalidError, match="another spelling"):
        registry.propose(small.fleet, PUBLISHER, release=loose, report={})


def test_reports_have_a_limit_and_may_be_anything_below_it(small: World) -> None:
    published = publish("1.0.0", b"weights")
    small.upload(published)
    text = published.release.to_json()
    with pytest.raises(TooMuchError):
        registry.propose(small.fleet, PUBLISHER, release=text, report={"x": "a" * registry.MAX_REPORT_BYTES})
    with pytest.raises(TooMuchError):
        registry.propose(
            small.fleet, PUBLISHER, release=text, report={}, notes="a" * (registry.MAX_NOTES + 1)
        )
    with pytest.raises(InvalidError, match="zero byte"):
        registry.propose(small.fleet, PUBLISHER, release=text, report={"x": "\x00"})
    with pytest.raises(NotFoundError):
        registry.propose(small.fleet, PUBLISHER, release=text, report={}, parent="0.9")
    odd = {"artifacts": [1, 2], "provenance": "x", "accepted": "yes"}
    found = registry.propose(small.fleet, PUBLISHER, release=text, report=odd)
    assert (found.figures, found.lineage, found.accepted) == ({}, {}, None)


def test_viewers_publish_nothing(small: World) -> None:
    with pytest.raises(DeniedError):
        registry.propose(small.fleet, VIEWER, release="{}", report={})
    with pytest.raises(DeniedError):
        registry.retire(small.fleet, VIEWER, MODEL, "1.0.0")
    with pytest.raises(DeniedError):
        signing.submit(small.fleet, VIEWER, b"{}")


# Signatures


def test_two_people_sign_one_after_the_other(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet", targets_keys=3, targets_threshold=2)
    world.propose("1.0.0")
    first = world.sign("targets-1")
    assert not first.published
    assert first.missing[0].count == 1
    again = signing.proposal(world.fleet)
    assert again is not None
    assert len(again.new_targets.signatures) == 1
    assert world.sign("targets-3").published


def test_two_people_sign_the_same_file_at_once(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet", targets_keys=2, targets_threshold=2)
    world.propose("1.0.0")
    pending = signing.proposal(world.fleet)
    now = signing.moment(world.fleet)
    signed = [
        proposals.sign(
            pending, keys.load(world.made.folder / "keys" / "offline" / f"{name}.pem"), now
        ).to_bytes()
        for name in ("targets-1", "targets-2")
    ]
    assert not signing.submit(world.fleet, PUBLISHER, signed[0]).published
    assert signing.submit(world.fleet, PUBLISHER, signed[1]).published
    # The answer was lost, and it is sent once more.
    assert signing.submit(world.fleet, PUBLISHER, signed[1]).published


def test_a_version_that_comes_meanwhile_needs_all_signatures_anew(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet", targets_keys=2, targets_threshold=2)
    world.propose("1.0.0")
    pending = signing.proposal(world.fleet)
    world.propose("2.0.0")
    signing.proposal(world.fleet)
    key = keys.load(world.made.folder / "keys" / "offline" / "targets-1.pem")
    with pytest.raises(ConflictError, match="not what waits"):
        signing.submit(
            world.fleet, PUBLISHER, proposals.sign(pending, key, signing.moment(world.fleet)).to_bytes()
        )
    world.sign("targets-1")
    assert world.sign("targets-2").published
    with world.fleet.database.reading() as connection:
        assert {each.state for each in registry.listed(connection)} == {"signed"}


def test_the_proposal_stays_the_same_while_nothing_changes(small: World) -> None:
    assert signing.proposal(small.fleet) is None
    small.propose("1.0.0")
    first = signing.proposal(small.fleet)
    small.clock.at += 3600
    assert signing.proposal(small.fleet) == first
    # By then whoever signs it would sign something that is about to expire.
    small.clock.at += 170 * 86400
    assert signing.proposal(small.fleet) != first


def test_a_server_that_died_before_it_wrote_the_state_catches_up(small: World) -> None:
    found = small.propose("1.0.0")
    small.sign()
    from sqlalchemy import update

    from edgekit.fleet.storage.tables import versions

    with small.fleet.database.writing() as connection:
        connection.execute(update(versions).where(versions.c.id == found.id).values(state="pending"))
    signing.follow(small.fleet)
    with small.fleet.database.reading() as connection:
        assert registry.one(connection, MODEL, "1.0.0").state == "signed"


def test_keys_of_strangers_count_nothing(small: World) -> None:
    small.propose("1.0.0")
    pending = signing.proposal(small.fleet)
    with pytest.raises(InvalidError, match="has no part in this"):
        proposals.sign(pending, keys.generate(), signing.moment(small.fleet))
    unsigned = signing.submit(small.fleet, PUBLISHER, pending.to_bytes())
    assert not unsigned.published


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b"[" * 10_000])
def test_what_is_no_proposal_is_refused(small: World, content: bytes) -> None:
    with pytest.raises(InvalidError):
        signing.submit(small.fleet, PUBLISHER, content)


def test_a_release_that_the_database_alone_names_is_not_shown_to_devices(
    small: World, tmp_path: Path
) -> None:
    """Who has the server and its database, and no key of targets."""
    found = small.propose("6.6.6")
    from sqlalchemy import update

    from edgekit.fleet.storage.tables import versions

    with small.fleet.database.writing() as connection:
        connection.execute(update(versions).where(versions.c.id == found.id).values(state="signed"))
    trust = small.device(tmp_path / "device")
    with pytest.raises(TrustError):
        trust.document(release_path(found.id), 1 << 20)


# Retiring


def test_a_retired_version_is_taken_from_devices_once_that_is_signed(world: World, tmp_path: Path) -> None:
    old, new = world.release("1.0.0"), world.release("2.0.0")
    assert registry.retire(world.fleet, PUBLISHER, MODEL, "1.0.0", why="leaks").state == "retired"
    assert registry.retire(world.fleet, PUBLISHER, MODEL, "1.0.0").state == "retired"
    pending = signing.proposal(world.fleet)
    assert any("retired" in line for line in proposals.describe(pending))
    world.sign()
    trust = world.device(tmp_path / "device")
    trust.document(release_path(new), 1 << 20)
    with pytest.raises(TrustError):
        trust.document(release_path(old), 1 << 20)


def test_what_devices_are_told_to_run_is_not_retired(small: World) -> None:
    old = small.release("1.0.0")
    small.release("2.0.0")
    with small.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": old}]
        connection.execute(insert(channels).values(name="stable", model=MODEL, settled=settled, revision=0))
    with pytest.raises(ConflictError, match="stable is settled on it"):
        registry.retire(small.fleet, ADMIN, MODEL, "1.0.0")
    rollout = steering.create(small.fleet, ADMIN, model=MODEL, version="2.0.0", channel="stable", plan=Plan())
    with pytest.raises(ConflictError, match=f"rollout {rollout.id}"):
        registry.retire(small.fleet, ADMIN, MODEL, "2.0.0")
    with pytest.raises(NotFoundError):
        registry.retire(small.fleet, ADMIN, MODEL, "3.0.0")


def test_a_retired_version_that_was_never_signed_goes_out_of_the_proposal(small: World) -> None:
    small.propose("1.0.0")
    assert signing.proposal(small.fleet) is not None
    registry.retire(small.fleet, PUBLISHER, MODEL, "1.0.0")
    assert signing.proposal(small.fleet) is None
