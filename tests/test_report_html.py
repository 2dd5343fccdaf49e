"""`report.html`: one file, complete by itself, and safe whatever a layer is called."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from edgekit.drawing.charts import Column, bar, columns, nice_ceiling
from edgekit.report import LayerResult, render_html
from support import sample_report

VOID = {"meta", "br", "wbr", "link", "img"}


class Outline(HTMLParser):
    """Tags with their attributes, the visible text, and whether every tag closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def outline(document: str) -> Outline:
    parser = Outline()
    parser.feed(document)
    parser.close()
    return parser


def text_of(document: str) -> str:
    return re.sub(r"\s+", " ", " ".join(outline(document).text))


REPORTS = {"accepted": sample_report.accepted, "refused": sample_report.refused}


@pytest.mark.parametrize("name", REPORTS)
def test_every_tag_closes_and_nothing_is_fetched(name: str) -> None:
    document = render_html(REPORTS[name]())
    found = outline(document)
    assert found.open == []
    for tag, attributes in found.tags:
        assert tag not in {"script", "link", "iframe", "img", "object", "base"}
        assert "src" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:", document)


def test_the_verdict_comes_before_everything_else() -> None:
    for report, word in ((sample_report.accepted(), "Accepted"), (sample_report.refused(), "Refused")):
        found = text_of(render_html(report))
        assert found.index(word) < found.index("The files") < found.index("Proof") < found.index("Provenance")


def test_a_refusal_shows_every_reason_and_note() -> None:
    report = sample_report.refused()
    found = text_of(render_html(report))
    for sentence in (*report["reasons"], *report["notes"]):
        assert sentence in found
    assert "Core ML was not written" in found


def test_figures_are_shown_with_their_units() -> None:
    found = text_of(render_html(sample_report.accepted()))
    for figure in (
        "4.91 MB",
        "87.81%",
        "−0.12 points",
        "97.26%",
        "1.93 ms",
        "3.39×",
        "99.93%",
        "386 M",
        "24.6 dB",
    ):
        assert figure in found


def test_a_file_judged_on_fewer_inputs_says_on_how_many() -> None:
    report = sample_report.accepted()
    assert " of 875" not in text_of(render_html(report))
    report["artifacts"]["coreml"].update(n=128, metric=0.86)
    assert text_of(render_html(report)).count("86.00% of 128") == 2  # the card and the chart
    report["baseline"]["metric"] = "mae"
    assert "0.86 on 128" in text_of(render_html(report))


def test_agreement_is_not_shown_twice() -> None:
    report = sample_report.accepted()
    assert "agreement with float" in text_of(render_html(report))
    report["baseline"]["metric"] = "agreement"
    assert "agreement with float" not in text_of(render_html(report))


@pytest.mark.parametrize(
    ("layers", "marked", "words"),
    [(1, 1, "the lowest"), (5, 2, "the two lowest"), (40, 3, "the three lowest")],
)
def test_the_lowest_layers_are_few_and_counted_in_words(layers: int, marked: int, words: str) -> None:
    report = sample_report.accepted()
    report["layers"] = [
        {**report["layers"][0], "name": f"stage.block{i}.conv", "snr_db": 20.0 + i, "damage_db": None}
        for i in range(layers)
    ]
    document = render_html(report)
    assert f" {words} " in text_of(document)
    assert document.count('class="fill worst"') == marked
    assert document.count(">…age.block0.conv</text>") == (layers <= 8)
    assert "kept float" not in text_of(document)


def test_what_stayed_float_is_named_with_its_reason() -> None:
    found = text_of(render_html(sample_report.accepted()))
    assert "no runtime has an int8 kernel" in found
    assert "LayerNormalization" in found


def test_names_from_the_model_are_text_and_never_markup() -> None:
    evil = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>{{ 7 * 7 }}'&"
    layer = LayerResult(evil, evil, 10, 10, 1.0, 1.0, kept_float=True, reason=evil)
    onnx = replace(sample_report.artifacts()[0], float_ops={evil: 1}, notes=(evil,), file=evil)
    provenance = replace(sample_report.provenance(), command=evil, versions={evil: evil})
    document = render_html(
        sample_report.accepted(
            name=evil, layers=(layer,), artifacts=(onnx,), notes=[evil], provenance=provenance
        )
    )
    found = outline(document)
    assert found.open == []
    assert not {"script", "img"} & {tag for tag, _ in found.tags}
    assert "{{ 7 * 7 }}" in "".join(found.text)
    labels = [attributes["aria-label"] for _, attributes in found.tags if "aria-label" in attributes]
    assert all("<" not in (label or "") for label in labels)


def test_a_report_with_nothing_measured_still_renders() -> None:
    baseline = replace(sample_report.baseline(), value=None, latency=None, n=0, size_bytes=0)
    document = render_html(
        sample_report.accepted(baseline=baseline, artifacts=(), layers=(), stages=(), notes=[])
    )
    found = text_of(document)
    assert "Refused" in found
    assert "No file could be written" in found
    assert "the whole network is on the grid" in found


def test_a_bare_artifact_renders_with_dashes() -> None:
    onnx = replace(
        sample_report.artifacts()[0],
        proof=None,
        latency=None,
        float_latency=None,
        metric=None,
        drop=None,
        agreement=None,
        snr_db=None,
        int8_ops=None,
    )
    found = text_of(render_html(sample_report.accepted(artifacts=(onnx,))))
    assert "not proven" in found
    assert "nothing on this machine could read it" in found


def test_a_network_of_a_thousand_layers_has_a_thousand_columns() -> None:
    document = render_html(sample_report.accepted(layers=sample_report.layers(1000)))
    assert document.count("<title>blocks.") >= 1900
    assert len(document) < 2_000_000
    assert "988 more layers" in text_of(document)


def test_the_page_has_one_heading_and_labelled_regions() -> None:
    found = outline(render_html(sample_report.accepted()))
    tags = [tag for tag, _ in found.tags]
    assert tags.count("h1") == 1
    assert tags.count("main") == 1
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        if attributes.get("aria-labelledby"):
            assert attributes["aria-labelledby"] in ids


def test_the_same_report_is_the_same_page() -> None:
    assert render_html(sample_report.accepted()) == render_html(sample_report.accepted())


@pytest.mark.parametrize(
    ("value", "full", "width"), [(0.5, 1, "50.00%"), (3, 1, "100.00%"), (1, 4, "25.00%")]
)
def test_a_bar_is_as_long_as_its_share(value: float, full: float, width: str) -> None:
    assert f'class="fill int8" width="{width}"' in bar(value, full, "int8")


@pytest.mark.parametrize(("value", "full"), [(None, 1), (0, 1), (1, 0), (-1, 1)])
def test_a_bar_of_nothing_is_an_empty_track(value: float | None, full: float) -> None:
    drawn = bar(value, full, "int8")
    assert "track" in drawn
    assert "fill" not in drawn


def test_columns_below_zero_hang_from_the_line() -> None:
    drawn = columns([Column("good", 10, "10 dB"), Column("bad", -5, "−5 dB")], title="t", unit="dB")
    tops = [float(each) for each in re.findall(r'class="fill int8" x="[^"]+" y="([^"]+)"', drawn)]
    zero = 190 * 10 / 15
    assert tops == [pytest.approx(0, abs=0.1), pytest.approx(zero, abs=0.1)]


@pytest.mark.parametrize(
    ("value", "ceiling"),
    [(0, 1), (-3, 1), (float("nan"), 1), (0.9, 1), (1, 1), (31, 40), (47, 50), (99, 100)],
)
def test_axes_end_at_round_numbers(value: float, ceiling: float) -> None:
    assert nice_ceiling(value) == pytest.approx(ceiling)
