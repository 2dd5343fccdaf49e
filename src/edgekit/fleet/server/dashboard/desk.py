"""What the pages of one process share, and who asks for a page."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from edgekit.fleet.errors import FleetError, InvalidError, TooMuchError
from edgekit.fleet.server.auth import Common
from edgekit.fleet.server.bodies import read_body
from edgekit.fleet.server.dashboard import sessions
from edgekit.fleet.server.dashboard.sessions import Keyring, Session
from edgekit.fleet.server.rates import Rates

MAX_FORM_BYTES: Final = 16_384
MAX_FIELDS: Final = 20
# Of one address: a few slips at once, and then one try in ten seconds.
SIGN_INS_PER_S, SIGN_INS_AT_ONCE = 0.1, 10
_OTHER_PAGES: Final = frozenset({"cross-site", "same-site"})


@dataclass(slots=True)
class Desk:
    """Of one app.

    Attributes:
        keyring: signs cookies and forms.
        sign_ins: by address.
    """

    keyring: Keyring
    sign_ins: Rates = field(default_factory=lambda: Rates(SIGN_INS_PER_S, SIGN_INS_AT_ONCE))
    _known: dict[str, tuple[float, Any]] = field(default_factory=dict)
    _locks: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def remembered(self, name: str, seconds: float, make: Callable[[], Any]) -> Any:
        """What takes long to find, and may be a little old; one thread finds it, and the others wait.

        Args:
            name: of it.
            seconds: for which it is remembered.
            make: finds it.
        """
        with self._locks[name]:
            known = self._known.get(name)
            if known is None or time.monotonic() - known[0] > seconds:
                known = self._known[name] = time.monotonic(), make()
            return known[1]


def desk_of(request: Request, common: Common) -> Desk:
    """A dependency: the desk of an app."""
    state = request.app.state
    if not hasattr(state, "desk"):
        state.desk = Desk(Keyring.of(common.fleet.settings.folder))
    found: Desk = state.desk
    return found


AtDesk = Annotated[Desk, Depends(desk_of)]


def session_of(request: Request, common: Common, desk: AtDesk) -> Session:
    """A dependency: who is signed in.

    Raises:
        DeniedError: nobody (401).
    """
    now_s = common.fleet.now()
    with common.fleet.database.reading() as connection:
        return desk.keyring.session(connection, request.cookies.get(sessions.COOKIE, ""), now_s)


SignedIn = Annotated[Session, Depends(session_of)]


async def fields_of(request: Request, common: Common) -> Mapping[str, str]:
    """A dependency: the fields of a form that a page of ours may have sent.

    Raises:
        DeniedError: the browser says that another page sent it.
        InvalidError: it is no form.
        TooMuchError: it is too long.
    """
    if request.headers.get("sec-fetch-site", "") in _OTHER_PAGES:
        raise sessions.forged()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise _no_form(f"a body of the type {kind[:80]!r}", 415)
    body = await read_body(request, common.fleet.settings)
    if len(body) > MAX_FORM_BYTES:
        raise TooMuchError(
            f"a form of {len(body):,} bytes", expected=f"at most {MAX_FORM_BYTES:,}", way_out="Say less.",
            code="too_large",
        )  # fmt: skip
    try:
        pairs = parse_qsl(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise _no_form("a form with more fields than any of ours", 422) from None
    return {name: plain(value) for name, value in pairs}


Fields = Annotated[Mapping[str, str], Depends(fields_of)]


def signed_form(session: SignedIn, fields: Fields) -> Mapping[str, str]:
    """A dependency: the fields of a form that a page of this session made.

    Raises:
        DeniedError: it was made by another (403).
    """
    sessions.check_form(session.form, fields.get("form", ""))
    return fields


Signed = Annotated[Mapping[str, str], Depends(signed_form)]


def plain(text: str, most: int = 1024) -> str:
    """Text that every database takes."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:most].strip()


def _no_form(found: str, status: int) -> FleetError:
    return InvalidError(
        found, expected="a form of the dashboard", way_out="Load the page again, and send it from there.",
        code="form", status=status,
    )  # fmt: skip
