"""Heads, hidden units and states are followed through products, attention and recurrent layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.stages.prune import cut, trace
from support.narrower import half
from support.tiny_layers import Case, Net, check, load, weight

TOKENS = ((1, 6, 16),)
HEADS = {"q.weight": [(4, 4)]}


def projections(**more: nn.Module) -> dict[str, nn.Module]:
    return {**{name: nn.Linear(16, 16) for name in ("q", "k", "v")}, "o": nn.Linear(16, 2), **more}


def heads(x: Tensor, n: int = 4) -> Tensor:
    """`[batch, time, width]` to `[batch, n, time, width / n]`."""
    return x.view(x.shape[0], x.shape[1], n, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def attended(s: Net, x: Tensor, **more: Tensor | bool) -> Tensor:
    y = F.scaled_dot_product_attention(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)), **more)
    return s.o(joined(y))


def written_out(s: Net, x: Tensor) -> Tensor:
    scores = (heads(s.q(x)) * 0.5) @ heads(s.k(x)).transpose(-2, -1)
    return s.o(joined(scores.softmax(-1) @ heads(s.v(x))))


def in_one(s: Net, x: Tensor) -> Tensor:
    """Queries, keys and values from one layer; a table of biases for every head."""
    q, k, v = s.qkv(x).reshape(x.shape[0], 6, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
    bias = s.table[s.places.view(-1)].view(6, 6, 4).permute(2, 0, 1)
    return s.o(joined((q @ k.mT * 0.5 + bias).softmax(-1) @ v))


def shared_keys(s: Net, x: Tensor) -> Tensor:
    """Two heads of keys and values for four of queries."""
    k, v = (heads(layer(x), 2).repeat_interleave(2, 1) for layer in (s.k, s.v))
    return s.o(joined(F.scaled_dot_product_attention(heads(s.q(x)), k, v)))


def turned(x: Tensor) -> Tensor:
    """Rotary positions."""
    low, high = x.chunk(2, -1)
    angle = torch.arange(x.shape[-2])[:, None] * torch.ones(x.shape[-1])
    return x * angle.cos() + torch.cat([-high, low], -1) * angle.sin()


def by_letters(s: Net, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("btd,dhe->bthe", x, w) for w in (s.q, s.k, s.v))
    mixed = torch.einsum("bhqk,bkhe->bqhe", torch.einsum("bqhe,bkhe->bhqk", q, k).softmax(-1), v)
    return torch.einsum("...he,hed->...d", mixed, s.o)


def experts(s: Net, x: Tensor) -> Tensor:
    inner = F.gelu(torch.einsum("ntd,edf->netf", x, s.w))
    given = torch.einsum("netf,efd->netd", inner, s.u)
    return s.o((given * s.g(x).softmax(-1).permute(0, 2, 1)[..., None]).sum(1))


def stock(s: Net, x: Tensor, *memory: Tensor) -> Tensor:
    other = memory[0] if memory else x
    return s.o(s.m(x, other, other, need_weights=False)[0])


def gated(s: Net, x: Tensor) -> Tensor:
    value, gate = s.a(x).chunk(2, -1)
    return s.o(value * F.silu(gate))


ATTENTION = {
    "fused": Case(lambda: Net(attended, **projections()), TOKENS, HEADS, mixes=True),
    "fused, causal": Case(
        lambda: Net(lambda s, x: attended(s, x, is_causal=True), **projections()), TOKENS, HEADS, mixes=True
    ),
    "fused, with a bias for every head": Case(
        lambda: Net(lambda s, x: attended(s, x, attn_mask=s.bias), **projections(), bias=weight(4, 6, 6)),
        TOKENS,
        HEADS,
        mixes=True,
    ),
    "fused, with a mask for all heads": Case(
        lambda: Net(
            lambda s, x: attended(s, x, attn_mask=s.mask),
            **projections(),
            mask=torch.ones(6, 6).tril().bool(),
        ),
        TOKENS,
        HEADS,
        mixes=True,
    ),
    "fused, one head": Case(
        lambda: Net(
            lambda s, x: s.o(F.scaled_dot_product_attention(s.q(x), s.k(x), s.v(x))), **projections()
        ),
        TOKENS,
        {"q.weight": [(16, 1)], "v.weight": [(16, 1)]},
        mixes=True,
    ),
    "fused, keys shared": Case(
        lambda: Net(shared_keys, **projections(k=nn.Linear(16, 8), v=nn.Linear(16, 8))),
        TOKENS,
        {"k.weight": [(2, 4)]},
        mixes=True,
    ),
    "fused, keys shared inside": Case(
        lambda: Net(
            lambda s, x: s.o(
                joined(
                    F.scaled_dot_product_attention(
                        heads(s.q(x)), heads(s.k(x), 2), heads(s.v(x), 2), enable_gqa=True
                    )
                )
            ),
            **projections(k=nn.Linear(16, 8), v=nn.Linear(16, 8)),
        ),
        TOKENS,
        {},
        {"q.weight": "attention whose heads share keys", "v.weight": "attention whose heads share keys"},
    ),
    "rotary": Case(
        lambda: Net(
            lambda s, x: s.o(
                joined(
                    F.scaled_dot_product_attention(
                        turned(heads(s.q(x))), turned(heads(s.k(x))), heads(s.v(x))
                    )
                )
            ),
            **projections(),
        ),
        TOKENS,
        HEADS,
        mixes=True,
    ),
    "written out": Case(lambda: Net(written_out, **projections()), TOKENS, HEADS, mixes=True),
    "from one layer, with a table": Case(
        lambda: Net(
            in_one,
            qkv=nn.Linear(16, 48),
            o=nn.Linear(16, 2),
            table=weight(11, 4),
            places=torch.arange(36).view(6, 6) % 11,
        ),
        TOKENS,
        {"qkv.weight": [(4, 4)]},
        mixes=True,
    ),
    "by einsum": Case(
        lambda: Net(
            by_letters, q=weight(16, 4, 3), k=weight(16, 4, 3), v=weight(16, 4, 3), o=weight(4, 3, 2)
        ),
        TOKENS,
        {"q": [(4, 1), (3, 1)], "v": [(3, 1)]},
        mixes=True,
    ),
    "stock, time first": Case(
        lambda: Net(stock, m=nn.MultiheadAttention(16, 4), o=nn.Linear(16, 2)),
        ((6, 1, 16),),
        {"m.in_proj_weight": [(4, 4)], "m.out_proj.weight": [(16, 1)]},
        mixes=True,
    ),
    "stock, across, other widths": Case(
        lambda: Net(
            stock, m=nn.MultiheadAttention(16, 4, kdim=10, vdim=10, batch_first=True), o=nn.Linear(16, 2)
        ),
        (*TOKENS, (1, 9, 10)),
        {"m.q_proj_weight": [(4, 4)], "m.out_proj.weight": [(16, 1)]},
        mixes=True,
    ),
    "stock encoder layer": Case(
        lambda: Net(
            lambda s, x: s.o(s.m(s.a(x))),
            a=nn.Linear(16, 8),
            m=nn.TransformerEncoderLayer(8, 2, 24, batch_first=True),
            o=nn.Linear(8, 2),
        ),
        TOKENS,
        {"a.weight": [(8, 1)], "m.self_attn.in_proj_weight": [(2, 4)], "m.linear1.weight": [(24, 1)]},
        mixes=True,
    ),
}

PRODUCTS = {
    "matmul with weights": Case(
        lambda: Net(
            lambda s, x: s.o(F.relu(x @ s.w) @ s.u), w=weight(16, 12), u=weight(12, 10), o=nn.Linear(10, 2)
        ),
        TOKENS,
        {"w": [(12, 1)], "u": [(10, 1)]},
    ),
    "weights on the left": Case(
        lambda: Net(lambda s, x: s.o(F.relu(s.w @ x).transpose(1, 2)), w=weight(12, 6), o=nn.Linear(12, 2)),
        TOKENS,
        {"w": [(12, 1)]},
    ),
    "addmm": Case(
        lambda: Net(
            lambda s, x: s.o(F.relu(torch.addmm(s.c, x, s.w))),
            w=weight(16, 12),
            c=weight(12),
            o=nn.Linear(12, 2),
        ),
        ((1, 16),),
        {"w": [(12, 1)]},
    ),
    "by a vector": Case(
        lambda: Net(lambda s, x: s.o(s.a(x) @ s.v), a=nn.Linear(16, 12), v=weight(12), o=nn.Linear(6, 2)),
        TOKENS,
        {},
        {"a.weight": "a product with a vector"},
    ),
    "experts": Case(
        lambda: Net(
            experts, w=weight(3, 16, 12), u=weight(3, 12, 16), g=nn.Linear(16, 3), o=nn.Linear(16, 2)
        ),
        TOKENS,
        {"w": [(12, 1)], "u": [(16, 1)]},
        {"g.weight": "depend on one another"},
    ),
    "gated": Case(
        lambda: Net(
            gated,
            a=nn.Linear(16, 24),
            o=nn.Linear(12, 2),
        ),
        TOKENS,
        {"a.weight": [(12, 1)]},
    ),
    "linear attention": Case(
        lambda: Net(
            lambda s, x: s.o(joined(F.elu(heads(s.q(x))) @ (F.elu(heads(s.k(x))).mT @ heads(s.v(x))))),
            **projections(),
        ),
        TOKENS,
        HEADS,
        mixes=True,
    ),
}


def last(s: Net, x: Tensor) -> Tensor:
    return s.o(s.r(x)[0][:, -1])


def with_states(s: Net, x: Tensor) -> Tensor:
    zeros = torch.zeros(2, x.shape[0], 8)
    y, (h, c) = s.r(x, (zeros, zeros))
    return s.o(torch.cat([y[:, -1], h[-1], h[-2], c[0]], -1))


def steps(s: Net, x: Tensor) -> Tensor:
    h = c = torch.zeros(x.shape[0], 8)
    for i in range(3):
        h, c = s.r(x[:, i], (h, c))
    return s.o(h)


RECURRENT = {
    "lstm, both ways, stacked": Case(
        lambda: Net(last, r=nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True), o=nn.Linear(16, 2)),
        TOKENS,
        {"r.weight_ih_l0": [(8, 1)]},
    ),
    "lstm with states": Case(
        lambda: Net(with_states, r=nn.LSTM(16, 8, batch_first=True, bidirectional=True), o=nn.Linear(40, 2)),
        TOKENS,
        {"r.weight_ih_l0": [(8, 1)]},
    ),
    "lstm with a projection": Case(
        lambda: Net(last, r=nn.LSTM(16, 8, batch_first=True, proj_size=4), o=nn.Linear(4, 2)),
        TOKENS,
        {},
        {"r.weight_ih_l0": "a recurrent layer with a projection"},
    ),
    "gru, then gru from its state": Case(
        lambda: Net(
            lambda s, x: s.o(s.u(*s.r(x))[0]),
            r=nn.GRU(16, 8, batch_first=True),
            u=nn.GRU(8, 8, batch_first=True),
            o=nn.Linear(8, 2),
        ),
        TOKENS,
        {"r.weight_ih_l0": [(8, 1)]},
    ),
    "rnn without biases": Case(
        lambda: Net(
            last, r=nn.RNN(16, 8, batch_first=True, nonlinearity="relu", bias=False), o=nn.Linear(8, 2)
        ),
        TOKENS,
        {"r.weight_ih_l0": [(8, 1)]},
    ),
    "of channels and rows, time first": Case(
        lambda: Net(
            lambda s, x: s.o(s.r(s.a(x).flatten(1, 2).permute(2, 0, 1))[0]),
            a=nn.Conv2d(3, 6, 3, padding=1),
            r=nn.GRU(48, 8),
            o=nn.Linear(8, 2),
        ),
        ((1, 3, 8, 8),),
        {"a.weight": [(6, 1)], "r.weight_ih_l0": [(8, 1)]},
    ),
    "of words": Case(
        lambda: Net(last_word, e=nn.Embedding(20, 12), r=nn.LSTM(12, 8, batch_first=True), o=nn.Linear(8, 2)),
        (6,),
        {"e.weight": [(12, 1)], "r.weight_ih_l0": [(8, 1)]},
    ),
    "lstm cell": Case(
        lambda: Net(steps, r=nn.LSTMCell(16, 8), o=nn.Linear(8, 2)), TOKENS, {"r.weight_ih": [(8, 1)]}
    ),
    "gru cell": Case(
        lambda: Net(lambda s, x: s.o(s.r(x[:, 1], s.r(x[:, 0]))), r=nn.GRUCell(16, 8), o=nn.Linear(8, 2)),
        TOKENS,
        {"r.weight_ih": [(8, 1)]},
    ),
}


def last_word(s: Net, tokens: Tensor) -> Tensor:
    return s.o(s.r(s.e(tokens))[0][:, -1])


@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_heads_are_followed_through_attention(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
def test_hidden_units_are_followed_through_products(case: Case) -> None:
    check(case)


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # recurrent layers gather their weights anew
@pytest.mark.parametrize("case", RECURRENT.values(), ids=RECURRENT)
def test_hidden_units_are_followed_through_recurrent_layers(case: Case) -> None:
    check(case)


def test_narrower_queries_and_keys_keep_the_temperature_of_their_scores() -> None:
    program, (x,) = load(ATTENTION["fused, one head"])
    structure = trace(program)
    keep = half(structure)
    whole = dict(program.graph.named_parameters())
    left = torch.from_numpy(keep[structure.parameters["q.weight", 0]])
    values = torch.from_numpy(keep[structure.parameters["v.weight", 0]])
    assert 0 < int(left.sum()) < 16
    with torch.no_grad():
        q, k = (F.linear(x, whole[f"{n}.weight"][left], whole[f"{n}.bias"][left]) for n in "qk")
        v = F.linear(x, whole["v.weight"][values], whole["v.bias"][values])
        mixed = (q @ k.mT / 16**0.5).softmax(-1) @ v
        expected = F.linear(mixed, whole["o.weight"][:, values], whole["o.bias"])
        torch.testing.assert_close(cut(program, structure, keep).graph(x)[0], expected)


def test_a_head_less_is_a_stock_attention_of_fewer_heads() -> None:
    program, (x,) = load(ATTENTION["stock, time first"])
    structure = trace(program)
    keep = np.ones(structure.n_units + 1, bool)
    rows = structure.parameters["m.in_proj_weight", 0]
    keep[rows[4]] = False  # the second head
    narrow = cut(program, structure, keep)
    tensors = dict(narrow.graph.named_parameters())
    assert tuple(tensors["m.in_proj_weight"].shape) == (36, 16)
    q, k, v = F.linear(x, tensors["m.in_proj_weight"], tensors["m.in_proj_bias"]).chunk(3, -1)
    q, k, v = (heads(each.transpose(0, 1), 3) for each in (q, k, v))
    with torch.no_grad():
        y = joined((q @ k.mT / 2).softmax(-1) @ v).transpose(0, 1)
        y = F.linear(y, tensors["m.out_proj.weight"], tensors["m.out_proj.bias"])
        torch.testing.assert_close(narrow.graph(x)[0], F.linear(y, tensors["o.weight"], tensors["o.bias"]))
