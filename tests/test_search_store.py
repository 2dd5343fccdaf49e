"""Trials survive kills, are shared by workers that never do the same twice, and refuse what does not belong to them."""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.search_world import QUICK

from edgekit.errors import UsageError
from edgekit.search import Measured, Outcome, Setting, Store, Trial, open_store
from edgekit.search import store as store_module

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[1]
MODEL = {"model_sha256": "a" * 64, "data_sha256": "b" * 64}
LADDER = [Setting(QUICK, ratio / 10) for ratio in range(8)]


def outcome(drop: float = 0.01) -> Outcome:
    return Outcome({"onnx": Measured(0.9, drop, 0.5, 1.5, 1000, sha256="c" * 64)}, seconds=2.0)


def in_order(trials: Sequence[Trial]) -> Setting | None:
    """The first rung that nobody has."""
    return next((s for s in LADDER if s not in {t.setting for t in trials}), None)


@contextmanager
def opened(folder: Path, storage: str | None = None, grace: float = 60.0) -> Iterator[Store]:
    with open_store(folder, name="net", identity=MODEL, storage=storage, grace_seconds=grace) as store:
        yield store


def claimed(store: Store) -> Trial:
    trial = store.claim(in_order)
    assert trial is not None
    return trial


def test_a_trial_is_read_back_as_it_was_stored(tmp_path: Path) -> None:
    with opened(tmp_path / "größe # ?") as store:
        claimed(store)
        told = store.finish(outcome(math.inf))
    with opened(tmp_path / "größe # ?") as store:
        assert store.trials() == (told,)
    assert told == Trial(0, LADDER[0], outcome(math.inf))


def test_a_failure_is_kept_and_not_tried_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        claimed(store)
        store.fail("onnx: no kernel for größe")
        assert claimed(store).number == 1
        store.finish(outcome())
        assert [t.failure for t in store.trials()] == ["onnx: no kernel for größe", None]


def test_what_is_left_is_taken_again_under_its_number(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        claimed(store)
        store.finish(outcome())
        left = claimed(store)
        assert store.trials()[1].running
    with opened(tmp_path) as store:
        assert [t.number for t in store.trials()] == [0]
        assert claimed(store) == left


def test_the_search_is_over_when_nothing_is_left_to_decide(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.claim(lambda _: None) is None
        assert store.trials() == ()


def test_a_worker_waits_for_the_result_that_its_decision_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "POLL_SECONDS", 0.01)
    with opened(tmp_path) as one, opened(tmp_path) as other:
        claimed(one)
        said: list[str] = []

        def waiting(text: str) -> None:
            said.append(text)
            one.finish(outcome())

        def decide(trials: Sequence[Trial]) -> Setting | None:
            return None if any(t.running for t in trials) else LADDER[len(trials)]

        second = other.claim(decide, waiting)

        assert said == [f"waiting for trial 0: {LADDER[0]}"]
        assert second is not None
        assert second.number == 1


def test_a_worker_does_not_wait_for_what_cannot_change_the_end(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as other:
        claimed(one)

        assert other.claim(lambda _: None) is None


def test_a_worker_that_fell_silent_elsewhere_is_taken_for_dead_and_its_late_result_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "POLL_SECONDS", 0.01)
    with opened(tmp_path) as here, opened(tmp_path, grace=0.2) as there:
        there._worker["host"] = "another machine"
        silent = claimed(here)
        others: list[Trial] = []

        def decide(trials: Sequence[Trial]) -> Setting | None:
            return None if any(t.running for t in trials) else LADDER[0]

        taken = there.claim(decide)
        late = here.finish(outcome(0.02))
        others.append(there.finish(outcome(0.03)))

        assert taken == silent
        assert late.outcome == outcome(0.02)
        assert len(there.trials()) == 1
        assert others[0].number == 0


def test_two_that_choose_the_same_at_once_do_not_both_get_it(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as other:
        seen: list[int] = []

        def decide(trials: Sequence[Trial]) -> Setting | None:
            if not seen:
                # The other enters its choice between this decision and what follows from it.
                seen.append(claimed(one).number)
                return LADDER[0]
            return in_order(trials)

        trial = other.claim(decide)

        assert seen == [0]
        assert trial is not None
        assert trial.setting == LADDER[1]


def test_a_worker_says_that_it_is_alive_until_its_trial_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BEAT_SECONDS", 0.01)
    with opened(tmp_path) as store:
        claimed(store)
        deadline = time.monotonic() + 60
        while store._table.rows()[0].attrs["beat"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        store.finish(outcome())
        last = store._table.rows()[0].attrs["beat"]
        time.sleep(0.05)
        assert store._table.rows()[0].attrs["beat"] == last


WORKER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_search_store import LADDER, MODEL, in_order, outcome
from edgekit.search import open_store
with open_store(Path({folder!r}), name="net", identity=MODEL, storage={storage!r}) as store:
    while (trial := store.claim(in_order)) is not None:
        print(trial.number, trial.setting.prune, flush=True)
        time.sleep({seconds})
        store.finish(outcome())
"""


def worker(folder: Path, seconds: float, storage: str | None = None) -> subprocess.Popen[str]:
    code = WORKER.format(root=str(ROOT), folder=str(folder), storage=storage, seconds=seconds)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_several_processes_share_the_trials_from_an_empty_database_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    workers = [worker(tmp_path, 0.05, url) for _ in range(3)]
    done = [each.communicate(timeout=300) for each in workers]

    assert [each.returncode for each in workers] == [0, 0, 0], [err for _, err in done]
    assert [err for _, err in done] == ["", "", ""]
    lines = sorted(line for out, _ in done for line in out.splitlines())
    assert lines == [f"{i} {i / 10}" for i in range(len(LADDER))]
    with opened(tmp_path, url) as store:
        assert [t.setting for t in store.trials()] == LADDER
        assert all(t.outcome == outcome() for t in store.trials())


def test_the_trial_of_a_killed_process_is_taken_again_at_once(tmp_path: Path) -> None:
    killed = worker(tmp_path, 60)
    try:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "0 0.0\n"
    finally:
        killed.kill()
        killed.communicate()
    started = time.monotonic()
    with opened(tmp_path) as store:
        trial = claimed(store)
        store.finish(outcome())
        assert [t.number for t in store.trials()] == [0]

    assert (trial.number, trial.setting) == (0, LADDER[0])
    assert time.monotonic() - started < store_module.GRACE_SECONDS / 4


def test_trials_of_another_model_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        claimed(store)
        store.finish(outcome())
    other = {**MODEL, "model_sha256": "f" * 64}
    with (
        pytest.raises(UsageError, match="model_sha256 aaaaaaaaaaaa instead of ffffffffffff"),
        open_store(tmp_path, name="net", identity=other),
    ):
        pass
    with open_store(tmp_path, name="another net", identity=other) as store:
        assert store.trials() == ()


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("nonsense", "no database URL"),
        ("redis://localhost", "no database URL"),
        ("sqlite:////nowhere/at/all/trials.db", "unable to open"),
        ("postgresql+nodriver://user:secret@localhost/db", "no database URL"),
        ("oracle+oracledb://user:secret@localhost/db", "cannot import oracledb"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    tmp_path: Path, storage: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused, opened(tmp_path, storage):
        pass

    assert "secret" not in str(refused.value)
    assert "search.storage" in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_missing_driver_is_named_with_its_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)

    with (
        pytest.raises(UsageError, match="pip install psycopg2-binary"),
        opened(tmp_path, "postgresql+psycopg2://u:secret@localhost/db"),
    ):
        pass


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_bytes(b"no database, but long enough to be taken for the head of one" * 20)

    with pytest.raises(UsageError, match="not a database"), opened(tmp_path):
        pass


def test_a_database_that_goes_away_in_the_middle_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        claimed(store)
        with sqlite3.connect(tmp_path / "trials.db") as database:
            database.execute("DROP TABLE trial_user_attributes")
        database.close()
        with pytest.raises(UsageError, match="trial_user_attributes"):
            store.finish(outcome())


def test_optuna_is_quiet_and_its_logging_is_given_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    with opened(tmp_path) as store:
        claimed(store)
        store.finish(outcome())

    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before == logging.INFO


def test_optunas_own_tools_find_the_numbers(tmp_path: Path) -> None:
    import optuna

    with opened(tmp_path) as store:
        claimed(store)
        store.finish(outcome(0.03))
        study = store._table._study
        (trial,) = study.get_trials()
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert trial.values == [0.03, 0.5, 0.001]
        assert trial.params == {"prune": 0.0, "islands": 0, "qat": False}
        assert study.metric_names == ["drop", "latency_ms", "size_mb"]
        assert json.loads(trial.user_attrs["setting"]) == LADDER[0].to_dict()
