"""Target profiles as TOML data and their loader."""

from edgekit_devices.profiles import find_profile, load_profile, names
from edgekit_devices.reading import read_profile
from edgekit_devices.schema import Calibration, Cluster, Point, Profile, ProfileError

__all__ = [
    "Calibration",
    "Cluster",
    "Point",
    "Profile",
    "ProfileError",
    "find_profile",
    "load_profile",
    "names",
    "read_profile",
]
