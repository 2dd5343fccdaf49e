"""The latencies as a PNG, for slides and chats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from io import BytesIO
from typing import Any, Final

from edgekit.bench.results import MEASURED, PREDICTED, Result, Run
from edgekit.bench.table import label, machine_line
from edgekit.errors import UsageError

# Pixels; drawn at twice the size of a page, so that it stays sharp.
WIDTH, MARGIN, ROW, HEAD, BAR = 1600, 48, 60, 130, 26
NAMES, FIGURES = 520, 260
PAPER, INK, QUIET, TRACK, TICK = "#ffffff", "#1a2230", "#5a6577", "#edf0f4", "#1a2230"
TONES: Final = {"onnx": "#2563c9", "tflite": "#0f766e"}


def must_draw() -> None:
    """Refuse where Pillow is not there.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("PIL") is None:
        raise UsageError(
            "--png: Pillow is not installed",
            expected="it, to draw",
            way_out="pip install 'edgekit[images]', or take --html.",
        )


def png(results: Sequence[Result]) -> bytes:
    """Draw a bar for each run, with a tick at its 90th percentile, or at the end of a prediction's interval.

    Args:
        results: one a device, each on a scale of its own.

    Raises:
        UsageError: Pillow is not installed.
    """
    must_draw()
    from PIL import Image, ImageDraw

    height = 2 * MARGIN + sum(HEAD + ROW * max(1, len(each.runs)) for each in results)
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(image)
    top = MARGIN
    for result in results:
        top = _device(pen, result, top)
    out = BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _device(pen: Any, result: Result, top: int) -> int:
    kind = "" if result.kind == MEASURED else f" ({result.kind})"
    _text(pen, MARGIN, top, f"{result.device}{kind}", 36, INK)
    _text(pen, MARGIN, top + 54, _fitting(pen, machine_line(result), 24, WIDTH - 2 * MARGIN), 24, QUIET)
    full = max((end for run in result.runs for end in _ends(run, result)), default=1.0) * 1.02
    y = top + HEAD
    if not result.runs:
        _text(pen, MARGIN, y, "nothing was measured", 26, QUIET)
    for run in result.runs:
        _row(pen, run, result, y, full)
        y += ROW
    return top + HEAD + ROW * max(1, len(result.runs))


def _row(pen: Any, run: Run, result: Result, y: int, full: float) -> None:
    left, right = MARGIN + NAMES, WIDTH - MARGIN - FIGURES
    _text(pen, MARGIN, y, _fitting(pen, label(run, result), 26, NAMES - 20), 26, INK)
    pen.rounded_rectangle((left, y + 2, right, y + 2 + BAR), 5, fill=TRACK)
    median, *end = _ends(run, result)
    length = left + max(6, round((right - left) * median / full))
    pen.rounded_rectangle((left, y + 2, length, y + 2 + BAR), 5, fill=TONES.get(run.format, INK))
    for tick in end:
        x = left + round((right - left) * tick / full)
        pen.rectangle((x, y - 3, x + 3, y + BAR + 7), fill=TICK)
    about = "~ " if result.kind == PREDICTED else ""
    # The font has no µ.
    _text(pen, right + 20, y, f"{about}{median:.3g} ms", 26, INK)


def _ends(run: Run, result: Result) -> Iterator[float]:
    yield run.latency_ms.p50
    tick = run.interval_ms[-1] if result.kind == PREDICTED and run.interval_ms else run.latency_ms.p90
    if tick is not None:
        yield tick


def _text(pen: Any, x: int, y: int, text: str, size: int, colour: str) -> None:
    pen.text((x, y), text, fill=colour, font=_font(size))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitting(pen: Any, text: str, size: int, width: int) -> str:
    """The end of a text that is too long, which tells it from its neighbours."""
    font = _font(size)
    shown = text
    while len(text) > 1 and pen.textlength(shown, font=font) > width:
        text = text[1:]
        shown = f"...{text}"
    return shown
