"""Measurements of edgekit on real networks and real data, beside its peers."""

from contextlib import suppress

with suppress(ModuleNotFoundError):
    # Before torch is imported: it decides how threads wait for one another. Environments of peers are without it.
    import edgekit as edgekit
