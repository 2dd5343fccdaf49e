"""The on-device side of edgekit."""
