"""The cloud side: registry, staged rollout with statistical gates, comparison, dashboard."""
