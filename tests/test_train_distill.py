"""A student learns from its teacher with or without labels, and says what it cannot learn from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.support.tiny_training import (
    CLASSES,
    ConvNet,
    convnet,
    images,
    inputs_of,
    program_of,
    seeded,
    training_of,
)
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.evaluate import METRICS, Metric, Top1
from edgekit.inputs import Inputs
from edgekit.recipe import Train
from edgekit.stages.train.distill import Trained, distill
from edgekit.stages.train.judging import JUDGED, judge, judged_batches
from edgekit.stages.train.losses import Tap
from edgekit.stages.train.readings import readings_of, usable_labels
from edgekit.stages.train.trainable import attention_nodes

QUICK = Train(epochs=6, batch_size=16, ema=0.9, augment="none")
TOP1, AGREEMENT, MAE = METRICS["top1"], METRICS["agreement"], METRICS["mae"]


def silent(_: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A `ConvNet` that has learned the images."""
    path = tmp_path_factory.mktemp("teacher") / "c"
    return distill(
        convnet(), convnet(), pictures(), TOP1, replace(QUICK, distill=False, epochs=12), seed=0, checkpoint=path,
        step=silent,
    ).program  # fmt: skip


def pictures(*, labels: bool = True, train: bool = True) -> Inputs:
    x, y = images(256)
    eval_x, eval_y = images(128, seed=1)
    return inputs_of(x, y if labels else None, eval_x, eval_y if labels else None, train=train)


def taught(tmp_path, teacher, inputs, metric, settings=QUICK, student=None, **more) -> Trained:
    student = student or convnet(4, seed=9)
    return distill(
        student, teacher, inputs, metric, settings, seed=0, checkpoint=tmp_path / "c", step=silent, **more
    )


def accuracy(program, x, y) -> float:
    return float((program.graph(torch.from_numpy(x))[0].argmax(1).numpy() == y).mean())


def test_labels_alone_teach(tmp_path, teacher):
    trained = taught(tmp_path, teacher, pictures(), TOP1, replace(QUICK, distill=False))
    assert trained.best.value > trained.history[0].value + 0.2
    assert "as labels" in trained.notes[-1]
    assert accuracy(trained.program, *images(128, seed=1)) == pytest.approx(trained.best.value)


def test_a_teacher_alone_teaches_without_any_labels(tmp_path, teacher):
    trained = taught(tmp_path, teacher, pictures(labels=False), AGREEMENT)
    assert trained.best.value > trained.history[0].value + 0.2
    assert "as the original network:" in trained.notes[-1]
    x, _ = images(200, seed=4)
    agreed = accuracy(trained.program, x, teacher.graph(torch.from_numpy(x))[0].argmax(1).numpy())
    assert agreed > 0.6


def test_both_teach_and_labels_can_be_left_out(tmp_path, teacher):
    both = taught(tmp_path / "both", teacher, pictures(), TOP1)
    alone = taught(tmp_path / "alone", teacher, pictures(), TOP1, replace(QUICK, labels=False))
    assert "the original network and labels" in both.notes[-1]
    assert "labels" not in alone.notes[-1]
    assert both.history[-1].loss != alone.history[-1].loss


def test_distilling_gives_the_same_bytes_twice_and_changes_no_program(tmp_path, teacher):
    student = convnet(4, seed=9)
    before = {k: v.clone() for program in (student, teacher) for k, v in program.graph.state_dict().items()}
    first = taught(tmp_path / "a", teacher, pictures(), TOP1)
    second = taught(tmp_path / "b", teacher, pictures(), TOP1)
    after = {k: v for program in (student, teacher) for k, v in program.graph.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    weights = [t.program.graph.state_dict() for t in (first, second)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert repr(first.history) == repr(second.history)


def test_an_interrupted_distillation_goes_on(tmp_path, teacher):
    whole = taught(tmp_path / "whole", teacher, pictures(), TOP1)
    calls = 0

    def stop(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(
            convnet(4, seed=9), teacher, pictures(), TOP1, QUICK, seed=0, checkpoint=tmp_path / "c", step=stop
        )
    again = taught(tmp_path, teacher, pictures(), TOP1)
    weights = [t.program.graph.state_dict() for t in (whole, again)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_without_data_to_train_on_there_is_a_way_out(tmp_path, teacher):
    with pytest.raises(UsageError, match="no training data") as caught:
        taught(tmp_path, teacher, pictures(train=False), TOP1)
    assert "--data" in caught.value.way_out


@pytest.mark.parametrize(("has", "settings"), [(False, {}), (True, {"labels": False})])
def test_neither_teacher_nor_labels_is_nothing_to_learn_from(tmp_path, teacher, has, settings):
    with pytest.raises(UsageError, match="neither a teacher nor labels"):
        taught(tmp_path, teacher, pictures(labels=has), AGREEMENT, replace(QUICK, distill=False, **settings))


def test_labels_of_no_class_are_named(tmp_path, teacher):
    x, y = images(256)
    with pytest.raises(UsageError, match="training labels: the label 4 of a sample of batch"):
        taught(tmp_path, teacher, inputs_of(x, y + 1, *images(64, seed=1)), TOP1)
    with pytest.raises(UsageError, match=r"training labels of shape \(4,\) for each input"):
        taught(tmp_path, teacher, inputs_of(x, np.eye(4)[y], *images(64, seed=1)), TOP1)


def test_labels_are_checked_as_far_down_as_they_go(tmp_path, teacher):
    x, y = images(700)
    y[650] = 99
    with pytest.raises(UsageError, match="the label 99"):
        taught(tmp_path, teacher, inputs_of(x, y, *images(64, seed=1)), TOP1)


class Regression(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def numbers(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    return x, (x.sum(1) + 0.1 * x[:, 0] ** 2).astype(np.float32)


def test_values_are_learned_from_labels_then_from_the_teacher(tmp_path):
    settings = replace(QUICK, optimizer="adamw", learning_rate=0.02, epochs=10)
    inputs = inputs_of(*numbers(256, 0), *numbers(64, 1))
    program = program_of(seeded(Regression), 3)
    able = taught(tmp_path / "t", program, inputs, MAE, replace(settings, distill=False), program)
    assert able.best.value < 0.5 * able.history[0].value
    student = program_of(seeded(lambda: Regression(4), 5), 3)
    trained = taught(tmp_path / "s", able.program, inputs, MAE, settings, student)
    assert trained.best.value < 0.6 * trained.history[0].value
    assert "the original network and labels" in trained.notes[-1]


def test_labels_that_mean_something_else_than_the_outputs_are_not_used(tmp_path):
    program = program_of(seeded(Regression), 3)
    x, y = numbers(256, 0)
    eval_x, eval_y = numbers(64, 1)
    trained = taught(
        tmp_path, program, inputs_of(x, 100 + y, eval_x, eval_y), MAE, replace(QUICK, epochs=1), program
    )
    assert any("labels were not used" in note for note in trained.notes)


class TwoHeads(nn.Module):
    """Class probabilities and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y.mean((2, 3)).softmax(1), y[:, :2]


def test_several_outputs_of_different_kinds_are_learned_together(tmp_path):
    program, student = (program_of(seeded(TwoHeads, seed), 1, 6, 6) for seed in (0, 1))
    settings = replace(QUICK, learning_rate=0.05, epochs=8)
    trained = taught(tmp_path, program, pictures(labels=False), AGREEMENT, settings, student)
    assert trained.history[-1].loss < 0.3 * trained.history[1].loss
    x = torch.from_numpy(images(64, seed=3)[0])
    for after, before, wanted in zip(
        trained.program.graph(x), student.graph(x), program.graph(x), strict=True
    ):
        assert (after - wanted).square().mean() < 0.5 * (before - wanted).square().mean()


def test_a_graph_of_one_sample_is_trained(tmp_path, teacher):
    student = replace(convnet(4, seed=9), dynamic_batch=False)
    settings = replace(QUICK, epochs=2)
    trained = taught(tmp_path, replace(teacher, dynamic_batch=False), pictures(), TOP1, settings, student)
    assert trained.history[-1].loss < trained.history[1].loss
    assert not trained.program.dynamic_batch


def test_features_count_only_where_they_have_a_weight(tmp_path, teacher):
    name = next(n.name for n in teacher.graph.graph.nodes if "conv2d" in n.name)
    taps = [Tap(name, 1, (0, 2, 4, 6))]
    plain = taught(tmp_path / "plain", teacher, pictures(), TOP1)
    unweighted = taught(tmp_path / "un", teacher, pictures(), TOP1, taps=taps)
    weighted = taught(tmp_path / "we", teacher, pictures(), TOP1, replace(QUICK, features=5.0), taps=taps)
    assert repr(plain.history) == repr(unweighted.history)
    x = torch.from_numpy(images(64, seed=3)[0])

    def apart(trained: Trained) -> float:
        weight = dict(trained.program.graph.named_parameters())["conv.weight"]
        wanted = dict(teacher.graph.named_parameters())["conv.weight"][[0, 2, 4, 6]]
        difference = torch.conv2d(x, weight - wanted, None, 2, 1)
        return float(difference.square().mean().detach())

    assert apart(weighted) < 0.7 * apart(plain)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x[:, 0]).chunk(3, dim=-1)
        return self.head(
            nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).mean((1, 2))
        )


def test_attention_maps_are_found_by_themselves(tmp_path):
    program, student = (program_of(seeded(Attentive, seed), 1, 6, 6) for seed in (0, 1))
    assert len(attention_nodes(program)) == 1
    runs = {
        weight: taught(tmp_path / str(weight), program, pictures(labels=False), AGREEMENT,
                       replace(QUICK, attention=weight, epochs=1), student)
        for weight in (0.0, 10.0)
    }  # fmt: skip
    assert runs[10.0].history[-1].loss > runs[0.0].history[-1].loss


def test_another_device_than_there_is_has_a_way_out(tmp_path, teacher):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(UsageError, match="no CUDA device"):
        taught(tmp_path, teacher, pictures(), TOP1, device="cuda")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
def test_any_arithmetic_trains_float32_weights(tmp_path, teacher, precision):
    trained = taught(tmp_path, teacher, pictures(), TOP1, replace(QUICK, precision=precision))
    assert trained.best.value > trained.history[0].value + 0.2
    assert {p.dtype for p in trained.program.graph.parameters()} == {torch.float32}


def test_no_epochs_give_the_student_back(tmp_path, teacher):
    trained = taught(tmp_path, teacher, pictures(), TOP1, replace(QUICK, epochs=0))
    weights = convnet(4, seed=9).graph.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in trained.program.graph.state_dict().items())
    assert len(trained.history) == 1


def test_outputs_are_read_by_what_they_hold_and_what_is_counted():
    y = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    soft = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    dense = np.zeros((2, 3, 4, 4), np.float32)
    kinds = {
        "top1": [r.kind for r in readings_of([y, y, soft, dense, y[:, :1]], TOP1)],
        "agreement": [r.kind for r in readings_of([y, soft, y[:, :1]], AGREEMENT)],
        "mae": [r.kind for r in readings_of([y, soft], MAE)],
    }
    assert kinds == {
        "top1": ["logits", "scores", "probabilities", "scores", "values"],
        "agreement": ["scores", "probabilities", "values"],
        "mae": ["values", "values"],
    }
    assert readings_of([y], MAE)[0].scale == pytest.approx(float(y.var()), rel=1e-5)
    assert readings_of([np.zeros((3, 1), np.float32)], MAE)[0].scale > 0


def test_labels_that_fit_are_used_and_read_again_as_often_as_wanted():
    x, y = images(40)
    reading = readings_of([np.eye(4, dtype=np.float32) * 9], TOP1)[0]
    used, why = usable_labels(
        training_of(x, y), reading, lambda a: (np.zeros((len(a[0]), 4), np.float32),), doubted=True
    )
    assert why is None
    for _ in range(2):
        assert sum(len(labels) for _, labels in used.batches(np.arange(40), 16)) == 40


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 1), (300, 300), (2 * JUDGED, 2 * JUDGED), (3 * JUDGED, JUDGED + JUDGED // 2)]
)
def test_the_judge_sees_all_or_an_even_share_of_the_evaluation_set(n, expected):
    x = np.arange(n, dtype=np.float32)[:, None]
    inputs = inputs_of(x, None, x, np.arange(n) * 4 // n)
    batches = judged_batches(inputs, values=1, size=100, run=lambda a: (a[0],))
    seen = np.concatenate([b.inputs[0][:, 0] for b in batches])
    assert len(seen) == expected
    assert len(set(np.diff(seen))) <= 1
    counts = np.bincount(np.concatenate([b.labels for b in batches]))
    assert max(counts) - min(counts) <= max(1, n == 1)
    assert max(len(b.inputs[0]) for b in batches) <= 100


def test_large_inputs_are_judged_in_smaller_numbers():
    x = np.zeros((64, 1), np.float32)
    inputs = inputs_of(x, None, x, None)
    batches = judged_batches(inputs, values=1 << 24, size=100, run=lambda a: (a[0],))
    assert sum(len(b.inputs[0]) for b in batches) <= 8


def test_the_judge_counts_by_the_metric_over_all_batches():
    x, y = images(64)
    batches = judged_batches(inputs_of(x, y, x, y), values=36, size=10, run=lambda a: (a[0],))
    right = (np.eye(4)[batch.labels] for batch in batches)
    assert judge(batches, lambda _: (next(right),), Metric("top1", Top1)) == 1.0
    assert math.isnan(judge([], lambda _: (), TOP1))


def test_a_moved_picture_is_learned_by_default(tmp_path):
    """The network of the original sees the same moved image, so that even what it gets wrong is learned."""
    program = program_of(seeded(lambda: ConvNet(8)), 1, 6, 6)
    trained = taught(tmp_path, program, pictures(), TOP1, replace(QUICK, epochs=1, augment="auto"))
    assert any("training images were shifted" in note for note in trained.notes)


def test_a_rate_that_is_far_too_high_ends_with_a_way_out(tmp_path, teacher):
    settings = replace(QUICK, learning_rate=1e30, precision="float32")
    with pytest.raises(UsageError, match=r"the loss is (nan|inf|\d).* in step \d+ of epoch 1") as caught:
        taught(tmp_path, teacher, pictures(), TOP1, settings)
    assert "learning_rate" in caught.value.way_out
    assert (tmp_path / "c").exists()
