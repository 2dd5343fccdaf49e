"""What operators do with a server: set it up, back it up, let old things go."""
