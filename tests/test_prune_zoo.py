"""Whole architectures are pruned to half, and every value in them is the one of the whole network."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from edgekit.load import load_candidate
from edgekit.stages.prune import cut, macs, trace
from support.narrower import compare, half, share

# Architecture to the least share of its layers' outputs that can be removed. What is missing is mostly the last
# layer, which the model gives, and of ShuffleNet the halves that its shuffles mix.
SHARES = {
    "densenet": 0.94,
    "mobilenet_v3": 0.98,
    "yolo_style": 0.94,
    "tcn": 0.95,
    "text_transformer": 0.99,
    "two_streams": 0.7,
    "regnet_y": 0.96,
    "convnext": 0.97,
    "shufflenet_v2": 0.6,
    "norms": 0.9,
    "conv_bilstm": 0.95,
    "swin_style": 0.98,
    "stock_encoder": 0.98,
}


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # recurrent layers gather their weights anew
@pytest.mark.parametrize("name", SHARES)
def test_half_of_an_architecture_goes_without_a_wrong_value(name: str) -> None:
    model = zoo.BY_NAME[name]
    inputs = zoo.draw(model, 1)
    program = load_candidate(zoo.build(model), example=inputs).program
    structure = trace(program)
    keep = half(structure)
    assert compare(program, structure, keep, cut(program, structure, keep), inputs) > 0
    assert share(structure) >= SHARES[name]
    count = macs(structure)
    assert count(keep) < 0.55 * count(np.ones_like(keep))


def test_every_layer_that_stays_whole_has_a_reason() -> None:
    model = zoo.BY_NAME["yolo_style"]
    structure = trace(load_candidate(zoo.build(model), example=zoo.draw(model, 1)).program)
    assert set(structure.refused) == {"heads.0.1.weight", "heads.1.1.weight"}
    assert set(structure.refused.values()) == {"output: what the model gives"}
