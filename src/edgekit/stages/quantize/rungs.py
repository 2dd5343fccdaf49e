"""The rungs of the ladder: ways to lower the same weight integers, from a fixed grid for all to float compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgekit.errors import UsageError
from edgekit.inputs import Inputs
from edgekit.recipe import Recipe
from edgekit.report import LayerResult
from edgekit.stages.quantize.search import Setting, rebuild, weights_only
from edgekit.workdir import Facts, WorkDir, stage_key
from edgekit_converters.program import DYNAMIC_RANGES, Program, QuantizedProgram
from edgekit_converters.store import load_program, save_program

STATIC, ISLANDS = "static int8", "static int8, float arithmetic"
DYNAMIC, WEIGHTS = "int8 weights, dynamic int8 activations", "int8 weights, float compute"
# What is tried, in this order, where a file is slower than float or loses too much.
LADDER: Final = (STATIC, ISLANDS, DYNAMIC, WEIGHTS)
FILES: Final = {
    STATIC: "static.pt2",
    ISLANDS: "islands.pt2",
    DYNAMIC: "dynamic.pt2",
    WEIGHTS: "weights.pt2",
}
# Share of the multiply-accumulates in linear layers from which on it is worth while to lower a network for them.
MOSTLY_LINEAR: Final = 0.5
LINEAR: Final = "linear"


@dataclass(frozen=True)
class Variant:
    """One way to lower the same weight integers.

    Attributes:
        name: of `LADDER`. `STATIC`: activations on the grid too; `ISLANDS`: the same without arithmetic between
            layers, where its integer kernels are slow; `DYNAMIC`: linear layers quantize what they read at each call,
            for transformers whose activations no fixed grid holds; `WEIGHTS`: float compute, for networks that are
            bound by call overhead.
        program: read back from its archive.
        archive: file that converters read.
    """

    name: str
    program: QuantizedProgram
    archive: Path

    @staticmethod
    def read(name: str, folder: Path) -> Variant:
        """A variant whose archive lies in a folder."""
        archive = folder / FILES[name]
        program = load_program(archive)
        assert isinstance(program, QuantizedProgram)
        return Variant(name, program, archive)


@dataclass(frozen=True)
class Settled:
    """The quantized program as every later stage sees it: read back from its archive.

    Attributes:
        variants: name to variant; those below `STATIC` only after `settle_rung`.
        key: identifies the content.
        layers: for the report.
        notes: what was tried.
        setting: how the grid was chosen.
        islands: ops that `ISLANDS` keeps float; without any there is no such variant.
        kept: layers that were kept float for the budget.
    """

    variants: Mapping[str, Variant]
    key: str
    layers: tuple[LayerResult, ...]
    notes: tuple[str, ...]
    setting: Setting
    islands: tuple[str, ...]
    kept: tuple[str, ...] = ()

    @property
    def linear(self) -> float:
        """Share of the multiply-accumulates that linear layers do, 0 to 1."""
        linear = sum(layer.macs for layer in self.layers if layer.op == LINEAR)
        return linear / max(1, sum(layer.macs for layer in self.layers))


def ladder(activations: str, format: str) -> tuple[str, ...]:
    """Rungs for what the recipe says of activations, the first for every file; a format may lack kernels for one."""
    found = format in DYNAMIC_RANGES
    rungs = {
        "auto": (STATIC, ISLANDS, DYNAMIC, WEIGHTS) if found else (STATIC, ISLANDS, WEIGHTS),
        "static": (STATIC, ISLANDS),
        "dynamic": (DYNAMIC,) if found else (WEIGHTS,),
        "float": (WEIGHTS,),
    }
    return rungs[activations]


def settle_rung(
    rung: str,
    settled: Settled,
    program: Program,
    inputs: Inputs,
    recipe: Recipe,
    work: WorkDir,
    *,
    step: Callable[[str], None],
) -> Settled:
    """Add a lower rung of the ladder by the setting that was chosen; unchanged where it would be the rung above.

    Args:
        rung: below `STATIC`.
        settled: from `settle` with the same arguments.
        program: cleaned float program.
        inputs: calibration inputs.
        recipe: settings.
        work: where the result is kept.
        step: told what is being done.

    Raises:
        UsageError: the recipe asks for linear layers that quantize at each call, and there are none.
    """
    if rung == ISLANDS and not settled.islands:
        return settled
    if rung == DYNAMIC and not _for_linear(settled.linear, recipe):
        return settled
    file = FILES[rung]

    def make(folder: Path) -> Facts:
        if rung == ISLANDS:
            quantized = rebuild(
                program,
                recipe.quantize,
                settled.setting,
                inputs.calibration,
                keep_float=settled.islands,
                step=step,
            )
        else:
            quantized = weights_only(program, recipe.quantize, settled.setting, inputs.calibration)
        if rung == DYNAMIC:
            # Samples of one batch would share a range: a file takes one at a time.
            alone = replace(quantized.program, dynamic_batch=False)
            quantized = replace(quantized, program=alone, dynamic=True)
        save_program(quantized, folder / file)
        return {}

    def read(folder: Path, _: Facts) -> Variant:
        return Variant.read(rung, folder)

    found = work.stage(Path(file).stem, stage_key(rung, settled.key), make, read)
    return replace(settled, variants={**settled.variants, rung: found})


def _for_linear(share: float, recipe: Recipe) -> bool:
    """Whether a network is lowered for its linear layers: it is mostly made of them, or the user says so."""
    if recipe.quantize.activations != "dynamic":
        return share >= MOSTLY_LINEAR
    if share == 0.0:
        raise UsageError(
            'quantize.activations = "dynamic", but the network has no linear layer',
            expected="linear layers: they are what quantizes its input at each call",
            way_out='Leave the key out, or set it to "static" or "float".',
        )
    return True
