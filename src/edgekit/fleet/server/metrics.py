"""Figures for Prometheus: what this server did, and how the fleet stands.

With several processes each writes its figures to files in a folder of `PROMETHEUS_MULTIPROC_DIR`, and whichever is
asked adds them up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import FleetError
from edgekit.fleet.rules.rollouts import OPEN
from edgekit.fleet.storage.tables import devices, looks, rollouts, windows

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Of one app.

    Attributes:
        windows: that were stored, by whether they were new.
        requests: by route, method and status.
        seconds: that requests took, by route.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Where files are shared, what is asked for reads those; the registry of this process only counts.
        self._registry = CollectorRegistry()
        self.windows = Counter(
            "edgekit_windows", "Windows that were taken.", ["state"], registry=self._registry
        )
        self.requests = Counter(
            "edgekit_requests", "Requests.", ["route", "method", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "edgekit_request_seconds", "Seconds that requests took.", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def text(self, waiting: int) -> bytes:
        """All figures in the text format.

        Args:
            waiting: posts in the queue of this process.
        """
        own = self._registry
        if FOLDER in os.environ:
            own = CollectorRegistry()
            MultiProcessCollector(own)  # type: ignore[no-untyped-call]
        fleet = CollectorRegistry()
        fleet.register(_FleetCollector(self._fleet, waiting))
        return bytes(generate_latest(own)) + bytes(generate_latest(fleet))


class _FleetCollector(Collector):
    def __init__(self, fleet: Fleet, waiting: int) -> None:
        self._fleet, self._waiting = fleet, waiting

    def collect(self) -> Iterator[Metric]:
        """As `Collector` says."""
        yield GaugeMetricFamily("edgekit_queued_posts", "Posts that wait, in this process.", self._waiting)
        try:
            found = _standing(self._fleet)
        except FleetError:
            yield GaugeMetricFamily("edgekit_database_up", "Whether the database answers.", 0)
            return
        yield GaugeMetricFamily("edgekit_database_up", "Whether the database answers.", 1)
        yield from found


def _standing(fleet: Fleet) -> list[Metric]:
    since_s = fleet.now() - fleet.settings.alive_s
    with fleet.database.reading() as connection:
        known, heard = connection.execute(
            select(func.count(), func.sum(case((devices.c.seen_s >= since_s, 1), else_=0))).where(
                devices.c.revoked.is_(False)
            )
        ).one()
        unmerged = connection.scalar(
            select(func.count()).select_from(windows).where(windows.c.merged.is_(False))
        )
        states = connection.execute(select(rollouts.c.state, func.count()).group_by(rollouts.c.state)).all()
        last = select(func.max(looks.c.id)).group_by(looks.c.rollout)
        looked = connection.execute(
            select(looks.c.rollout, looks.c.verdicts)
            .join(rollouts, rollouts.c.id == looks.c.rollout)
            .where(looks.c.id.in_(last), rollouts.c.state.in_(OPEN))
        ).all()
    by_state = GaugeMetricFamily("edgekit_rollouts", "Rollouts.", labels=["state"])
    for state, count in states:
        by_state.add_metric([state], count)
    gates = GaugeMetricFamily(
        "edgekit_gate", "1 for what a gate of an open rollout says.", labels=["rollout", "gate", "outcome"]
    )
    for rollout, verdicts in looked:
        for verdict in verdicts:
            gates.add_metric([rollout, verdict["gate"], verdict["outcome"]], 1)
    return [
        GaugeMetricFamily("edgekit_devices", "Devices that are enrolled.", known),
        GaugeMetricFamily("edgekit_devices_heard", "Devices that were heard of lately.", heard or 0),
        GaugeMetricFamily("edgekit_windows_waiting", "Windows that are still to be counted.", unmerged or 0),
        by_state,
        gates,
    ]
