"""Device profiles: every file is one, each figure has its source, a name that is nearly right gets the right one."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_devices import (
    Calibration,
    Cluster,
    Point,
    Profile,
    ProfileError,
    find_profile,
    load_profile,
    names,
    read_profile,
)

VALID = """
title = "Gerät"
isa = "any"
preferred_format = "tflite"
threads = 1
int8_saturates = false
notes = ["a"]

[sources]
"""
WHOLE = """
title = "Gerät"
isa = "any"
cores = 6
features = ["neon"]
preferred_format = "tflite"
threads = 2
int8_saturates = false
memory_mb = 512
bandwidth_gb_s = 3
wheels = ["ai-edge-litert"]
notes = ["a"]

[[processors]]
core = "cortex-a53"
count = 4
ghz = 1.4
l2_kb = 512

[[processors]]
core = "cortex-a72"
count = 2
ghz = 2

[[calibration]]
format = "onnx"
precision = "int8"
threads = 1
call_ms = 0.01
op_ms = 0.001
points = [["conv", 8, 16, 9, 100, 115200, 0.5]]

[sources]
processors = "https://example.org/"
memory_mb = "https://example.org/memory"
bandwidth_gb_s = "assumed"
calibration = "measured"
wheels = "https://example.org/"
"""
DOCUMENTED = (
    *("coral-dev-board", "cortex-a53", "cortex-a72", "cortex-a76", "galaxy-s24", "generic", "iphone-a15"),
    *("iphone-a17", "jetson-agx-orin", "jetson-nano", "jetson-orin-nano", "jetson-xavier-nx", "pixel-8"),
    *("raspberry-pi-3b-plus", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2-w", "stm32h7"),
    *("x86-64-avx2", "x86-64-vnni"),
)
DEVICES = tuple(name for name in DOCUMENTED if name != "generic")


def changed(line: str, by: str, text: str = VALID) -> str:
    assert line in text
    return text.replace(line, by)


def test_the_documented_devices_are_there() -> None:
    assert names() == DOCUMENTED


@pytest.mark.parametrize("name", names())
def test_every_profile_loads_and_says_something(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.notes
    assert profile.cores is None or profile.threads <= profile.cores


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_described_for_speed_or_for_size(name: str) -> None:
    profile = load_profile(name)
    assert profile.size_only != bool(profile.processors)
    if profile.size_only:
        assert profile.ram_kb is not None
    else:
        assert profile.bandwidth_gb_s is not None
        assert profile.features
        assert profile.cores == sum(cluster.count for cluster in profile.processors)


def test_only_classes_of_machines_have_figures_that_are_assumed() -> None:
    assumed = {name for name in names() if "assumed" in load_profile(name).sources.values()}
    assert assumed == {"cortex-a53", "cortex-a72", "cortex-a76", "x86-64-avx2", "x86-64-vnni"}


def test_only_x86_without_vnni_saturates() -> None:
    assert [name for name in names() if load_profile(name).int8_saturates] == ["x86-64-avx2"]


def test_all_keys_arrive() -> None:
    assert read_profile(WHOLE, "mine") == Profile(
        name="mine",
        title="Gerät",
        isa="any",
        preferred_format="tflite",
        threads=2,
        int8_saturates=False,
        notes=("a",),
        sources={
            "processors": "https://example.org/",
            "memory_mb": "https://example.org/memory",
            "bandwidth_gb_s": "assumed",
            "calibration": "measured",
            "wheels": "https://example.org/",
        },
        cores=6,
        features=("neon",),
        processors=(Cluster("cortex-a53", 4, 1.4, l2_kb=512), Cluster("cortex-a72", 2, 2.0)),
        memory_mb=512,
        bandwidth_gb_s=3.0,
        wheels=("ai-edge-litert",),
        calibration=(
            Calibration("onnx", "int8", 1, 0.01, 0.001, (Point("conv", (8, 16, 9, 100), 115200, 0.5),)),
        ),
    )


def test_what_nobody_has_to_say_has_a_default() -> None:
    profile = read_profile(VALID, "mine")
    assert profile.cores is None
    assert not profile.processors
    assert not profile.size_only


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("raspberry-pi4", "raspberry-pi-4"),
        ("Pixel8", "pixel-8"),
        ("jetson", "jetson-nano"),
        ("x86", "x86-64"),
    ],
)
def test_a_name_that_is_nearly_right_gets_the_right_one(name: str, close: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert close in str(caught.value.way_out + caught.value.expected)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["", "../generic", "generic.toml", "/etc/passwd", "日本"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ProfileError, match="unknown device"):
        load_profile(name)


def test_a_file_of_ones_own_is_a_device_too(tmp_path: Path) -> None:
    (tmp_path / "kitchen.toml").write_text(WHOLE, encoding="utf-8")
    assert find_profile(str(tmp_path / "kitchen.toml")) == read_profile(WHOLE, "kitchen")
    assert find_profile("raspberry-pi-4") == load_profile("raspberry-pi-4")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"title = ", b"title = 'x'"], ids=repr)
def test_a_file_that_is_no_profile_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "kitchen.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"kitchen\.toml"):
        find_profile(str(path))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (changed("threads = 1", "thread = 1\nthreads = 1"), "unknown key thread"),
        (changed("threads = 1", "name = 'x'\nthreads = 1"), "unknown key name"),
        (changed("threads = 1\n", ""), "no threads"),
        (changed("[sources]", ""), "no sources"),
        (changed("threads = 1", "threads = 0"), "threads = 0"),
        (changed("threads = 1", "threads = true"), "threads = True"),
        (changed("threads = 1", "threads = 1\ncores = 2.0"), "cores = 2.0"),
        (changed('"tflite"', '"pickle"'), "preferred_format"),
        (changed("= false", '= "no"'), "int8_saturates"),
        (changed('"any"', '" "'), "isa"),
        (changed('["a"]', '"a"'), "notes"),
        (changed("[sources]", "[sources]\ntitle = 'a book'"), "sources"),
        (changed("[sources]", "[sources]\ncolour = 'https://example.org/'"), "sources.colour"),
        (changed("threads = 1", "threads = 1\nmemory_mb = 64"), "memory_mb without a source"),
        (changed("threads = 1", "threads = 1\nbandwidth_gb_s = inf"), "bandwidth_gb_s"),
        (changed("threads = 1", 'threads = 1\nfeatures = ["neon", "neon"]'), "features"),
        (changed("threads = 1", "threads = 1\nprocessors = []"), "processors"),
        (changed("cores = 6", "cores = 5", WHOLE), "cores = 5 beside processors of 6"),
        (changed("threads = 2", "threads = 7", WHOLE), "threads = 7 on 6 cores"),
        (changed("ghz = 1.4", "ghz = 1400", WHOLE), "processors.ghz = 1400"),
        (changed("ghz = 1.4", "mhz = 1400", WHOLE), "unknown key processors.mhz"),
        (changed("count = 4\n", "", WHOLE), "no processors.count"),
        (changed("cortex-a53", "Cortex-A53", WHOLE), "processors.core"),
        (changed("call_ms = 0.01", "call_ms = -1", WHOLE), "calibration.call_ms"),
        (changed(", 0.5]", ", 0.0]", WHOLE), "calibration.points"),
        (changed(", 0.5]", "]", WHOLE), "calibration.points"),
        ("title = ", "mine.toml"),
    ],
)
def test_a_broken_profile_is_refused_by_the_name_of_its_key(text: str, key: str) -> None:
    with pytest.raises(ProfileError, match=r"mine\.toml") as caught:
        read_profile(text, "mine")
    assert key in caught.value.what


@given(st.text(max_size=60))
def test_no_text_raises_anything_but_a_profile_error(text: str) -> None:
    with pytest.raises(ProfileError):
        read_profile(text, "mine")


def test_profiles_are_data_and_nothing_else_lies_beside_them() -> None:
    files = {item.name for item in resources.files("edgekit_devices.profiles").iterdir() if item.is_file()}
    assert files == {"__init__.py", *(f"{name}.toml" for name in names())}
