"""Pruning and training as one stage: the cost that was asked for, rounds, what is said, and what a resume finds."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bench.layers import LatencyModel, LayerShape, grid_of
from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.intake import open_inputs
from edgekit.pipeline import Request
from edgekit.pipeline import run as compress
from edgekit.recipe import Prune, Qat, Recipe, Train
from edgekit.shrink import asks_for_training
from edgekit.stages.prune import macs, trace
from edgekit.stages.prune.trace import keep_all
from edgekit_converters.program import Program
from support.shrinking import Attentive, attentive, deep, flat, patterns, recipe, residual, run, saved, wide
from support.tiny_runs import QUICK, call, folder
from support.tiny_training import seeded


def multiplications(program: Program) -> float:
    structure = trace(program)
    return macs(structure)(keep_all(structure))


def tensors(program: Program) -> dict[str, torch.Tensor]:
    return program.graph.state_dict()


def same(a: Program, b: Program) -> bool:
    return tensors(a).keys() == tensors(b).keys() and all(
        torch.equal(t, tensors(b)[name]) for name, t in tensors(a).items()
    )


def test_nothing_asked_for_is_the_same_network(tmp_path: Path) -> None:
    done = run(wide(), Recipe(), tmp_path / "out")
    assert done.shrunk.program is wide()
    assert done.stages == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "hessian"])
def test_the_multiplications_asked_for_are_reached_and_the_widths_are_said(
    tmp_path: Path, importance: str
) -> None:
    done = run(wide(), recipe(epochs=0, ratio=0.5, importance=importance), tmp_path / "out")
    assert multiplications(done.shrunk.program) <= 0.5 * multiplications(wide())
    assert tensors(done.shrunk.program)["conv.weight"].shape[0] == 32
    assert done.shrunk.macs == multiplications(wide())
    assert "conv 64 → 32" in done.notes("prune")
    assert any(note.startswith("kept whole: head (") for note in done.notes("prune"))
    (stage,) = done.stages
    assert stage.after["macs"] == multiplications(done.shrunk.program)
    assert stage.before["macs"] == multiplications(wide())
    assert stage.after["params"] < stage.before["params"]
    # What was pruned still computes, for any batch.
    assert done.shrunk.program.graph(torch.zeros(5, 1, 6, 6))[0].shape == (5, 4)
    assert tensors(wide())["conv.weight"].shape[0] == 64


@pytest.mark.parametrize("formats", [("onnx",), ("tflite", "onnx")], ids="+".join)
def test_the_latency_asked_for_is_reached_by_the_table_of_every_runtime_that_is_here(
    tmp_path: Path, formats: tuple[str, ...]
) -> None:
    # Far from what such a small network takes at least, which is the operators themselves.
    done = run(deep(), recipe(epochs=0, ratio=0.3, by="latency", formats=formats), tmp_path / "out")
    predicted = done.shrunk.predicted
    assert set(predicted) == set(formats)
    assert np.mean([after / before for before, after in predicted.values()]) <= 0.7
    assert multiplications(done.shrunk.program) < multiplications(deep())


def test_layers_that_are_no_quicker_with_fewer_channels_are_not_called_narrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat_table(layers: Sequence[LayerShape], *_: object, **__: object) -> LatencyModel:
        return LatencyModel(tuple(layers), {point: 0.002 for layer in layers for point in grid_of(layer)})

    monkeypatch.setattr(import_module("edgekit.stages.prune.choose"), "latency_model", flat_table)
    with pytest.raises(UsageError, match="no layer is quicker here with fewer channels") as error:
        run(wide(), recipe(epochs=0, by="latency"), tmp_path / "out")
    assert "4.00 µs in onnx" in error.value.what
    assert 'by = "macs"' in error.value.way_out


def test_latency_without_a_runtime_that_is_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='by = "latency"') as error:
        run(wide(), recipe(epochs=0, by="latency", formats=("coreml",)), tmp_path / "out")
    assert 'by = "macs"' in error.value.way_out


def test_multiplications_are_counted_without_a_runtime_that_is_here(tmp_path: Path) -> None:
    done = run(wide(), recipe(epochs=0, formats=("coreml",)), tmp_path / "out")
    assert done.shrunk.predicted == {}
    assert multiplications(done.shrunk.program) <= 0.5 * multiplications(wide())


def test_two_rounds_end_at_the_ratio_and_share_the_epochs(tmp_path: Path) -> None:
    done = run(wide(), recipe(epochs=3, ratio=0.75, rounds=2), tmp_path / "out")
    assert done.names() == ["prune", "train", "prune", "train"]
    assert multiplications(done.shrunk.program) <= 0.25 * multiplications(wide())
    widths = [note for note in done.notes("prune") if "→" in note]
    assert widths == ["conv 64 → 32", "conv 32 → 16"]
    trained = [note for note in done.notes("train") if note.startswith("trained for")]
    assert [note.split(" to ")[0] for note in trained] == ["trained for 1 epochs", "trained for 2 epochs"]
    assert done.shrunk.macs == multiplications(wide())
    assert done.stages[0].before["macs"] == done.shrunk.macs


def test_rounds_without_an_epoch_train_nothing(tmp_path: Path) -> None:
    done = run(wide(), recipe(epochs=1, ratio=0.75, rounds=2), tmp_path / "out")
    assert done.names() == ["prune", "prune", "train"]


def test_no_epochs_need_nothing_to_train_on(tmp_path: Path) -> None:
    settings = recipe(epochs=0)
    assert not asks_for_training(settings)
    done = run(wide(), settings, tmp_path / "out", inputs=patterns(train=False))
    assert done.names() == ["prune"]


def test_training_brings_back_what_pruning_took(tmp_path: Path) -> None:
    # Untrained and cut to an eighth the network guesses; its classes can be told apart in a few steps.
    done = run(wide(), recipe(epochs=6, ratio=0.85, train={"distill": False}), tmp_path / "out")
    (stage,) = [stage for stage in done.stages if stage.name == "train"]
    assert stage.before["value"] < 0.6
    assert stage.after["value"] > stage.before["value"] + 0.2


def test_a_student_is_trained_in_the_place_of_the_network(tmp_path: Path) -> None:
    # A `ConvNet` of 8 channels.
    settings = recipe(ratio=0.0, train={"student": "tests.support.tiny_training:ConvNet"})
    assert asks_for_training(settings) == "--student"
    done = run(wide(), settings, tmp_path / "out")
    assert done.names() == ["train"]
    assert tensors(done.shrunk.program)["conv.weight"].shape[0] == 8
    assert done.shrunk.macs == multiplications(wide())
    assert "student: tests.support.tiny_training:ConvNet" in done.notes("train")


def test_a_student_can_be_pruned_too_and_has_no_features_in_common(tmp_path: Path) -> None:
    student = {"student": "tests.support.shrinking:Attentive", "features": 1.0}
    done = run(wide(), recipe(ratio=0.3, train=student), tmp_path / "out")
    assert done.names() == ["train", "prune", "train"]
    assert done.shrunk.macs == multiplications(wide())


@pytest.mark.parametrize(
    ("program", "settings", "said"),
    [
        (flat, {}, "no channels of this network can be removed"),
        (wide, {"keep": ("conv", "head")}, "names every layer"),
        (lambda: wide(8), {}, "no layer is wide enough to lose 8 channels"),
    ],
    ids=["no layers between", "all kept", "too narrow"],
)
def test_nothing_to_prune_is_said_with_a_way_out(tmp_path: Path, program, settings, said: str) -> None:
    with pytest.raises(UsageError) as error:
        run(program(), recipe(epochs=0, **settings), tmp_path / "out")
    assert said in error.value.what
    assert "--prune 0.5" in error.value.what
    assert "leave --prune out" in error.value.way_out.lower()
    assert not list(tmp_path.glob(".out.edgekit/prune-*"))


def test_more_than_can_go_is_cut_as_far_as_it_goes_and_said(tmp_path: Path) -> None:
    done = run(wide(), recipe(epochs=0, ratio=0.95), tmp_path / "out")
    assert tensors(done.shrunk.program)["conv.weight"].shape[0] == 8
    assert "no more could be removed: 12% of the macs are left, 5% were wanted" in done.notes("prune")


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"prune": Prune(ratio=0.5)}, "--prune 0.5"),
        ({"train": Train(student="some.module:make")}, "--student"),
        ({"qat": Qat(enabled=True)}, "--qat"),
    ],
    ids=["prune", "student", "qat"],
)
def test_training_without_data_is_refused_before_any_work(tmp_path: Path, settings, option: str) -> None:
    stages: list[str] = []
    request = Request(folder() / "model.pt2", tmp_path / "out", Recipe(**settings))
    with pytest.raises(UsageError) as error:
        compress(request, lambda stage, _: stages.append(stage))
    assert f"there is no --data, and {option} needs samples" in error.value.what
    assert ("--epochs 0" if "prune" in option else f"Leave {option} out") in error.value.way_out
    assert set(stages) <= {"load", "data"}
    assert not list(tmp_path.iterdir())


def test_training_on_one_sample_that_is_measured_is_refused(tmp_path: Path) -> None:
    x = np.zeros((1, 1, 6, 6), np.float32)

    class Loaded:
        program = wide()

    with pytest.raises(UsageError, match="one sample only"):
        open_inputs({"x": x, "y": np.zeros(1, int)}, recipe(), Loaded(), None, training=True)


def test_what_is_finished_is_found_again(tmp_path: Path) -> None:
    settings = recipe(epochs=2, rounds=2)
    first = run(wide(), settings, tmp_path / "out")
    again = run(wide(), settings, tmp_path / "out", resume=True)
    assert "ranking channels" in first.said
    assert not [line for line in again.said if line]
    assert again.shrunk.key == first.shrunk.key
    assert same(again.shrunk.program, first.shrunk.program)
    assert again.notes("prune") == first.notes("prune")
    assert again.notes("train") == first.notes("train")
    assert [s.after for s in again.stages] == [s.after for s in first.stages]


MOMENTS = [
    "ranking channels",
    "measuring conv",
    "choosing channels",
    "epoch 0",
    "epoch 1 of 2",
    "epoch 2 of 2",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_at_any_moment_is_made_good(tmp_path: Path, moment: str) -> None:
    def stop(line: str) -> None:
        if line.startswith(moment):
            raise KeyboardInterrupt

    settings = recipe(epochs=2)
    whole = run(wide(), settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(wide(), settings, tmp_path / "out", told=stop)
    again = run(wide(), settings, tmp_path / "out", resume=True)
    assert same(again.shrunk.program, whole.shrunk.program)
    assert ("ranking channels" in again.said) == (moment in MOMENTS[:2])
    assert ("choosing channels" in again.said) == (moment in MOMENTS[:3])


def test_another_ratio_is_chosen_by_what_was_measured_already(tmp_path: Path) -> None:
    run(wide(), recipe(epochs=0), tmp_path / "out")
    again = run(wide(), recipe(epochs=0, ratio=0.6), tmp_path / "out", resume=True)
    assert [line for line in again.said if line] == ["choosing channels"]
    alone = run(wide(), recipe(epochs=0, ratio=0.6), tmp_path / "alone")
    assert same(again.shrunk.program, alone.shrunk.program)


@pytest.mark.parametrize("change", [{"importance": "taylor"}, {"seed": 3}], ids=str)
def test_other_settings_find_nothing(tmp_path: Path, change) -> None:
    run(wide(), recipe(epochs=0), tmp_path / "out")
    seed = change.pop("seed", 0)
    again = run(wide(), replace(recipe(epochs=0, **change), seed=seed), tmp_path / "out", resume=True)
    assert "ranking channels" in again.said


@pytest.mark.parametrize("rounds", [1, 2])
def test_features_and_attention_maps_are_learned_where_channels_and_heads_went(
    tmp_path: Path, rounds: int
) -> None:
    def trained(**weights: float) -> dict[str, torch.Tensor]:
        settings = recipe(epochs=rounds, ratio=0.6, rounds=rounds, multiple=8, train=weights)
        done = run(attentive(), settings, tmp_path / "-".join(["out", *weights]))
        assert any("qkv" in note or "wide" in note for note in done.notes("prune")), done.notes("prune")
        return tensors(done.shrunk.program)

    plain, features, attention = trained(), trained(features=1.0), trained(attention=1.0)
    assert any(not torch.equal(plain[name], features[name]) for name in plain)
    assert any(not torch.equal(plain[name], attention[name]) for name in plain)


@pytest.mark.parametrize("rounds", [1, 2])
def test_features_are_learned_where_whole_branches_went_too(tmp_path: Path, rounds: int) -> None:
    settings = recipe(
        epochs=rounds, ratio=0.85, by="macs", blocks=True, rounds=rounds, train={"features": 1.0}
    )
    done = run(residual(), settings, tmp_path / "out")
    assert any(note.startswith("left out: ") for note in done.notes("prune")), done.notes("prune")
    assert multiplications(done.shrunk.program) <= 0.15 * multiplications(residual())
    assert done.names() == ["prune", "train"] * rounds


def test_the_module_behind_the_program_is_left_alone(tmp_path: Path) -> None:
    before = {name: t.clone() for name, t in tensors(attentive()).items()}
    run(attentive(), recipe(epochs=1, ratio=0.5), tmp_path / "out")
    assert all(torch.equal(t, tensors(attentive())[name]) for name, t in before.items())
    assert seeded(Attentive).qkv.weight.shape[0] == 96


@pytest.mark.slow
def test_the_report_tells_predicted_beside_measured_and_what_every_stage_changed(tmp_path: Path) -> None:
    (data, model), out = saved(tmp_path), tmp_path / "out"
    options = ("--prune", "0.5", "--epochs", "1", "--max-drop", "1", "-o", out)
    result = call("compress", model, "--data", data, *QUICK, *options)
    assert result.exit_code == 0, result.stderr
    report = Bundle.open(out).report
    (pruned,) = [stage for stage in report["stages"] if stage["name"] == "prune"]
    assert [row["layer"] for row in report["pruning"] if row["after"] < row["before"]] == ["conv"]
    assert all(row["damage"][-1] == 0 and row["widths"][-1] == row["before"] for row in report["pruning"])
    (trained,) = [stage for stage in report["stages"] if stage["name"] == "train"]
    assert pruned["after"]["macs"] < pruned["before"]["macs"] == report["baseline"]["macs"]
    assert pruned["after"]["params"] < pruned["before"]["params"] == report["baseline"]["params"]
    assert trained["after"]["value"] >= trained["before"]["value"]
    (note,) = [n for n in report["artifacts"]["onnx"]["notes"] if n.startswith("layers predicted to take")]
    assert "the file was measured at" in note
