"""What a shadow may cost, and how it compares."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from edgekit_runtime.strict_json import ContractError, Fields, check_text, check_whole, is_real, parse, show


@dataclass(frozen=True, slots=True)
class Shadow:
    """The budget of a shadow, and its habits.

    Attributes:
        rate: share of the predictions that is drawn for the comparison.
        cpu_share: of one core that the candidate's process may take, its start included.
        only_idle: the process runs when nobody else wants a core, which on a busy device may be hardly ever; False: it
            runs at the lowest priority of those that do.
        memory_bytes: that this process may take.
        max_celsius: of the hottest sensor; above it nothing is compared until it is 5 degrees cooler.
        sensors: folder with a `thermal_zone*/temp` for each of them, in thousandths of a degree.
        window_s: seconds of a window.
        noise_every: of so many comparisons one is of the live version with itself as well; 0: none, which saves the
            memory of a second copy of it.
        slots: inputs that may wait for the candidate.
        hung_s: seconds after which a prediction counts as hung.
        spool_bytes: that windows may take on the disk until they are sent.
        tolerance: distance up to which answers are the same; None takes that of the task.
        payload: whether inputs whose answers differ may be kept for the server, where a signed policy asks for some;
            EDGEKIT_NO_PAYLOAD in the environment says no as well.
        payload_bytes: of such an input and its answers at most; larger ones are left out.
        payloads_bytes: that all of them may take in memory, and again on the disk until they are sent.
    """

    rate: float = 0.1
    cpu_share: float = 0.25
    only_idle: bool = True
    memory_bytes: int = 512 << 20
    max_celsius: float = 75.0
    sensors: str = "/sys/class/thermal"
    window_s: float = 300.0
    noise_every: int = 20
    slots: int = 8
    hung_s: float = 30.0
    spool_bytes: int = 8 << 20
    tolerance: float | None = None
    payload: bool = True
    payload_bytes: int = 1_000_000
    payloads_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        for name, high in (("rate", 1.0), ("cpu_share", 64.0)):
            _check_real(name, getattr(self, name), high)
        for name in ("max_celsius", "window_s", "hung_s"):
            _check_real(name, getattr(self, name), 1e9)
        if self.tolerance is not None:
            _check_real("tolerance", self.tolerance, 1e9)
        check_whole("memory_bytes", self.memory_bytes, 1 << 20, 2**53)
        check_text("sensors", self.sensors, empty=False)
        check_whole("noise_every", self.noise_every, 0, 2**31)
        check_whole("slots", self.slots, 1, 256)
        check_whole("spool_bytes", self.spool_bytes, 1 << 10, 2**53)
        if not isinstance(self.payload, bool):
            raise ContractError("payload", show(self.payload), "true or false")
        check_whole("payload_bytes", self.payload_bytes, 1 << 10, 1 << 30)
        check_whole("payloads_bytes", self.payloads_bytes, 1 << 10, 1 << 30)

    @property
    def ring_bytes(self) -> int:
        """That inputs may take while they wait."""
        return self.memory_bytes // 4

    def to_json(self) -> str:
        """One line, for the candidate's process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, document: str) -> Shadow:
        """Read it back.

        Raises:
            ContractError: a key or a value that does not belong there.
        """
        names = [each.name for each in fields(cls)]
        tree = Fields(parse(document), "", required=(), optional=names)
        given: dict[str, object] = {name: tree.take(name) for name in tree.names}
        return cls(**given)  # type: ignore[arg-type]  # __post_init__ checks every one


def _check_real(name: str, value: object, high: float) -> None:
    if not is_real(value) or not 0 < float(value) <= high:  # type: ignore[arg-type]
        raise ContractError(name, show(value), f"a number above 0, at most {high:g}")
