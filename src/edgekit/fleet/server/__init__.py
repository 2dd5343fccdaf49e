"""The server of the fleet: what devices post to, static files, health; and room for what people and programs ask."""
