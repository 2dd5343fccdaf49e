"""The accuracy loop really runs in Neural Compressor, quietly, and leaves the process as it was."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.search import Tuned, autotune_accuracy

pytest.importorskip("neural_compressor.torch", reason='pip install "neural-compressor[pt]==3.10"')


def tuned(
    drops: dict[str, float], tolerance: float, max_trials: int | None = None, built: list[str] | None = None
) -> Tuned[str, str]:
    made = [] if built is None else built

    def quantize(setting: str) -> str:
        made.append(setting)
        return f"network {setting}"

    def lost(product: str) -> float:
        return drops[product.removeprefix("network ")]

    return autotune_accuracy(list(drops), quantize, lost, tolerance=tolerance, max_trials=max_trials)


def test_the_first_setting_that_loses_little_enough_is_taken_and_no_other_is_tried() -> None:
    built: list[str] = []

    found = tuned({"minmax": 0.03, "one float": 0.008, "two float": 0.001}, 0.01, built=built)

    assert (found.setting, found.product, found.drop, found.holds) == (
        "one float",
        "network one float",
        0.008,
        True,
    )
    assert built == ["minmax", "one float"]


def test_where_none_holds_the_best_is_given_and_not_quantized_again() -> None:
    built: list[str] = []

    found = tuned({"a": 0.05, "b": 0.02, "c": 0.04}, 0.01, built=built)

    assert (found.setting, found.product, found.holds) == ("b", "network b", False)
    assert found.trials == (("a", 0.05), ("b", 0.02), ("c", 0.04))
    assert built == ["a", "b", "c"]


def test_no_more_than_max_trials_are_run() -> None:
    found = tuned({"a": 0.05, "b": 0.04, "c": 0.0}, 0.01, max_trials=2)

    assert [setting for setting, _ in found.trials] == ["a", "b"]
    assert found.setting == "b"


@pytest.mark.parametrize("drops", [{"a": math.nan, "b": 0.5}, {"a": math.inf, "b": 0.5}])
def test_a_drop_that_is_no_number_is_the_worst(drops: dict[str, float]) -> None:
    assert tuned(drops, 0.01).setting == "b"


def test_a_single_hopeless_setting_is_still_an_answer() -> None:
    found = tuned({"a": math.nan}, 0.01)

    assert (found.setting, found.drop, found.holds) == ("a", math.inf, False)


@pytest.mark.parametrize(
    ("drop", "tolerance", "holds"),
    [
        (0.01, 0.01, True),
        (math.nextafter(0.01, 1), 0.01, False),
        (0.0, 0.0, True),
        (1e-18, 0.0, False),
        (-0.5, 0.0, True),
        (250.0, 300.0, True),
        (301.0, 300.0, False),
    ],
    ids=[
        "equal",
        "an ulp above",
        "lossless",
        "below an ulp of 1",
        "a gain",
        "a large unit",
        "too much of it",
    ],
)
def test_the_tolerance_is_the_drop_itself_to_the_last_bit(drop: float, tolerance: float, holds: bool) -> None:
    found = tuned({"a": drop, "b": tolerance}, tolerance)

    assert found.setting == ("a" if holds else "b")
    assert found.holds


def test_equal_settings_are_tried_once() -> None:
    built: list[str] = []

    def quantize(setting: str) -> str:
        built.append(setting)
        return setting

    found = autotune_accuracy(["a", "a", "b"], quantize, lambda _: 0.5, tolerance=0.1)

    assert built == ["a", "b"]
    assert found.setting == "a"


def test_nothing_to_try_is_refused() -> None:
    with pytest.raises(UsageError, match="0 settings"):
        autotune_accuracy([], lambda s: s, lambda _: 0.0, tolerance=0.1)


def test_what_the_quantizer_raises_arrives_and_the_loop_can_run_again() -> None:
    def broken(setting: str) -> str:
        raise LookupError(setting)

    with pytest.raises(LookupError, match="a"):
        autotune_accuracy(["a"], broken, lambda _: 0.0, tolerance=0.1)

    assert tuned({"b": 0.0}, 0.1).setting == "b"


def test_the_loop_is_neural_compressors(monkeypatch: pytest.MonkeyPatch) -> None:
    from neural_compressor.common.base_tuning import TuningMonitor

    baselines: list[float] = []
    told: Callable[[TuningMonitor, float], None] = TuningMonitor.set_baseline

    def listen(monitor: TuningMonitor, baseline: float) -> None:
        baselines.append(baseline)
        told(monitor, baseline)

    monkeypatch.setattr(TuningMonitor, "set_baseline", listen)
    tuned({"a": 0.0}, 0.1)

    assert baselines == [1.0]


def test_the_logger_is_given_back_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    tuned({"a": 0.3, "b": 0.0}, 0.1)

    assert not logging.getLogger("neural_compressor").disabled
    assert capfd.readouterr() == ("", "")


QUIET = """
import torch
import edgekit.search
import sys
assert "neural_compressor" not in sys.modules
assert "optuna" not in sys.modules
def settings():
    seed = torch.get_rng_state().sum()
    return torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), seed
holders = [torch, torch.nn, torch.nn.functional, torch.nn.Module, torch.nn.Linear, torch.Tensor, torch.fx, torch.export]
before = [dict(vars(each)) for each in holders]
state = settings()
found = edgekit.search.autotune_accuracy(["a", "b"], str, {"a": 1.0, "b": 0.0}.get, tolerance=0.1)
assert found.setting == "b"
for each, was in zip(holders, before):
    changed = {name for name, value in was.items() if vars(each).get(name) is not value}
    assert not changed - {"__warningregistry__"}, (each, changed)
assert state == settings()
"""


def test_it_says_nothing_writes_nothing_and_patches_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", QUIET],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "HOME": str(tmp_path), "LOGLEVEL": "DEBUG"},
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


ABSENT = """
import sys
sys.modules["neural_compressor"] = None
from edgekit.search import autotune_accuracy
from edgekit.errors import UsageError
try:
    autotune_accuracy(["a"], str, len, tolerance=0.1)
except UsageError as error:
    print(error)
"""


def test_without_neural_compressor_the_pip_line_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABSENT], capture_output=True, text=True, check=True, timeout=300
    )

    assert 'pip install "neural-compressor[pt]==3.10"' in done.stdout
