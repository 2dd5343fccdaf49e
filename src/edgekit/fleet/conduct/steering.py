"""Changes of rollouts in the database: each is one transaction that holds the revision it was decided on.

Two servers that decide on the same rollout at once: the second one finds another revision, and has decided nothing. The
database is what holds; the signed policies are made from it afterwards, as often as it takes (`publication`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, and_, insert, select, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.disagreements.keeping import LOCK
from edgekit.fleet.disagreements.reading import erase_rollout
from edgekit.fleet.errors import ConflictError, InvalidError, NotFoundError
from edgekit.fleet.identity.access import OPERATE, Actor
from edgekit.fleet.rules import rollouts
from edgekit.fleet.rules.evidence import Evidence
from edgekit.fleet.rules.gates import Verdict, compared, setting_of
from edgekit.fleet.rules.rollouts import Plan, Rollout, Step
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.database import lock
from edgekit.fleet.storage.tables import (
    channels,
    decisions,
    deliveries,
    looks,
    versions,
    webhooks,
)
from edgekit.fleet.storage.tables import rollouts as table
from edgekit.fleet.windows.merging import cohort_size

# What people at the other end of a webhook may ask to hear of.
EVENTS: Final = (
    "opened", "passed", "failed", "held", "completed", "aborted", "paused", "resumed", "promoted", "rolled_back",
)  # fmt: skip
CONDUCTOR: Final = Actor("conductor", "admin")


def create(fleet: Fleet, actor: Actor, *, model: str, version: str, channel: str, plan: Plan) -> Rollout:
    """Begin a rollout.

    Raises:
        NotFoundError: there is no such version.
        ConflictError: another one of this model is open, the channel is another model's, it is settled already, or it
            asks for inputs that this server does not take.
    """
    _check_disagreements(fleet, plan)
    now_s = fleet.now()
    made = secrets.token_hex(8)

    def work(connection: Connection) -> Rollout:
        lock(connection, "rollouts")
        release = _release(connection, model, version)
        _check_open(connection, model, channel)
        settled = _channel(connection, channel, model)
        baseline = baseline_of(settled, plan.cohort)
        if baseline == release:
            raise ConflictError(
                f"{model} {version} is what {channel} is settled on",
                expected="a version that devices of this cohort do not have yet",
                way_out="Publish a new version, or name another --cohort.",
                code="settled_already",
            )
        # The first release of a channel has nothing to run beside.
        rollout = Rollout(made, model, channel, release, baseline, secrets.token_hex(16), plan)
        step = rollouts.begin(rollout, cohort_size(connection, rollout, now_s, fleet.settings))
        connection.execute(
            insert(table).values(
                id=made, model=model, channel=channel, release=release, state=step.rollout.state,
                document=step.rollout.to_tree(), revision=0, created_s=int(now_s), created_by=actor.name,
            )
        )  # fmt: skip
        _record(connection, step, 0, (), actor, now_s)
        return step.rollout

    return fleet.database.write(work)


def said(fleet: Fleet, actor: Actor, rollout_id: str, word: str, *, why: str = "") -> Rollout:
    """Do what a person asks for: pause, resume, promote, abort.

    Raises:
        NotFoundError: there is no such rollout.
        ConflictError: it is in no state for that.
        InvalidError: there is no such word.
    """
    now_s = fleet.now()

    def work(connection: Connection) -> Rollout:
        # Nobody else decides until the commit: a person who aborts is not told to come again.
        connection.execute(select(table.c.id).where(table.c.id == rollout_id).with_for_update())
        rollout, revision = read(connection, rollout_id)
        size = cohort_size(connection, rollout, now_s, fleet.settings) if word == "promote" else 0
        words: dict[str, Callable[[], Step]] = {
            "pause": lambda: rollouts.pause(rollout),
            "resume": lambda: rollouts.resume(rollout),
            "promote": lambda: rollouts.promote(rollout, size),
            "abort": lambda: rollouts.abort(rollout),
        }
        if word not in words:
            raise InvalidError(
                f"{word!r}", expected=f"one of {', '.join(words)}", way_out="Give another.", code="word"
            )
        step = words[word]()
        if why:
            step = replace(step, why=f"{step.why}: {why}")
        return taken(connection, step, revision, (), actor, now_s)

    return fleet.database.write(work)


def erase_disagreements(fleet: Fleet, actor: Actor, rollout_id: str) -> int:
    """Delete the inputs that a rollout brought, and let it ask devices for no more.

    Returns:
        How many were deleted.

    Raises:
        DeniedError: the actor is no operator.
        NotFoundError: there is no such rollout.
    """
    actor.check(OPERATE)
    now_s = fleet.now()

    def work(connection: Connection) -> int:
        lock(connection, LOCK)
        connection.execute(select(table.c.id).where(table.c.id == rollout_id).with_for_update())
        rollout, revision = read(connection, rollout_id)
        if rollout.plan.disagreements:
            step = rollouts.without_disagreements(rollout)
            changed = update(table).where(table.c.id == rollout_id)
            connection.execute(changed.values(document=step.rollout.to_tree(), revision=revision + 1))
            _record(connection, step, revision + 1, (), actor, now_s)
        return erase_rollout(connection, actor, rollout_id, int(now_s))

    return fleet.database.write(work)


def return_to(
    fleet: Fleet, actor: Actor, *, channel: str, release: str, cohort: str = "", why: str = ""
) -> None:
    """Settle a channel on a version from now on: the way back after a rollout that completed.

    Args:
        fleet: of the server.
        actor: who asks.
        channel: name.
        release: id, that was published.
        cohort: for which devices.
        why: for the log.

    Raises:
        ConflictError: a rollout is open on the channel; abort it first.
        NotFoundError: there is no such channel or release.
    """
    now_s = fleet.now()

    def work(connection: Connection) -> None:
        lock(connection, "rollouts")
        row = connection.execute(select(channels).where(channels.c.name == channel)).one_or_none()
        if row is None:
            raise _no("channel", channel)
        _check_open(connection, row.model, channel)
        known = connection.execute(select(versions).where(versions.c.id == release)).one_or_none()
        if known is None or known.model != row.model or known.state != "signed":
            raise _no(f"signed version of {row.model}", release)
        plan = Plan(cohort=cohort)
        back = Rollout("", row.model, channel, release, "", "settled", plan)
        _settle(connection, back, row.settled, row.revision)
        detail = {"release": release, "cohort": cohort, "why": why}
        _tell(connection, "rolled_back", {"channel": channel, **detail}, now_s)
        audit.append(connection, actor.name, "channel.settled", channel, detail, int(now_s))

    fleet.database.write(work)


def read(connection: Connection, rollout_id: str) -> tuple[Rollout, int]:
    """A rollout and its revision.

    Raises:
        NotFoundError: there is no such rollout.
    """
    row = connection.execute(select(table).where(table.c.id == rollout_id)).one_or_none()
    if row is None:
        raise _no("rollout", rollout_id)
    return Rollout.from_tree(row.document), row.revision


def opened(connection: Connection) -> list[str]:
    """Ids of the rollouts that are not over, oldest first."""
    query = select(table.c.id).where(table.c.state.in_(rollouts.OPEN)).order_by(table.c.created_s, table.c.id)
    return list(connection.scalars(query))


def taken(
    connection: Connection,
    step: Step,
    revision: int,
    verdicts: Sequence[Verdict],
    actor: Actor,
    now_s: float,
) -> Rollout:
    """Write a step that was decided on a revision.

    Raises:
        ConflictError: somebody else took another one meanwhile; nothing is written.
    """
    rollout = step.rollout
    # Time that went by without a decision is no change that anybody could race with.
    after = revision + 1 if step.kind else revision
    found = connection.execute(
        update(table)
        .where(and_(table.c.id == rollout.id, table.c.revision == revision))
        .values(document=rollout.to_tree(), state=rollout.state, revision=after)
    )
    if found.rowcount != 1:
        raise ConflictError(
            f"rollout {rollout.id} was changed meanwhile",
            expected=f"revision {revision}",
            way_out="Look at it again, and decide anew.",
            code="revision",
        )
    if step.kind:
        if rollout.state == rollouts.COMPLETED:
            row = connection.execute(select(channels).where(channels.c.name == rollout.channel)).one()
            _settle(connection, rollout, row.settled, row.revision)
        _record(connection, step, after, verdicts, actor, now_s)
    return rollout


def looked(
    connection: Connection, rollout: Rollout, evidence: Evidence, verdicts: Sequence[Verdict], now_s: float
) -> None:
    """Keep a look at the gates for people who watch."""
    counts: dict[str, Any] = {
        "meant": evidence.meant, "taken": evidence.taken, "told": len(evidence.now), "samples": evidence.samples,
        "failed": int(evidence.outcomes.sum()), "reasons": dict(evidence.reasons),
    }  # fmt: skip
    if evidence.arms is not None:
        plan = rollout.plan
        counts["arms"] = compared(
            evidence, setting_of(plan.limits, mode=plan.mode, phase=rollout.phase)
        ).to_tree()
    connection.execute(
        insert(looks).values(
            rollout=rollout.id, at_s=int(now_s), stage=rollout.stage, phase=rollout.phase, bound=rollout.bound,
            verdicts=[each.to_tree() for each in verdicts], counts=counts,
        )
    )  # fmt: skip


def baseline_of(settled: Sequence[Mapping[str, str]], cohort: str) -> str:
    """What a cohort has: the rule of its own, else that of everybody; "" where there is none."""
    for each in settled:
        if each["cohort"] in {cohort, ""}:
            return each["release"]
    return ""


def _check_disagreements(fleet: Fleet, plan: Plan) -> None:
    if plan.disagreements and not fleet.settings.disagreements_per_device:
        raise ConflictError(
            f"{plan.disagreements} disagreements of a window, and disagreements_per_device = 0 in fleet.toml",
            expected="a server whose owner lets inputs of devices be kept",
            way_out="Create it without --disagreements, or set disagreements_per_device in fleet.toml of every server.",
            code="disagreements_off",
        )


def _release(connection: Connection, model: str, version: str) -> str:
    row = connection.execute(
        select(versions).where(and_(versions.c.model == model, versions.c.version == version))
    ).one_or_none()
    if row is None:
        raise _no("version", f"{model} {version}")
    if row.state != "signed":
        raise ConflictError(
            f"{model} {version} is {row.state}",
            expected="a version that enough keys have signed, above the floor",
            way_out="`edgekit fleet sign` adds the signatures that are missing.",
            code="not_signed",
        )
    return str(row.id)


def _check_open(connection: Connection, model: str, channel: str) -> None:
    query = select(table.c.id).where(
        and_(table.c.state.in_(rollouts.OPEN), (table.c.model == model) | (table.c.channel == channel))
    )
    if (other := connection.scalars(query).first()) is not None:
        raise ConflictError(
            f"rollout {other} of {model} is open",
            expected="one rollout of a model at a time",
            way_out=f"Let it end, or `edgekit rollout abort {other}`.",
            code="overlap",
        )


def _channel(connection: Connection, name: str, model: str) -> list[dict[str, str]]:
    row = connection.execute(select(channels).where(channels.c.name == name)).one_or_none()
    if row is None:
        connection.execute(insert(channels).values(name=name, model=model, settled=[], revision=0))
        return []
    if row.model != model:
        raise ConflictError(
            f"the channel {name!r} is of {row.model}",
            expected=f"a channel of {model}: devices of a channel run one model",
            way_out="Name another --channel, and give it to the devices of this model.",
            code="channel_model",
        )
    return list(row.settled)


def _settle(
    connection: Connection, rollout: Rollout, settled: Sequence[Mapping[str, str]], revision: int
) -> None:
    found = connection.execute(
        update(channels)
        .where(and_(channels.c.name == rollout.channel, channels.c.revision == revision))
        .values(settled=rollouts.settled_after(rollout, settled), revision=revision + 1)
    )
    if found.rowcount != 1:
        raise ConflictError(
            f"channel {rollout.channel} was changed meanwhile", expected=f"revision {revision}",
            way_out="Look at it again.", code="revision",
        )  # fmt: skip


def _record(
    connection: Connection,
    step: Step,
    revision: int,
    verdicts: Sequence[Verdict],
    actor: Actor,
    now_s: float,
) -> None:
    """The decision, the log, and what is to be told, in the transaction of the change."""
    rollout = step.rollout
    connection.execute(
        insert(decisions).values(
            rollout=rollout.id, revision=revision, at_s=int(now_s), kind=step.kind, stage=rollout.stage,
            actor=actor.name, why=step.why, verdicts=[each.to_tree() for each in verdicts],
        )
    )  # fmt: skip
    detail = {
        "model": rollout.model, "release": rollout.release, "stage": rollout.stage, "phase": rollout.phase,
        "bound": rollout.bound, "state": rollout.state, "why": step.why,
    }  # fmt: skip
    if step.kind in EVENTS:
        _tell(connection, step.kind, {"rollout": rollout.id, **detail}, now_s)
    # Last: it is alone from here to the commit.
    audit.append(connection, actor.name, f"rollout.{step.kind}", rollout.id, detail, int(now_s))


def _tell(connection: Connection, event: str, detail: Mapping[str, Any], now_s: float) -> None:
    known = connection.execute(select(webhooks.c.id, webhooks.c.events)).all()
    wanted = [row.id for row in known if not row.events or event in row.events]
    if not wanted:
        return
    body = json.dumps({"event": event, "at_s": int(now_s), **detail}, sort_keys=True, ensure_ascii=False)
    connection.execute(
        insert(deliveries),
        [{"webhook": each, "event": event, "body": body, "next_s": int(now_s)} for each in wanted],
    )


def _no(kind: str, name: str) -> NotFoundError:
    return NotFoundError(
        f"no {kind} {name!r}", expected=f"a {kind} that the fleet knows", way_out="Look for a slip in it.",
        code="unknown",
    )  # fmt: skip
