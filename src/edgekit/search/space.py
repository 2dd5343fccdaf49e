"""What a trial of the search does, and what was measured on its files: frozen values that JSON holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekit.errors import UsageError
from edgekit.recipe import Quantize, Recipe

__all__ = ["Calibration", "Measured", "Outcome", "Setting", "Trial"]

# Ratios are compared and stored; more digits than this are noise of their arithmetic.
RATIO_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the grid is chosen without training; the fields are those of the recipe's `[quantize]`.

    Attributes:
        observers: range observers to try.
        equalize: cross-layer equalization: on, off, or "try" both.
        compensation: compensated rounding: on, off, or "try" both.
        bias_correction: on, off, or "try" both.
    """

    observers: tuple[str, ...]
    equalize: bool | str = False
    compensation: bool | str = False
    bias_correction: bool | str = False

    def __post_init__(self) -> None:
        checked = Quantize(
            observers=self.observers,
            equalize=self.equalize,
            compensation=self.compensation,
            bias_correction=self.bias_correction,
        )
        object.__setattr__(self, "observers", checked.observers)

    @staticmethod
    def of(settings: Quantize) -> Calibration:
        """The calibration that a recipe asks for."""
        return Calibration(
            settings.observers, settings.equalize, settings.compensation, settings.bias_correction
        )

    def __str__(self) -> str:
        extras = {
            "equalized": self.equalize,
            "compensated": self.compensation,
            "bias corrected": self.bias_correction,
        }
        return ", ".join(["/".join(self.observers), *(word for word, on in extras.items() if on)])


@dataclass(frozen=True, slots=True)
class Setting:
    """What one trial does.

    Attributes:
        calibration: how the grid is chosen.
        prune: share of the cost to remove, from 0 to 0.95; the recipe says which cost.
        keep_float: names of the layers that stay float, in alphabetical order.
        qat: trained on the grid.
    """

    calibration: Calibration
    prune: float = 0.0
    keep_float: tuple[str, ...] = ()
    qat: bool = False

    def __post_init__(self) -> None:
        ratio = self.prune
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 0.95:
            raise _wrong("prune", ratio, "a share from 0 to 0.95")
        if not isinstance(self.qat, bool):
            raise _wrong("qat", self.qat, "true or false")
        names: object = self.keep_float
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name for name in names):
            raise _wrong("keep_float", names, "names of layers")
        object.__setattr__(self, "prune", round(float(ratio), RATIO_DIGITS))
        object.__setattr__(self, "keep_float", tuple(sorted(set(names))))

    def __str__(self) -> str:
        n = len(self.keep_float)
        words = (
            f"prune {self.prune:g}" if self.prune else "",
            "QAT" if self.qat else "",
            f"{n} layer{'s' if n > 1 else ''} float" if n else "",
            str(self.calibration),
        )
        return ", ".join(word for word in words if word)

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe that does this and nothing more: nothing in it is left to be decided.

        Args:
            recipe: of the search; its own `keep_float` patterns stay.
        """
        quantize = replace(
            recipe.quantize,
            **asdict(self.calibration),
            keep_float=tuple(dict.fromkeys((*recipe.quantize.keep_float, *self.keep_float))),
        )
        return replace(
            recipe,
            quantize=quantize,
            prune=replace(recipe.prune, ratio=self.prune),
            qat=replace(recipe.qat, enabled=self.qat),
        )

    def key(self) -> str:
        """Canonical JSON: equal for equal settings, on every machine."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain

    @staticmethod
    def from_dict(tree: Mapping[str, Any]) -> Setting:
        """Read `to_dict` back.

        Raises:
            UsageError: it is something else.
        """
        try:
            return Setting(
                calibration=Calibration(**tree["calibration"]),
                prune=tree["prune"],
                keep_float=tree["keep_float"],
                qat=tree["qat"],
            )
        except (KeyError, TypeError) as error:
            raise _wrong("setting", dict(tree), "what `Setting.to_dict` gives") from error


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on one exported file.

    Attributes:
        metric: value of the metric on the evaluation split, None when it was not judged.
        drop: loss against float in the metric's unit, above 0 is worse; what is no number counts as infinite.
        latency_ms: median on one thread at batch one, None where the format cannot be timed here.
        float_latency_ms: of the float twin in the same rounds.
        size_bytes: of the file or package.
        proven: its proof against the quantized reference holds.
        sha256: of the file (hex), "" when it was not kept.
    """

    metric: float | None
    drop: float | None
    latency_ms: float | None
    float_latency_ms: float | None
    size_bytes: int
    proven: bool = True
    sha256: str = ""

    def __post_init__(self) -> None:
        # Numbers of numpy are not JSON's; a trial of hours must not be lost for that.
        for name in ("metric", "drop", "latency_ms", "float_latency_ms"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))
        object.__setattr__(self, "size_bytes", int(self.size_bytes))
        if self.drop is not None and math.isnan(self.drop):
            object.__setattr__(self, "drop", math.inf)
        if self.latency_ms is not None and not self.latency_ms >= 0:
            raise _wrong("latency_ms", self.latency_ms, "milliseconds")
        if self.size_bytes < 0:
            raise _wrong("size_bytes", self.size_bytes, "bytes")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to.

    A limit has to hold in every format, so the worst of them speaks for the trial.

    Attributes:
        formats: format to what was measured on its file; one at least.
        seconds: that the trial took.
        refused: why the result is refused apart from the limits, e.g. a proof that does not hold.
        float_drop: what the network lost before it was quantized, by pruning and with what training mended of it; None
            where that was not measured.
    """

    formats: Mapping[str, Measured]
    seconds: float = 0.0
    refused: tuple[str, ...] = ()
    float_drop: float | None = None

    def __post_init__(self) -> None:
        if not self.formats:
            raise _wrong("formats", dict(self.formats), "one file at least")
        if self.float_drop is not None:
            lost = float(self.float_drop)
            object.__setattr__(self, "float_drop", math.inf if math.isnan(lost) else lost)

    @property
    def drop(self) -> float | None:
        """The largest loss of any format; None when none was judged."""
        return _largest(each.drop for each in self.formats.values())

    @property
    def latency_ms(self) -> float | None:
        """The slowest format's; None when none was timed."""
        return _largest(each.latency_ms for each in self.formats.values())

    @property
    def float_latency_ms(self) -> float | None:
        """The slowest float twin's; None when none was timed."""
        return _largest(each.float_latency_ms for each in self.formats.values())

    @property
    def float_ratio(self) -> float | None:
        """Latency over that of the float twin, of the format where it is largest; None when none was timed."""
        return _largest(
            each.latency_ms / each.float_latency_ms if each.latency_ms and each.float_latency_ms else None
            for each in self.formats.values()
        )

    @property
    def size_bytes(self) -> int:
        """The largest file's."""
        return max(each.size_bytes for each in self.formats.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an infinite loss is `math.inf`."""
        return {
            "formats": {name: asdict(each) for name, each in self.formats.items()},
            "seconds": self.seconds,
            "refused": list(self.refused),
            "float_drop": self.float_drop,
        }

    @staticmethod
    def from_dict(tree: Mapping[str, Any]) -> Outcome:
        """Read `to_dict` back.

        Raises:
            UsageError: it is something else.
        """
        try:
            formats = {name: Measured(**each) for name, each in tree["formats"].items()}
            return Outcome(formats, tree["seconds"], tuple(tree["refused"]), tree["float_drop"])
        except (KeyError, TypeError, AttributeError) as error:
            raise _wrong("outcome", dict(tree), "what `Outcome.to_dict` gives") from error


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and its outcome, the reason of its failure, or neither while somebody works on it.

    Attributes:
        number: in the order in which the settings were first taken, from 0.
        setting: what it does; no two trials of a search do the same.
        outcome: what it came to.
        failure: why it came to nothing, in words.
    """

    number: int
    setting: Setting
    outcome: Outcome | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        if self.outcome is not None and self.failure is not None:
            raise _wrong("trial", self.number, "an outcome or a failure, not both")

    @property
    def running(self) -> bool:
        """Somebody works on it."""
        return self.outcome is None and self.failure is None

    def __str__(self) -> str:
        return f"trial {self.number}: {self.setting}"


def _largest(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _wrong(key: str, value: object, expected: str) -> UsageError:
    return UsageError(
        f"trial: {key} = {value!r}",
        expected=expected,
        way_out="Was the trial written by another version? Start the search anew without --resume.",
    )
