"""Measured layers on disk, so that the same machine makes the same choice again.

One JSON file holds any number of machines; a machine is its processor and the version of the runtime. What cannot be
read counts as not measured, and where nothing can be written nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from edgekit.bench.layers.shape import LayerShape
from edgekit.staging import lock_folder, unlock

FORMAT: Final = 1
"""Raised when what is measured, or how, changes."""

DISTRIBUTIONS: Final = {"onnx": ("onnxruntime",), "tflite": ("ai-edge-litert", "tflite-runtime")}
# Lines of /proc/cpuinfo that say which instructions there are, and which processor: x86, then ARM.
_TELLING: Final = ("model name", "flags", "CPU implementer", "CPU part", "CPU variant", "Features")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a file knows of one runtime on this machine.

    Attributes:
        yardstick_ms: best time ever of the layer that tells a quiet machine from a busy one, None before any.
        points: milliseconds of layers, by `name_of`.
    """

    yardstick_ms: float | None = None
    points: Mapping[str, float] = field(default_factory=dict)


def name_of(shape: LayerShape) -> str:
    """A layer as one word of the file, "conv2d-16-32-k3x3-s1x1-d1x1-p1.1x1.1-g1-n32x32"."""
    pads = "x".join(f"{begin}.{end}" for begin, end in shape.pads)
    kernel, stride, dilation, size = (
        "x".join(map(str, v)) for v in (shape.kernel, shape.stride, shape.dilation, shape.size)
    )
    channels = f"{shape.op}-{shape.in_channels}-{shape.out_channels}"
    return f"{channels}-k{kernel}-s{stride}-d{dilation}-p{pads}-g{shape.groups}-n{size}"


def default_store() -> Path:
    """`layers.json` in the cache folder: `EDGEKIT_CACHE`, else `edgekit` in `XDG_CACHE_HOME` or in `~/.cache`."""
    named = os.environ.get("EDGEKIT_CACHE")
    if named:
        return Path(named) / "layers.json"
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache:
        return Path(cache) / "edgekit" / "layers.json"
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        home = Path("/nonexistent")
    return home / ".cache" / "edgekit" / "layers.json"


def machine_key(runtime: str) -> str:
    """Sixteen hex digits that name this processor with a runtime of this version.

    Args:
        runtime: "onnx" or "tflite".
    """
    facts = [FORMAT, runtime, _version(runtime), platform.machine(), *_processor()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def load(store: Path | None, key: str) -> Kept:
    """What `store` knows under `key`; nothing where the file is missing, unreadable or not such a file."""
    record = _records(store).get(key) if store is not None else None
    if not isinstance(record, dict):
        return Kept()
    points = record.get("points")
    points = points if isinstance(points, dict) else {}
    yardstick = record.get("yardstick_ms")
    return Kept(
        yardstick if _is_time(yardstick) else None,
        {name: ms for name, ms in points.items() if _is_time(ms)},
    )


def keep(store: Path | None, key: str, found: Kept) -> Kept:
    """Add to `store` what it does not know yet; what it knows stays, so that an answer once given holds.

    Returns:
        What is known now, from the file and from `found`.
    """
    if store is None:
        return found
    lock = None
    with contextlib.suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(store.parent, wait=True)
    try:
        earlier = load(store, key)
        best = [ms for ms in (found.yardstick_ms, earlier.yardstick_ms) if ms is not None]
        merged = Kept(min(best, default=None), {**found.points, **earlier.points})
        records = {**_records(store), key: asdict(merged)}
        with contextlib.suppress(OSError):
            _write(store, json.dumps({"format": FORMAT, "machines": records}))
    finally:
        unlock(lock)
    return merged


def _write(path: Path, text: str) -> None:
    """Replace the file whole: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _records(store: Path | None) -> dict[str, Any]:
    try:
        content = json.loads(store.read_text(encoding="utf-8")) if store is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    records = content.get("machines")
    return records if isinstance(records, dict) else {}


def _is_time(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _version(runtime: str) -> str:
    for name in DISTRIBUTIONS[runtime]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return ""


def _processor() -> list[str]:
    """Name and instructions of the processor; cores that differ are all named."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [platform.processor()]
    pairs = (line.partition(":") for line in lines)
    return sorted({f"{name.strip()}={value.strip()}" for name, _, value in pairs if name.strip() in _TELLING})
