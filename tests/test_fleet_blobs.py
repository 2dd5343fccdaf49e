"""Blobs, the same in a folder and in S3: whole or not there, what they were, and never outside."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgekit.fleet.errors import ConflictError, FleetError, InvalidError, NotFoundError, TooMuchError
from edgekit.fleet.errors import UnavailableError as AwayError
from edgekit.fleet.storage.blobs import Blobs, open_blobs, read
from edgekit.fleet.storage.spool import is_name
from support.disks import make_read_only, small_disk
from support.s3 import bucket_url
from support.storage_actor import Actor

LIMIT = 32 * 1024 * 1024


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path, monkeypatch) -> str:
    return str(tmp_path / "blobs") if request.param == "folder" else bucket_url(monkeypatch)


@pytest.fixture
def blobs(url) -> Blobs:
    return open_blobs(url)


def put(blobs: Blobs, name: str, *parts: bytes, **options) -> int:
    return blobs.put(name, parts, **{"max_bytes": LIMIT, **options})


@pytest.mark.parametrize(
    "name",
    [
        "metadata/3.root.json",
        "blobs/" + "a" * 64,
        "targets/releases/ab.x.json",
        "Zürich/модель 1+2=3.json",
        "x",
    ],
)
def test_what_is_put_is_read_and_deleted(blobs, name):
    assert blobs.size(name) is None
    assert put(blobs, name, b"one", b"", b"two") == 6
    assert blobs.size(name) == 6
    assert read(blobs, name, 6) == b"onetwo"
    assert list(blobs.names()) == [name]
    blobs.delete(name)
    blobs.delete(name)
    assert blobs.size(name) is None
    assert list(blobs.names()) == []


def test_zero_bytes_are_something(blobs):
    assert put(blobs, "empty", max_bytes=0, sha256=hashlib.sha256().hexdigest()) == 0
    assert blobs.size("empty") == 0
    assert list(blobs.open("empty")) == []


def test_a_large_blob_comes_back_in_chunks(blobs):
    part = os.urandom(1024 * 1024)
    digest = hashlib.sha256(part * 20).hexdigest()
    blobs.put("large", (part for _ in range(20)), max_bytes=LIMIT, sha256=digest)
    blobs.put("large", (part for _ in range(20)), max_bytes=LIMIT)
    found, sizes = hashlib.sha256(), []
    for chunk in blobs.open("large"):
        found.update(chunk)
        sizes.append(len(chunk))
    assert found.hexdigest() == digest
    assert max(sizes) <= 16 * 1024 * 1024
    with pytest.raises(ConflictError):
        blobs.put("large", (part for _ in range(21)), max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("at", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 4, b"3456"),
        (9, 1, b"9"),
        (10, 0, b""),
        (10, None, b""),
    ],
)
def test_a_stretch_is_read(blobs, at, length, expected):
    put(blobs, "digits", b"0123456789")
    assert b"".join(blobs.open("digits", at, length)) == expected


@pytest.mark.parametrize(("at", "length"), [(-1, None), (11, None), (3, 8), (3, -1)])
def test_a_stretch_outside_is_refused(blobs, at, length):
    put(blobs, "digits", b"0123456789")
    with pytest.raises(InvalidError) as caught:
        blobs.open("digits", at, length)
    assert caught.value.code == "bad_range"


def test_what_is_not_there_is_said_before_the_first_byte(blobs):
    with pytest.raises(NotFoundError):
        blobs.open("nothing")


def test_names_are_those_of_a_folder(blobs):
    for name in ("a/1", "a/b/2", "ab/3", "4"):
        put(blobs, name, b"x")
    assert sorted(blobs.names()) == ["4", "a/1", "a/b/2", "ab/3"]
    assert sorted(blobs.names("a")) == sorted(blobs.names("a/")) == ["a/1", "a/b/2"]
    assert list(blobs.names("none")) == []


def test_the_same_bytes_again_change_nothing_and_others_are_refused(blobs):
    put(blobs, "a/b", b"first")
    assert put(blobs, "a/b", b"fi", b"rst") == 5
    with pytest.raises(ConflictError) as caught:
        put(blobs, "a/b", b"other")
    assert caught.value.code == "blob_exists"
    assert read(blobs, "a/b", 9) == b"first"
    put(blobs, "a/b", b"other", replace=True)
    assert read(blobs, "a/b", 9) == b"other"


def test_the_same_bytes_again_date_a_blob_anew(blobs):
    assert blobs.written_s("a/b") is None
    began_s = time.time()
    put(blobs, "a/b", b"first")
    first_s = blobs.written_s("a/b")
    assert began_s - 2 < first_s < time.time() + 2
    time.sleep(1.1)
    put(blobs, "a/b", b"first")
    assert blobs.written_s("a/b") > first_s + 0.9
    assert read(blobs, "a/b", 9) == b"first"


def test_of_two_writers_of_different_bytes_one_is_refused(blobs):
    results: list[object] = []

    def write(content: bytes) -> None:
        try:
            results.append(put(blobs, "metadata/4.snapshot.json", content))
        except ConflictError as error:
            results.append(error.code)

    threads = [threading.Thread(target=write, args=(b"x" * (n + 1),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("blob_exists") == 5
    assert blobs.size("metadata/4.snapshot.json") in results


class BrokenOffError(Exception):
    """What the sender of a stream raises."""


def broken_off():
    yield b"x" * 1000
    raise BrokenOffError


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("parts", "options", "expected"),
    [
        (lambda: [b"damaged"], {"sha256": "0" * 64}, InvalidError),
        (lambda: [b"x" * 1000], {"max_bytes": 999}, TooMuchError),
        (broken_off, {}, BrokenOffError),
    ],
    ids=["another hash", "too large", "broken off"],
)
def test_a_failed_put_leaves_what_was_there(blobs, parts, options, expected, replace):
    name = "metadata/timestamp.json"
    if replace:
        put(blobs, name, b"before")
    with pytest.raises(expected):
        blobs.put(name, parts(), replace=replace, **{"max_bytes": LIMIT, **options})
    assert blobs.size(name) == (6 if replace else None)
    assert list(blobs.names()) == ([name] if replace else [])


def test_a_writer_that_is_killed_leaves_nothing_to_see(url, blobs):
    put(blobs, "metadata/timestamp.json", b"before")
    for name in ("blobs/new", "metadata/timestamp.json"):
        with Actor("put", url, name) as actor:
            assert actor.hear() == "ready"
            actor.go()
            assert actor.hear() == "half"
    assert list(blobs.names()) == ["metadata/timestamp.json"]
    assert read(blobs, "metadata/timestamp.json", 9) == b"before"


BAD_NAMES = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    ".tmp/a",
    "a/.b",
    "a\\b",
    "a\x00b",
]
BAD_NAMES += [
    "c:a",
    "a\nb",
    "a?b",
    "a#b",
    "a%2e%2e",
    " a",
    "a ",
    "a" * 201,
    "/".join(["a" * 100] * 9),
    "e\u0301",
]
BAD_NAMES += ["\ud800", "\u202ea", "*"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_is_none_is_refused_everywhere(blobs, name):
    uses = [lambda: put(blobs, name, b"x"), lambda: blobs.open(name), lambda: blobs.size(name)]
    for use in (*uses, lambda: blobs.delete(name)):
        with pytest.raises(InvalidError) as caught:
            use()
        assert caught.value.code == "bad_name"
    assert list(blobs.names()) == []


@given(st.text(max_size=30))
@example("../x")
def test_a_name_stays_below_its_folder(name):
    if is_name(name):
        assert os.path.normpath(f"/root/{name}") == f"/root/{name}"
        assert name.encode().isascii() or name.isprintable()


# A folder


def test_files_are_served_as_they_are(tmp_path):
    put(open_blobs(f"file://{tmp_path}/with%20space"), "a/b.json", b"x")
    path = tmp_path / "with space" / "a" / "b.json"
    assert path.read_bytes() == b"x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_links_lead_nowhere(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "blobs"
    blobs = open_blobs(str(root))
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    os.mkfifo(root / "pipe")
    assert list(blobs.names()) == list(blobs.names("folder")) == []
    for name in ("folder/secret", "file", "pipe"):
        with pytest.raises(FleetError):
            blobs.open(name)
        with pytest.raises(FleetError):
            put(blobs, name, b"x")
    with pytest.raises(FleetError):
        put(blobs, "folder/new", b"x")
    put(blobs, "file", b"x", replace=True)
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert (outside / "secret").read_text() == "secret"


def test_a_name_is_a_file_or_a_folder(tmp_path):
    blobs = open_blobs(str(tmp_path))
    put(blobs, "a/b", b"x")
    for name in ("a", "a/b/c"):
        assert blobs.size(name) is None
        for replace in (False, True):
            with pytest.raises(ConflictError):
                put(blobs, name, b"x", replace=replace)
    assert list(blobs.names()) == ["a/b"]


def test_what_a_killed_writer_left_is_swept_a_day_later(tmp_path):
    (tmp_path / ".tmp").mkdir()
    for name, age_s in (("old", 100_000), ("new", 10)):
        (tmp_path / ".tmp" / name).write_text("half")
        os.utime(tmp_path / ".tmp" / name, (time.time() - age_s,) * 2)
    open_blobs(str(tmp_path))
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["new"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        blobs = open_blobs(str(disk))
        put(blobs, "kept", b"x" * 100_000)
        with pytest.raises(AwayError) as caught:
            put(blobs, "large", *[b"x" * 100_000] * 20)
        assert caught.value.code == "no_room"
        assert list(blobs.names()) == ["kept"]
        assert not list((disk / ".tmp").iterdir())
        put(blobs, "small", b"x" * 100_000)


def test_a_disk_that_takes_nothing_is_said_and_is_still_read(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        put(open_blobs(str(disk)), "kept", b"x")
        make_read_only(disk)
        blobs = open_blobs(str(disk))
        for use in (lambda: put(blobs, "new", b"x"), lambda: blobs.delete("kept")):
            with pytest.raises(AwayError) as caught:
                use()
            assert caught.value.code == "blobs_away"
        assert read(blobs, "kept", 1) == b"x"


def test_a_folder_that_went_away_is_not_taken_for_an_empty_one(tmp_path):
    blobs = open_blobs(str(tmp_path / "blobs"))
    (tmp_path / "blobs").rmdir()
    uses = [lambda: blobs.size("a"), lambda: blobs.open("a"), lambda: put(blobs, "a", b"x")]
    for use in (*uses, lambda: list(blobs.names())):
        with pytest.raises(AwayError) as caught:
            use()
        assert caught.value.code == "blobs_away"


# S3


def test_a_bucket_that_is_not_there_is_said_at_once(monkeypatch):
    url = bucket_url(monkeypatch).replace("s3://tests-", "s3://missing-")
    with pytest.raises(AwayError):
        open_blobs(url)


def test_a_prefix_sees_nothing_of_its_neighbours(monkeypatch):
    url = bucket_url(monkeypatch, prefix="one")
    one, other = open_blobs(url), open_blobs(url.replace("/one?", "/other?"))
    put(one, "a", b"x")
    assert list(other.names()) == []
    assert other.size("a") is None


def test_an_s3_that_does_not_answer_is_said(monkeypatch):
    bucket_url(monkeypatch)
    with pytest.raises(AwayError) as caught:
        open_blobs("s3://bucket?endpoint=http://127.0.0.1:1")
    assert caught.value.code == "blobs_away"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x/y",
        "s3:///x",
        "s3://bucket/../x",
        "s3://bucket?key=hidden",
        "s3://key:hidden@bucket",
        "file://host/x",
    ],
)
def test_a_url_of_no_known_blobs_is_refused(url):
    with pytest.raises(InvalidError) as caught:
        open_blobs(url)
    assert "hidden" not in str(caught.value)
