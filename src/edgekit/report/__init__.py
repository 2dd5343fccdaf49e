"""The report: what was measured, as JSON for machines, HTML for colleagues and a table for the terminal."""

from edgekit.report.html import render_html
from edgekit.report.schema import (
    ArtifactResult,
    Baseline,
    LayerResult,
    Provenance,
    PruningResult,
    SearchResult,
    StageResult,
    build_report,
    verdict,
)
from edgekit.report.terminal import summary

__all__ = [
    "ArtifactResult",
    "Baseline",
    "LayerResult",
    "Provenance",
    "PruningResult",
    "SearchResult",
    "StageResult",
    "build_report",
    "render_html",
    "summary",
    "verdict",
]
