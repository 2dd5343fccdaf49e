"""`edgekit fleet simulate`: a rollout on virtual devices, by the real policy, gates and merging."""
