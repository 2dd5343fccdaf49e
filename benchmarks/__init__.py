"""Measurements of edgekit on real networks and real data, beside its peers."""

# Before torch is imported: it decides how threads wait for one another.
import edgekit as edgekit
