"""Searching for a setting that holds the budget: what is tried, kept, told, found again and rebuilt."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.attempt import Task
from edgekit.bundle import Bundle, digest
from edgekit.clock import Clock
from edgekit.errors import LoweringError, UsageError
from edgekit.evaluate import choose_metric
from edgekit.search import Setting
from edgekit.trials import may_search, outcome_of, read_trial, rebuild
from edgekit.workdir import WorkDir
from support.made_up import BROKEN, Loaded, Maker, inputs, look, recipe
from support.search_world import World
from support.shrinking import saved
from support.tiny_runs import call

pytest.importorskip("optuna")

SMALL = World(size_mb=0.01)
# Half of the latency has to go, and a little accuracy may.
TIGHT = {"max_drop": 0.07, "max_latency_ms": 0.6}


def maker(tmp_path: Path, world: World = SMALL, **more) -> Maker:
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    return Maker(world, folder, **more)


def failed_rows(found) -> list[dict]:
    return [row for row in found.trials if row["outcome"] is None]


def test_a_first_attempt_that_holds_the_limits_ends_it_without_trials(tmp_path: Path) -> None:
    make = maker(tmp_path)
    found = look(make, recipe(max_drop=0.05, max_latency_ms=2.0), tmp_path / "out")
    assert len(make.made) == 1
    assert (found.trials, found.number, found.miss) == ((), None, ())
    assert make.islands == [True]


@pytest.mark.parametrize(
    "asked", [recipe(), recipe(trials=1, max_latency_ms=0.01)], ids=["no limit named", "one trial"]
)
def test_without_a_limit_or_trials_nothing_is_searched(tmp_path: Path, asked) -> None:
    make = maker(tmp_path, World(drop=0.5, size_mb=0.01))
    found = look(make, asked, tmp_path / "out")
    assert not may_search(asked)
    assert len(make.made) == 1
    assert found.trials == ()


def test_a_search_ends_with_a_trial_that_holds_everything(tmp_path: Path) -> None:
    make = maker(tmp_path)
    found = look(make, recipe(**TIGHT), tmp_path / "out")
    row = found.trials[found.number]
    assert row["number"] == found.number
    assert row["feasible"]
    assert row["why"] == "holds the budget"
    assert row["outcome"]["drop"] <= 0.07
    assert row["outcome"]["latency_ms"] <= 0.6
    assert found.miss == ()
    assert found.attempt.recipe.prune.ratio == row["setting"]["prune"] > 0
    # Each trial was made once; of the first attempt layers may stay float, of the others what the setting says.
    assert len(make.made) == len(found.trials) == len(set(make.made))
    assert make.islands == [True] + [False] * (len(make.made) - 1)


def test_a_file_that_is_slower_than_float_is_searched_for_a_faster_one(tmp_path: Path) -> None:
    make = maker(tmp_path, World(size_mb=0.01, float_ms=0.7))
    found = look(make, recipe(max_drop=0.07, allow_slower=False), tmp_path / "out")
    assert "slower than float" in found.trials[0]["why"]
    assert found.trials[found.number]["feasible"]
    assert found.attempt.recipe.prune.ratio > 0
    assert found.attempt.judged["onnx"].latency.p50_ms <= 0.7 * 1.05
    assert not found.attempt.judged["onnx"].slower


def test_rows_tell_what_a_trial_did_came_to_and_why_it_will_not_do(tmp_path: Path) -> None:
    found = look(maker(tmp_path), recipe(**TIGHT), tmp_path / "out")
    first = found.trials[0]
    assert {"number", "setting", "outcome", "feasible", "why", "pareto"} <= set(first)
    assert first["setting"]["prune"] == 0
    assert not first["feasible"]
    assert "max_latency_ms 0.6: takes 1 ms" in first["why"]
    assert first["outcome"]["float_drop"] == 0.0
    assert found.trials[found.number]["pareto"]
    later = found.trials[found.number]["outcome"]
    assert later["float_drop"] == pytest.approx(0.2 * found.attempt.recipe.prune.ratio**2)
    assert len(later["formats"]["onnx"]["sha256"]) == 64
    json.dumps(found.trials, allow_nan=False)


def test_limits_that_cannot_hold_name_what_binds_and_the_nearest_trial(tmp_path: Path) -> None:
    found = look(maker(tmp_path), recipe(max_drop=0.021, max_latency_ms=0.3), tmp_path / "out")
    assert found.miss
    assert found.miss[0].startswith(f"nearest: trial {found.number}: ")
    assert any("max_latency_ms 0.3" in sentence or "max_drop 0.021" in sentence for sentence in found.miss)
    assert found.attempt.recipe.prune.ratio == found.trials[found.number]["setting"]["prune"]


def test_a_limit_below_the_heaviest_pruning_is_said_at_once(tmp_path: Path) -> None:
    make = maker(tmp_path)
    found = look(make, recipe(max_latency_ms=0.01), tmp_path / "out")
    assert len(make.made) == 1
    assert any("even the heaviest pruning takes 0.19 ms" in sentence for sentence in found.miss)


def test_without_samples_to_train_on_nothing_is_pruned_and_the_miss_says_so(tmp_path: Path) -> None:
    make = maker(tmp_path)
    found = look(make, recipe(max_latency_ms=0.5), tmp_path / "out", train=False)
    assert {setting.prune for setting in make.made} == {0.0}
    assert not any(setting.qat for setting in make.made)
    assert found.miss[-1] == "nothing was pruned or trained: the data names no training set (train_x)"


def test_a_network_that_cannot_be_pruned_is_searched_without(tmp_path: Path) -> None:
    def refuse(setting: Setting) -> None:
        if setting.prune:
            raise UsageError("no channels can be removed", expected="some", way_out="Leave it out.")

    make = maker(tmp_path, spoil=refuse)
    found = look(make, recipe(**TIGHT), tmp_path / "out")
    assert {setting.prune for setting in make.made} == {0.0}
    assert found.miss


@pytest.mark.parametrize("how", ["raises", "no format", "bad option"])
def test_a_trial_that_fails_is_told_and_the_search_goes_on(tmp_path: Path, how: str) -> None:
    spoiled: list[Setting] = []

    def first_pruned(setting: Setting) -> bool:
        # The heaviest is the probe that is made before all trials.
        if 0 < setting.prune < 0.9 and not spoiled:
            spoiled.append(setting)
        return setting in spoiled

    def spoil(setting: Setting) -> None:
        if how != "no format" and first_pruned(setting):
            if how == "raises":
                raise BROKEN
            raise UsageError("the loss is NaN", expected="a number", way_out="Lower the rate.")

    failing = first_pruned if how == "no format" else lambda _: False
    found = look(maker(tmp_path, spoil=spoil, failing=failing), recipe(**TIGHT), tmp_path / "out")
    (row,) = failed_rows(found)
    assert row["setting"] == spoiled[0].to_dict()
    assert not row["feasible"]
    said = "the loss is NaN" if how == "bad option" else "aten.odd"
    assert said in row["why"]
    assert "\n" not in row["why"]
    assert found.trials[found.number]["feasible"]


def test_a_first_attempt_without_any_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"aten\.odd"):
        look(maker(tmp_path, failing=lambda _: True), recipe(**TIGHT), tmp_path / "out")


def test_a_proof_that_does_not_hold_is_not_searched_around(tmp_path: Path) -> None:
    make = maker(tmp_path, proven=False)
    found = look(make, recipe(**TIGHT), tmp_path / "out")
    assert len(make.made) == 1
    assert outcome_of(found.attempt, 1.0).refused == ("onnx: the file differs from the reference by 9 steps",)


def test_an_interrupt_leaves_the_trial_to_be_taken_again_and_keeps_the_others(tmp_path: Path) -> None:
    def interrupt(setting: Setting) -> None:
        if len(stopped.made) == 3:
            raise KeyboardInterrupt

    undisturbed = look(maker(tmp_path), recipe(**TIGHT), tmp_path / "whole")
    stopped = maker(tmp_path)
    stopped.spoil = interrupt
    with pytest.raises(KeyboardInterrupt):
        look(stopped, recipe(**TIGHT), tmp_path / "out")
    again = maker(tmp_path)
    found = look(again, recipe(**TIGHT), tmp_path / "out", resume=True)
    # The first attempt is found among the finished stages, the second is not made again, the third is.
    assert stopped.made[1] not in again.made
    assert again.made[:2] == [stopped.made[0], stopped.made[2]]
    settings = [row["setting"] for row in found.trials]
    assert settings == [row["setting"] for row in undisturbed.trials]
    assert found.number == undisturbed.number


def test_a_resume_makes_no_finished_trial_again_but_the_chosen_one(tmp_path: Path) -> None:
    before = look(maker(tmp_path), recipe(**TIGHT), tmp_path / "out")
    again = maker(tmp_path)
    found = look(again, recipe(**TIGHT), tmp_path / "out", resume=True)
    assert found.trials == before.trials
    assert found.number == before.number
    assert len(again.made) == 2
    assert again.made[1].to_dict() == before.trials[before.number]["setting"]


def test_without_resume_and_with_other_limits_trials_are_not_found(tmp_path: Path) -> None:
    before = look(maker(tmp_path), recipe(**TIGHT), tmp_path / "out")
    anew, other = maker(tmp_path), maker(tmp_path)
    look(other, recipe(max_drop=0.08, max_latency_ms=0.6), tmp_path / "out", resume=True)
    assert len(other.made) > 2
    found = look(anew, recipe(**TIGHT), tmp_path / "out")
    assert len(anew.made) == len(before.trials) == len(found.trials)


def test_progress_names_every_trial(tmp_path: Path) -> None:
    lines: list[str] = []
    found = look(
        maker(tmp_path), recipe(**TIGHT), tmp_path / "out", told=lambda stage, detail: lines.append(detail)
    )
    told = [line for line in lines if line.startswith("search: trial ")]
    assert len(told) == len(found.trials)
    assert told[1].startswith("search: trial 1: prune ")


@pytest.mark.slow
def test_processes_share_the_trials_of_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.made_up", str(tmp_path / name), url],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path.cwd())])},
        )
        for name in ("one", "two")
    ]
    said = [json.loads(worker.communicate(timeout=240)[0].splitlines()[-1]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert said[0]["number"] == said[1]["number"] is not None
    settings = [row["setting"] for row in said[0]["trials"]]
    assert settings == [row["setting"] for row in said[1]["trials"]]
    # Beside the first attempt, and the chosen one where the other worker made it, no trial was made by both.
    chosen = settings[said[0]["number"]]
    searched = [[s for s in each["made"][1:] if s != chosen] for each in said]
    assert not [s for s in searched[0] if s in searched[1]]


def report(folder: Path, content: object) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "no report of ours"),
        ([], "no report of ours"),
        ({"trials": [{"setting": {}}]}, "no report of ours"),
        ({"trials": 7}, "no report of ours"),
        ({}, "has no such trial"),
        ({"trials": []}, "has no such trial"),
    ],
    ids=str,
)
def test_what_holds_no_trials_is_said(tmp_path: Path, content: object, said: str) -> None:
    out = tmp_path / "out" if content is None else report(tmp_path / "out", content)
    with pytest.raises(UsageError, match="--from-trial 3") as error:
        read_trial(out, 3)
    assert said in str(error.value)


def test_an_unknown_trial_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    found = look(maker(tmp_path), recipe(**TIGHT), tmp_path / "search")
    out = report(tmp_path / "out", {"trials": found.trials})
    with pytest.raises(UsageError) as error:
        read_trial(out, 99)
    assert "one of its trials (0, 1" in error.value.expected
    with pytest.raises(UsageError):
        read_trial(out, -1)
    assert read_trial(out, 1).setting.to_dict() == found.trials[1]["setting"]


def test_a_rebuilt_trial_does_what_the_row_says_and_keeps_the_others(tmp_path: Path) -> None:
    found = look(maker(tmp_path), recipe(**TIGHT), tmp_path / "search")
    told = read_trial(report(tmp_path / "out", {"trials": found.trials}), found.number)
    make, metric = maker(tmp_path), choose_metric("top1", labels=True, classes=True)
    with WorkDir(tmp_path / "out", resume=False) as work:
        task = Task(Loaded(), inputs(), metric, work, Clock(lambda stage, detail: None))
        again = rebuild(task, recipe(**TIGHT), told, make)
    assert make.made == [told.setting]
    assert make.islands == [False]
    assert again.number == found.number
    assert list(again.trials) == json.loads(json.dumps(found.trials))
    assert outcome_of(again.attempt, 0.0).formats == outcome_of(found.attempt, 0.0).formats


@pytest.mark.slow
def test_a_search_on_real_files_and_any_of_its_trials_again(tmp_path: Path) -> None:
    data, model = saved(tmp_path)
    (tmp_path / "recipe.toml").write_text("[train]\nepochs = 1\nbatch_size = 32\n[search]\ntrials = 6\n")
    out = tmp_path / "out"
    asked = [
        "compress", model, "--data", data, "--recipe", tmp_path / "recipe.toml", "-o", out, "--preset", "fast",
        "--format", "onnx", "--allow-slower", "--max-drop", "1", "--max-size-mb", "0.0055",
    ]  # fmt: skip
    result = call(*asked)
    assert result.exit_code == 0, result.stderr
    first = Bundle.open(out).report
    number, rows = first["trial"], first["trials"]
    assert number > 0
    assert rows[number]["setting"]["prune"] > 0
    assert rows[number]["outcome"]["formats"]["onnx"]["sha256"] == digest(out / "model.onnx").sha256
    assert digest(out / "model.onnx").size_bytes <= 5500 < rows[0]["outcome"]["size_bytes"]

    shutil.copytree(out, tmp_path / "first")
    again = call(*asked, "--from-trial", 0)
    assert again.exit_code == 3, again.stderr
    report = Bundle.open(out).report
    assert report["trial"] == 0
    assert report["trials"] == rows
    assert digest(out / "model.onnx").sha256 == rows[0]["outcome"]["formats"]["onnx"]["sha256"]

    back = call(*asked, "--from-trial", number)
    assert back.exit_code == 0, back.stderr
    assert Bundle.open(out).report["trials"] == rows
    assert (out / "model.onnx").read_bytes() == (tmp_path / "first" / "model.onnx").read_bytes()
