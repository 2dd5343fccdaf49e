"""Rollouts as they move: what people and the conductor do with them, and who is told."""
