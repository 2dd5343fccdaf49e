"""The document of a release: what is written comes back, and what could lead out of a store is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.contract import MAX_FILES, ContractError, File, Release

SHA = "ab" * 32
FILES = {"manifest.json": File(SHA, 10), "model.mlpackage/Data/weights.bin": File("cd" * 32, 0)}
RELEASE = Release("größe", "1.0.0", FILES)


def test_what_is_written_comes_back_and_has_one_name() -> None:
    again = Release.from_json(RELEASE.to_json().encode())
    assert again == RELEASE
    assert again.id == RELEASE.id
    shuffled = Release("größe", "1.0.0", dict(reversed(FILES.items())))
    assert shuffled.id == RELEASE.id
    assert replace(RELEASE, version="1.0.1").id != RELEASE.id


def test_equal_files_are_counted_once() -> None:
    copies = {**FILES, "copy.json": File(SHA, 10)}
    assert replace(RELEASE, files=copies).size_bytes == RELEASE.size_bytes == 10


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/.", ".hidden", "c:\\a", "a\\b", "", "a\0b",
        "a\nb", "\ud800", "x" * 256, "manifest.json/inside", "model.mlpackage", "model.mlpackage/Data",
    ],
)  # fmt: skip
def test_a_path_that_leads_anywhere_else_or_is_two_things_is_refused(path: str) -> None:
    with pytest.raises(ContractError, match="files"):
        replace(RELEASE, files={**FILES, path: File(SHA, 1)})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"schema": 2}, "schema"),
        ({"name": ""}, "name"),
        ({"version": "1 0"}, "version"),
        ({"files": {}}, "files"),
        ({"files": {"model.tflite": {"sha256": SHA, "size_bytes": 1}}}, "files"),
        ({"files": []}, "files"),
        (
            {"files": {"manifest.json": {"sha256": SHA.upper(), "size_bytes": 1}}},
            "files.manifest.json.sha256",
        ),
        ({"files": {"manifest.json": {"sha256": SHA, "size_bytes": -1}}}, "files.manifest.json.size_bytes"),
        ({"files": {"manifest.json": {"sha256": SHA, "size_bytes": True}}}, "files.manifest.json.size_bytes"),
        ({"files": {"manifest.json": {"sha256": SHA}}}, "files.manifest.json.size_bytes"),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_breaks_the_contract_is_named(change: dict[str, Any], key: str) -> None:
    tree = {**json.loads(RELEASE.to_json()), **change}
    with pytest.raises(ContractError) as caught:
        Release.from_json(json.dumps(tree))
    assert caught.value.key == key


def test_more_files_than_any_bundle_has_are_refused() -> None:
    many = {f"{number}": File(SHA, 1) for number in range(MAX_FILES)}
    with pytest.raises(ContractError, match="files"):
        replace(RELEASE, files={**FILES, **many})


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_document_raises_anything_but_a_contract_error(document: str | bytes) -> None:
    with pytest.raises(ContractError):
        Release.from_json(document)
