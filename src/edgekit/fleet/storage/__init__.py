"""What the fleet keeps: rows in a database, bytes under names."""
