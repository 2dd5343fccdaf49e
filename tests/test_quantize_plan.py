"""What goes on the grid, what shares one, what stays float."""

import pytest
import torch
from torch import Tensor, nn

from cleanup_programs import cleaned
from edgekit.stages.quantize.plan import GridPlan, make_plan
from edgekit.stages.quantize.rules import TANH_GRID, UNIT_GRID
from edgekit.stages.quantize.scalars import lift_scalars
from quantized_programs import program


def plan_of(function: object, *layers: nn.Module, shape: tuple[int, ...], **options: object) -> GridPlan:
    graph = program(function, *layers, shape=shape).graph
    lift_scalars(graph)
    return make_plan(graph, **options)


def conv(inputs: int = 4, outputs: int = 4) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def same_grid(plan: GridPlan, *names: str) -> bool:
    return len({plan.group.get(name, name) for name in names}) == 1 and all(n in plan.group for n in names)


def test_a_convolution_its_input_and_its_output_are_on_the_grid() -> None:
    plan = plan_of(lambda x, c: c(x), conv(), shape=(4, 8, 8))

    assert plan.group == {"x": "x", "conv2d": "conv2d"}
    assert list(plan.weights) == ["conv2d"]
    assert plan.weights["conv2d"][1] == 0
    assert not plan.kept_float


@pytest.mark.parametrize(
    "clamp",
    [torch.relu, nn.functional.relu6, lambda x: x.clamp(-1.0, 1.0), lambda x: x.clamp_min(0.5)],
    ids=["relu", "relu6", "clamp", "clamp_min"],
)
def test_there_is_no_grid_between_a_layer_and_its_clamp(clamp: object) -> None:
    plan = plan_of(lambda x, c, d: d(clamp(c(x))), conv(), conv(), shape=(4, 8, 8))

    assert "conv2d" not in plan.group
    assert len(plan.group) == 3


def test_a_clamp_with_a_second_reader_before_it_is_not_fused() -> None:
    plan = plan_of(lambda x, c, d: (d(torch.relu(y := c(x))), y), conv(), conv(), shape=(4, 8, 8))

    assert same_grid(plan, "conv2d", "relu")


def test_an_addition_fuses_its_clamp() -> None:
    plan = plan_of(lambda x, c, d: d(torch.relu(c(x) + x)), conv(), conv(), shape=(4, 8, 8))

    assert "add" not in plan.group
    assert plan.group["relu"] == "relu"


def test_what_is_concatenated_shares_one_grid_with_a_constant_among_it() -> None:
    class WithConstant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("extra", torch.full((1, 2, 8, 8), 3.0))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b, self.extra], dim=1)

    graph = cleaned(
        lambda x, c, d, e, join: e(join(c(x), d(x))),
        conv(),
        conv(),
        conv(10),
        WithConstant(),
        shape=(4, 8, 8),
    ).graph
    plan = make_plan(graph)

    assert same_grid(plan, "conv2d", "conv2d_1", "cat")
    assert [op for _, op in plan.constants] == ["cat"]


def test_ops_that_move_values_share_the_grid_of_their_input() -> None:
    def function(x: Tensor, c: nn.Module, f: nn.Module) -> Tensor:
        y = nn.functional.max_pool2d(c(x), 2)
        return f(y.permute(0, 2, 3, 1).reshape(y.shape[0], -1))

    plan = plan_of(function, conv(), nn.Linear(64, 3), shape=(4, 8, 8))

    assert same_grid(
        plan, "conv2d", "max_pool2d", "permute", *(n for n in plan.group if "resh" in n or "view" in n)
    )
    assert plan.group["linear"] == "linear"


def test_the_parts_of_a_chunk_share_the_grid_of_the_whole() -> None:
    def function(x: Tensor, c: nn.Module, d: nn.Module) -> Tensor:
        a, b = c(x).chunk(2, dim=1)
        return d(torch.cat([b, a], dim=1))

    plan = plan_of(function, conv(), conv(), shape=(4, 8, 8))

    parts = [name for name in plan.group if name.startswith("getitem")]
    assert len(parts) == 2
    assert same_grid(plan, "conv2d", "cat", *parts)


def test_a_residual_stream_between_layer_norms_stays_float() -> None:
    def block(x: Tensor, n: nn.Module, f: nn.Module, m: nn.Module, g: nn.Module) -> Tensor:
        return g(m(x + f(n(x))))

    layers = (nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    plan = plan_of(block, *layers, shape=(5, 8))

    assert plan.kept_float["add"] == "its only readers are float32"
    assert "add" not in plan.group
    assert {"linear", "linear_1"} <= set(plan.group)
    assert sum("no int8 kernel" in why for why in plan.kept_float.values()) == 2


def test_attention_scores_and_their_scale_stay_float() -> None:
    def attention(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module, o: nn.Module) -> Tensor:
        scores = (q(x) @ k(x).transpose(1, 2)) * 0.25
        return o(scores.softmax(-1) @ v(x))

    plan = plan_of(attention, *(nn.Linear(8, 8) for _ in range(4)), shape=(5, 8))

    assert plan.kept_float["softmax"] == "softmax inside the network stays float32"
    assert "mul" in plan.kept_float
    assert sum("two activations" in why for why in plan.kept_float.values()) == 2
    assert not {"mul", "softmax", "matmul", "matmul_1"} & plan.seeds
    assert len(plan.weights) == 4


@pytest.mark.parametrize("pattern", ["conv2d_1", "*layers.1", "*.1", "conv2d_[1]"])
def test_layers_are_kept_float_by_node_name_layer_name_or_pattern(pattern: str) -> None:
    plan = plan_of(
        lambda x, c, d, e: e(d(c(x))), conv(), conv(), conv(), shape=(4, 8, 8), keep_float=[pattern]
    )

    assert plan.kept_float == {"conv2d_1": "asked for by name"}
    assert set(plan.weights) == {"conv2d", "conv2d_2"}
    # The neighbours compute on the grid: what the layer reads and what it writes is theirs.
    assert {"conv2d", "conv2d_2"} <= set(plan.group)


def test_an_addition_of_a_mask_stays_float() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -1e9, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mask

    plan = plan_of(
        lambda x, f, m, g: g(m(torch.relu(f(x)))), nn.Linear(4, 4), Masked(), nn.Linear(4, 4), shape=(4,)
    )

    assert plan.kept_float["add"] == "adds a mask"
    assert not plan.constants


def test_a_clamp_after_a_layer_is_part_of_it_also_before_float_ops() -> None:
    plan = plan_of(lambda x, c, n: n(c(x).relu()), conv(), nn.LayerNorm(8), shape=(4, 8, 8))

    assert "relu" in plan.group
    assert "conv2d" not in plan.group
    assert set(plan.kept_float) == {"layer_norm"}


def test_a_softmax_over_few_bins_before_a_layer_is_on_its_fixed_grid() -> None:
    def bins(x: Tensor, c: nn.Module, d: nn.Module) -> Tensor:
        return d(c(x).softmax(1))

    plan = plan_of(bins, conv(), conv(), shape=(4, 8, 8))

    assert "softmax" in plan.seeds
    assert plan.fixed == {"softmax": UNIT_GRID}


def test_what_a_softmax_over_many_places_weighs_stays_float() -> None:
    def pooled(x: Tensor, c: nn.Module, d: nn.Module) -> Tensor:
        return d((c(x).flatten(2).softmax(2) * x.flatten(2)).unflatten(2, (8, 8)))

    plan = plan_of(pooled, conv(), conv(), shape=(4, 8, 8))

    assert plan.kept_float["softmax"] == "softmax inside the network stays float32"
    assert plan.kept_float["mul"] == "weighs by a softmax that stays float32"
    assert "softmax" not in plan.group


def test_a_softmax_kept_float_by_name_between_layers_still_has_its_grid() -> None:
    def bins(x: Tensor, c: nn.Module, d: nn.Module) -> Tensor:
        return d(c(x).softmax(1))

    plan = plan_of(bins, conv(), conv(), shape=(4, 8, 8), keep_float=("softmax",))

    assert "softmax" not in plan.seeds
    assert plan.fixed == {"softmax": UNIT_GRID}


def test_an_output_softmax_a_sigmoid_and_a_tanh_have_fixed_grids() -> None:
    def function(x: Tensor, f: nn.Module, g: nn.Module, h: nn.Module) -> tuple[Tensor, ...]:
        return f(x).softmax(-1), g(x).sigmoid(), h(x).tanh()

    plan = plan_of(function, *(nn.Linear(4, 4) for _ in range(3)), shape=(4,))

    assert plan.fixed == {"softmax": UNIT_GRID, "sigmoid": UNIT_GRID, "tanh": TANH_GRID}


def test_a_recurrent_cell_without_bias_has_its_weights_on_the_grid() -> None:
    plan = plan_of(lambda x, c: c(x)[0], nn.GRU(4, 6, bias=False, batch_first=True), shape=(5, 4))

    assert len(plan.weights) == 2


def test_recurrent_cells_have_int8_weights_and_float_compute() -> None:
    plan = plan_of(lambda x, f: f(x)[0], nn.LSTM(4, 6, 1, batch_first=True), shape=(5, 4))

    assert set(plan.weights) == {"lstm#0", "lstm#1"}
    assert plan.kept_float["lstm"].startswith("recurrent")


def test_a_network_without_any_op_on_the_grid_has_an_empty_plan() -> None:
    plan = plan_of(torch.sin, shape=(4,))

    assert not plan.group
    assert not plan.seeds
    assert list(plan.kept_float) == ["sin"]


def test_scalars_become_constants_and_the_function_stays() -> None:
    source = program(
        lambda x, f: torch.add(2.5 * torch.relu(f(x)) - 1.0, torch.relu(x), alpha=2) + 3 * x.sin(),
        nn.Linear(4, 4),
        shape=(4,),
    )
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        before = source.graph(x)[0]
        lifted = lift_scalars(source.graph)
        after = source.graph(x)[0]

    assert lifted == 3
    arithmetic = [n for n in source.graph.graph.nodes if n.op == "call_function" and len(n.args) > 1]
    assert not any(isinstance(a, int | float) for n in arithmetic for a in n.args[:2])
    torch.testing.assert_close(after, before)
    assert lift_scalars(source.graph) == 0
