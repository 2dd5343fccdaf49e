"""Asks a server of the fleet from afar: its errors come back as what they are, uploads go on where they ended.

The server is named by `EDGEKIT_SERVER`, the token by `EDGEKIT_TOKEN`, or both in `~/.config/edgekit/fleet.toml`:

```
server = "https://fleet.example"
token = "edgk_…"
```
"""

from __future__ import annotations

import json
import os
import stat
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import httpx

from edgekit.fleet.errors import (
    ConflictError,
    DeniedError,
    FleetError,
    InvalidError,
    NotFoundError,
    TooMuchError,
    UnavailableError,
)

SERVER, TOKEN = "EDGEKIT_SERVER", "EDGEKIT_TOKEN"
CHUNK_BYTES: Final = 1 << 20
HASHES_PER_ASK: Final = 2000
TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
# Of a server that is away or busy, before it is told; each waits twice as long as the one before.
TRIES: Final = 4
FIRST_WAIT_S: Final = 0.5

_ERRORS: Final[Mapping[int, type[FleetError]]] = MappingProxyType(
    {
        400: InvalidError, 401: DeniedError, 403: DeniedError, 404: NotFoundError, 409: ConflictError,
        413: TooMuchError, 422: InvalidError, 429: TooMuchError, 503: UnavailableError,
    }
)  # fmt: skip

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


def unseen(done: int, total: int) -> None:
    """Show nothing of the progress."""
    del done, total


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask, and as whom.

    Attributes:
        server: its address.
        token: of who asks.
    """

    server: str
    token: str


def place(server: str = "", environ: Mapping[str, str] = os.environ) -> Place:
    """Where to ask: what is given, else the environment, else the file.

    Args:
        server: address; "" where another place says it.
        environ: of the process.

    Raises:
        InvalidError: nobody names a server or a token, or the file cannot be used.
    """
    path = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgekit" / "fleet.toml"
    kept = _kept(path)
    server = server or environ.get(SERVER, "") or kept.get("server", "")
    # A token is for one server: that of the file goes to no other.
    of_file = kept.get("token", "") if server.rstrip("/") == kept.get("server", "").rstrip("/") else ""
    token = environ.get(TOKEN, "") or of_file
    if not server:
        raise _unsaid("no server", f"--server URL, {SERVER}, or server in {path}")
    if not server.startswith(("http://", "https://")):
        raise _unsaid(f"the server {server[:120]!r}", "https://host")
    if not token:
        raise _unsaid("no token", f"{TOKEN}, or token in {path} beside that server")
    return Place(server.rstrip("/"), token)


class Client:
    """A connection to a server; a context that closes it.

    Args:
        at: where to ask.
        transport: of httpx, for tests.
        sleep: waits some seconds.
    """

    def __init__(
        self,
        at: Place,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.at, self._sleep = at, sleep
        self._http = httpx.Client(
            base_url=at.server, headers={"Authorization": f"Bearer {at.token}"}, timeout=TIMEOUT,
            transport=transport, follow_redirects=False,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str, **query: object) -> Any:
        """Ask; None where there is nothing (204).

        Args:
            path: below `/v1/`.
            query: what is None is left out.

        Raises:
            FleetError: as the server has it, or `UnavailableError` where it does not answer.
        """
        params = {key: str(value) for key, value in query.items() if value is not None}
        return _content(self._asked("GET", path, params=params))

    def content(self, path: str) -> bytes:
        """A file, as `get`."""

        def asked() -> bytes:
            answer = self._once("GET", path)
            if not answer.is_success:
                _content(answer)
            return answer.content

        found: bytes = self._retried(asked)
        return found

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Tell; as `get`. Where the answer was lost nobody knows what came of it, so it is not tried again."""
        return _content(self._once("POST", path, json=body))

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Set; as `get`."""
        return _content(self._asked("PUT", path, json=body))

    def delete(self, path: str) -> None:
        """Delete; as `post`."""
        _content(self._once("DELETE", path))

    def upload(self, files: Mapping[str, Path], progress: Progress = unseen) -> int:
        """Send the files that are not there yet.

        Args:
            files: sha256 to file.
            progress: is told how far it is.

        Returns:
            Bytes that were sent.

        Raises:
            FleetError: as `get`; what came through is kept, so the same call goes on from there.
            OSError: a file cannot be read.
        """
        names = sorted(files)
        missing: list[str] = []
        for at in range(0, len(names), HASHES_PER_ASK):
            missing += self._retried(
                lambda at=at: self.post("missing", {"sha256": names[at : at + HASHES_PER_ASK]})["missing"]  # type: ignore[misc]
            )
        total = sum(files[each].stat().st_size for each in missing)
        done = 0
        for each in missing:
            size = files[each].stat().st_size
            self._retried(lambda each=each, done=done: self._send(each, files[each], done, total, progress))  # type: ignore[misc]
            done += size
            progress(done, total)
        return total

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Decisions and looks as they come, each with its kind; ends where the server ends it."""
        headers = {"Accept": "text/event-stream"}
        timeout = httpx.Timeout(30.0, connect=10.0)
        with self._told(), self._http.stream("GET", "/v1/events", headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                answer.read()
                _content(answer)
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield kind, json.loads(line.removeprefix("data: "))

    def _send(self, sha256: str, path: Path, before: int, total: int, progress: Progress) -> None:
        size = path.stat().st_size

        def parts() -> Iterator[bytes]:
            done = before
            with path.open("rb") as file:
                while part := file.read(CHUNK_BYTES):
                    yield part
                    done += len(part)
                    progress(done, total)

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        _content(self._once("PUT", f"uploads/{sha256}", content=parts(), headers=headers))

    def _asked(self, method: str, path: str, **options: Any) -> httpx.Response:
        def asked() -> httpx.Response:
            answer = self._once(method, path, **options)
            _content(answer)
            return answer

        found: httpx.Response = self._retried(asked)
        return found

    def _retried(self, ask: Callable[[], Any]) -> Any:
        for attempt in range(TRIES):
            try:
                return ask()
            except FleetError as error:
                if attempt == TRIES - 1 or error.status not in {429, 503}:
                    raise
                self._sleep(FIRST_WAIT_S * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._told():
            return self._http.request(method, f"/v1/{path}", **options)

    def _told(self) -> _Told:
        return _Told(self.at.server)


@dataclass(frozen=True, slots=True)
class _Told:
    """Turns what httpx says of a connection into an error of the fleet."""

    server: str

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (httpx.HTTPError, httpx.InvalidURL)):
            raise UnavailableError(
                f"{self.server}: {error or type(error).__name__}",
                expected="an answer of a server of the fleet",
                way_out="See that it runs and is reached from here: `edgekit fleet serve`, EDGEKIT_SERVER.",
                code="no_answer",
            ) from error


def _content(answer: httpx.Response) -> Any:
    """What the server said, or its error."""
    if answer.status_code == 204:
        return None
    try:
        told = answer.json()
    except ValueError:
        told = None
    if answer.is_success and told is not None:
        return told
    known = told if isinstance(told, dict) else {}
    kind = _ERRORS.get(answer.status_code, UnavailableError if answer.status_code >= 500 else InvalidError)
    raise kind(
        str(known.get("what") or f"{answer.request.url.copy_with(query=None)}: status {answer.status_code}"),
        expected=str(known.get("expected") or "an answer of a server of the fleet"),
        way_out=str(
            known.get("way_out") or "See that EDGEKIT_SERVER names such a server, of this version of edgekit."
        ),
        code=str(known.get("code") or f"http_{answer.status_code}"),
        status=answer.status_code,
    )


def _kept(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
                raise _unsaid(f"{path} may be read by others", f"chmod 600 {path}")
            tree = tomllib.loads(file.read(1 << 16).decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unsaid(f"{path}: {error}", "server and token in TOML") from error
    if strange := {*tree} - {"server", "token"} or {
        key for key, value in tree.items() if not isinstance(value, str)
    }:
        raise _unsaid(f"{path}: {min(strange)}", "server and token, in quotes")
    return tree


def _unsaid(found: str, expected: str) -> InvalidError:
    return InvalidError(found, expected=expected, way_out="Name one of these.", code="place")
