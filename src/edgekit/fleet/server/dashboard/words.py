"""Words and numbers for people: codes of devices explained, times, shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from edgekit_runtime.policies import BUCKETS

NONE: Final = "–"

GATES: Final[Mapping[str, str]] = {
    "failures": "Devices that failed",
    "agreement": "Agreement with live",
    "errors": "Inputs with an error",
    "nans": "Answers with NaN",
    "latency_ratio": "Latency against live",
    "drift": "Drift of confidence",
    "sample_ratio": "Devices heard of as drawn",
    "arms": "Candidate against control",
}

STATES: Final[Mapping[str, tuple[str, str]]] = {
    "running": ("Running", "info"),
    "paused": ("Paused", "warn"),
    "held": ("Held for a person", "warn"),
    "completed": ("Completed", "good"),
    "failed": ("Stopped by a gate", "bad"),
    "aborted": ("Aborted", "quiet"),
    "pending": ("Pending signature", "warn"),
    "signed": ("Signed", "good"),
    "retired": ("Retired", "quiet"),
}
"""State of a rollout or a version to its name and its tone."""

OUTCOMES: Final[Mapping[str, tuple[str, str]]] = {
    "pass": ("Pass", "good"),
    "hold": ("Hold", "warn"),
    "fail": ("Fail", "bad"),
}

DECISIONS: Final[Mapping[str, tuple[str, str]]] = {
    "opened": ("Opened", "info"),
    "grown": ("Grown", "quiet"),
    "passed": ("Passed", "good"),
    "promoted": ("Promoted", "info"),
    "paused": ("Paused", "warn"),
    "resumed": ("Resumed", "info"),
    "held": ("Held", "warn"),
    "completed": ("Completed", "good"),
    "failed": ("Stopped", "bad"),
    "aborted": ("Aborted", "quiet"),
    "erased": ("Inputs deleted", "quiet"),
}

KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "committed": ("serves well, and stays", "good"),
    "rolled_back": ("was rolled back", "bad"),
    "refused": ("was refused", "bad"),
    "damaged": ("is damaged on the disk", "warn"),
    "not_loaded": ("could not be loaded by a process", "warn"),
}
"""Kind of a device's report to what became of the version."""

PHASES: Final[Mapping[str, str]] = {
    "": "not heard of yet",
    "idle": "idle, serving",
    "fetch": "fetching a candidate",
    "verify": "verifying a candidate",
    "stage": "testing a candidate",
    "shadow": "running a candidate in the shadow",
    "probation": "serving on probation",
    "commit": "committing",
    "rollback": "rolling back",
    "unknown": "in a state that this version does not know",
}

REASONS: Final[Mapping[str, str]] = {
    "crash_loop": "the process crashed again and again while it served",
    "errors": "too many predictions raised an error",
    "nan": "too many answers had NaN or infinity",
    "slow": "predictions took too long",
    "golden": "its answers on the golden inputs differ from those in the bundle",
    "golden_file": "the golden inputs of the bundle cannot be read",
    "latency": "the self-test took longer than the bundle allows",
    "load": "the runtime on this device could not load the file",
    "run": "the runtime on this device failed on an input",
    "no_backend": "this device has no runtime for any of its files",
    "no_artifact": "the bundle has no file that this device can run",
    "no_provider": "an execution provider that it needs is not there",
    "no_delegate": "a delegate that it needs is not there",
    "no_memory": "there was not enough memory",
    "no_room": "there was not enough room on the disk",
    "quota": "it is larger than this device may keep",
    "old_runtime": "it needs a newer edgekit-runtime",
    "other_model": "it is another model than this device runs",
    "manifest": "its manifest breaks the contract",
    "bundle": "its bundle is not what was published",
    "missing": "a file of it is missing",
    "damaged": "a file of it has another hash",
    "disk": "the disk could not be read or written",
    "network": "the server was not reached",
    "server": "the server did not answer to the end",
    "trial_crashed": "the self-test's process crashed",
    "trial_hung": "the self-test did not come to an end",
    "died": "its process ended by itself in the shadow",
    "hung": "its process hung in the shadow",
    "over_memory": "it took more memory than it may in the shadow",
    "withdrawn": "the fleet took it back",
    "silent": "the device fell silent after it took the version",
    "unknown_state": "its state was one that this runtime does not know",
    "tuf_damaged": "the signed metadata could not be read",
    "tuf_root": "the first root is not there",
    "tuf_untrusted": "the metadata is not signed by keys that this device trusts",
    "asked_for": "somebody at the device asked for it",
    "policy": "the policy of its channel could not be read",
    "unexpected": "something that nobody expected; the device's log has it",
}


def reason(code: str) -> str:
    """What a code of a device means."""
    if code in REASONS:
        return REASONS[code]
    phase, ends, _ = code.partition("_never_ended")
    return f"the phase {phase} was begun again and again, and never ended" if ends else code.replace("_", " ")


def share(number: float | None, digits: int = 1) -> str:
    """A share of one as percent, with as many digits as it takes to tell it from none and from all."""
    if number is None or math.isnan(number):
        return NONE
    percent = number * 100
    while digits < 3 and 0 < number < 1 and round(percent, digits) in {0.0, 100.0}:
        digits += 1
    return f"{percent:.{digits}f}".rstrip("0").rstrip(".") + "%" if digits else f"{percent:.0f}%"


def bound(buckets: int) -> str:
    """A bound as percent of the cohort."""
    return share(buckets / BUCKETS, 2)


def count(number: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def moment(at_s: float) -> str:
    """A time in UTC: 2026-01-31 14:05."""
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M}" if at_s > 0 else NONE


def machine(at_s: float) -> str:
    """The same for `<time datetime>`."""
    return f"{datetime.fromtimestamp(max(at_s, 0), UTC):%Y-%m-%dT%H:%M:%SZ}"


def duration(seconds: float) -> str:
    """A stretch of time: 45 s, 12 min, 3 h 20 min, 5 d."""
    seconds = max(0, int(seconds))
    if seconds < 90:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    return f"{hours // 24} d"


def ago(at_s: float, now_s: float) -> str:
    """How long ago: 12 min ago."""
    if at_s <= 0:
        return "never"
    return "just now" if now_s - at_s < 5 else f"{duration(now_s - at_s)} ago"
