"""What is older than an operator keeps goes, and nothing that was counted counts again."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.fleet.context import Fleet
from edgekit.fleet.operations.retention import BATCH, sweep
from edgekit.fleet.storage.database import insert_new
from edgekit.fleet.storage.tables import deliveries, looks, minutes, webhooks, windows
from edgekit.fleet.windows.ingest import take
from edgekit.fleet.windows.merging import merge
from support.databases import KINDS
from support.fleets import rows
from support.served_fleet import a_body, a_fleet, a_window, add_rollout, count, enrolled, moved

DAY_S = 86400


def kept(fleet: Fleet) -> list[bool]:
    found = sorted(rows(fleet.database, windows), key=lambda each: each["id"])
    return [bool(each["document"]) for each in found]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_that_were_counted_long_ago_go_and_their_keys_stay(kind: str, tmp_path: Path) -> None:
    with a_fleet(tmp_path, kind, retention_days=30) as fleet:
        add_rollout(fleet)
        device, _ = enrolled(fleet, "kiln")
        take(fleet, device, a_body("kiln", a_window(1), a_window(2)))
        assert merge(fleet, "tests") == 2
        later = moved(fleet, 20 * DAY_S)
        take(later, device, a_body("kiln", a_window(3)))
        merge(later, "tests")
        take(later, device, a_body("kiln", a_window(4)))
        before = rows(fleet.database, minutes)

        assert sweep(later) == later.now() - 30 * DAY_S
        assert all(each["document"] for each in rows(fleet.database, windows))
        swept_s = sweep(moved(fleet, 31 * DAY_S))
        assert kept(fleet) == [
            False,
            False,
            True,
            True,
        ]
        # What still waits to be counted is kept, however old.
        sweep(moved(fleet, 400 * DAY_S), swept_s)
        assert kept(fleet) == [
            False,
            False,
            False,
            True,
        ]
        assert take(later, device, a_body("kiln", a_window(1))).windows == 0
        assert rows(fleet.database, minutes) == before
        assert merge(later, "tests") == 1


def test_looks_and_deliveries_go_more_than_one_batch_of_them(tmp_path: Path) -> None:
    with a_fleet(tmp_path, retention_days=30) as fleet:
        rollout, now_s = add_rollout(fleet), int(fleet.now())
        look = {"rollout": rollout.id, "stage": 0, "phase": "live", "bound": 1, "verdicts": [], "counts": {}}
        hook = {
            "id": "ab",
            "url": "https://x/",
            "events": [],
            "secret": "s",
            "created_s": 1,
            "created_by": "ada",
        }
        told = {"webhook": "ab", "event": "failed", "body": "{}", "next_s": 1}
        with fleet.database.writing() as connection:
            many = [{**look, "id": number, "at_s": now_s - 40 * DAY_S} for number in range(1, BATCH + 100)]
            insert_new(connection, looks, [*many, {**look, "id": 9999, "at_s": now_s}], ["id"])
            connection.execute(webhooks.insert().values(hook))
            connection.execute(
                deliveries.insert(), [{**told, "done_s": at_s} for at_s in (0, now_s - 40 * DAY_S, now_s)]
            )
        sweep(fleet)
        assert (count(fleet, looks), count(fleet, deliveries)) == (1, 2)
