"""The keyword example: from wav files to inputs, where the recordings come from, and one small whole run."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import threading
import wave
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import keywords, keywords_data
from examples.keywords_data import arrays, content_sha256, download, find, read
from examples.keywords_sound import (
    BANDS,
    FRAMES,
    LENGTH,
    RATE,
    SHAPE,
    SOUND,
    WINDOW,
    fitted,
    log_mel,
    read_wav,
)

from edgekit.bundle import Bundle
from edgekit.cli import app
from edgekit.errors import UsageError
from edgekit.recipe import load_recipe
from edgekit_runtime.sound import Sound, mel_filters

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "keywords.md").read_text(encoding="utf-8")


def wav(samples: np.ndarray, *, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setframerate(rate)
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.writeframes((np.asarray(samples) * 32767).astype(f"<i{width}").tobytes())
    return file.getvalue()


def tone(hertz: float, n: int = LENGTH) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(n) / RATE)).astype(np.float32)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


RECORDINGS = {
    f"{digit}_{speaker}_{number}.wav": wav(tone(200 + 300 * digit, 3000))
    for digit in range(3)
    for speaker in ("jo", "ann")
    for number in (0, 14, 15, 49)
}


# From sound to inputs.


@pytest.mark.parametrize("hertz", [100, 440, 1000, 1800, 3400])
def test_a_tone_is_loudest_in_the_band_around_it(hertz: float) -> None:
    spectrogram = log_mel(tone(hertz))

    loudest = spectrogram[0].mean(0).argmax()
    assert abs(int(loudest) - SOUND.band_of(hertz)) <= 1
    assert spectrogram[0, :, loudest].min() > 0.9
    assert spectrogram[0, :, (loudest + BANDS // 2) % BANDS].max() < -0.5


def test_inputs_have_one_shape_and_lie_between_minus_one_and_one() -> None:
    noise = np.random.default_rng(0).standard_normal(LENGTH).astype(np.float32)

    spectrogram = log_mel(noise)

    assert spectrogram.shape == SHAPE == (1, FRAMES, BANDS)
    assert spectrogram.dtype == np.float32
    assert spectrogram.min() >= -1
    assert spectrogram.max() == 1


def test_loudness_is_no_feature() -> None:
    sound = tone(700) + tone(2100)

    np.testing.assert_allclose(log_mel(sound / 100), log_mel(sound), atol=1e-5)


def test_silence_is_the_floor_everywhere() -> None:
    spectrogram = log_mel(np.zeros(4000, np.float32))

    assert (spectrogram == -1).all()


@pytest.mark.parametrize("n", [1, WINDOW - 1, LENGTH // 2, LENGTH - 1])
def test_a_short_recording_stands_in_the_middle_of_silence(n: int) -> None:
    stretch = fitted(np.ones(n, np.float32))

    before = (LENGTH - n) // 2
    assert len(stretch) == LENGTH
    assert np.flatnonzero(stretch).tolist() == list(range(before, before + n))
    assert np.isfinite(log_mel(np.ones(n, np.float32))).all()


def test_a_long_recording_is_cut_to_its_loudest_part() -> None:
    sound = np.full(3 * LENGTH, 0.01, np.float32)
    sound[LENGTH + 123 : 2 * LENGTH + 123] = 0.5

    assert np.array_equal(fitted(sound), np.full(LENGTH, 0.5, np.float32))


def test_a_recording_of_the_right_length_stays_as_it_is() -> None:
    assert np.array_equal(fitted(tone(300)), tone(300))


def test_the_bands_leave_no_gap_between_the_lowest_and_the_highest() -> None:
    filters = mel_filters(SOUND)

    assert filters.shape == (129, BANDS)
    assert (filters.max(0) > 0.2).all()
    assert (filters >= 0).all()
    assert (filters <= 1).all()
    # From 100 Hz to 3.5 kHz every frequency counts about once.
    covered = filters.sum(1)[4:112]
    assert covered.min() > 0.9
    assert covered.max() < 1.1


def test_samples_are_read_as_they_were_written() -> None:
    sound = tone(500, 100)

    samples = read_wav(wav(sound), "a.wav")

    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, sound, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wav(tone(300, 100), rate=16000), "16000 Hz, 1 channel(s), 16 bits"),
        (wav(tone(300, 100), channels=2), "8000 Hz, 2 channel(s), 16 bits"),
        (wav(tone(300, 100), width=4), "8000 Hz, 1 channel(s), 32 bits"),
        (b"", "it ends too early"),
        (b"ID3\x04 no wav file at all", "RIFF"),
        (wav(tone(300, 100))[:-20], "90 of 100 samples"),
        (wav(tone(300, 0)), "0 of 0 samples"),
    ],
    ids=["rate", "stereo", "bits", "nothing", "another format", "cut off", "no samples"],
)
def test_another_file_is_refused_by_name(content: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        read_wav(content, "größe.wav")

    assert str(caught.value).startswith("größe.wav: ")
    assert "expected: " in str(caught.value)


# The archive.


def test_recordings_judge_or_train_by_their_number(tmp_path: Path) -> None:
    data = arrays(read(archive(tmp_path / "a.zip", RECORDINGS)))

    assert {name: value.shape for name, value in data.items()} == {
        "train_x": (12, *SHAPE),
        "train_y": (12,),
        "eval_x": (12, *SHAPE),
        "eval_y": (12,),
    }
    assert data["train_x"].dtype == np.float32
    assert data["train_y"].dtype == np.int64
    assert data["eval_y"].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_an_archive_is_known_by_its_recordings_however_it_is_packed(tmp_path: Path) -> None:
    flat = archive(tmp_path / "flat.zip", RECORDINGS)
    nested = {f"digits-26eb9aa/recordings/{name}": content for name, content in reversed(RECORDINGS.items())}
    packed = archive(tmp_path / "packed.zip", {"digits-26eb9aa/README.md": b"text", **nested})
    other = archive(tmp_path / "other.zip", RECORDINGS | {"0_ann_0.wav": wav(tone(301, 3000))})

    assert content_sha256(read(flat)) == content_sha256(read(packed)) == content_sha256(RECORDINGS)
    assert content_sha256(read(other)) != content_sha256(read(flat))


def test_a_file_that_is_no_archive_of_recordings_is_refused(tmp_path: Path) -> None:
    text, empty = tmp_path / "text.zip", archive(tmp_path / "empty.zip", {"README.md": b"nothing"})
    text.write_text("no archive")

    for path, said in (
        (text, "not a zip file"),
        (empty, "no recordings"),
        (tmp_path / "no.zip", "No such file"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            read(path)
        assert keywords_data.URL in str(caught.value)


def test_a_damaged_recording_is_found(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", RECORDINGS)
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)

    with pytest.raises(UsageError, match="CRC"):
        read(path)


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0_ann_0.wav", b"\0" * 5_000_000)

    with pytest.raises(UsageError, match="more than 1,000,000 bytes of recordings"):
        read(tmp_path / "a.zip", limit=1_000_000)


def test_recordings_of_one_set_only_are_refused() -> None:
    with pytest.raises(UsageError, match="no recordings for eval among 1"):
        arrays({"0_ann_15.wav": RECORDINGS["0_ann_15.wav"]})


def test_who_lacks_the_recordings_is_told_where_they_are_and_where_they_go(tmp_path: Path) -> None:
    places = (tmp_path / "shared" / "fsdd.zip", tmp_path / ".cache" / "fsdd.zip")

    with pytest.raises(UsageError) as caught:
        find(places)

    message = str(caught.value)
    assert all(str(place) in message for place in places)
    assert f"fetch {keywords_data.URL} and put it at {places[-1]}" in message
    assert "--download" in message
    assert "CC BY-SA 4.0" in message


def test_the_first_place_that_has_them_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b.zip").touch()

    assert find((tmp_path / "a.zip", tmp_path / "b.zip", tmp_path / "c.zip")) == tmp_path / "b.zip"


def test_the_command_says_what_is_missing_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = keywords.main(["--data", str(tmp_path / "größe.zip"), "--out", str(tmp_path / "out")])

    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the spoken digits are not on this machine")
    assert "größe.zip" in said
    assert keywords_data.URL in said


def test_an_output_that_is_a_file_is_told_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()

    assert keywords.main(["--data", str(tmp_path / "no.zip"), "--out", str(tmp_path / "out")]) == 2
    assert "out: File exists" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_epochs_are_whole_numbers_above_nought(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        keywords.main([f"--epochs={value}"])

    assert stopped.value.code == 2
    assert f"{value}: expected a whole number of at least 1" in capsys.readouterr().err


# The download, from a server in this process.


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Gives the address of a server that answers everything with one content."""
    servers: list[HTTPServer] = []

    def start(content: bytes, *, status: int = 200, announced: int | None = None) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                if announced is not None:
                    self.send_header("Content-Length", str(announced))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{server.server_port}/a.zip"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def packed(tmp_path: Path) -> bytes:
    return archive(tmp_path / "packed.zip", RECORDINGS).read_bytes()


def test_a_download_is_checked_and_kept(serve: Serve, packed: bytes, tmp_path: Path) -> None:
    to = tmp_path / ".cache" / "fsdd.zip"

    assert download(to, url=serve(packed), sha256=content_sha256(RECORDINGS)) == to

    assert to.read_bytes() == packed
    # What is there and right is not fetched again.
    assert download(to, url="http://127.0.0.1:9/", sha256=content_sha256(RECORDINGS)) == to


def test_what_is_there_and_wrong_is_replaced(serve: Serve, packed: bytes, tmp_path: Path) -> None:
    to = archive(tmp_path / "fsdd.zip", {"0_ann_0.wav": b"something else"})

    download(to, url=serve(packed), sha256=content_sha256(RECORDINGS))

    assert to.read_bytes() == packed


def test_what_is_there_and_broken_is_replaced(serve: Serve, packed: bytes, tmp_path: Path) -> None:
    to = tmp_path / "fsdd.zip"
    to.write_bytes(packed[:1000])

    download(to, url=serve(packed), sha256=content_sha256(RECORDINGS))

    assert to.read_bytes() == packed


@pytest.mark.parametrize(
    ("options", "sha256", "limit", "said"),
    [
        ({}, "0" * 64, 10**6, "its recordings have the sha256"),
        ({}, "", 1000, "more than 1,000 bytes"),
        ({"announced": 10**9}, "", 10**6, "the connection broke"),
        ({"status": 404}, "", 10**6, "HTTP Error 404"),
    ],
    ids=["other recordings", "too large", "cut off", "not there"],
)
def test_a_bad_download_leaves_nothing(
    options: dict[str, int], sha256: str, limit: int, said: str, serve: Serve, packed: bytes, tmp_path: Path
) -> None:
    to = tmp_path / "cache" / "fsdd.zip"

    with pytest.raises(UsageError, match=said):
        download(to, url=serve(packed, **options), sha256=sha256, limit=limit)

    assert not to.exists()
    assert not to.parent.exists() or not list(to.parent.iterdir())


def test_a_download_without_a_network_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is there a network"):
        download(tmp_path / "fsdd.zip", url="http://127.0.0.1:9/a.zip")


# The network.


def test_training_learns_repeats_and_leaves_the_global_random_state_alone() -> None:
    y = np.arange(300, dtype=np.int64) % 2
    x = np.stack([log_mel(tone(300 + 1500 * int(high) + i)) for i, high in enumerate(y)])
    before = torch.random.get_rng_state()

    first, second = (keywords.train(x, y, epochs=10, channels=16) for _ in range(2))

    assert keywords.accuracy(first, x, y) > 0.9
    assert not first.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_command_that_is_shown_is_one_that_edgekit_reads() -> None:
    import typer

    program, name, *words = keywords.command(Path("größe out"), 3, keywords.BUDGET)
    known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    values = known.make_context(name, words).params

    assert program == "edgekit"
    assert {key: float(values[key]) for key in keywords.BUDGET} == keywords.BUDGET
    assert values["epochs"] == "3"
    assert Path(values["model"]) == Path("größe out/keywords.pt2")


def test_the_recipe_tells_a_device_what_training_did(tmp_path: Path) -> None:
    path = tmp_path / keywords.RECIPE
    path.write_text(keywords.recipe(), encoding="utf-8")

    read = load_recipe(path)

    assert Sound.from_manifest(read.preprocessing["sound"]) == SOUND
    assert read.model.labels == tuple("0123456789")


# The page.


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def shown() -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]


def test_the_page_shows_the_commands_of_the_example() -> None:
    compress = keywords.command(keywords.OUT, keywords.STUDENT_EPOCHS, keywords.BUDGET)

    assert compress in shown()
    for command in shown():
        if command[:3] == ["python", "-m", "examples.keywords"]:
            keywords.parser().parse_args(command[3:])
    assert keywords_data.URL in PAGE


def test_the_page_tells_the_size_of_the_network() -> None:
    parameters = sum(p.numel() for p in keywords.KeywordNet().parameters())

    assert f"{keywords.CHANNELS} channels wide, {parameters:,} parameters" in PAGE


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sixth of the recordings in an archive of their own."""
    try:
        recordings = read(find())
    except UsageError as missing:
        pytest.skip(str(missing))
    kept = {
        n: c for n, c in recordings.items() if int(n[:-4].split("_")[2]) in (0, 1, 15, 16, 17, 18, 19, 20)
    }
    return archive(tmp_path_factory.mktemp("fsdd") / "fsdd.zip", kept)


@pytest.mark.slow
def test_a_small_run_prunes_for_its_budget_and_the_page_holds_for_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Few recordings and epochs: the size is what has to hold, and any accuracy will do.
    monkeypatch.setattr(keywords, "BUDGET", {"max_drop": 1.0, "max_size_mb": 0.07})
    code = keywords.main(["--data", str(small), "--epochs", "2", "--student-epochs", "1"])

    bundle = Bundle.open(keywords.OUT / keywords.BUNDLE)
    artifacts = bundle.report["artifacts"]
    assert code == (0 if bundle.report["accepted"] else 3)
    assert set(artifacts) == {"onnx", "tflite", "coreml"}
    assert all(a["size_bytes"] <= 70_000 and a["proof"]["holds"] for a in artifacts.values())
    assert any(trial["setting"]["prune"] > 0 and trial["feasible"] for trial in bundle.report["trials"])
    assert (keywords.OUT / keywords.BUNDLE / "report.html").is_file()
    for command in shown():
        if command[0] == "edgekit" and command[1] != "compress":
            done = subprocess.run(
                [sys.executable, "-m", "edgekit.cli", *command[1:]],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
    (snippet,) = blocks("python")
    with zipfile.ZipFile(small) as recordings:
        (tmp_path / "word.wav").write_bytes(recordings.read("7_jackson_0.wav"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", snippet],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in set("0123456789")
