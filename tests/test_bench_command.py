"""`edgekit bench`: options, tables, pages, pictures, and what is left after Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp

import pytest
import typer
from rich.console import Console

from edgekit.bench.command import Outcome, spec_of, target
from edgekit.bench.compare import comparisons
from edgekit.bench.page import render_page
from edgekit.bench.picture import png
from edgekit.bench.plots import MOST_POINTS, thinned
from edgekit.bench.results import EMULATED, PREDICTED, Result
from edgekit.bench.table import summary
from edgekit.bench.targets import progress_of
from edgekit.cli import app
from edgekit.errors import UsageError
from edgekit_devices import ProfileError
from support.bench_results import full, result, run
from support.tiny_files import write_onnx, write_tflite
from support.tiny_runs import call

ROOT = Path(__file__).parents[1]


@cache
def folder() -> Path:
    """`a.onnx`, `b.onnx` and `c.tflite`; nobody writes here."""
    path = Path(mkdtemp())
    write_onnx(path / "a.onnx", quantized=True, dynamic=True)
    write_onnx(path / "b.onnx", quantized=False)
    write_tflite(path / "c.tflite")
    return path


def shown(found: Result, warnings: tuple[str, ...] = (), width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(summary([found], [comparisons(found, found.runs[0].name)], [warnings]))
    return captured.get()


def test_files_are_measured_compared_and_written(tmp_path: Path) -> None:
    page, picture, out = (tmp_path / name for name in ("bench.html", "bench.png", "bench.json"))
    done = call(
        "bench", folder() / "a.onnx", folder() / "c.tflite", "--against", folder() / "b.onnx", "--seconds", "0.1",
        "--threads", "1", "--html", page, "--png", picture, "-o", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert all(name in done.stdout for name in ("a.onnx", "b.onnx", "c.tflite", "p50", "the speed of b.onnx"))
    (device,) = json.loads(out.read_text())["devices"]
    assert [each["name"] for each in device["result"]["runs"]] == ["b.onnx", "a.onnx", "c.tflite"]
    assert [each["against"] for each in device["comparisons"]] == ["b.onnx", "b.onnx"]
    assert device["result"]["device"] == "local"
    assert "c.tflite" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_is_alone_on_stdout_and_a_file_that_fails_is_two(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"garbage")
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "bench", bad, folder() / "b.onnx", "--seconds", "0.1", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (device,) = json.loads(done.stdout)["devices"]
    assert [each["name"] for each in device["result"]["errors"]] == ["bad.onnx"]
    assert [each["name"] for each in device["result"]["runs"]] == ["b.onnx"]
    assert "local: rounds" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_after_an_interrupt_what_was_measured_is_shown() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit.cli", "bench", folder() / "b.onnx", "--seconds", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "rounds" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()
    assert process.returncode == 130
    assert "b.onnx" in text
    assert "interrupted" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.onnx"], "no such file"),
        (["{folder}"], "manifest.json"),
        (["{folder}/a.onnx", "--threads", "0"], "--threads 0"),
        (["{folder}/a.onnx", "--threads", "1,,2"], "--threads 1,,2"),
        (["{folder}/a.onnx", "--batch", "x"], "--batch x"),
        (["{folder}/a.onnx", "--seconds", "0"], "--seconds 0"),
        (["{folder}/a.onnx", "--seconds", "nan"], "--seconds nan"),
        (["{folder}/a.onnx", "--sustained", "-1"], "--sustained -1"),
        (["{folder}/a.onnx", "--html", "{folder}/none/x.html"], "folder does not exist"),
        (["{folder}/a.onnx", "-o", "{folder}"], "is a directory"),
        (["{folder}/a.onnx", "--against", "gone.tflite"], "gone.tflite"),
        (["{folder}/a.onnx", "--device", "raspbery-pi-5"], "raspberry-pi-5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_refused_before_anything_is_measured(arguments: list[str], said: str) -> None:
    done = call("bench", *(each.format(folder=folder()) for each in arguments))
    assert done.exit_code == 2
    assert said in done.stderr
    assert "way out" in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [("net.pt", "edgekit compress net.pt"), ("notes.md", "Name a bundle"), ("net.mlpackage", "Xcode")],
)
def test_files_that_no_device_of_ours_runs_are_sent_elsewhere(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=said):
        spec_of([tmp_path / name])


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    other = write_tflite(tmp_path / "c.tflite")
    names = [each.name for each in spec_of([folder() / "c.tflite", other, other]).files]
    assert names == ["c.tflite", str(other), f"{other} (2)"]


def test_devices_are_dispatched_by_their_form() -> None:
    assert all(callable(target(device)) for device in ("local", "ssh://pi@board", "arm64"))
    with pytest.raises(ProfileError, match="unknown device"):
        target("toaster")


def test_a_table_fits_a_plain_terminal_and_names_are_not_markup() -> None:
    text = shown(full(), ("other programs used 52% of the processors",))
    assert all(len(line) <= 80 for line in shown(result(run(), run("other", "tflite"))).splitlines()[1:])
    for each in (
        "<b>[red]net",
        "2.40 ms",
        "350 ms",
        "2.00 ms",
        "SIGSEGV",
        "fixed at 1",
        "52%",
        "662 calls",
        "+30%",
    ):
        assert each in text


def test_estimates_and_emulation_say_what_they_are() -> None:
    estimate = result(run(interval_ms=(1.5, 2.8), rounds_ms=(), notes=()), kind=PREDICTED, noise=None)
    text = shown(estimate)
    assert "≈ 2.00 ms" in text
    assert "1.50 ms" in text
    assert "not a measurement" in text
    assert "nothing about a real board" in shown(result(kind=EMULATED))
    for found in (estimate, result(kind=EMULATED)):
        assert found.kind in render_page([found], [()], [()])
        assert png([found]).startswith(b"\x89PNG")


def test_the_page_is_whole_fetches_nothing_and_escapes_names() -> None:
    page = render_page([full(), result()], [(), ()], [("noisy",), ()])
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert tag not in {"script", "link", "img", "iframe"}
            assert not any(name in {"src", "onclick"} for name, _ in attrs)

    Reader().feed(page)
    assert "&lt;b&gt;[red]net" in page
    assert "<b>" not in page
    assert tags.count("svg") >= 6
    assert not re.search(r"https?://", page)
    assert "noisy" in page


def test_the_picture_has_a_row_for_each_run() -> None:
    from PIL import Image

    heights = [Image.open(BytesIO(png([found]))).height for found in (result(run()), result(run(), run("b")))]
    assert heights[1] > heights[0]
    assert Image.open(BytesIO(png([result(run("größe" * 40))]))).width == 1600


def test_a_long_row_is_drawn_by_medians() -> None:
    points = thinned([float(k % 7) for k in range(5000)])
    assert len(points) <= MOST_POINTS
    assert points[0][0] == 0
    assert thinned([3.0, 1.0]) == [(0.0, 3.0), (1.0, 1.0)]


def test_progress_is_told_apart_from_what_runtimes_say() -> None:
    assert progress_of('{"done": 0.5, "what": "rounds"}') == (0.5, "rounds")
    assert progress_of('{"done": 7, "what": "rounds"}') == (1.0, "rounds")
    for line in ("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.", "[]", "{}", "7", ""):
        assert progress_of(line) is None


def test_the_exit_code_says_what_came_of_it() -> None:
    assert Outcome((result(),), ((),), ((),), False).exit_code == 0
    assert Outcome((full(),), ((),), ((),), False).exit_code == 2
    assert Outcome((full(),), ((),), ((),), True).exit_code == 130


SHOWN = re.findall(
    r"^edgekit (bench .+?)(?: +#.*)?$", (ROOT / "docs" / "bench.md").read_text("utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("line", SHOWN)
def test_commands_of_the_page_on_benchmarks_are_understood(line: str) -> None:
    name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments) as context:
        assert context.params["paths"]
        assert all(callable(target(device)) for device in context.params["device"] or ())
