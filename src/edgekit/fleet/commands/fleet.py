"""`edgekit fleet …`: its commands, by what they are about."""

from __future__ import annotations

import typer

from edgekit.fleet.commands import keys, people, server, signing

app = typer.Typer(help="Run the fleet's server, sign versions, look after devices.", no_args_is_help=True)
for part in (server, signing, keys, people):
    part.mount(app)
