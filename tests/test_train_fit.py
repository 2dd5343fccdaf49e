"""The training loop: the same bytes every time, whatever interrupts it, and the best epoch in the end."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tiny_training import ConvNet, digest, images, learn, seeded, training_of
from torch import nn

from edgekit.errors import UsageError
from edgekit.stages.train import checkpoint as disk
from edgekit.stages.train.average import Average
from edgekit.stages.train.fit import fit
from edgekit.stages.train.schedule import Schedule

ROOT = Path(__file__).parents[1]


def silent(_: str) -> None:
    """Nobody listens."""


def trained(path: Path, **more):
    module = seeded(ConvNet)
    return module, learn(module, path, silent, **more)


def test_training_improves_and_keeps_the_best_epoch(tmp_path):
    module, fitted = trained(tmp_path / "c", epochs=8)
    assert [e.epoch for e in fitted.history] == list(range(9))
    assert math.isnan(fitted.history[0].loss)
    assert fitted.best.value == max(e.value for e in fitted.history) > fitted.history[0].value + 0.2
    assert fitted.history[-1].loss < fitted.history[1].loss
    assert not module.training


def test_the_same_training_gives_the_same_bytes(tmp_path):
    torch.manual_seed(1)
    first, fitted = trained(tmp_path / "a")
    torch.manual_seed(2)
    drawn = torch.rand(3)
    torch.manual_seed(2)
    second, again = trained(tmp_path / "b")
    assert digest(first) == digest(second)
    assert repr(fitted) == repr(again)
    assert torch.equal(drawn, torch.rand(3)), "random numbers of the caller are left alone"
    other, _ = trained(tmp_path / "c", schedule=Schedule(epochs=4, batch_size=16, ema=0.9, seed=1))
    assert digest(other) != digest(first)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 4, 9, 14, 23])
def test_a_training_that_was_stopped_goes_on_as_if_nothing_happened(tmp_path, at, monkeypatch):
    monkeypatch.setattr("edgekit.stages.train.fit._TELL_EVERY", -1.0)
    whole, fitted = trained(tmp_path / "whole")
    calls = 0

    def stop(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Stopped

    with pytest.raises(Stopped):
        learn(seeded(ConvNet), tmp_path / "c", stop)
    module, again = trained(tmp_path / "c")
    assert digest(module) == digest(whole)
    assert repr(again) == repr(fitted)


def test_a_finished_training_is_found_again(tmp_path):
    first, fitted = trained(tmp_path / "c")
    told: list[str] = []
    module = seeded(ConvNet)
    again = learn(module, tmp_path / "c", told.append)
    assert (digest(module), repr(again), told) == (digest(first), repr(fitted), [])


def test_kill_9_at_random_moments_changes_no_bit(tmp_path):
    command = [sys.executable, "-m", "tests.support.killed_training", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
    found = json.loads(said.stdout)
    assert found["killed"] == found["attempts"] >= 6
    assert found["weights"] == found["uninterrupted"]
    assert found["epochs_of_the_last"] < found["epochs"], "it went on and did not start anew"


def test_a_half_written_state_is_not_taken_for_one(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    (tmp_path / "c.part").write_bytes((tmp_path / "whole").read_bytes()[:1000])
    module, _ = trained(tmp_path / "c")
    assert digest(module) == digest(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "whole"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x80\x04N."])
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as the state of a training") as caught:
        trained(tmp_path / "c")
    assert str(tmp_path / "c") in caught.value.what


def test_a_state_runs_no_code(tmp_path):
    import pickle

    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    (tmp_path / "c").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UsageError, match="cannot be read"):
        trained(tmp_path / "c")
    assert not (tmp_path / "harm").exists()


def test_the_state_of_another_training_is_refused(tmp_path):
    trained(tmp_path / "c")
    for more in (
        {"epochs": 5},
        {"training": training_of(*images(96, seed=3))},
        {"schedule": Schedule(epochs=4, batch_size=16, learning_rate=0.01)},
    ):
        with pytest.raises(UsageError, match="belongs to another training"):
            trained(tmp_path / "c", **more)
    with pytest.raises(UsageError, match="belongs to another training"):
        learn(seeded(lambda: ConvNet(4)), tmp_path / "c", silent)
    with pytest.raises(UsageError, match="belongs to another training"):
        learn(seeded(ConvNet, 5), tmp_path / "c", silent)


def test_a_state_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="while the training was saved"):
        trained(tmp_path / "file" / "c")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_a_way_out_and_keeps_the_checkpoint(tmp_path, bad):
    steps = 0

    def objective(net, inputs, labels):
        nonlocal steps
        steps += 1
        return F.cross_entropy(net(*inputs), labels) * (bad if steps == 15 else 1.0)

    with pytest.raises(UsageError, match=r"in step 3 of epoch 3, at a learning rate of 0\.0\d+") as caught:
        trained(tmp_path / "c", objective=objective)
    assert "learning_rate" in caught.value.way_out
    assert "epoch 2 is kept" in caught.value.way_out
    whole, _ = trained(tmp_path / "whole")
    module, _ = trained(tmp_path / "c")
    assert digest(module) == digest(whole)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_memory_that_runs_out_is_told_with_a_smaller_batch(tmp_path, error):
    def objective(net, inputs, labels):
        raise error

    with pytest.raises(UsageError, match="memory ran out with batches of 16") as caught:
        trained(tmp_path / "c", objective=objective)
    assert "batch_size = 8" in caught.value.way_out


def test_other_errors_are_not_called_memory(tmp_path):
    def objective(net, inputs, labels):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(tmp_path / "c", objective=objective)


def values(*given: float):
    """A judge that says these numbers one after the other."""
    said = iter(given)
    return lambda _: next(said)


def test_patience_ends_a_training_that_does_not_get_better(tmp_path):
    schedule = Schedule(epochs=9, batch_size=16, patience=2)
    _, fitted = trained(tmp_path / "c", schedule=schedule, judge=values(0.1, 0.5, 0.5, 0.4, 0.9))
    assert [e.value for e in fitted.history] == [0.1, 0.5, 0.5, 0.4]
    assert fitted.best.epoch == 2, "of equals the later one"


def test_errors_are_better_when_they_are_lower(tmp_path):
    _, fitted = trained(tmp_path / "c", judge=values(3.0, 2.0, 2.5, 4.0, 2.2), higher_is_better=False)
    assert fitted.best.epoch == 1


def test_a_network_is_never_left_worse_than_it_was_given(tmp_path):
    module = seeded(ConvNet)
    before = digest(module)
    fitted = learn(module, tmp_path / "c", silent, judge=values(0.9, 0.1, 0.2, 0.3, 0.4))
    assert fitted.best.epoch == 0
    assert digest(module) == before


def test_a_judge_without_a_number_is_never_the_best(tmp_path):
    _, fitted = trained(tmp_path / "c", judge=values(math.nan, 0.2, math.nan, 0.1, math.nan))
    assert fitted.best.epoch == 1


def test_no_epochs_change_nothing(tmp_path):
    module = seeded(ConvNet)
    before = digest(module)
    assert len(learn(module, tmp_path / "c", silent, epochs=0).history) == 1
    assert digest(module) == before


def test_progress_tells_epoch_loss_metric_best_and_time_left(tmp_path):
    told: list[str] = []
    learn(seeded(ConvNet), tmp_path / "c", told.append, metric="top1")
    assert re.fullmatch(
        r"epoch 4 of 4 · loss \d\.\d{3} · top1 [01]\.\d{4} \(best [01]\.\d{4}\) · 0 s left", told[-1]
    )


def test_a_set_smaller_than_a_batch_is_one_batch(tmp_path):
    x, y = images(5)
    _, fitted = trained(tmp_path / "c", training=training_of(x, y))
    assert all(math.isfinite(e.loss) for e in fitted.history[1:])


def test_what_does_not_fill_a_batch_is_left_out_another_rest_every_epoch(tmp_path):
    seen: list[list[float]] = [[]]
    x = np.arange(10, dtype=np.float32)[:, None]
    module = nn.Linear(1, 1)

    def objective(net, inputs, labels):
        seen[-1] += inputs[0][:, 0].tolist()
        return net(*inputs).square().mean()

    def judge(_):
        seen.append([])
        return 0.0

    fit(
        module, objective=objective, training=training_of(x, None), judge=judge, higher_is_better=True,
        schedule=Schedule(epochs=6, batch_size=4, learning_rate=1e-3), checkpoint=tmp_path / "c", step=silent,
    )  # fmt: skip
    epochs = seen[1:-1]
    assert all(len(epoch) == len(set(epoch)) == 8 for epoch in epochs)
    assert {row for epoch in epochs for row in epoch} == set(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_what_takes_no_gradient_stays(tmp_path):
    module = seeded(ConvNet)
    module.conv.weight.requires_grad_(False)
    before = module.conv.weight.detach().clone()
    learn(module, tmp_path / "c", silent)
    assert torch.equal(module.conv.weight, before)


@given(st.integers(1, 400), st.floats(1e-5, 1.0))
def test_the_rate_warms_up_and_falls_to_nothing(steps, highest):
    schedule = Schedule(epochs=1, learning_rate=highest)
    rates = [schedule.rate(i, steps) for i in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(highest)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0
    if steps > 100:
        assert rates[-1] < highest / 100


def test_the_average_starts_fast_and_ends_at_its_decay():
    schedule = Schedule(epochs=1, ema=0.999)
    assert schedule.decay(1) < 0.2
    assert schedule.decay(100_000) == 0.999


def test_the_average_is_of_statistics_too_and_takes_integers_as_they_are():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = Average(module)
    with torch.no_grad():
        module[0].weight.fill_(2.0)
        module[1].running_var.fill_(3.0)
        module[1].num_batches_tracked.fill_(7)
        average.tensors["0.weight"].fill_(0.0)
    average.update(0.75)
    assert torch.equal(average.tensors["0.weight"], torch.full((3, 2), 0.5))
    assert torch.equal(average.tensors["1.running_var"], torch.full((3,), 1.5))
    average.swap()
    assert module[1].num_batches_tracked.item() == 7
    assert torch.equal(module[0].weight.detach(), torch.full((3, 2), 0.5))
    average.swap()
    assert torch.equal(module[0].weight.detach(), torch.full((3, 2), 2.0))


def test_norms_and_biases_are_not_decayed():
    groups = Schedule(epochs=1, weight_decay=0.1).optimizer_of(ConvNet()).param_groups
    assert {(p.dim() >= 2, group["weight_decay"]) for group in groups for p in group["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"batch_size": 0},
        {"optimizer": "lion"},
        {"precision": "int4"},
        {"ema": 1.0},
        {"learning_rate": math.nan},
    ],
)
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"epochs|optimizer|rate"):
        Schedule(**{"epochs": 1, **wrong})


def test_a_missing_state_is_no_error(tmp_path):
    assert disk.load(tmp_path / "none", "x") is None
