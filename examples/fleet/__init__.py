"""A fleet on one machine: a server, an operator, and devices with agents and applications of their own."""
