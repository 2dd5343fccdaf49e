"""Figures for Prometheus: as its text format has them, and only where they are asked for."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from edgekit_runtime import Runtime
from edgekit_runtime.errors import InputError
from edgekit_runtime.metrics import BUCKETS_S, Meter, gauge, render
from support.adders import WIDTH, adder
from support.device import Device

X = np.zeros((1, WIDTH), np.float32)


def parsed(text: str) -> dict[str, float]:
    """Series to value; every line has to be one, or a comment."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert line.split()[1] in {"HELP", "TYPE"}
            continue
        name, _, value = line.rpartition(" ")
        found[name] = float(value)
    return found


def test_a_histogram_counts_what_is_at_or_below_each_end() -> None:
    meter = Meter()
    for seconds in (0.0, BUCKETS_S[0], 0.003, 99.0):
        meter.took(seconds)
    found = parsed(render(meter.families()))
    assert found[f'edgekit_prediction_seconds_bucket{{le="{BUCKETS_S[0]:.10g}"}}'] == 2
    assert found['edgekit_prediction_seconds_bucket{le="0.0025"}'] == 2
    assert found['edgekit_prediction_seconds_bucket{le="0.005"}'] == 3
    assert found['edgekit_prediction_seconds_bucket{le="5"}'] == 3
    assert (
        found['edgekit_prediction_seconds_bucket{le="+Inf"}']
        == found["edgekit_prediction_seconds_count"]
        == 4
    )
    assert math.isclose(found["edgekit_prediction_seconds_sum"], 99.003 + BUCKETS_S[0])


def test_names_that_would_break_a_line_are_escaped() -> None:
    text = render([gauge("g", "A gauge.", 1, {"name": 'grö"ße\\\n'})])
    assert text.splitlines()[-1] == 'g{name="grö\\"ße\\\\\\n"} 1'


def test_a_runtime_answers_on_its_port_until_it_is_closed(tmp_path: Path) -> None:
    device = Device(tmp_path / "store")
    first = device.install(adder(1.0), good=True)
    with Runtime(device.store.path, poll_s=3600, metrics="127.0.0.1:0") as runtime:
        assert runtime.metrics_port is not None
        address = f"http://127.0.0.1:{runtime.metrics_port}"
        for _ in range(5):
            runtime.predict(X)
        with pytest.raises(Exception, match="x"):
            runtime.predict({"no": X})
        with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            found = parsed(answer.read().decode())
        assert found["edgekit_prediction_seconds_count"] == 5
        assert found["edgekit_prediction_errors_total"] == 0, (
            "an input that does not fit is no fault of the model"
        )
        (info,) = (name for name in found if name.startswith("edgekit_model_info"))
        assert first in info
        second = device.install(adder(2.0))
        runtime.look()
        with urllib.request.urlopen(address, timeout=30) as answer:
            found = parsed(answer.read().decode())
        assert found["edgekit_swaps_total"] == 1
        assert any(second in name for name in found)
        with pytest.raises(urllib.error.HTTPError), urllib.request.urlopen(f"{address}/secret", timeout=30):
            pass
    with pytest.raises(urllib.error.URLError), urllib.request.urlopen(address, timeout=30):
        pass


def test_a_shadow_is_told_of(tmp_path: Path) -> None:
    device = Device(tmp_path / "store")
    device.install(adder(1.0), good=True)
    candidate = device.install(adder(2.0), shadow=True)
    with Runtime(device.store.path, poll_s=3600, metrics="127.0.0.1:0") as runtime:
        runtime.look()
        with urllib.request.urlopen(f"http://127.0.0.1:{runtime.metrics_port}", timeout=30) as answer:
            found = parsed(answer.read().decode())
    for name in ("compared_total", "agreed_total", "dropped_total", "nans_total", "errors_total", "running"):
        assert f'edgekit_shadow_{name}{{candidate="{candidate}"}}' in found


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:http", "nowhere.invalid:0", "9464x"])
def test_an_address_that_nobody_can_listen_at_is_refused(tmp_path: Path, address: str) -> None:
    device = Device(tmp_path / "store")
    device.install(adder(1.0), good=True)
    with pytest.raises(InputError) as caught:
        Runtime(device.store.path, metrics=address)
    assert caught.value.code == "metrics"
