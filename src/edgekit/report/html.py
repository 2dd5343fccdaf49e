"""`report.html`: one self-contained file, verdict first; nothing is fetched when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from edgekit.drawing import charts, numbers
from edgekit.drawing.charts import Bar, Column
from edgekit.report import pruning, trials

__all__ = ["render_html"]

TITLES = {"onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML"}
RUNTIMES = {"onnx": "ONNX Runtime", "tflite": "LiteRT", "coreml": "Core ML"}
# Rows of the table of bytes and MACs; the rest is one row.
TOP_LAYERS = 12
# Layers that a chart marks as the lowest: as many in words, and never more than every fourth.
WORST = ("none", "the lowest", "the two lowest", "the three lowest")
# More columns leave no room for names below them.
NAMED_COLUMNS = 8


def render_html(report: Mapping[str, Any]) -> str:
    """Render the report.

    Args:
        report: the content of `report.json`; names in it may come from anywhere and are escaped.

    Returns:
        One HTML document with its style and charts inside.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        size=numbers.size,
        count=numbers.count,
        ms=numbers.milliseconds,
        percent=numbers.percent,
        db=numbers.decibels,
        times=numbers.times,
        steps=numbers.steps,
        dotted=_dotted,
    )
    environment.globals.update(bar=charts.bar)
    template = environment.from_string(
        (resources.files("edgekit.report") / "template.html").read_text("utf-8")
    )
    style = Markup((resources.files("edgekit.drawing") / "style.css").read_text("utf-8"))  # noqa: S704 - our own file
    return template.render(style=style, **_view(report)) + "\n"


def _dotted(name: str) -> Markup:
    """Let a long name break after its dots and slashes."""
    text = escape(name)
    for mark in "./":
        text = text.replace(mark, Markup(f"{mark}<wbr>"))  # noqa: S704 - a dot or a slash
    return text


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows, ready to print."""
    metric = report["baseline"]["metric"]
    layers = report["layers"]
    kept = [layer for layer in layers if layer["kept_float"]]
    return {
        "report": report,
        "metric": metric,
        "model": report.get("model", {}),
        "titles": TITLES,
        "headline": _headline(report),
        "cards": [
            _card(name, artifact, report["baseline"]) for name, artifact in report["artifacts"].items()
        ],
        "groups": [
            group for group in (_accuracy(report), _size(report), *_latency(report)) if len(group["bars"]) > 1
        ],
        "snr": _layer_chart(layers, "snr_db", "Signal-to-noise ratio of every layer's output"),
        "damage": _layer_chart(layers, "damage_db", "Output with this layer alone quantized"),
        "lowest": WORST[_marked(layers)],
        "worst": _worst(layers),
        "where": _where(layers),
        "kept": kept,
        "ends": [
            {"title": TITLES.get(name, name), "ops": sorted(artifact["float_ops"].items())}
            for name, artifact in report["artifacts"].items()
            if artifact["float_ops"]
        ],
        "outside": [
            {"title": TITLES.get(name, name), "ops": sorted(artifact["outside_ops"].items())}
            for name, artifact in report["artifacts"].items()
            if artifact.get("outside_ops")
        ],
        "proofs": [
            {"title": TITLES.get(name, name), "proof": artifact["proof"]}
            for name, artifact in report["artifacts"].items()
        ],
        "search": trials.view(report),
        "pruning": pruning.view(report),
        "stages": [_stage(stage, metric) for stage in report["stages"]],
        "value": lambda number: numbers.value(number, metric),
        "points": lambda number: numbers.points(number, metric),
        "change": lambda drop: numbers.change(drop, metric),
    }


def _headline(report: Mapping[str, Any]) -> str:
    """One sentence with the figures that a reader came for."""
    artifacts = list(report["artifacts"].values())
    if not artifacts:
        return "No file could be written."
    metric, float_size = report["baseline"]["metric"], report["baseline"]["size_bytes"]
    parts = []
    if float_size:
        parts.append(f"{numbers.times(float_size / max(a['size_bytes'] for a in artifacts))} smaller")
    speedups = [a["speedup"] for a in artifacts if a["speedup"]]
    if speedups:
        low, high = min(speedups), max(speedups)
        span = (
            numbers.times(low)
            if numbers.times(low) == numbers.times(high)
            else f"{numbers.times(low)} to {numbers.times(high)}"
        )
        parts.append(f"{span} the speed of float")
    drops = [a["drop"] for a in artifacts if a["drop"] is not None]
    if drops:
        parts.append(f"{metric} {numbers.change(max(drops), metric)}")
    files = "1 file" if len(artifacts) == 1 else f"{len(artifacts)} files from one INT8 grid"
    return f"{files}: {', '.join(parts)}." if parts else f"{files}."


def _card(name: str, artifact: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    metric = baseline["metric"]
    shown = numbers.judged(artifact["metric"], metric, artifact["n"], baseline["n"])
    agreement = ("agreement with float", numbers.percent(artifact["agreement"]))
    latency, proof = artifact["latency_ms"], artifact["proof"]
    floats = sum(artifact["float_ops"].values())
    kernels = numbers.NONE if artifact["int8_ops"] is None else f"{artifact['int8_ops']} int8, {floats} float"
    if artifact["delegated_partitions"]:
        parts = artifact["delegated_partitions"]
        kernels += f" in {parts} partition" + ("s" if parts > 1 else "")
    return {
        "title": TITLES.get(name, name),
        "file": artifact["file"],
        "holds": bool(proof and proof["holds"]),
        "state": "proven" if proof and proof["holds"] else "proof missed" if proof else "not proven",
        "notes": artifact["notes"],
        "rows": [
            ("size", numbers.size(artifact["size_bytes"])),
            (metric, f"{shown} ({numbers.change(artifact['drop'], metric)})"),
            *([] if metric == "agreement" else [agreement]),
            ("output SNR", numbers.decibels(artifact["snr_db"])),
            ("median latency", numbers.milliseconds(latency["p50"] if latency else None)),
            ("speed against float", numbers.times(artifact["speedup"])),
            *((f"estimate for {target}", _estimate(found)) for target, found in _predicted(artifact)),
            ("kernels", kernels),
            ("lowering", artifact["lowering"]),
        ],
    }


def _predicted(artifact: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    found: Mapping[str, Mapping[str, Any]] = artifact.get("predicted", {})
    return found.items()


def _estimate(found: Mapping[str, Any]) -> str:
    low, high = numbers.milliseconds(found["low"]), numbers.milliseconds(found["high"])
    return f"about {numbers.milliseconds(found['ms'])} ({low} to {high})"


def _group(title: str, lead: str, bars: Sequence[Bar], full: float | None = None) -> dict[str, Any]:
    longest = max((max(each.value or 0.0, each.mark or 0.0) for each in bars), default=0.0)
    return {"title": title, "lead": lead, "bars": bars, "full": full or longest * 1.02}  # room for the tick


def _accuracy(report: Mapping[str, Any]) -> dict[str, Any]:
    baseline, metric = report["baseline"], report["baseline"]["metric"]
    bars = [Bar("float", baseline["value"], numbers.value(baseline["value"], metric), "float")]
    bars += [
        Bar(
            TITLES.get(name, name),
            artifact["metric"],
            numbers.judged(artifact["metric"], metric, artifact["n"], baseline["n"]),
            note=numbers.change(artifact["drop"], metric),
        )
        for name, artifact in report["artifacts"].items()
        if artifact["metric"] is not None
    ]
    full = 1.0 if metric in numbers.SHARES else None
    return _group("Accuracy", f"{metric} on {baseline['n']} inputs", bars, full)


def _size(report: Mapping[str, Any]) -> dict[str, Any]:
    whole = report["baseline"]["size_bytes"]
    bars = [Bar("float weights", whole, numbers.size(whole), "float")]
    bars += [
        Bar(
            TITLES.get(name, name),
            artifact["size_bytes"],
            numbers.size(artifact["size_bytes"]),
            note=f"{numbers.times(whole / artifact['size_bytes'])} smaller" if whole else "",
        )
        for name, artifact in report["artifacts"].items()
    ]
    return _group("Size", "of the file on disk", bars)


def _latency(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one group: every file under its float twin in the same runtime, all on one scale."""
    bars = []
    for name, artifact in report["artifacts"].items():
        runtime = RUNTIMES.get(name, name)
        timed = (("float", artifact["float_latency_ms"]), ("int8", artifact["latency_ms"]))
        for tone, latency in timed:
            if latency is None:
                continue
            note = (
                f"{numbers.times(artifact['speedup'])} the speed"
                if tone == "int8" and artifact["speedup"]
                else ""
            )
            label = f"{runtime}, {tone}"
            bars.append(
                Bar(label, latency["p50"], numbers.milliseconds(latency["p50"]), tone, note, latency["p90"])
            )
    return [_group("Latency", "median of one inference at batch one; the tick is the 90th percentile", bars)]


def _layer_chart(layers: Sequence[Mapping[str, Any]], key: str, title: str) -> Markup | None:
    """Draw a column per layer; None when the figure was not measured for any."""
    measured = [layer[key] for layer in layers if layer[key] is not None]
    if not measured:
        return None
    marked = _marked(layers)
    bound = sorted(measured)[min(marked, len(measured)) - 1]
    items = [
        Column(
            label=f"{layer['name']} ({layer['op']})",
            value=layer[key],
            shown="kept float" if layer["kept_float"] else numbers.decibels(layer[key]),
            tone=_tone(layer, key, bound),
            name=layer["name"] if len(layers) <= NAMED_COLUMNS else "",
        )
        for layer in layers
    ]
    return charts.columns(items, title=title, unit="dB")


def _marked(layers: Sequence[Mapping[str, Any]]) -> int:
    """How many layers a chart marks as the lowest."""
    return min(len(WORST) - 1, -(-len(layers) // 4))


def _tone(layer: Mapping[str, Any], key: str, bound: float) -> str:
    if layer["kept_float"]:
        return "kept"
    return "worst" if layer[key] is not None and layer[key] <= bound else "int8"


def _worst(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    judged = [layer for layer in layers if layer["damage_db"] is not None or layer["snr_db"] is not None]
    key = "damage_db" if any(layer["damage_db"] is not None for layer in judged) else "snr_db"
    ranked = [layer for layer in judged if layer[key] is not None]
    return sorted(ranked, key=lambda layer: layer[key])[:5]


def _where(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rank the layers by what they hold and compute, the rest summed up in one row."""
    bytes_all = sum(layer["weight_bytes"] for layer in layers)
    macs_all = sum(layer["macs"] for layer in layers)

    def share(layer: Mapping[str, Any]) -> float:
        return float(max(layer["weight_bytes"] / (bytes_all or 1), layer["macs"] / (macs_all or 1)))

    ranked = sorted((layer for layer in layers if share(layer) > 0), key=share, reverse=True)
    rest = ranked[TOP_LAYERS:]
    rows = [
        (layer["name"], layer["op"], layer["weight_bytes"], layer["macs"]) for layer in ranked[:TOP_LAYERS]
    ]
    if rest:
        sums = (sum(layer["weight_bytes"] for layer in rest), sum(layer["macs"] for layer in rest))
        rows.append((f"{len(rest)} more layers", "", *sums))
    return [
        {
            "name": name,
            "op": op,
            "bytes": weight_bytes,
            "macs": macs,
            "bytes_share": weight_bytes / (bytes_all or 1),
            "macs_share": macs / (macs_all or 1),
        }
        for name, op, weight_bytes, macs in rows
    ]


def _stage(stage: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Say what a stage changed, figure by figure; what it left alone is not mentioned."""
    printers: dict[str, tuple[str, Callable[[float | None], str]]] = {
        "params": ("weights", numbers.count),
        "macs": ("MACs", numbers.count),
        "value": (metric, lambda number: numbers.value(number, metric)),
    }
    before, after = stage["before"], stage["after"]
    changed = [
        f"{label} {show(before.get(key))} → {show(after.get(key))}"
        for key, (label, show) in printers.items()
        if before.get(key) != after.get(key)
    ]
    return {
        "name": stage["name"],
        "seconds": f"{stage['seconds']:.1f} s",
        "changed": changed,
        "notes": stage["notes"],
    }
