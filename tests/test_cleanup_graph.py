"""In-place calls, identities, constants, duplicates, products, attention, and the proof after each pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

from cleanup_programs import Formula, cleaned, op_counts, program_of
from edgekit_converters.cleanup import CleanupNote, clean, run
from edgekit_converters.errors import EdgekitError, LoweringError

BOTH = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
SHAPE = (4, 6)
aten = torch.ops.aten


# ---- in-place calls


@BOTH
def test_in_place_calls_are_functional_and_later_readers_see_the_new_value(dynamic: bool) -> None:
    def function(x):
        y = x * 2
        z = y.add_(1)
        y.relu_()
        return y + z

    program = cleaned(function, shape=SHAPE, dynamic=dynamic)

    assert not any(name.endswith("_") for name in op_counts(program))


@BOTH
def test_a_write_through_a_slice_or_index_reaches_the_base(dynamic: bool) -> None:
    def function(x):
        y = x * 2
        y[:, 0] = 1.0
        y[:, 1:3] += 5
        y[:, 3].zero_()
        return y

    ops = op_counts(cleaned(function, shape=SHAPE, dynamic=dynamic))

    assert ops["copy_"] == ops["fill_"] == ops["add_"] == 0


def test_an_input_that_is_written_to_is_left_untouched() -> None:
    program = cleaned(lambda x: x.add_(1) * 2, shape=SHAPE)
    x = torch.zeros(1, *SHAPE)

    program.graph(x)

    assert not x.any()


def test_a_write_that_another_view_would_miss_is_refused_with_the_line() -> None:
    def function(x):
        y = x * 2
        turned = y.transpose(1, 2)
        y.add_(1)
        return turned

    program = program_of(Formula(function), (torch.randn(1, *SHAPE),))

    with pytest.raises(LoweringError, match=r"add_.*another shape.*without the in-place") as caught:
        clean(program)
    assert "cleanup_programs.py:" in caught.value.where


# ---- identities


IDENTITIES = {
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "detach": lambda x: x.detach(),
    "to": lambda x: x.to(torch.float32),
    "float": lambda x: x.float().type_as(x),
    "slice": lambda x: x[:, :, :],
    "long-slice": lambda x: x[:, 0:100],
    "expand": lambda x: x.expand(-1, 4, 6),
    "pad": lambda x: F.pad(x, (0, 0)),
    "permute": lambda x: x.permute(0, 1, 2),
    "transpose": lambda x: x.transpose(1, 1),
    "view": lambda x: x.view(x.shape),
    "reshape": lambda x: x.reshape(-1, 4, 6),
    "squeeze": lambda x: x.squeeze(1),
    "cat": lambda x: torch.cat([x], 1),
    "add-zero": lambda x: x + 0,
    "times-one": lambda x: x * 1.0,
    "divide-one": lambda x: x / 1,
    "power-one": lambda x: x**1,
    "repeat": lambda x: x.repeat(1, 1, 1),
}


@BOTH
@pytest.mark.parametrize("function", IDENTITIES.values(), ids=IDENTITIES)
def test_a_call_without_effect_vanishes(function, dynamic: bool) -> None:
    program = cleaned(lambda x: torch.exp(function(torch.sin(x))), shape=SHAPE, dynamic=dynamic)

    assert op_counts(program) == {"sin": 1, "exp": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.to(torch.float64),
        lambda x: x[:, ::2],
        lambda x: x.flip(1),
        lambda x: x.transpose(1, 2).reshape(x.shape),
        lambda x: F.pad(x, (1, -1)),
        lambda x: x.repeat(1, 1, 2),
    ],
)
def test_a_call_with_an_effect_stays(function) -> None:
    assert sum(op_counts(cleaned(function, shape=SHAPE)).values()) >= 1


def test_asserts_are_removed() -> None:
    def function(x):
        torch._assert(x.shape[1] == 4, "four rows")
        return x.to(torch.float32) + 1

    assert op_counts(cleaned(function, shape=SHAPE)) == {"add": 1}


# ---- constants, duplicates, dead code


def test_a_standardised_weight_is_computed_once() -> None:
    conv = nn.Conv1d(4, 5, 3, bias=False)

    def function(x, layer):
        weight = layer.weight
        mean, std = weight.mean((1, 2), keepdim=True), weight.std((1, 2), keepdim=True)
        return F.conv1d(x, (weight - mean) / (std + 1e-5))

    assert op_counts(cleaned(function, conv, shape=SHAPE)) == {"conv1d": 1, "get_attr": 1}


@BOTH
def test_a_resized_position_table_is_computed_once(dynamic: bool) -> None:
    table = nn.Embedding(3, 4)

    def function(x, layer):
        places = F.interpolate(layer.weight.t()[None], size=6, mode="linear", align_corners=False)
        return x + places

    assert op_counts(cleaned(function, table, shape=SHAPE, dynamic=dynamic)) == {"add": 1, "get_attr": 1}


def test_a_constant_that_would_grow_large_stays_a_computation() -> None:
    row = torch.randn(1, 1, 600)

    program = cleaned(lambda x: x + row.expand(1, 600, 600).cumsum(1), shape=(1, 600))

    assert op_counts(program)["cumsum"] == 1
    assert all(tensor.numel() <= 600 for tensor in program.graph.state_dict().values())


def test_a_random_call_is_not_folded() -> None:
    def function(x):
        return x + torch.zeros(4, 6).bernoulli(0.0)

    assert op_counts(cleaned(function, shape=SHAPE))["bernoulli"] == 1


def test_equal_calls_are_one_and_unequal_ones_two() -> None:
    program = cleaned(lambda x: (x.sum(1) + x.sum(1)) * x.sum(1, keepdim=True)[:, 0], shape=SHAPE)

    assert op_counts(program)["sum"] == 2


def test_equal_masks_are_one_and_equal_biases_stay_two() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", torch.ones(4, 6).tril())
            self.register_buffer("second", torch.ones(4, 6).tril())
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            nn.init.zeros_(self.a.bias)
            nn.init.zeros_(self.b.bias)

        def forward(self, x):
            return self.b(self.a(x * self.first).relu() * self.second)

    program, _ = clean(program_of(Net(), (torch.randn(1, *SHAPE),)))

    assert op_counts(program)["get_attr"] == 5


def test_what_no_output_reads_is_gone_with_its_weights() -> None:
    used, unused = nn.Linear(6, 5), nn.Linear(6, 7)

    def function(x, a, b):
        b(x)
        return a(x)

    program = cleaned(function, used, unused, shape=SHAPE)

    assert sorted(tuple(tensor.shape) for tensor in program.graph.state_dict().values()) == [(5,), (5, 6)]


def test_an_unused_input_stays_in_the_signature() -> None:
    program = program_of(Formula(lambda x, y: x + 1), (torch.randn(1, 4), torch.randn(1, 3)))

    result, _ = clean(program)

    assert torch.equal(result.graph(torch.zeros(1, 4), torch.zeros(1, 3))[0], torch.ones(1, 4))


# ---- products


@BOTH
@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x @ w,
        lambda x, w: torch.einsum("bti,io->bto", x, w),
        lambda x, w: torch.einsum("oi,bti->bto", w.t(), x),
        lambda x, w: torch.matmul(x, w) + torch.arange(5.0),
    ],
)
def test_a_product_with_a_constant_is_a_linear(function, dynamic: bool) -> None:
    layer = nn.Linear(6, 5, bias=False)

    program = cleaned(lambda x, m: function(x, m.weight.t()), layer, shape=SHAPE, dynamic=dynamic)

    assert op_counts(program)["linear"] == 1
    assert not op_counts(program).keys() & {"matmul", "einsum", "t", "add"}


def test_an_addmm_is_a_linear() -> None:
    layer = nn.Linear(6, 5)

    program = cleaned(lambda x, m: torch.addmm(m.bias, x, m.weight.t()), layer, shape=(6,))

    assert op_counts(program) == {"linear": 1, "get_attr": 2}


@BOTH
@pytest.mark.parametrize(
    "equation", ["bij,bkj->bik", "bij,bik->bjk", "bij,bkj->bki", "bij,bkj->kib", "bij,bkj->jbik"]
)
def test_an_einsum_of_activations_is_a_matmul_or_stays(equation: str, dynamic: bool) -> None:
    program = cleaned(
        lambda x: (
            torch.einsum(equation, x.sin(), x.cos()[:, : 3 if "k" in equation[4:7] else 4, :])
            if equation != "bij,bik->bjk"
            else torch.einsum(equation, x.sin(), x.cos())
        ),
        shape=SHAPE,
        dynamic=dynamic,
    )

    ops = op_counts(program)
    assert ops["matmul"] + ops["einsum"] == 1
    assert ops["einsum"] == (equation == "bij,bkj->jbik")


# ---- attention


@BOTH
@pytest.mark.parametrize("mask", [None, "causal", "bool", "float"])
def test_attention_is_written_out(mask: str | None, dynamic: bool) -> None:
    masks = {
        "bool": torch.ones(5, 5).tril(1).bool(),
        "float": torch.randn(5, 5).masked_fill(torch.eye(5) > 0, -math.inf),
    }

    def function(x):
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(
            heads.sin(), heads.cos(), heads, attn_mask=masks.get(mask), is_causal=mask == "causal"
        )

    ops = op_counts(cleaned(function, shape=(5, 8), dynamic=dynamic))

    assert ops["scaled_dot_product_attention"] == 0
    assert ops["matmul"] == 2
    assert ops["softmax"] == 1
    assert ops["add"] == (mask is not None)


@BOTH
def test_a_mask_that_is_computed_masks_the_same_places(dynamic: bool) -> None:
    def function(x):
        seen = (x[..., 0] > 0).index_fill(1, torch.tensor([0]), True)[:, None, :]
        return F.scaled_dot_product_attention(x.sin(), x.cos(), x, attn_mask=seen)

    assert op_counts(cleaned(function, shape=(5, 8), dynamic=dynamic))["softmax"] == 1


def test_an_example_mask_that_hides_everything_is_no_reason_to_fail() -> None:
    def function(x, mask):
        return F.scaled_dot_product_attention(x.sin(), x.cos(), x, attn_mask=mask.bool()[:, None, :])

    program = program_of(Formula(function), (torch.randn(1, 5, 8), torch.zeros(1, 5, dtype=torch.long)))

    result, _ = clean(program)

    x, mask = torch.randn(1, 5, 8), torch.tensor([[1, 1, 1, 0, 0]])
    torch.testing.assert_close(result.graph(x, mask)[0], function(x, mask))
    assert op_counts(result)["softmax"] == 1


def test_an_index_that_only_zero_fits_is_left_at_zero() -> None:
    program = program_of(
        Formula(lambda x, i, table: table(i) + x, nn.Embedding(1, 3)),
        (torch.randn(1, 3), torch.zeros(1, dtype=torch.long)),
    )

    assert op_counts(clean(program)[0])["embedding"] == 1


@BOTH
def test_grouped_queries_and_a_given_scale(dynamic: bool) -> None:
    def function(x):
        query = x.unflatten(-1, (4, 2)).transpose(1, 2)
        key = x[..., :4].unflatten(-1, (2, 2)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, key.cos(), scale=0.3, enable_gqa=True)

    assert op_counts(cleaned(function, shape=(5, 8), dynamic=dynamic))["scaled_dot_product_attention"] == 0


def test_the_factor_of_attention_goes_into_the_projection() -> None:
    def function(x, q, k):
        return F.scaled_dot_product_attention(q(x)[:, None], k(x)[:, None], x[:, None])

    assert op_counts(cleaned(function, nn.Linear(8, 8), nn.Linear(8, 8), shape=(5, 8)))["mul"] == 0


@BOTH
def test_an_encoder_layer_of_torch_goes_through(dynamic: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")

    ops = op_counts(cleaned(lambda x, m: m(x), layer, shape=(5, 8), dynamic=dynamic))

    assert ops["linear"] == 4
    assert ops["layer_norm"] == 2


# ---- the run itself


def test_every_call_keeps_its_source_and_a_value() -> None:
    module = Formula(
        lambda x, c, b: F.hardswish(b(c(F.pad(x, (0, 1))))).mean(-1), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)
    )
    program, _ = clean(program_of(module, (torch.randn(1, 4, 9),)))

    for node in program.graph.graph.nodes:
        if node.op == "call_function":
            assert "cleanup_programs.py" in node.meta["stack_trace"]
            assert node.meta["nn_module_stack"]
            assert node.meta["val"].shape


def test_a_free_batch_stays_free_in_the_meta() -> None:
    program, _ = clean(program_of(Formula(F.silu), (torch.randn(1, 4),), dynamic=True))

    last = list(program.graph.graph.nodes)[-2]
    assert isinstance(last.meta["val"].shape[0], torch.SymInt)


def test_meta_of_a_graph_without_any_is_made_from_the_example() -> None:
    graph = torch.fx.symbolic_trace(nn.ReLU())

    run.refresh_meta(graph, (torch.randn(2, 3),))

    shapes = {tuple(node.meta["val"].shape) for node in graph.graph.nodes if node.op != "output"}
    assert shapes == {(2, 3)}


def test_a_clean_program_is_left_as_it_is() -> None:
    first, _ = clean(
        program_of(Formula(lambda x, c: c(x).relu(), nn.Conv1d(4, 4, 3)), (torch.randn(1, *SHAPE),))
    )

    second, notes = clean(first)

    assert notes == ()
    assert op_counts(second) == op_counts(first)


def test_notes_name_the_passes_that_did_something() -> None:
    _, notes = clean(program_of(Formula(F.silu), (torch.randn(1, 4),)))

    assert [(note.name, note.rewrites) for note in notes] == [("activations", 1)]


@pytest.mark.parametrize(("rewrites", "error"), [(0, 0.0), (1, -1.0), (1, math.nan)])
def test_a_note_about_nothing_is_refused(rewrites: int, error: float) -> None:
    with pytest.raises(ValueError, match="rewrites >= 1"):
        CleanupNote("x", rewrites, error)


@pytest.mark.parametrize(
    "damage", [lambda x: aten.relu.default, lambda x: aten.ceil.default], ids=["values", "rounding"]
)
def test_a_pass_that_changes_the_result_is_named(damage, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_it(graph: GraphModule) -> int:
        for node in graph.graph.nodes:
            if node.target == aten.sin.default:
                node.target = damage(node)
        return 1

    monkeypatch.setattr(run, "PASSES", (("harmless", lambda graph: 0), ("the culprit", break_it)))
    program = program_of(Formula(torch.sin), (torch.randn(1, 4),))

    with pytest.raises(EdgekitError, match=r"`the culprit` changed the result.*moved by"):
        clean(program)


def test_a_pass_that_flips_a_label_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(graph: GraphModule) -> int:
        for node in graph.graph.nodes:
            if node.target == aten.argmax.default:
                node.target = aten.argmin.default
        return 1

    monkeypatch.setattr(run, "PASSES", (("flip", flip),))
    program = program_of(Formula(lambda x: x.argmax(-1)), (torch.randn(1, 4),))

    with pytest.raises(EdgekitError, match="`flip` changed the result"):
        clean(program)


def test_a_pass_that_drops_an_output_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(graph: GraphModule) -> int:
        output = next(node for node in graph.graph.nodes if node.op == "output")
        output.args = (output.args[0][:1],)
        return 1

    monkeypatch.setattr(run, "PASSES", (("drop", drop),))
    program = program_of(Formula(lambda x: (x + 1, x * 2)), (torch.randn(1, 4),))
    program.graph.graph.set_codegen(torch.fx.graph.CodeGen())

    with pytest.raises(EdgekitError, match="2 outputs became 1"):
        clean(program)


def test_outputs_without_a_number_are_compared_by_place() -> None:
    program = program_of(Formula(lambda x: (torch.log(F.silu(x)), x / torch.zeros(4))), (torch.randn(1, 4),))

    cleaned_program, _ = clean(program)

    x = torch.tensor([[-1.0, 0.0, 1.0, math.inf]])
    for want, got in zip(program.graph(x), cleaned_program.graph(x), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)
