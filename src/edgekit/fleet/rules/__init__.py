"""What decides, pure: the plan of a rollout, what is known of a stage, and the gates between stages."""
