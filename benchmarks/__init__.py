"""Measurements of edgekit on real networks and real data, beside its peers."""
