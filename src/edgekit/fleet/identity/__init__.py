"""Who asks: people and their tokens, devices and their codes."""
