"""Exported programs and TorchScript, pruned from their files alone, compute what a narrower module computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks.networks import OptionA, ResNet20
from examples.networks.classic import UNet
from examples.networks.mobile import MobileNetV2
from examples.networks.sequence import RecurrentClassifier
from examples.networks.vision import SelfAttention, ViT
from torch import Tensor, nn

from edgekit.load import load_candidate
from edgekit.stages.prune import Structure, cut, groups, trace
from edgekit_converters.program import Program
from edgekit_converters.quiet import quiet_torch
from support.narrower import half, silenced


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    mixes: bool = False  # a norm over what may be removed: zero weights are not the same as no weights


CASES = {
    "ResNet-20": Case(ResNet20, (1, 3, 32, 32)),
    "MobileNetV2": Case(lambda: MobileNetV2(classes=10), (1, 3, 32, 32)),
    "U-Net": Case(lambda: UNet(width=8, levels=2), (1, 3, 32, 32)),
    "ViT": Case(lambda: ViT(image=32, patch=8, width=48, depth=2, heads=3, classes=10), (1, 3, 32, 32), True),
    "LSTM": Case(lambda: RecurrentClassifier(nn.LSTM, hidden=16), (1, 12, 13)),
}
FORMS = ("exported program", "torchscript")


def network(case: Case) -> nn.Module:
    torch.manual_seed(0)
    made = case.make().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return made


def saved(made: nn.Module, form: str, case: Case, folder: Path) -> Program:
    path, example = folder / "model", torch.randn(case.shape)
    if form == "torchscript":
        torch.jit.save(torch.jit.trace(made, example), path)
    else:
        with quiet_torch():
            torch.export.save(torch.export.export(made, (example,)), path)
    return load_candidate(path, input_shapes=[case.shape]).program


def attend(module: SelfAttention, head: int) -> Callable[[Tensor], Tensor]:
    """Attention whose heads do not share the width of what enters."""

    def forward(x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = module.qkv(x).reshape(n, tokens, 3, -1, head).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        return module.proj(y.transpose(1, 2).flatten(2))

    return forward


def shortcut(block: OptionA, low: int, high: int) -> Callable[[Tensor], Tensor]:
    """A block whose shortcut does not pad as much on both sides."""

    def forward(x: Tensor) -> Tensor:
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, low, high)))

    return forward


def narrower(made: nn.Module, program: Program, structure: Structure, keep: np.ndarray) -> nn.Module:
    """The module with the pruned weights in it, and the numbers that its own code counts with."""
    twin = copy.deepcopy(made)
    tensors = {**dict(program.graph.named_parameters()), **dict(program.graph.named_buffers())}
    for name, value in twin.state_dict(keep_vars=True).items():
        if name in tensors:
            value.data = tensors[name].data.clone()
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = len(module.weight)
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.LSTM):
            module.hidden_size = module.weight_hh_l0.shape[1]
        elif isinstance(module, SelfAttention):
            module.forward = attend(module, made.get_submodule(name).proj.in_features // module.heads)
        elif isinstance(module, OptionA) and module.grows:
            kept = keep[structure.parameters[f"{name}.conv2.weight", 0]]
            sides = (kept[: module.extra], kept[len(kept) - module.extra :])
            module.forward = shortcut(module, *(int(side.sum()) for side in sides))
    return twin


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_a_pruned_graph_equals_the_narrower_module(name: str, form: str, tmp_path: Path) -> None:
    case = CASES[name]
    made = network(case)
    program = saved(made, form, case, tmp_path)
    structure = trace(program)
    keep = half(structure)
    pruned = cut(program, structure, keep)
    twin = narrower(made, pruned, structure, keep)
    x = torch.randn(3, *case.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(pruned.graph(x)[0], twin(x), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in twin.parameters()) < 0.5 * sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.mixes])
@pytest.mark.parametrize("seed", [1, 2])
def test_removing_units_is_the_same_as_silencing_what_reads_them(name: str, seed: int) -> None:
    case = CASES[name]
    program = load_candidate(network(case), input_shapes=[case.shape]).program
    structure = trace(program)
    keep = half(structure, seed)
    x = torch.randn(2, *case.shape[1:])
    with torch.no_grad():
        pruned = cut(program, structure, keep).graph(x)[0]
        torch.testing.assert_close(
            pruned, silenced(program, structure, keep).graph(x)[0], rtol=1e-4, atol=1e-5
        )
        whole = program.graph(x)[0]
    assert (pruned - whole).abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_program_that_is_pruned_is_not_changed(name: str) -> None:
    case = CASES[name]
    program = load_candidate(network(case), input_shapes=[case.shape]).program
    x = torch.randn(case.shape)
    with torch.no_grad():
        before = program.graph(x)[0]
        structure = trace(program)
        cut(program, structure, half(structure))
        assert torch.equal(program.graph(x)[0], before)


def test_heads_go_whole_and_mlp_widths_one_by_one() -> None:
    case = CASES["ViT"]
    structure = trace(load_candidate(network(case), input_shapes=[case.shape]).program)
    found = {group.name: (len(group.units), group.width) for group in groups(structure)}
    assert found["blocks.0.attention.qkv.weight"] == (3, 16)
    assert found["blocks.0.mlp.0.weight"] == (192, 1)
    assert found["embed.weight"] == (48, 1)


def test_the_dependencies_of_a_padded_shortcut_are_those_of_its_channels() -> None:
    structure = trace(load_candidate(ResNet20(), input_shapes=[(1, 3, 32, 32)]).program)
    narrow = structure.parameters["layer1.0.conv2.weight", 0]
    middle = structure.parameters["layer2.0.conv2.weight", 0]
    wide = structure.parameters["layer3.0.conv2.weight", 0]
    assert np.array_equal(middle[8:24], narrow)
    assert np.array_equal(wide[16:48], middle)
    assert len(set(wide.tolist())) == 64
