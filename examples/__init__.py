"""Networks and small programs that show edgekit at work."""
