"""What the routes of one process share."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from edgekit.fleet.context import Fleet
from edgekit.fleet.ingest import Writer
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.probes import Probes
from edgekit.fleet.server.rates import Rates


@dataclass(frozen=True, slots=True)
class Shared:
    """Of one app.

    Attributes:
        fleet: that it serves.
        writer: of posts.
        metrics: that it counts.
        probes: of what it needs.
        device_rates: by device.
        enrol_rates: by address.
        api_rates: by token.
    """

    fleet: Fleet
    writer: Writer
    metrics: Metrics
    probes: Probes = field(init=False)
    device_rates: Rates = field(init=False)
    enrol_rates: Rates = field(init=False)
    api_rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        settings = self.fleet.settings
        object.__setattr__(self, "probes", Probes(self.fleet))
        for name, per_s, burst in (
            ("device_rates", settings.device_posts_per_s, settings.device_burst),
            ("enrol_rates", settings.enrols_per_s, settings.enrols_per_s * 10),
            ("api_rates", settings.api_calls_per_s, settings.api_burst),
        ):
            object.__setattr__(self, name, Rates(per_s, burst))


async def shared(connection: HTTPConnection) -> Shared:
    """What the app of a request shares; a dependency, and async since others would each wait for a thread."""
    found: Shared = connection.app.state.shared
    return found
