"""What people do in the dashboard, by POSTs of forms: sign in and out, decide on rollouts, revoke a device."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from sqlalchemy import Connection
from starlette.responses import Response

from edgekit.fleet.conduct import steering
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, DeniedError, FleetError, InvalidError
from edgekit.fleet.identity import enrolment
from edgekit.fleet.identity.access import OPERATE, Actor, authenticated
from edgekit.fleet.releases import publication
from edgekit.fleet.rules.rollouts import COMPLETED
from edgekit.fleet.server.auth import Common
from edgekit.fleet.server.dashboard import sessions
from edgekit.fleet.server.dashboard.desk import AtDesk, Fields, Signed, SignedIn, plain
from edgekit.fleet.server.dashboard.pages import ROOT, PageRoute, moved, page
from edgekit.fleet.server.dashboard.views.steps import step_of
from edgekit.fleet.server.rates import TooOftenError
from edgekit.fleet.storage import audit

router: Final = APIRouter(route_class=PageRoute, include_in_schema=False)
WORDS: Final = ("promote", "pause", "resume", "abort")
ROLL_BACK: Final = "rollback"
MAX_WHY: Final = 500


@router.get("/sign-in")
def sign_in_page(request: Request, desk: AtDesk) -> Response:
    """Where a token is typed."""
    return _sign_in_page(request, desk)


@router.post("/sign-in")
def sign_in(request: Request, common: Common, desk: AtDesk, fields: Fields) -> Response:
    """Take a token, and give a cookie for it."""
    nonce = request.cookies.get(sessions.FORM_COOKIE, "")
    sessions.check_form(desk.keyring.form_of(sessions.nonce_of(nonce)), fields.get("form", ""))
    try:
        desk.sign_ins.spend(request.client.host if request.client else "")
    except TooOftenError as error:
        return _sign_in_page(request, desk, error, 429)
    fleet, token = common.fleet, fields.get("token", "")
    try:
        with fleet.database.reading() as connection:
            actor = authenticated(connection, token, fleet.now())
    except DeniedError as error:
        return _sign_in_page(request, desk, error, 401)
    made = sessions.token_id(token)
    _note(fleet, actor, "session.opened", made)
    answer = moved("")
    answer.set_cookie(
        sessions.COOKIE, desk.keyring.cookie(made, fleet.now()), max_age=sessions.LIFE_S, path=ROOT,
        secure=_is_secure(request), httponly=True, samesite="strict",
    )  # fmt: skip
    return answer


@router.post("/sign-out")
def sign_out(session: SignedIn, fields: Signed) -> Response:
    """Forget the cookie; it is over for this browser."""
    del session, fields
    answer = moved("/sign-in")
    answer.delete_cookie(sessions.COOKIE, path=ROOT)
    return answer


@router.post("/rollouts/{rollout}/{word}")
def decide(rollout: str, word: str, common: Common, session: SignedIn, fields: Signed) -> Response:
    """Do what a person decides on a rollout, who has to have seen the step that it is in."""
    session.actor.check(OPERATE)
    name, why = plain(rollout), fields.get("why", "")[:MAX_WHY]
    fleet = common.fleet
    with fleet.database.reading() as connection:
        found, _ = steering.read(connection, name)
    if step_of(found) != fields.get("step", ""):
        raise ConflictError(
            "the rollout has gone on since this page was made",
            expected="a decision on the step that it is in",
            way_out="Look at the rollout as it is now, and decide anew.",
            code="step",
        )
    if word in WORDS:
        steering.said(fleet, session.actor, name, word, why=why)
    elif word == ROLL_BACK and found.state == COMPLETED and found.baseline:
        steering.return_to(
            fleet,
            session.actor,
            channel=found.channel,
            release=found.baseline,
            cohort=found.plan.cohort,
            why=why,
        )
    else:
        raise InvalidError(
            f"{word[:40]!r} of a rollout that is {found.state}",
            expected=f"one of {', '.join(WORDS)}; {ROLL_BACK} once it completed",
            way_out="Use the buttons of its page.",
            code="word",
        )
    _publish(fleet)
    return moved(f"/rollouts/{name}")


@router.post("/devices/{device}/revoke")
def revoke(device: str, common: Common, session: SignedIn, fields: Signed) -> Response:
    """Refuse a device from now on."""
    del fields
    name = plain(device)
    enrolment.revoke(common.fleet, session.actor, name)
    return moved(f"/devices/{name}")


def _sign_in_page(
    request: Request, desk: AtDesk, error: FleetError | None = None, status: int = 200
) -> Response:
    nonce = sessions.nonce_of(request.cookies.get(sessions.FORM_COOKIE, ""))
    found = page("sign_in.html", None, status=status, form=desk.keyring.form_of(nonce), error=error)
    found.set_cookie(
        sessions.FORM_COOKIE, nonce, path=ROOT, secure=_is_secure(request), httponly=True, samesite="strict"
    )
    return found


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _note(fleet: Fleet, actor: Actor, action: str, subject: str) -> None:
    def work(connection: Connection) -> None:
        audit.append(connection, actor.name, action, subject, {"role": actor.role}, int(fleet.now()))

    fleet.database.write(work)


def _publish(fleet: Fleet) -> None:
    """Let devices see at once what a person decided; where that fails the conductor does it soon."""
    try:
        publication.publish(fleet)
    except FleetError as error:
        publication.log.warning("not published yet: %s", error.what)
