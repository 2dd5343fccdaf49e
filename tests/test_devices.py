"""Device profiles: every file is one, and a name that is nearly right is answered with the right one."""

from __future__ import annotations

from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_devices import Profile, ProfileError, load_profile, names, read_profile

VALID = """
title = "Gerät"
isa = "any"
cores = 2
preferred_format = "tflite"
threads = 1
int8_saturates = false
notes = ["a"]
sources = ["https://example.org/"]
"""


def changed(line: str, by: str) -> str:
    assert line in VALID
    return VALID.replace(line, by)


def test_the_documented_devices_are_there() -> None:
    assert names() == (
        *("generic", "iphone-a15", "jetson-orin-nano", "pixel-8", "raspberry-pi-4", "raspberry-pi-5"),
        *("x86-64-avx2", "x86-64-vnni"),
    )


@pytest.mark.parametrize("name", names())
def test_every_profile_loads_and_says_whence_it_knows(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.notes
    assert profile.sources or name == "generic"
    assert profile.cores is None or profile.threads <= profile.cores


def test_only_x86_without_vnni_saturates() -> None:
    assert [name for name in names() if load_profile(name).int8_saturates] == ["x86-64-avx2"]


def test_all_fields_arrive() -> None:
    assert read_profile(VALID, "mine") == Profile(
        name="mine",
        title="Gerät",
        isa="any",
        cores=2,
        preferred_format="tflite",
        threads=1,
        int8_saturates=False,
        notes=("a",),
        sources=("https://example.org/",),
    )
    assert read_profile(changed("cores = 2\n", ""), "mine").cores is None


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("raspberry-pi4", "raspberry-pi-4"),
        ("Pixel8", "pixel-8"),
        ("jetson", "jetson-orin-nano"),
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


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (VALID + "thread = 1\n", "unknown key thread"),
        (VALID + "name = 'x'\n", "unknown key name"),
        (changed("threads = 1\n", ""), "no threads"),
        (changed("threads = 1", "threads = 0"), "threads = 0"),
        (changed("threads = 1", "threads = true"), "threads = True"),
        (changed("cores = 2", "cores = 2.0"), "cores = 2.0"),
        (changed('"tflite"', '"pickle"'), "preferred_format"),
        (changed("= false", '= "no"'), "int8_saturates"),
        (changed('"any"', '" "'), "isa"),
        (changed('["a"]', '"a"'), "notes"),
        (changed("https://example.org/", "a book"), "sources"),
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
