"""Who sits at a browser: a cookie that stands for a token, signed and short-lived, and forms that only our pages make.

The cookie names the token by its public part; the token itself is never stored in a browser. A token that was revoked
or has expired ends the session with the next request. The key lies in the folder of the fleet, not in the database, so
that whoever reads a backup of the database cannot sign in with it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, select

from edgekit.fleet.errors import DeniedError, UnavailableError
from edgekit.fleet.identity.access import API_PREFIX, Actor
from edgekit.fleet.storage.tables import tokens

COOKIE, FORM_COOKIE = "edgekit_session", "edgekit_form"
KEY_FILE: Final = "dashboard.key"
KEY_BYTES: Final = 32
# Of a session, whatever happens in it.
LIFE_S: Final = 12 * 3600
_COOKIE: Final = re.compile(r"([0-9a-f]{1,32})\.([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")
_NONCE: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who signed in.

    Attributes:
        actor: name and role of the token.
        form: what every form of this session has to carry.
    """

    actor: Actor
    form: str


@dataclass(frozen=True, slots=True)
class Keyring:
    """Signs cookies and forms.

    Attributes:
        key: of this fleet.
    """

    key: bytes

    @classmethod
    def of(cls, folder: Path) -> Keyring:
        """The key of a fleet, made where there is none.

        Args:
            folder: of the fleet. Servers of one fleet that have folders of their own need the same file.

        Raises:
            UnavailableError: it cannot be read or made.
        """
        path = folder / KEY_FILE
        try:
            if not path.exists():
                _make(path)
            key = path.read_bytes()
        except OSError as error:
            raise _no_key(path, str(error)) from error
        if len(key) != KEY_BYTES:
            raise _no_key(path, f"{len(key)} bytes")
        return cls(key)

    def cookie(self, token_id: str, now_s: float) -> str:
        """A cookie that stands for a token from now on."""
        said = f"{token_id}.{int(now_s) + LIFE_S}.{secrets.token_hex(16)}"
        return f"{said}.{self._sign('session', said)}"

    def session(self, connection: Connection, cookie: str, now_s: float) -> Session:
        """Who a cookie is of.

        Raises:
            DeniedError: nobody who may come in (401).
        """
        match = _COOKIE.fullmatch(cookie)
        if match is None or not hmac.compare_digest(
            match[4], self._sign("session", cookie.rpartition(".")[0])
        ):
            raise _signed_out("nobody is signed in")
        if now_s >= int(match[2]):
            raise _signed_out("the session is over")
        row: Any = connection.execute(
            select(tokens.c.name, tokens.c.role, tokens.c.revoked, tokens.c.expires_s).where(
                tokens.c.id == match[1]
            )
        ).one_or_none()
        if row is None or row.revoked or now_s >= row.expires_s:
            raise _signed_out("the token of this session was taken back, or has expired")
        return Session(Actor(row.name, row.role), self._sign("form", cookie))

    def form_of(self, nonce: str) -> str:
        """What the form carries with which somebody signs in, who has but a nonce."""
        return self._sign("sign-in", nonce)

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self.key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def token_id(token: str) -> str:
    """The public part of a token."""
    return token.removeprefix(API_PREFIX).partition("_")[0]


def nonce_of(cookie: str) -> str:
    """The nonce of a browser that is not signed in, a new one where it has none."""
    return cookie if _NONCE.fullmatch(cookie) else secrets.token_hex(16)


def check_form(expected: str, given: str) -> None:
    """Raise unless a form was made by a page of this session.

    Raises:
        DeniedError: by another, or by none (`form`).
    """
    if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace")):
        raise forged()


def forged() -> DeniedError:
    """A form that another page sent."""
    return DeniedError(
        "this form was not made by a page of this session",
        expected="a form of the dashboard, sent from the dashboard",
        way_out="Load the page again, and send it from there.",
        code="form",
    )


def _make(path: Path) -> None:
    """Whole or not at all; of two processes that make it at once the first one's counts."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def _no_key(path: Path, found: str) -> UnavailableError:
    return UnavailableError(
        f"{path}: {found}",
        expected=f"{KEY_BYTES} random bytes, which the server makes by itself",
        way_out="Let the server write to its folder; a file that is damaged may be deleted.",
        code="dashboard_key",
    )


def _signed_out(found: str) -> DeniedError:
    return DeniedError(
        found, expected="a session", way_out="Sign in with a token.", code="signed_out", status=401
    )
