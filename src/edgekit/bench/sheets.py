"""Device profiles as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit_devices import Profile

__all__ = ["device_list", "device_sheet"]


def device_list(profiles: Sequence[Profile]) -> RenderableType:
    """One row a profile."""
    listing = Table("name", "what", "isa", "format", "int8 saturates")
    for profile in profiles:
        saturates = "yes" if profile.int8_saturates else "no"
        listing.add_row(profile.name, profile.title, profile.isa, profile.preferred_format, saturates)
    return listing


def device_sheet(profile: Profile) -> RenderableType:
    """All that is known of one device, and where each figure is from."""
    sheet = Table(box=None, pad_edge=False, show_header=False)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    for title, value in _rows(profile):
        sheet.add_row(title, Text(value))
    notes = [Text(f"* {note}") for note in (*profile.notes, *filter(None, (profile.thermal,)))]
    # An address that is folded cannot be followed, so each stands for itself.
    sources = [Text(f"{key}: {source}", style="dim")
               for key, source in profile.sources.items()]  # fmt: skip
    return Group(Text(f"{profile.name}: {profile.title}", style="bold"), sheet, *notes, *sources)


def _rows(profile: Profile) -> Iterator[tuple[str, str]]:
    """Title and value."""
    yield "instruction set", profile.isa
    yield "extensions", ", ".join(profile.features)
    for cluster in profile.processors:
        caches = [f"{n} KB {level}" for level, n in (("L1", cluster.l1_kb), ("L2", cluster.l2_kb)) if n]
        clock = f"{cluster.count} × {cluster.core} at {cluster.ghz:g} GHz"
        yield "cores", ", ".join([clock, *caches])
    if profile.l3_kb:
        yield "shared cache", f"{profile.l3_kb} KB"
    if profile.memory_mb:
        yield "memory", f"{profile.memory_mb} MB"
    if profile.bandwidth_gb_s:
        yield "bandwidth", f"{profile.bandwidth_gb_s:g} GB/s"
    if profile.flash_kb:
        yield "flash", f"{profile.flash_kb} KB"
    if profile.ram_kb:
        yield "RAM", f"{profile.ram_kb} KB"
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    runs = f"{profile.preferred_format} by {profile.backend} ({profile.delegate}), {threads}"
    yield "runs", runs
    yield "wheels", ", ".join(profile.wheels) or "none"
    saturates = "saturates: weights get 7 bits" if profile.int8_saturates else "does not saturate"
    yield "int8", saturates
    for table in profile.calibration:
        threads = f"{table.threads} thread{'s' if table.threads > 1 else ''}"
        found = f"{table.format} {table.precision}, {threads}: {len(table.points)} operators"
        yield "calibrated", found
