"""Target profiles as TOML data and their loader."""
