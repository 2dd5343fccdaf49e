"""The part of the server that acts by itself: looks, decides, and publishes what devices are told.

Any number of servers may run one; a lease lets one of them act at a time, and the revision of a rollout lets no step be
taken twice even where two think that they hold it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import exists, select, update

from edgekit.fleet.background import Repeated
from edgekit.fleet.conduct.steering import CONDUCTOR, looked, opened, read, taken
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, FleetError
from edgekit.fleet.releases import publication, rotation
from edgekit.fleet.rules import rollouts
from edgekit.fleet.rules.gates import judged
from edgekit.fleet.rules.rollouts import LONGEST_TICK_S, Step
from edgekit.fleet.storage.tables import devices
from edgekit.fleet.windows.merging import cohort_size, evidence_of

log = logging.getLogger(__name__)

LEASE: Final = "conductor"
LEASE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Acted:
    """What one round came to.

    Attributes:
        held: whether this server held the lease; where it did not, nothing was done.
        steps: of rollouts, those with a decision.
        failures: what could not be done this time.
    """

    held: bool
    steps: tuple[Step, ...] = ()
    failures: tuple[FleetError, ...] = ()


def act(fleet: Fleet, holder: str) -> Acted:
    """One round over all open rollouts.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """
    if not fleet.database.lease(LEASE, holder, LEASE_S):
        return Acted(held=False)
    steps: list[Step] = []
    failures: list[FleetError] = []
    set_right(fleet)
    with fleet.database.reading() as connection:
        ids = opened(connection)
    for each in ids:
        try:
            step = look(fleet, each)
        except ConflictError as error:
            # Somebody was quicker, which is as good; the next round sees what they did.
            log.info("%s", error.what)
            continue
        except FleetError as error:
            # One rollout that cannot be looked at keeps no other from being stopped.
            log.warning("rollout %s: %s", each, error.what)
            failures.append(error)
            continue
        if step.kind:
            log.info("rollout %s: %s", each, step.why, extra={"kind": step.kind})
            steps.append(step)
    try:
        publication.publish(fleet)
    except FleetError as error:
        log.warning("not published: %s", error.what)
        failures.append(error)
    return Acted(True, tuple(steps), tuple(failures))


def set_right(fleet: Fleet) -> None:
    """Let what was heard by a clock that ran ahead be heard now: a device would else not fall silent for years."""
    now_s = int(fleet.now())
    ahead = devices.c.seen_s > now_s + LONGEST_TICK_S
    with fleet.database.reading() as connection:
        if not connection.scalar(select(exists().where(ahead))):
            return
    log.warning("devices were heard of after %d, which is now: a clock ran ahead", now_s)
    fleet.database.write(
        lambda connection: connection.execute(update(devices).where(ahead).values(seen_s=now_s))
    )


def look(fleet: Fleet, rollout_id: str) -> Step:
    """Look at one rollout, and write what comes of it.

    Raises:
        ConflictError: it was changed meanwhile; nothing is written.
    """
    now_s = fleet.now()
    with fleet.database.reading() as connection:
        rollout, revision = read(connection, rollout_id)
        evidence = evidence_of(connection, rollout, now_s, fleet.settings)
        size = cohort_size(connection, rollout, now_s, fleet.settings)
    plan = rollout.plan
    verdicts = judged(evidence, plan.limits, mode=plan.mode, phase=rollout.phase)
    step = rollouts.look(rollout, verdicts, devices=size, taken=evidence.taken, now_s=now_s)

    with fleet.database.writing() as connection:
        taken(connection, step, revision, verdicts, CONDUCTOR, now_s)
        looked(connection, rollout, evidence, verdicts, now_s)
    return step


def repeated(fleet: Fleet, holder: str) -> Repeated:
    """Rounds for as long as the server runs.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """
    aside = False

    def rounds(is_ending: Callable[[], bool]) -> float:
        nonlocal aside
        del is_ending
        if aside and (lacks := rotation.lacking(fleet)):
            log.warning("this server stands aside: it lacks keys of %s", ", ".join(lacks))
            return fleet.settings.look_every_s
        acted = act(fleet, holder)
        # After a rotation another server may have the keys that this one was not given yet.
        aside = any(each.code == "key_missing" for each in acted.failures)
        if aside:
            fleet.database.release_lease(LEASE, holder)
        return fleet.settings.look_every_s

    return Repeated(fleet, holder, LEASE, rounds)
