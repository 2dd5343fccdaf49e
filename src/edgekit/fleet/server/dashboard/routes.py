"""The pages: who is signed in may look at all of them, whatever the role."""

from __future__ import annotations

import time
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from edgekit.fleet.disagreements import reading
from edgekit.fleet.errors import InvalidError, NotFoundError
from edgekit.fleet.identity import enrolment
from edgekit.fleet.identity.access import OPERATE
from edgekit.fleet.releases import registry
from edgekit.fleet.server.auth import Common
from edgekit.fleet.server.dashboard import actions, pages, queries
from edgekit.fleet.server.dashboard.desk import AtDesk, SignedIn, plain
from edgekit.fleet.server.dashboard.pages import PageRoute, page
from edgekit.fleet.server.dashboard.views import audit as audit_view
from edgekit.fleet.server.dashboard.views import comparison as comparison_view
from edgekit.fleet.server.dashboard.views import devices as devices_view
from edgekit.fleet.server.dashboard.views import disagreements as disagreements_view
from edgekit.fleet.server.dashboard.views import gates as gates_view
from edgekit.fleet.server.dashboard.views import models as models_view
from edgekit.fleet.server.dashboard.views import overview as overview_view
from edgekit.fleet.server.dashboard.views import rollout as rollout_view
from edgekit.fleet.storage import audit
from edgekit.fleet.windows import views as rows

router: Final = APIRouter(route_class=PageRoute, include_in_schema=False)
_pages: Final = APIRouter(prefix=pages.ROOT, route_class=PageRoute)
# Seconds for which what reads many rows is remembered in a process.
GROUPS_S, CHAIN_S = 5.0, 300.0

# Overview


@_pages.get("")
def overview(common: Common, desk: AtDesk, session: SignedIn) -> Response:
    """All of the fleet at one look."""
    return page("overview.html", session, here="overview", found=_overview(common, desk))


@_pages.get("/live")
def overview_live(common: Common, desk: AtDesk, session: SignedIn) -> Response:
    """What changes on it."""
    return page("overview_live.html", session, found=_overview(common, desk))


def _overview(common: Common, desk: AtDesk) -> overview_view.Overview:
    fleet = common.fleet
    now_s, began_s = fleet.now(), time.perf_counter()
    with fleet.database.reading() as connection:
        found = queries.open_rollouts(connection)
        decisions, operations = queries.recent_decisions(connection), queries.operations(connection)
        names = queries.names(connection)
        took_ms = (time.perf_counter() - began_s) * 1000
        groups = desk.remembered("groups", GROUPS_S, lambda: queries.groups(connection, now_s))
    return overview_view.overview(groups, found, decisions, operations, names, fleet.settings, now_s, took_ms)


# Models


@_pages.get("/models")
def models(common: Common, session: SignedIn) -> Response:
    """Models and their versions."""
    with common.fleet.database.reading() as connection:
        versions, channels = registry.listed(connection), rows.channels_listed(connection)
        running = queries.running(connection)
    found = models_view.models_of(versions, channels, running, common.fleet.now())
    return page("models.html", session, here="models", models=found)


@_pages.get("/versions/{release}")
def version(release: str, common: Common, session: SignedIn) -> Response:
    """One version."""
    with common.fleet.database.reading() as connection:
        one = registry.by_id(connection, plain(release))
        versions, channels = registry.listed(connection, one.model), rows.channels_listed(connection)
        report, running = registry.report_of(connection, one.id), queries.running(connection)
    found = models_view.page_of(one, versions, channels, report, running.get(one.id, 0), common.fleet.now())
    return page("version.html", session, here="models", found=found)


# Rollouts


@_pages.get("/rollouts")
def rollouts(common: Common, session: SignedIn) -> Response:
    """Rollouts, newest first."""
    with common.fleet.database.reading() as connection:
        found = rows.rollouts_listed(connection)
    return page(
        "rollouts.html", session, here="rollouts", rows=rollout_view.rows_of(found, common.fleet.now())
    )


@_pages.get("/rollouts/{rollout}")
def rollout_page(rollout: str, common: Common, session: SignedIn) -> Response:
    """One rollout."""
    return page("rollout.html", session, here="rollouts", found=_rollout(rollout, common, session))


@_pages.get("/rollouts/{rollout}/live")
def rollout_live(rollout: str, common: Common, session: SignedIn) -> Response:
    """What changes on its page."""
    return page("rollout_live.html", session, found=_rollout(rollout, common, session))


def _rollout(rollout: str, common: Common, session: SignedIn) -> rollout_view.RolloutPage:
    name = plain(rollout)
    with common.fleet.database.reading() as connection:
        tree = rows.rollout(connection, name)
        decisions = rows.decisions_of(connection, name, limit=40)
        failures, names = queries.failures_of(connection, name), queries.names(connection)
        channels = rows.channels_listed(connection)
    settled = any(
        each.channel == tree["channel"] and each.cohort == (tree["plan"]["cohort"] or "everybody")
        for each in models_view.settled_of(channels, release=tree["release"])
    )
    may = session.actor.may(OPERATE)
    return rollout_view.page_of(
        tree, decisions, failures, names, common.fleet.now(), may=may, settled=settled
    )


@_pages.get("/rollouts/{rollout}/history.json")
def history(rollout: str, common: Common, session: SignedIn) -> Response:
    """Series of its plots."""
    del session
    with common.fleet.database.reading() as connection:
        rows.rollout(connection, plain(rollout))
        looks = queries.history(connection, plain(rollout))
    return _data(gates_view.history_of(looks))


@_pages.get("/rollouts/{rollout}/comparison")
def comparison(rollout: str, request: Request, common: Common, session: SignedIn) -> Response:
    """Live against candidate."""
    wanted = _filter(request)
    with common.fleet.database.reading() as connection:
        tree, names = rows.rollout(connection, plain(rollout)), queries.names(connection)
        minutes = _minutes(connection, rollout, wanted, common)
        slices = rows.parts_of(connection, plain(rollout))
        inputs = reading.listed(connection, plain(rollout), limit=disagreements_view.LATEST)
    found = comparison_view.page_of(tree, minutes, slices, wanted, names, request.url.query)
    return page(
        "comparison.html", session, here="rollouts", found=found, may_open=session.actor.may(OPERATE),
        disagreements=disagreements_view.rows_of(inputs, common.fleet.now()),
    )  # fmt: skip


@_pages.get("/disagreements/{number}/payload")
def disagreement(number: str, common: Common, session: SignedIn) -> Response:
    """What a device saw, as a file; the audit log tells who asked."""
    known = int(number) if number.isdecimal() and number.isascii() and len(number) < 19 else 0
    found = reading.payload(common.fleet, session.actor, known)
    headers = {**pages.HEADERS, "Content-Disposition": f'attachment; filename="{found.name}"'}
    return Response(found.content, headers=headers, media_type="application/octet-stream")


@_pages.get("/rollouts/{rollout}/comparison.json")
def comparison_data(rollout: str, request: Request, common: Common, session: SignedIn) -> Response:
    """Series of its plots."""
    del session
    with common.fleet.database.reading() as connection:
        rows.rollout(connection, plain(rollout))
        minutes = _minutes(connection, rollout, _filter(request), common)
    return _data(comparison_view.series_of(minutes))


def _filter(request: Request) -> comparison_view.Filter:
    stage, part, period = (plain(request.query_params.get(name, "")) for name in ("stage", "slice", "period"))
    return comparison_view.Filter.of(stage, part, period)


def _minutes(connection: Any, rollout: str, wanted: comparison_view.Filter, common: Common) -> Any:
    since_s = wanted.since_s(common.fleet.now())
    return rows.minutes_of(connection, plain(rollout), part=wanted.part, stage=wanted.stage, since_s=since_s)


# Devices


@_pages.get("/devices")
def devices(request: Request, common: Common, session: SignedIn) -> Response:
    """Devices, by part of the id or by cohort, a page at a time."""
    asked = {
        name: plain(request.query_params.get(name, "")) for name in ("search", "cohort", "channel", "after")
    }
    wrong, now_s, settings = "", common.fleet.now(), common.fleet.settings
    with common.fleet.database.reading() as connection:
        try:
            found = enrolment.find(connection, **asked, limit=queries.PAGE)
        except InvalidError as error:
            wrong, found = f"{error.what}; expected {error.expected}", enrolment.Page((), "")
        names = queries.names(connection)
    listed = [devices_view.row_of(each, names, now_s, settings.alive_s) for each in found.devices]
    return page(
        "devices.html", session, here="devices", rows=listed, asked=asked, after=found.after, wrong=wrong,
        filtered=any(asked.values()), status=422 if wrong else 200,
    )  # fmt: skip


@_pages.get("/devices/{device}")
def device_page(device: str, common: Common, session: SignedIn) -> Response:
    """One device."""
    return page("device.html", session, here="devices", found=_device(device, common, session))


@_pages.get("/devices/{device}/live")
def device_live(device: str, common: Common, session: SignedIn) -> Response:
    """What changes on its page."""
    return page("device_live.html", session, found=_device(device, common, session))


def _device(device: str, common: Common, session: SignedIn) -> devices_view.DevicePage:
    name, now_s = plain(device), common.fleet.now()
    since_s = (int(now_s) // queries.HOUR_S - devices_view.HOURS + 1) * queries.HOUR_S
    with common.fleet.database.reading() as connection:
        row = enrolment.read_device(connection, name)
        reports, hours = queries.reports_of(connection, name), queries.hours_of(connection, name, since_s)
        evidence, names = queries.evidence_of(connection, name), queries.names(connection)
    may = session.actor.may(OPERATE)
    alive_s = common.fleet.settings.alive_s
    return devices_view.page_of(row, reports, hours, evidence, names, now_s, alive_s, may=may)


# Audit


@_pages.get("/audit")
def audit_page(request: Request, common: Common, session: SignedIn) -> Response:
    """Who did what."""
    search, action, before = (
        plain(request.query_params.get(name, "")) for name in ("search", "action", "before")
    )
    number = int(before) if before.isdecimal() and len(before) < 16 else 0
    with common.fleet.database.reading() as connection:
        found = queries.audit_rows(connection, search=search, action=action, before=number)
        actions_there = queries.audit_actions(connection)
    last = found[-1]["sequence"] if len(found) == queries.PAGE else 0
    return page(
        "audit.html", session, here="audit", rows=audit_view.rows_of(found, common.fleet.now()), search=search,
        action=action, actions=actions_there, before=number, after=last,
    )  # fmt: skip


@_pages.get("/audit/chain")
def chain(common: Common, desk: AtDesk, session: SignedIn) -> Response:
    """Whether the log is whole: all of it is read, so what was found is kept for five minutes."""

    def verify() -> audit_view.Chain:
        with common.fleet.database.reading() as connection:
            return audit_view.chain_of(audit.verify(connection), audit.head(connection))

    return page("chain.html", session, chain=desk.remembered("chain", CHAIN_S, verify))


# Files, and what is none of these


@_pages.get("/static/{name:path}")
def static(name: str, request: Request) -> Response:
    """Style, scripts and the icon."""
    content = pages.static(name)
    if content is None:
        raise _nothing(name)
    keep = "public, max-age=31536000, immutable" if request.query_params.get("v") else "no-cache"
    headers = {**pages.HEADERS, "Cache-Control": keep}
    return Response(content, headers=headers, media_type=pages.FILES[name])


_pages.include_router(actions.router)


@_pages.get("/{path:path}")
def nothing(path: str, session: SignedIn) -> Response:
    """Whatever else is asked for."""
    del session
    raise _nothing(path)


@router.get("/")
@router.get(pages.ROOT + "/")
def home() -> Response:
    """Who types the address of the server alone means this."""
    return pages.moved("")


router.include_router(_pages)


def _data(tree: Any) -> Response:
    return JSONResponse(tree, headers=dict(pages.HEADERS))


def _nothing(path: str) -> NotFoundError:
    return NotFoundError(
        f"no page {path[:200]!r}", expected="a page of the dashboard", way_out="Go on from the overview.",
        code="no_page",
    )  # fmt: skip
