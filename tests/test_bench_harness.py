"""The harness: what it reads of a machine, how it takes turns, and what a file may do to it."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_devices import harness
from support.tiny_files import write_onnx, write_tflite

QUICK = {"seconds": 0.05, "min_rounds": 3, "warmup": 1, "cold_starts": 1}


def system(root: Path, files: dict[str, str]) -> Path:
    """A folder that looks like /sys or /proc."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def spec(*files: dict[str, Any], **settings: Any) -> str:
    return json.dumps({"schema": 1, "files": list(files), **QUICK, **settings})


def run(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, harness.__file__],
        input=text, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def measured(*files: dict[str, Any], **settings: Any) -> dict[str, Any]:
    done = run(spec(*files, **settings))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# Sensors


def test_the_hottest_zone_counts_and_zones_that_are_off_do_not(tmp_path: Path) -> None:
    zones = {
        f"class/thermal/thermal_zone{k}/temp": t for k, t in enumerate(("48312", "51900", "-256000", "0", ""))
    }
    assert harness.temperature_c(system(tmp_path, zones)) == 51.9
    assert harness.temperature_c(tmp_path / "nothing") is None


def test_the_clock_is_that_of_cpufreq_and_else_of_cpuinfo(tmp_path: Path) -> None:
    proc = system(tmp_path / "proc", {"cpuinfo": "cpu MHz\t\t: 2600.5\n\ncpu MHz\t\t: 2400.5"})
    sys_root = system(tmp_path / "sys", {
        f"devices/system/cpu/cpu{k}/cpufreq/scaling_cur_freq": v for k, v in enumerate(("1500000", "600000"))
    })  # fmt: skip
    assert harness.clock_mhz(sys_root, proc) == 1050
    assert harness.clock_mhz(tmp_path / "nothing", proc) == 2500.5
    assert harness.clock_mhz(tmp_path / "nothing", tmp_path / "nothing") is None


def test_ticks_of_all_processors_are_counted_as_busy_idle_and_stolen() -> None:
    stat = "cpu  100 10 40 800 20 5 5 30 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert harness.cpu_times(stat) == (1010, 160, 30)
    assert harness.cpu_times("intr 1 2 3") is None
    assert harness.cpu_times("cpu  5 0 5 90") == (100, 10, 0)  # before Linux 2.6 there was no more


def test_memory_is_told_in_megabytes_and_the_peak_is_never_below_it() -> None:
    status = "Name:\tpython\nVmHWM:\t   90000 kB\nVmRSS:\t  100000 kB\n"
    assert harness.memory_mb(status) == (102.4, 102.4)
    assert harness.memory_mb("") == (None, None)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("model name\t: AMD EPYC\nflags\t: avx2", "AMD EPYC"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd08\n" * 4, "Cortex-A72"),
        (
            "model name\t: ARMv7 Processor rev 4 (v7l)\nCPU implementer\t: 0x41\nCPU part\t: 0xd03",
            "Cortex-A53",
        ),
        (
            "CPU implementer\t: 0x41\nCPU part\t: 0xd05\nCPU implementer\t: 0x51\nCPU part\t: 0x804",
            "Cortex-A55 + part 0x804 of implementer 0x51",
        ),
        ("", ""),
    ],
    ids=["x86", "arm64", "32-bit Arm", "two kinds of cores", "nothing"],
)
def test_processors_are_named(cpuinfo: str, name: str) -> None:
    assert harness.cpu_name(cpuinfo) == name


def test_a_machine_is_described_from_what_its_system_tells(tmp_path: Path) -> None:
    sys_root = system(tmp_path / "sys", {"devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand"})
    proc = system(tmp_path / "proc", {
        "cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd0b\nFeatures\t: fp asimd asimddp sve9",
        "meminfo": "MemTotal:        8000000 kB",
        "device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    })  # fmt: skip
    found = harness.machine("none", sys_root, proc)
    assert found["cpu"] == "Cortex-A76"
    assert found["isa"] == ["asimd", "asimddp"]
    assert found["memory_mb"] == 8192
    assert found["governor"] == "ondemand"
    assert found["model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["runtimes"]["onnxruntime"]


def test_rapl_is_added_up_over_packages_and_goes_on_when_a_counter_begins_anew(tmp_path: Path) -> None:
    zone = "class/powercap/intel-rapl:{}"
    root = system(tmp_path, {
        f"{zone.format(0)}/name": "package-0", f"{zone.format(0)}/energy_uj": "9000",
        f"{zone.format(0)}/max_energy_range_uj": "10000",
        f"{zone.format(1)}/name": "psys", f"{zone.format(1)}/energy_uj": "5",
        f"{zone.format('0:0')}/name": "core", f"{zone.format('0:0')}/energy_uj": "7",
    })  # fmt: skip
    meter = harness.find_meter(root)
    assert isinstance(meter, harness.Meter)
    assert meter.counter_mj is not None
    assert meter.counter_mj() == 9
    system(root, {f"{zone.format(0)}/energy_uj": "2000"})
    assert meter.counter_mj() == 12


def test_a_counter_that_only_root_may_read_is_named(tmp_path: Path) -> None:
    root = system(tmp_path, {"class/powercap/intel-rapl:0/name": "package-0"})
    assert "root" in str(harness.find_meter(root))
    assert "no RAPL" in str(harness.find_meter(tmp_path / "nothing"))


def test_the_rail_of_the_whole_board_is_read_where_there_is_one(tmp_path: Path) -> None:
    chip = "class/hwmon/hwmon2"
    root = system(tmp_path, {
        f"{chip}/name": "ina3221",
        f"{chip}/in1_label": "VDD_IN", f"{chip}/in1_input": "5000", f"{chip}/curr1_input": "1200",
        f"{chip}/in2_label": "VDD_CPU", f"{chip}/in2_input": "5000", f"{chip}/curr2_input": "400",
        "class/hwmon/hwmon0/name": "cpu_thermal", "class/hwmon/hwmon0/power1_input": "99",
    })  # fmt: skip
    meter = harness.find_meter(root)
    assert isinstance(meter, harness.Meter)
    assert meter.power_mw is not None
    assert meter.source == "INA, VDD_IN"
    assert meter.power_mw() == 6000


def test_rails_are_added_up_where_none_carries_the_board(tmp_path: Path) -> None:
    old = "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    root = system(tmp_path, {
        f"{old}/in_power0_input": "1500", f"{old}/rail_name_0": "VDD_A",
        "class/hwmon/hwmon1/name": "ina219", "class/hwmon/hwmon1/power1_input": "2500000",
    })  # fmt: skip
    meter = harness.find_meter(root)
    assert isinstance(meter, harness.Meter)
    assert meter.power_mw is not None
    assert meter.power_mw() == 4000


def test_energy_of_a_call_is_what_the_counter_rose_by() -> None:
    spent = [0.0]

    def call() -> None:
        spent[0] += 2.5

    meter = harness.Meter("a counter", counter_mj=lambda: spent[0])
    assert harness.energy_mj(call, meter, 0.01) == pytest.approx(2.5)


# Shapes and figures


@pytest.mark.parametrize(
    ("shapes", "batch", "filled"),
    [
        ([(-1, 3, 8, 8)], 4, [(4, 3, 8, 8)]),
        ([(1, 3, 8, 8)], 1, [(1, 3, 8, 8)]),
        ([(-1, -1)], 2, [(2, 1)]),
        ([(-1, 3), (7,), ()], 2, [(2, 3), (7,), ()]),
        ([(8, 3)], 8, [(8, 3)]),
        ([(5,)], 1, [(5,)]),
    ],
)
def test_the_batch_goes_where_the_first_axis_is_open(
    shapes: list[tuple[int, ...]], batch: int, filled: list[tuple[int, ...]]
) -> None:
    assert harness.with_batch(shapes, batch) == (filled, ())


def test_a_batch_that_does_not_fit_is_skipped_and_another_than_one_is_told() -> None:
    with pytest.raises(harness.SkipError, match="fixed at 1"):
        harness.with_batch([(1, 3)], 8)
    shapes, notes = harness.with_batch([(4, 3)], 1)
    assert shapes == [(4, 3)]
    assert "fixed at 4" in notes[0]


@pytest.mark.parametrize("q", [90, 99])
def test_a_percentile_takes_as_many_calls_as_mlperfs_early_stopping(q: int) -> None:
    def one_at_most(n: int) -> float:
        p = 1 - q / 100
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in (0, 1))

    least = harness.ENOUGH[q]
    assert one_at_most(least) <= 0.01 < one_at_most(least - 1)


@given(st.integers(1, 800))
def test_percentiles_of_too_few_calls_are_left_out_and_said(n: int) -> None:
    found, notes = harness.percentiles(np.linspace(1e6, 2e6, n))
    assert found["p50"] is not None
    assert [found["p90"] is None, found["p99"] is None] == [n < 64, n < 662]
    assert len(notes) == sum(value is None for value in found.values())


@given(st.floats(1, 1e6), st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_counter_never_falls(size: float, shares: list[float]) -> None:
    ring = harness.Ring(size)
    totals = [ring.total(share * size) for share in shares]
    assert totals == sorted(totals)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"schema": 2, "files": [{}]}', '{"schema": 1, "files": []}',
        '{"schema": 1, "files": [{}], "thread": [1]}', '{"schema": 1, "files": [{}], "threads": [0]}',
        '{"schema": 1, "files": [{}], "seconds": 0}', '{"schema": 1, "files": [{}], "seconds": "1"}',
    ],
    ids=["nothing", "a list", "empty", "schema", "no files", "unknown key", "no threads", "no time", "text"],
)  # fmt: skip
def test_a_spec_that_measures_nothing_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        harness.read_spec(text)


def test_the_harness_is_one_file_for_the_oldest_python_of_a_device() -> None:
    tree = ast.parse(Path(harness.__file__).read_text("utf-8"), feature_version=(3, 10))
    foreign = {
        (node.module or "").split(".")[0]
        if isinstance(node, ast.ImportFrom)
        else node.names[0].name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    } - sys.stdlib_module_names
    assert foreign == {"numpy", "edgekit_runtime"}


# Runs


def test_every_file_is_measured_with_all_threads_and_batches_and_the_rounds_are_shared(
    tmp_path: Path,
) -> None:
    files = [
        {"name": "free", "path": str(write_onnx(tmp_path / "free.onnx", quantized=True, dynamic=True))},
        {"name": "fixed", "path": str(write_tflite(tmp_path / "fixed.tflite"))},
        {"name": "gone", "path": str(tmp_path / "gone.onnx")},
    ]
    result = measured(*files, threads=[1, 2], batches=[1, 3], sustained_s=0.1)
    found = {(r["name"], r["threads"], r["batch"]): r for r in result["runs"]}
    assert set(found) == {("free", t, b) for t in (1, 2) for b in (1, 3)} | {("fixed", t, 1) for t in (1, 2)}
    assert len({len(r["rounds_ms"]) for r in result["runs"]}) == 1
    for each in found.values():
        assert 0 < each["latency_ms"]["p50"] <= each["latency_ms"]["mean"] * 3
        assert each["load_ms"] < each["cold_start_ms"]
        assert 10 < each["memory_mb"]["before"] < each["memory_mb"]["steady"] <= each["memory_mb"]["peak"]
        assert each["per_s"] == pytest.approx(1e3 * each["batch"] / each["latency_ms"]["mean"], rel=1e-3)
    assert [each["what"] for each in result["skipped"]] == ["batch 3: the file's batch is fixed at 1"]
    assert [each["name"] for each in result["errors"]] == ["gone"]
    assert {(s["name"], s["threads"], s["batch"]) for s in result["sustained"]} == {
        ("free", 2, 1),
        ("fixed", 2, 1),
    }
    assert result["noise"]["seconds"] > 0


def test_a_file_that_its_runtime_refuses_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"\x00\x00\x00\x00TFL3garbage")
    (tmp_path / "worse.onnx").write_bytes(b"garbage")
    good = write_onnx(tmp_path / "good.onnx", quantized=False)
    paths = [tmp_path / "bad.tflite", tmp_path / "worse.onnx", good]
    result = measured(*({"name": path.name, "path": str(path)} for path in paths))
    assert [run["name"] for run in result["runs"]] == ["good.onnx"]
    assert [each["name"] for each in result["errors"]] == ["bad.tflite", "worse.onnx"]
    assert all(each["what"] for each in result["errors"])


def test_a_file_that_kills_its_runtime_costs_its_own_row_alone(tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "onnxruntime.py").write_text(
        "import os, sys\nprint('double free', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    files = [
        {"name": "killer", "path": str(write_onnx(tmp_path / "a.onnx", quantized=False))},
        {"name": "good", "path": str(write_tflite(tmp_path / "b.tflite"))},
    ]
    path = os.pathsep.join(filter(None, (str(fake), os.environ.get("PYTHONPATH", ""))))
    done = run(spec(*files), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [each["name"] for each in result["runs"]] == ["good"]
    (failed,) = result["errors"]
    assert "SIGABRT" in failed["what"]
    assert "double free" in failed["what"]


def test_what_is_no_spec_is_wrong_usage() -> None:
    done = run("{")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "SPEC.json" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_measuring_and_keeps_what_is_there(tmp_path: Path, number: signal.Signals) -> None:
    file = {"name": "x", "path": str(write_onnx(tmp_path / "x.onnx", quantized=False))}
    process = subprocess.Popen(
        [sys.executable, harness.__file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout is not None
        process.stdin.write(spec(file, seconds=60.0))
        process.stdin.close()
        rounds = 0
        while rounds < 2:
            rounds += '"what": "rounds"' in process.stderr.readline()
        process.send_signal(number)
        result = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert result["interrupted"] is True
    assert len(result["runs"][0]["rounds_ms"]) > 1
