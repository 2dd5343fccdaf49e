"""Programs that the quantizer's tests share; each is built once for each process."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx import Node

import zoo
from cleanup_programs import cleaned, program_of
from edgekit.stages.quantize.apply import Observed, calibrate, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.program import Program

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed


@cache
def zoo_program(name: str, *, dynamic: bool = True) -> Program:
    model = zoo.BY_NAME[name]
    return clean(program_of(zoo.build(model), zoo.draw(model, 1), dynamic=dynamic))[0]


@cache
def zoo_observed(name: str, *, weight_bits: int = 8) -> Observed:
    observed = observe(zoo_program(name), weight_bits=weight_bits)
    calibrate(observed, [zoo.draw(zoo.BY_NAME[name], 4, seed) for seed in (1, 2)])
    return observed


def program(function: Callable[..., object], *layers: nn.Module, shape: tuple[int, ...]) -> Program:
    """The cleaned program of a function of one tensor and layers with seeded weights."""
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        for tensor in layer.parameters():
            tensor.data.normal_(generator=generator).mul_(0.5)
    return cleaned(function, *layers, shape=shape, dynamic=True)


def calibrated(program: Program, samples: int = 16, **options: object) -> Observed:
    observed = observe(program, **options)
    calibrate(observed, [noise(program, samples)])
    return observed


def noise(program: Program, samples: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(samples, *x.shape[1:], generator=generator) for x in program.example)


def decibels(wanted: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()))


def by_target(program: Program, target: object) -> list[Node]:
    return [n for n in program.graph.graph.nodes if n.target is target]


def run(program: Program, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(program.graph(*inputs))
