"""The best of the settings is found by measuring, and what it stands on is shared."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from edgekit.inputs import CORRECTION_SAMPLES
from edgekit.recipe import Quantize
from edgekit.stages.quantize.rules import WEIGHT_AXIS
from edgekit.stages.quantize.search import CHUNK_VALUES, Choice, first_samples, search, weights_only
from edgekit_converters.program import Program, QuantizedProgram
from quantized_programs import noise, program


def network() -> Program:
    layers = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    return program(lambda x, a, b, c: c(torch.relu(b(torch.relu(a(x))))), *layers, shape=(3, 12, 12))


def searched(source: Program, settings: Quantize) -> tuple[Choice, list[str]]:
    told: list[str] = []

    def calibration() -> Iterator[tuple[Tensor, ...]]:
        yield from (noise(source, 16, seed) for seed in range(3))

    choice = search(source, settings, calibration, [noise(source, 8, seed=9)], step=told.append)
    return choice, told


def integers(quantized: QuantizedProgram) -> dict[str, Tensor]:
    graph = quantized.program.graph
    return {
        n.name: getattr(graph, str(n.args[1].args[0].target))
        for n in graph.graph.nodes
        if n.target in WEIGHT_AXIS
    }


def test_everything_that_is_try_is_turned_over_with_the_best_so_far() -> None:
    settings = Quantize(observers=("minmax", "mse"), equalize="try")
    choice, _ = searched(network(), settings)

    tried = [trial.setting for trial in choice.trials]
    assert [s.observer for s in tried[:2]] == ["minmax", "mse"]
    assert [s.equalized for s in tried[:3]] == [False, False, True]
    assert {s.compensated for s in tried} == {s.corrected for s in tried} == {True, False}
    assert len(tried) == 5
    assert choice.best.snr_db == max(trial.snr_db for trial in choice.trials)


def test_what_is_not_try_is_done_as_the_recipe_says() -> None:
    settings = Quantize(observers=("minmax",), compensation=False, bias_correction=False)
    choice, told = searched(network(), settings)

    assert [str(trial).split(":")[0] for trial in choice.trials] == ["minmax"]
    assert choice.observed.integers == {}
    assert "rounding weights" not in told


def test_calibration_and_rounding_happen_once_for_all_observers() -> None:
    _, told = searched(network(), Quantize(observers=("minmax", "mse", "percentile")))

    assert told.count("calibrating") == told.count("rounding weights") == 1


def test_a_network_with_nothing_to_equalize_is_not_tried_equalized() -> None:
    source = program(lambda x, a: a(x), nn.Conv2d(3, 4, 3), shape=(3, 8, 8))
    choice, _ = searched(source, Quantize(observers=("minmax",), equalize="try"))

    assert not any(trial.setting.equalized for trial in choice.trials)


def test_weights_alone_are_the_integers_of_the_chosen_grid() -> None:
    source, settings = network(), Quantize(observers=("mse",))
    choice, _ = searched(source, settings)

    alone = weights_only(
        source, settings, choice.best.setting, lambda: iter([noise(source, 16, s) for s in range(3)])
    )

    chosen, found = integers(choice.program), integers(alone)
    assert chosen.keys() == found.keys()
    assert all(torch.equal(chosen[name], found[name]) for name in chosen)


@pytest.mark.parametrize("side", [4, 200])
def test_samples_come_in_batches_that_fit_the_caches(side: int) -> None:
    source = program(lambda x, a: a(x), nn.Conv2d(3, 4, 3), shape=(3, side, side))

    batches = first_samples(source, iter([noise(source, 25, seed) for seed in range(2)]))

    assert sum(len(x) for (x,) in batches) == CORRECTION_SAMPLES
    assert all(x.numel() <= max(CHUNK_VALUES, 3 * side * side) for (x,) in batches)
    assert (len(batches) == 1) == (side == 4)
