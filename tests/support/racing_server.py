"""A server without its HTTP, as a process that tests kill: conducts, and asks for what a person might ask for.

Each word that was taken is printed once it is: `FOLDER NAME ROLLOUT` are its arguments.
"""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from pathlib import Path

from edgekit.fleet.conduct import conductor, steering
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, UnavailableError
from edgekit.fleet.identity.access import Actor

PERSON = Actor("olga", "operator")


def main(folder: str, name: str, rollout: str) -> None:
    fleet = Fleet.open(Path(folder))
    for number in range(1_000_000):
        # As where the lease of another server ran out while that one still worked.
        with suppress(ConflictError, UnavailableError):
            conductor.look(fleet, rollout)
        if number % 10 == 0:
            conductor.act(fleet, name)
        said = f"{name}-{number}"
        try:
            steering.said(fleet, PERSON, rollout, random.choice(("pause", "resume")), why=said)
        except (ConflictError, UnavailableError):
            continue
        print(said, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
