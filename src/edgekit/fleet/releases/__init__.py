"""Versions: registry, signatures, what is published for devices, and deltas between versions."""
