"""A captured program learns as the module that it came from would, and finds its way back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.support.tiny_training import ConvNet, convnet, program_of, seeded
from torch import Tensor, nn

from edgekit.load import load_candidate
from edgekit.stages.train.trainable import attention_nodes, op_names, to_program, trainable
from edgekit_converters.program import Program


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class Attention(nn.Module):
    """Two ways of attention: the fused op, masked, and a softmax of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.size(0), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        return self.head(torch.softmax(y @ y.transpose(1, 2), -1) @ y)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def test_in_evaluation_mode_nothing_changes():
    program, x = convnet(), random(5, 1, 6, 6)
    outputs, taps = trainable(program)(x)
    assert torch.equal(outputs[0], program.graph(x)[0])
    assert taps == {}


def test_in_training_mode_it_computes_and_learns_as_the_module_does():
    module = seeded(lambda: ConvNet(dropout=0.0))
    net = trainable(program_of(module, 1, 6, 6))
    module.train()
    net.train()
    for step in range(2):
        x = random(8, 1, 6, 6, seed=step)
        expected, ((found,), _) = module(x), net(x)
        torch.testing.assert_close(found, expected)
        expected.square().sum().backward()
        found.square().sum().backward()
    own = tensors(net.net)
    for name, tensor in tensors(module).items():
        if name.endswith("num_batches_tracked"):
            continue
        torch.testing.assert_close(own[name], tensor)
        if tensor.requires_grad:
            torch.testing.assert_close(own[name].grad, tensor.grad)
    assert not torch.equal(module.norm.running_mean, torch.zeros(8)), "statistics were learned at all"


def test_dropout_drops_in_training_only():
    net, x = trainable(program_of(seeded(lambda: ConvNet(dropout=0.9)), 1, 6, 6)), random(4, 1, 6, 6)
    net.train()
    assert not torch.equal(net(x)[0][0], net(x)[0][0])
    net.eval()
    assert torch.equal(net(x)[0][0], net(x)[0][0])


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # recurrent layers gather their weights anew
def test_recurrent_layers_follow_the_mode():
    net, x = trainable(program_of(seeded(Recurrent), 5, 3)), random(4, 5, 3)
    plain = net(x)[0][0]
    assert torch.equal(net(x)[0][0], plain)
    net.train()
    assert not torch.equal(net(x)[0][0], net(x)[0][0]), "dropout between the layers"
    net(x)[0][0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_what_was_learned_comes_back_and_the_original_stays():
    program, x = convnet(), random(6, 1, 6, 6)
    before = {name: t.clone() for name, t in tensors(program.graph).items()}
    net = trainable(program).to(memory_format=torch.channels_last)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(x.contiguous(memory_format=torch.channels_last))[0][0].square().sum().backward()
    optimizer.step()
    net.eval()
    learned = to_program(net, program)
    torch.testing.assert_close(learned.graph(x)[0], net(x)[0][0])
    assert not torch.allclose(learned.graph(x)[0], program.graph(x)[0])
    assert all(torch.equal(t, before[name]) for name, t in tensors(program.graph).items())
    assert all(t.stride() == torch.empty(t.shape).stride() for t in tensors(learned.graph).values())
    assert (learned.inputs, learned.outputs) == (program.inputs, program.outputs)
    assert [n.name for n in learned.graph.graph.nodes] == [n.name for n in program.graph.graph.nodes]


def test_training_leaves_the_learned_program_alone():
    net = trainable(convnet())
    learned = to_program(net, convnet())
    before = {name: t.clone() for name, t in tensors(learned.graph).items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[name]) for name, t in tensors(learned.graph).items())


@pytest.mark.parametrize("frozen", [False, True])
def test_torchscript_learns_though_its_weights_take_no_gradients_or_are_constants(frozen):
    script = torch.jit.trace(seeded(ConvNet).eval(), torch.zeros(2, 1, 6, 6))
    program = load_candidate(
        torch.jit.freeze(script) if frozen else script, input_shapes=[(2, 1, 6, 6)]
    ).program
    net, x = trainable(program), random(6, 1, 6, 6)
    torch.testing.assert_close(net(x)[0][0], program.graph(x)[0])
    net.train()
    net(x)[0][0].square().sum().backward()
    learned = [p for p in net.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert sorted(p.dim() for p in learned) == ([1, 1, 2, 4] if frozen else [1, 1, 1, 2, 4])
    with torch.no_grad():
        for parameter in learned:
            parameter.add_(0.1)
    net.eval()
    torch.testing.assert_close(to_program(net, program).graph(x)[0], net(x)[0][0])


def test_a_single_value_per_channel_is_normalised_by_the_stored_statistics():
    net = trainable(program_of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 3))
    net.train()
    assert net(random(1, 3))[0][0].isfinite().all()
    assert all(t.isfinite().all() for t in tensors(net).values())


def test_a_cumulative_mean_becomes_a_moving_one():
    net = trainable(program_of(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, momentum=None)), 2, 4))
    net.train()
    net(random(4, 2, 4) + 5)
    assert tensors(net)["net.1.running_mean"].abs().sum() > 0


def test_batch_norm_without_stored_statistics_stays_as_it_is():
    program = program_of(
        nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, track_running_stats=False)), 2, 4
    )
    assert not program.dynamic_batch
    net, x = trainable(program), random(1, 2, 4)
    assert torch.equal(net(x)[0][0], program.graph(x)[0])
    net.train()
    net(x)[0][0].square().sum().backward()


def test_a_graph_of_one_sample_runs_sample_by_sample_with_stored_statistics():
    program: Program = replace(convnet(), dynamic_batch=False)
    net, x = trainable(program), random(3, 1, 6, 6)
    torch.testing.assert_close(net(x)[0][0], program.graph(x)[0])
    net.train()
    before = tensors(net.net)["norm.running_mean"].clone()
    net(x)[0][0].sum().backward()
    assert torch.equal(tensors(net.net)["norm.running_mean"], before)


def test_features_can_be_looked_at_by_name():
    program, x = convnet(), random(3, 1, 6, 6)
    name = next(n.name for n in program.graph.graph.nodes if "conv2d" in n.name)
    outputs, taps = trainable(program, [name])(x)
    torch.testing.assert_close(
        taps[name], F.conv2d(x, dict(program.graph.named_parameters())["conv.weight"], None, 2, 1)
    )
    assert torch.equal(outputs[0], program.graph(x)[0])
    one_by_one = trainable(replace(program, dynamic_batch=False), [name])(x)[1][name]
    torch.testing.assert_close(one_by_one, taps[name])
    with pytest.raises(KeyError):
        trainable(program, ["nowhere"])


def test_attention_maps_are_those_of_the_fused_op():
    module = seeded(Attention)
    program, x = program_of(module, 5, 8), random(2, 5, 8)
    names = sorted(attention_nodes(program))
    assert len(names) == 2
    net = trainable(program, names)
    outputs, taps = net(x)
    assert torch.equal(outputs[0], program.graph(x)[0])
    fused = next(taps[name] for name in names if "dot_product" in name)
    assert fused.shape == (2, 2, 5, 5)
    torch.testing.assert_close(fused.sum(-1), torch.ones(2, 2, 5))
    assert torch.equal(fused.triu(1), torch.zeros_like(fused))
    _, _, v = module.qkv(x).view(2, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    node = next(n for n in net.net.graph.nodes if "dot_product" in n.name)
    q, k = (module.qkv(x).view(2, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)[i] for i in (0, 1))
    torch.testing.assert_close(fused @ v, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert node is not None


@pytest.mark.parametrize("boolean", [False, True])
def test_masks_are_part_of_an_attention_map(boolean):
    from edgekit.stages.train.trainable import attention_map

    q, k, v = (random(2, 4, 3, 8, seed=i) for i in range(3))
    mask = random(3, 3, seed=9) > -0.5 if boolean else random(3, 3, seed=9)
    if boolean:
        mask |= torch.eye(3, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(attention_map(q, k, v, mask, scale=0.3) @ v, expected)


def test_shared_heads_are_repeated_in_an_attention_map():
    from edgekit.stages.train.trainable import attention_map

    q, k, v = random(2, 4, 3, 8), random(2, 2, 3, 8, seed=1), random(2, 2, 3, 8, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    found = attention_map(q, k, v, enable_gqa=True) @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(found, expected)


def test_ops_are_named_also_where_a_module_took_their_place():
    assert {"conv2d", "batch_norm", "dropout", "reshape", "linear"} <= op_names(trainable(convnet()))
    assert "" not in op_names(trainable(convnet()))


@pytest.mark.parametrize("wrapped", [nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 3, groups=2)])
def test_grouped_convolutions_stay_float32_in_mixed_precision(wrapped):
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), wrapped))
    network = trainable(load_candidate(module.eval(), input_shapes=[(1, 3, 8, 8)]).program)
    x = random(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ((found,), _), plain = network(x), module(x)
        first = module[0](x)
    assert (first.dtype, plain.dtype, found.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    torch.testing.assert_close(found, wrapped(first.float()))
    found.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens).mean(1))

    tokens = torch.from_numpy(np.arange(10).reshape(2, 5) % 7)
    program = load_candidate(seeded(Tied), example=(tokens,)).program
    net = trainable(program)
    assert len(list(net.parameters())) == 1
    with torch.no_grad():
        next(net.parameters()).mul_(2.0)
    torch.testing.assert_close(to_program(net, program).graph(tokens)[0], net(tokens)[0][0])
    torch.testing.assert_close(net(tokens)[0][0], 4 * program.graph(tokens)[0])
