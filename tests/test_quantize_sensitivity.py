"""Damage, SNR and cost of layers, against values worked out by hand or by brute force."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

import zoo
from edgekit.stages.quantize.apply import Observed, convert, grids
from edgekit.stages.quantize.costs import macs_and_bytes
from edgekit.stages.quantize.observers import METHODS
from edgekit.stages.quantize.rules import RULES, Kind
from edgekit.stages.quantize.sensitivity import CEILING_DB, damage, describe_layers, layer_snr
from quantized_programs import calibrated, decibels, noise, program, qd, run, zoo_observed, zoo_program


def small(weight_bits: int = 8) -> Observed:
    layers = (nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.Linear(4, 3))
    source = program(lambda x, c, d, f: f(d(torch.relu(c(x))).mean((2, 3))), *layers, shape=(3, 10, 10))
    return calibrated(source, weight_bits=weight_bits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mobilenet_v3", "yolo_style", "vit"])
def test_grids_are_those_of_the_converted_graph(name: str, method: str) -> None:
    observed = zoo_observed(name)
    found = grids(observed, method, 99.0)
    graph = convert(observed, method=method, percentile=99.0).program.graph
    compared = 0
    for node in graph.graph.nodes:
        if node.target is qd.quantize_per_tensor.default and node.args[0].name in observed.plan.group:
            grid = found[node.args[0].name]
            assert node.args[1:3] == (grid.scale, grid.zero_point)
            compared += 1

    assert set(observed.plan.group) <= set(found)
    assert compared >= 5


def fake_weight(weight: Tensor, limit: int) -> Tensor:
    scale = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.dim() - 1)) / limit
    return (weight / scale).round() * scale


def fake(x: Tensor, low: float, high: float) -> Tensor:
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    return ((x / scale).round() + zero_point).clamp(-128, 127).sub(zero_point) * scale


@pytest.mark.parametrize("weight_bits", [8, 7])
def test_damage_is_the_output_noise_of_one_layer_alone(weight_bits: int) -> None:
    observed = small(weight_bits)
    source, (seen,), (x,) = observed.program, noise(observed.program, 16), noise(observed.program, 8, seed=3)
    limit = 2 ** (weight_bits - 1) - 1
    c, d, f = (dict(source.graph.named_parameters())[f"module.layers.{i}.weight"].detach() for i in range(3))
    b = [dict(source.graph.named_parameters())[f"module.layers.{i}.bias"].detach() for i in range(3)]

    def network(x: Tensor, layer: str, weights: tuple[Tensor, ...]) -> Tensor:
        y = torch.relu(torch.conv2d(x, weights[0], b[0]))
        if layer == "conv2d":
            y = fake(y, 0.0, float(torch.relu(torch.conv2d(seen, c, b[0])).max()))
        return torch.conv2d(y, weights[1], b[1]).mean((2, 3)) @ weights[2].T + b[2]

    def last(y: Tensor) -> Tensor:
        (of_seen,) = run(source, (seen,))
        return fake(y, float(of_seen.min()), float(of_seen.max()))

    found = damage(observed, grids(observed, "minmax"), [(x[:3],), (x[3:],)])
    (wanted,) = run(source, (x,))
    first = network(x, "conv2d", (fake_weight(c, limit), d, f))
    final = last(network(x, "linear", (c, d, fake_weight(f, limit))))
    assert set(found) == {n for n in observed.plan.seeds if not n.startswith(("relu", "flatten"))}
    assert found["conv2d"] == pytest.approx(decibels(wanted, first), abs=0.2)
    assert found["linear"] == pytest.approx(decibels(wanted, final), abs=0.2)


def test_a_layer_that_is_ruined_on_purpose_has_the_worst_damage() -> None:
    observed = zoo_observed("resnet")
    chosen = grids(observed, "minmax")
    victim = "conv2d_2"
    readers = {n.name: [u.name for u in n.users] for n in observed.program.graph.graph.nodes}
    tensor = victim if victim in chosen else readers[victim][0]
    grid = chosen[tensor]
    ruined = chosen | {tensor: type(grid)(grid.scale * 60, -128)}
    batch = [zoo.draw(zoo.BY_NAME["resnet"], 4, 9)]
    found = damage(observed, ruined, batch)
    before = damage(observed, chosen, batch)

    assert min(found, key=lambda k: found[k]) == victim
    assert {k for k in found if found[k] != before[k]} == {victim}


@pytest.mark.parametrize("name", ["lstm", "text_transformer", "two_streams", "shufflenet_v2"])
def test_every_op_that_computes_on_the_grid_has_a_damage(name: str) -> None:
    observed = zoo_observed(name)
    found = damage(observed, grids(observed, "minmax"), [zoo.draw(zoo.BY_NAME[name], 3, 5)])
    nodes = {n.name: n for n in observed.program.graph.graph.nodes}
    computing = {n for n in observed.plan.seeds if RULES[nodes[n].target] not in {Kind.SHARED, Kind.CLAMP}}

    assert set(found) == computing | {op.split("#")[0] for op in observed.plan.weights}
    assert all(-CEILING_DB <= value < CEILING_DB for value in found.values())


def test_damage_without_noise_is_finite_and_without_float_outputs_empty() -> None:
    source = program(lambda x, f: f(x), nn.Linear(4, 3), shape=(4,))
    for p in source.graph.parameters():
        p.data.zero_()
    observed = calibrated(source)
    assert damage(observed, grids(observed, "minmax"), [noise(source, 2)]) == {"linear": CEILING_DB}

    labels = calibrated(program(lambda x, f: f(x).argmax(1), nn.Linear(4, 3), shape=(4,)))
    assert damage(labels, grids(labels, "minmax"), [noise(labels.program, 2)]) == {}


def test_snr_compares_tensors_after_their_quantization() -> None:
    observed = small()
    quantized = convert(observed).program.graph
    batch = noise(observed.program, 8, seed=2)
    found = layer_snr(observed.program.graph, quantized, [(batch[0][:2],), (batch[0][2:],)])

    assert set(found) >= {"x", "conv2d", "conv2d_1", "linear"}
    assert "relu" not in found
    with torch.no_grad():
        (wanted,), (output,) = observed.program.graph(*batch), quantized(*batch)
    assert found["linear"] == pytest.approx(decibels(wanted, output), abs=1e-3)
    seen = noise(observed.program, 16)[0]
    expected = decibels(batch[0], fake(batch[0], float(seen.min()), float(seen.max())))
    assert found["x"] == pytest.approx(expected, abs=0.1)
    assert all(10 < value < 70 for value in found.values())


def test_a_graph_beside_itself_has_no_noise() -> None:
    graph = zoo_program("mobilenet_v3").graph
    found = layer_snr(graph, graph, [zoo.draw(zoo.BY_NAME["mobilenet_v3"], 2)])

    assert set(found.values()) == {CEILING_DB}
    assert len(found) > 40


COSTS = {
    "conv2d": (lambda x, c: c(x), (nn.Conv2d(4, 6, 3, stride=2, padding=1),), (4, 8, 8), 6 * 16 * 36, 216),
    "grouped": (lambda x, c: c(x), (nn.Conv2d(4, 6, 3, groups=2),), (4, 8, 8), 6 * 36 * 18, 108),
    "conv1d": (lambda x, c: c(x), (nn.Conv1d(4, 6, 5, dilation=2),), (4, 20), 6 * 12 * 20, 120),
    "transposed": (lambda x, c: c(x), (nn.ConvTranspose2d(4, 6, 2, 2),), (4, 8, 8), 4 * 64 * 24, 96),
    "linear": (lambda x, f: f(x), (nn.Linear(7, 5),), (3, 7), 3 * 35, 35),
    "product": (lambda x: x @ x.transpose(1, 2), (), (3, 7), 3 * 3 * 7, 0),
    "lstm": (lambda x, f: f(x)[0], (nn.LSTM(7, 5, 1, batch_first=True),), (3, 7), 3 * 20 * 12, 240),
    "gru": (
        lambda x, f: f(x)[0],
        (nn.GRU(7, 5, 1, batch_first=True, bidirectional=True),),
        (3, 7),
        3 * 2 * 15 * 12,
        360,
    ),
}


@pytest.mark.parametrize("case", COSTS)
def test_costs_at_batch_one(case: str) -> None:
    function, layers, shape, macs, size = COSTS[case]
    assert list(macs_and_bytes(program(function, *layers, shape=shape).graph).values()) == [(macs, size)]


def test_a_free_batch_costs_what_a_single_sample_costs() -> None:
    for name in ("resnet", "vit", "lstm"):
        free, fixed = (macs_and_bytes(zoo_program(name, dynamic=d).graph) for d in (True, False))
        assert list(free.values()) == list(fixed.values())


def test_rows_for_the_report_are_json_and_name_what_stayed_float() -> None:
    observed = zoo_observed("vit")
    batch = [zoo.draw(zoo.BY_NAME["vit"], 2, 3)]
    quantized = convert(observed).program.graph
    rows = describe_layers(
        observed,
        layer_snr(observed.program.graph, quantized, batch),
        damage(observed, grids(observed, "minmax"), batch),
    )
    by_node = {row["node"]: row for row in rows}

    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {row["node"] for row in rows if row["kept_float"]} == set(observed.plan.kept_float)
    assert by_node["conv2d"]["op"] == "conv2d"
    assert by_node["conv2d"]["weight_bytes"] == 32 * 3 * 64
    assert math.isfinite(by_node["conv2d"]["snr_db"] + by_node["conv2d"]["damage_db"])
    assert "." in by_node["conv2d"]["name"]
    norm = by_node["layer_norm"]
    assert norm["kept_float"]
    assert norm["reason"] == observed.plan.kept_float["layer_norm"]
    assert norm["weight_bytes"] == 2 * 32 * 4
    assert norm["damage_db"] is None


def test_a_layer_kept_float_is_stored_in_four_bytes() -> None:
    source = program(lambda x, f, g: g(torch.relu(f(x))), nn.Linear(6, 5), nn.Linear(5, 3), shape=(6,))
    rows = describe_layers(calibrated(source, keep_float=["linear"]), {}, {})

    assert [(r["weight_bytes"], r["snr_db"], r["kept_float"]) for r in rows if r["op"] == "linear"] == [
        (4 * (30 + 5), None, True),
        (15, None, False),
    ]
