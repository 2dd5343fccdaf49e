"""The accuracy-driven fallback loop, run by Intel Neural Compressor's `autotune` with our quantizer as an algorithm.

Neural Compressor walks a list of configurations: quantize, evaluate, stop at the first whose loss is tolerable, or
at the best when all were tried. Its loss is relative to the float model's metric, ours is a drop in the metric's own
unit: the float model therefore scores 1, and a quantized one 1 − drop.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from edgekit.errors import UsageError

__all__ = ["Tuned", "autotune_accuracy"]

PIP: Final = 'pip install "neural-compressor[pt]==3.10"'
_NAME: Final = "edgekit"
_LOG_LEVEL: Final = "LOG_LEVEL_INC"

S = TypeVar("S")
Q = TypeVar("Q")


@dataclass(frozen=True)
class Tuned(Generic[S, Q]):
    """What the loop ended with.

    Attributes:
        setting: the first that holds the tolerance, or the one that loses least where none does.
        product: what quantizing by it gave.
        drop: what it loses, in the metric's unit.
        holds: the drop is within the tolerance.
        trials: every setting that was tried with its drop, in order.
    """

    setting: S
    product: Q
    drop: float
    holds: bool
    trials: tuple[tuple[S, float], ...]


def autotune_accuracy(
    settings: Sequence[S],
    quantize: Callable[[S], Q],
    lost: Callable[[Q], float],
    *,
    tolerance: float,
    max_trials: int | None = None,
) -> Tuned[S, Q]:
    """Try settings in order until one loses little enough.

    Args:
        settings: which observer, which layers stay float, …; cheapest first, one at least. Equal ones are tried once.
        quantize: our quantizer: from a setting to a quantized program.
        lost: drop of a quantized program against float in the metric's own unit, above 0 is worse.
        tolerance: largest drop to accept.
        max_trials: stop after so many; None tries all.

    Returns:
        The setting with its program; only the best program is held in memory while others are tried.

    Raises:
        UsageError: neural-compressor is not installed, or there is nothing to try.
    """
    distinct = list(dict.fromkeys(settings))[:max_trials]
    if not distinct:
        raise UsageError(
            f"autotune: {len(settings)} settings, {max_trials} trials",
            expected="a setting and a trial at least",
            way_out="Raise search.trials.",
        )
    with _quiet():
        inc = _algorithm()
        job = _Job(distinct, quantize, lost, tolerance)
        config = inc.tuning(
            [inc.config(job, index) for index in range(len(distinct))],
            # Relative to the float model's score of 1, this is the drop itself.
            tolerable_loss=tolerance,
            max_trials=len(distinct),
        )
        inc.autotune(inc.subject(), config, eval_fn=job.score)
    return job.result()


class _Job(Generic[S, Q]):
    """One call of the loop: what its algorithm quantizes, and what came of it."""

    def __init__(
        self, settings: Sequence[S], quantize: Callable[[S], Q], lost: Callable[[Q], float], tolerance: float
    ) -> None:
        self.settings, self.quantize, self.lost, self.tolerance = settings, quantize, lost, tolerance
        self.drops: dict[int, float] = {}
        self.best: tuple[int, Q] | None = None
        self.latest: tuple[int, Q] | None = None

    def build(self, index: int) -> None:
        """Quantize; the loop asks for its best once more at the end, and that one is at hand."""
        if self.best is None or self.best[0] != index:
            self.latest = (index, self.quantize(self.settings[index]))

    def score(self, model: Any) -> float:
        """1 for the float model, 1 − drop for a quantized one; what is no number is the worst."""
        if model.index is None or self.latest is None:
            return 1.0
        index, product = self.latest
        drop = self.lost(product)
        self.drops[index] = drop = math.inf if math.isnan(drop) else drop
        if self.best is None or drop < self.drops[self.best[0]]:
            self.best = self.latest
        enough = 1.0 - self.tolerance
        # Just above the tolerance 1 − drop rounds to the same number, and the loop would take it for enough.
        return 1.0 - drop if drop <= self.tolerance else min(1.0 - drop, math.nextafter(enough, -math.inf))

    def result(self) -> Tuned[S, Q]:
        assert self.best is not None
        index, product = self.best
        trials = tuple((self.settings[i], drop) for i, drop in self.drops.items())
        drop = self.drops[index]
        return Tuned(self.settings[index], product, drop, drop <= self.tolerance, trials)


@dataclass(frozen=True)
class _Algorithm:
    """Neural Compressor's loop with our quantizer in it."""

    autotune: Callable[..., Any]
    tuning: Callable[..., Any]
    config: Callable[[_Job[Any, Any], int], Any]
    subject: Callable[[], Any]


@functools.cache
def _algorithm() -> _Algorithm:
    """Register the quantizer, once in a process.

    Only the algorithm is registered, not its configuration: those of the registry are offered for any network that
    somebody tunes in this process, and ours are for one.
    """
    with _no_log_file():
        base = _import("neural_compressor.common.base_config").BaseConfig
        quantization = _import("neural_compressor.torch.quantization")
        register_algo = _import("neural_compressor.torch.utils").register_algo
    nn = importlib.import_module("torch.nn")

    class Config(base):  # type: ignore[misc, valid-type]
        """Names one setting of one job."""

        name = _NAME

        def __init__(self, job: _Job[Any, Any], index: int, white_list: Any = "*") -> None:
            super().__init__(white_list=white_list)
            self.job, self.index = job, index
            self._post_init()

        def get_model_info(self, model: Any) -> list[tuple[str, str]]:
            """The network as a whole is what is quantized."""
            return [("", type(model).__name__)]

        def to_dict(self) -> dict[str, Any]:
            """For the log."""
            return {"setting": str(self.job.settings[self.index])}

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Config) and (self.job, self.index) == (other.job, other.index)

        __hash__ = object.__hash__

        @classmethod
        def register_supported_configs(cls) -> None:
            """Abstract in the base class; nothing to register."""

        @classmethod
        def get_config_set_for_tuning(cls) -> list[Any]:
            """Abstract in the base class; there are no settings without a job."""
            return []

    class Subject(nn.Module):  # type: ignore[misc, name-defined]
        """Stands for the network, which the quantizer holds itself: the loop copies what it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.index: int | None = None

    @register_algo(_NAME)  # type: ignore[untyped-decorator]
    def quantize_int8(model: Any, configs_mapping: Any, *_: Any, **__: Any) -> Any:
        config = next(iter(configs_mapping.values()))
        config.job.build(config.index)
        model.index = config.index
        return model

    return _Algorithm(quantization.autotune, quantization.TuningConfig, Config, Subject)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"the accuracy loop cannot import {error.name or name}",
            expected="Neural Compressor beside PyTorch",
            way_out=f"{PIP}, or do without it: --max-drop 1.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Neural Compressor logs by a logger of its own to stderr, on import as well."""
    logger = logging.getLogger("neural_compressor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _no_log_file() -> Iterator[None]:
    """On import a second logger, of its FP8 part, would open `~/.habana_logs/inc_log.txt`; 6 is its word for off."""
    given = os.environ.get(_LOG_LEVEL)
    os.environ[_LOG_LEVEL] = given or "6"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if given is None:
            del os.environ[_LOG_LEVEL]
        else:
            os.environ[_LOG_LEVEL] = given
