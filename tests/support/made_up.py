"""Attempts that cost nothing: what they would measure is said by a `World`, and the files are of the size that it says.

`python -m tests.support.made_up FOLDER URL` searches once and prints what it tried.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.support.search_world import ISLANDS, World

from edgekit.attempt import Attempt, Task, with_drop
from edgekit.bench import LatencyStats
from edgekit.clock import Clock
from edgekit.errors import LoweringError
from edgekit.evaluate import choose_metric
from edgekit.inputs import Inputs, Training
from edgekit.judge import Judged, Quality
from edgekit.recipe import Budget, Quantize, Recipe, Search
from edgekit.report.schema import LayerResult
from edgekit.search import Calibration, Setting
from edgekit.shrink import Shrunk
from edgekit.stages.quantize.rungs import Settled
from edgekit.trials import search
from edgekit.workdir import WorkDir
from edgekit_converters.parity import Proof
from edgekit_converters.predict import SavedModel

BASELINE = 0.9
BROKEN = LoweringError(
    format="onnx", op="aten.odd", where="net.py:3", why="it is odd", way_out="Make it even."
)


@dataclass(frozen=True)
class Loaded:
    """All that a search asks of a model."""

    sha256: str = "model"


def inputs(*, train: bool = True) -> Inputs:
    """All that a search asks of the data."""
    training = Training(4, True, lambda order, size: iter(()), "trained on") if train else None
    nothing: tuple[np.ndarray, ...] = ()
    return Inputs(
        calibration=lambda: iter(()), evaluation=lambda: iter(()), proof=nothing, sha256="data", real=True,
        has_labels=True, labels=(), notes=(), name="row {}".format, training=training,
    )  # fmt: skip


def recipe(
    *, trials: int = 40, storage: str | None = None, allow_slower: bool = True, **limits: float
) -> Recipe:
    """A quick one with limits; without any, it is not searched."""
    return Recipe(
        formats=("onnx",),
        quantize=Quantize(
            observers=("minmax",), equalize=False, smooth=False, compensation=False, bias_correction=False
        ),
        search=Search(trials=trials, storage=storage),
        budget=Budget(allow_slower=allow_slower, **limits),
    )


def setting_of(asked: Recipe) -> Setting:
    """What a recipe says of all that a search chooses."""
    return Setting(
        Calibration.of(asked.quantize),
        asked.prune.ratio,
        asked.quantize.keep_float,
        asked.qat.enabled is True,
    )


@dataclass
class Maker:
    """Stands for `attempt`.

    Attributes:
        world: what is measured.
        folder: of the files.
        spoil: told each setting; what it raises, an attempt raises.
        failing: settings that no format can be written for.
        proven: the proof holds.
        made: settings in the order of the calls, the probe of the heaviest pruning without any training left out.
    """

    world: World
    folder: Path
    spoil: Callable[[Setting], None] = lambda setting: None
    failing: Callable[[Setting], bool] = lambda setting: False
    proven: bool = True
    made: list[Setting] = field(default_factory=list)
    islands: list[bool] = field(default_factory=list)

    def __call__(self, task: Task, asked: Recipe, *, islands: bool = True) -> Attempt:
        """What `attempt` gives."""
        setting = setting_of(asked)
        if asked.train.epochs:
            self.made.append(setting)
            self.islands.append(islands)
        self.spoil(setting)
        drop, latency, megabytes = self.world.truth(setting)
        judged = {} if self.failing(setting) else {"onnx": self._judged(setting, drop, latency, megabytes)}
        settled = Settled({}, "key", tuple(_layer(each) for each in ISLANDS), (), None, (), ())
        return Attempt(
            recipe=with_drop(asked, task.metric),
            shrunk=Shrunk(None, "key"),
            settled=settled,
            judged=judged,
            failures=() if judged else (BROKEN,),
            stages=(),
            float_drop=self.world.steep * setting.prune**self.world.bend,
        )

    def _judged(self, setting: Setting, drop: float, latency: float, megabytes: float) -> Judged:
        content = hashlib.sha256(setting.key().encode()).digest()
        path = self.folder / f"{content.hex()[:12]}.onnx"
        path.write_bytes(content.ljust(round(megabytes * 1e6), b"\0"))
        steps, float_ms = 0.0 if self.proven else 9.0, self.world.float_ms or 3.0
        return Judged(
            saved=SavedModel("onnx", path, (), ()),
            variant=None,
            proof=Proof("ONNX Runtime", 32, steps, steps, 1.0),
            quality=Quality(BASELINE - drop, drop, 1.0, 40.0, 500),
            latency=LatencyStats(latency, latency, latency, 50),
            float_latency=LatencyStats(float_ms, float_ms, float_ms, 50),
            baseline=(BASELINE, 500),
        )


def _layer(island: Any) -> LayerResult:
    return LayerResult(
        island.name, "conv2d", weight_bytes=1000, macs=1000, damage_db=-10 * np.log10(island.damage / 8)
    )


def look(
    maker: Maker, asked: Recipe, out: Path, *, train: bool = True, resume: bool = False, told: Any = None
) -> Any:
    """Search, with a work folder beside `out`."""
    clock = Clock(told or (lambda stage, detail: None))
    with WorkDir(out, resume=resume) as work:
        metric = choose_metric("top1", labels=True, classes=True)
        return search(Task(Loaded(), inputs(train=train), metric, work, clock), asked, maker)


def main(folder: Path, url: str) -> None:
    """One worker of several."""
    folder.mkdir()
    maker = Maker(World(size_mb=0.01), folder)
    found = look(maker, recipe(storage=url, max_drop=0.03, max_latency_ms=0.65), folder / "out")
    made = [setting.to_dict() for setting in maker.made]
    print(json.dumps({"made": made, "number": found.number, "trials": [dict(r) for r in found.trials]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
