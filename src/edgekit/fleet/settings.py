"""How a server of the fleet is set up: `fleet.toml` in its folder, read once, with nothing in it that is not known."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from edgekit.fleet.errors import InvalidError, NotFoundError

FILE: Final = "fleet.toml"
MAX_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may set; each name but `folder` is a key of `fleet.toml`.

    Attributes:
        folder: that the file lies in; keys that are online and, by default, database and blobs lie there, too.
        database_url: `sqlite:////folder/fleet.db` or `postgresql://…`; "" is a file in the folder.
        blobs_url: a folder, or `s3://bucket/prefix?…`; "" is a folder in the folder.
        public_url: address at which people and devices reach the server, for links; "" where it has none.
        packed_bytes: of a body at most, as it comes.
        unpacked_bytes: of it at most, once it is unpacked.
        windows_per_post: at most.
        body_s: seconds within which a body has to be here.
        queued_posts: that wait for the database in each process; more are asked to come later.
        device_posts_per_s: of one device, in the long run.
        device_burst: posts of one device that may come at once.
        enrols_per_s: tries of one address, in the long run; as many as ten seconds give may come at once.
        api_calls_per_s: of one token of a person or a program, in the long run.
        api_burst: calls of it that may come at once.
        alive_s: seconds within which a device counts as heard of lately.
        retention_days: that documents of windows are kept after they were counted.
        disagreements_per_device: inputs whose answers differ that are kept of a device and rollout, the newest; 0: none
            are asked for, and none are taken.
        disagreement_bytes: of such an input with its answers at most, packed.
        disagreements_mb: megabytes of all of them together; the oldest give way.
        disagreement_days: that they are kept.
        look_every_s: seconds between two looks at the rollouts.
        merge_every_s: seconds between two looks for windows to count.
        tls_certificate: file in PEM; "" where a proxy does TLS.
        tls_key: file in PEM.
        trusted_proxies: addresses whose `X-Forwarded-…` are believed, parted by commas; "" for nobody.
        otel_endpoint: of OpenTelemetry, where traces go; "" for none.
        least_version: of what the server signs; `edgekit fleet restore` raises it above what devices may have seen.
        webhooks_private: whether webhooks may reach addresses of the own network.
    """

    folder: Path
    database_url: str = ""
    blobs_url: str = ""
    public_url: str = ""
    packed_bytes: int = 2 << 20
    unpacked_bytes: int = 4 << 20
    windows_per_post: int = 500
    body_s: float = 30.0
    queued_posts: int = 256
    device_posts_per_s: float = 2.0
    device_burst: int = 120
    enrols_per_s: float = 5.0
    api_calls_per_s: float = 50.0
    api_burst: int = 200
    alive_s: int = 3 * 86400
    retention_days: int = 90
    disagreements_per_device: int = 0
    disagreement_bytes: int = 1 << 20
    disagreements_mb: int = 256
    disagreement_days: int = 30
    look_every_s: float = 10.0
    merge_every_s: float = 1.0
    tls_certificate: str = ""
    tls_key: str = ""
    trusted_proxies: str = ""
    otel_endpoint: str = ""
    least_version: int = 0
    webhooks_private: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise _invalid(self.folder, f"{name} = {value}", f"from {low:g} to {high:g}")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise _invalid(self.folder, "one of tls_certificate and tls_key", "both or none of them")
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{self.folder.absolute() / 'fleet.db'}")
        if not self.blobs_url:
            object.__setattr__(self, "blobs_url", str(self.folder.absolute() / "blobs"))

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Read `fleet.toml`.

        Args:
            folder: that it lies in.

        Raises:
            NotFoundError: it is not there.
            InvalidError: it cannot be read, or has an unknown key or a value that is none.
        """
        path = folder / FILE
        try:
            with path.open("rb") as file:
                tree = tomllib.loads(file.read(MAX_FILE_BYTES).decode())
        except FileNotFoundError:
            raise NotFoundError(
                f"{path} is not there",
                expected="the folder of a fleet",
                way_out="make one with `edgekit fleet init DIR`",
                code="no_fleet",
            ) from None
        except (OSError, ValueError) as error:
            raise _invalid(folder, str(error), "a TOML file that can be read") from error
        known = {each.name: each.type for each in fields(cls) if each.name != "folder"}
        return cls(folder, **{key: _checked(folder, known, key, value) for key, value in tree.items()})


_RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(("packed_bytes", "unpacked_bytes"), (1 << 10, 64 << 20)),
    "windows_per_post": (1, 10_000),
    "queued_posts": (1, 100_000),
    **dict.fromkeys(("device_burst", "api_burst"), (1, 10**6)),
    **dict.fromkeys(("device_posts_per_s", "enrols_per_s", "api_calls_per_s"), (0.001, 10**6)),
    "body_s": (0.1, 3600.0),
    "alive_s": (60, 10**9),
    **dict.fromkeys(("retention_days", "disagreement_days"), (1, 10**5)),
    "disagreements_per_device": (0, 10_000),
    "disagreement_bytes": (1 << 10, 32 << 20),
    "disagreements_mb": (1, 10**6),
    "least_version": (0, 10**12),
    **dict.fromkeys(("look_every_s", "merge_every_s"), (0.05, 3600.0)),
}
_TYPES: Final[dict[str, type]] = {"str": str, "int": int, "float": float, "bool": bool}


def _checked(folder: Path, known: dict[str, Any], key: str, value: Any) -> Any:
    if key not in known:
        raise _invalid(folder, f"the key {key!r}", f"one of {', '.join(sorted(known))}")
    wanted = _TYPES[str(known[key])]
    if wanted is float and type(value) is int:
        value = float(value)
    # A bool is an int to Python, and no number of seconds.
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise _invalid(folder, f"{key} = {value!r}", f"a {wanted.__name__}")
    return value


def _invalid(folder: Path, found: str, expected: str) -> InvalidError:
    return InvalidError(
        f"{folder / FILE}: {found}", expected=expected, way_out="correct it, and start again", code="settings"
    )
