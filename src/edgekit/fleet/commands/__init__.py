"""`edgekit publish`, `edgekit rollout …` and `edgekit fleet …`."""
