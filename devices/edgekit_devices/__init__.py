"""Target profiles as TOML data and their loader."""

from edgekit_devices.profiles import Profile, ProfileError, load_profile, names, read_profile

__all__ = ["Profile", "ProfileError", "load_profile", "names", "read_profile"]
