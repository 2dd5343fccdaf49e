"""What the routes of one process share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from anyio import CapacityLimiter
from starlette.requests import HTTPConnection

from edgekit.fleet.context import Fleet
from edgekit.fleet.identity.access import Device
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.probes import Probes
from edgekit.fleet.server.rates import Rates
from edgekit.fleet.windows.ingest import Writer

# Large posts that are read at once. The interpreter reads one at a time, but packs them beside it.
READERS: Final = 2
# Devices that are remembered, about 500 bytes each.
MOST_SENDERS: Final = 50_000


class Senders:
    """Devices by the hash of their token, so that not each post asks the database; used by one thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Device] = OrderedDict()

    def get(self, token_hash: str) -> Device | None:
        """The device that showed this token before; it may be revoked by now."""
        return self._known.get(token_hash)

    def add(self, device: Device) -> None:
        """Remember a device, and forget who was added first where there are too many."""
        self._known[device.token_hash] = device
        if len(self._known) > MOST_SENDERS:
            self._known.popitem(last=False)

    def drop(self, device: Device) -> None:
        """Forget a device that is not let in any more."""
        self._known.pop(device.token_hash, None)


@dataclass(frozen=True, slots=True)
class Shared:
    """Of one app.

    Attributes:
        fleet: that it serves.
        writer: of posts.
        metrics: that it counts.
        probes: of what it needs.
        senders: devices that posted lately.
        readers: threads that read posts at once.
        device_rates: by device.
        enrol_rates: by address.
        api_rates: by token.
    """

    fleet: Fleet
    writer: Writer
    metrics: Metrics
    probes: Probes = field(init=False)
    senders: Senders = field(init=False)
    readers: CapacityLimiter = field(init=False)
    device_rates: Rates = field(init=False)
    enrol_rates: Rates = field(init=False)
    api_rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        settings = self.fleet.settings
        object.__setattr__(self, "probes", Probes(self.fleet))
        object.__setattr__(self, "senders", Senders())
        object.__setattr__(self, "readers", CapacityLimiter(READERS))
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
