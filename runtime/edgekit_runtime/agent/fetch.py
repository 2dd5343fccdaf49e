"""FETCH: brings a release from the server into the store, going on where the last try was cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edgekit_runtime.agent.transport import Transport, unreachable
from edgekit_runtime.contract import ContractError, File, Release
from edgekit_runtime.errors import ArtifactError
from edgekit_runtime.store import MAX_RELEASE_BYTES, Store

Document = Callable[[str, int], bytes]
"""(path of a target, bytes at most) → its content, which the trusted roles have signed."""


def fetch(
    store: Store, document: Document, transport: Transport, going_on: Callable[[], None]
) -> Callable[[str], None]:
    """The deed of the phase FETCH.

    Args:
        store: of the device.
        document: of a signed target.
        transport: to the server.
        going_on: is called with every part that comes in, and may raise to cut the transfer off.

    Returns:
        Takes the id of a release; raises NetworkError where it is to be tried again.
    """

    def deed(release: str) -> None:
        text = document(release_path(release), MAX_RELEASE_BYTES)
        found, state = _read(release, text), store.state()
        _check_model(store, found, state.live)
        store.check_room(found, state)
        for sha256, file in store.missing(found).items():
            at, parts = _ask(transport, sha256, file, store.received(sha256))
            store.add(sha256, file.size_bytes, _each(parts, going_on, sha256, file.size_bytes - at), at=at)
        # Last: where it is, all of the release is.
        store.add(release, len(text), (text,))

    return deed


def release_path(release: str) -> str:
    """Of the target that vouches for a release."""
    return f"releases/{release}.json"


def _read(release: str, text: bytes) -> Release:
    try:
        found = Release.from_json(text)
    except ContractError as error:
        raise _not_it(release, str(error)) from error
    if found.id != release:
        raise _not_it(release, f"it is {found.id[:16]}…")
    return found


def _check_model(store: Store, found: Release, live: str | None) -> None:
    """Hold a release against the model that serves: a stolen key of policies could name one of another model."""
    if live is None or live == found.id:
        return
    name = store.release(live).name
    if found.name != name:
        raise ArtifactError(
            f"{release_path(found.id)}: a version of {found.name}",
            expected=f"a version of {name}, which serves here",
            way_out="Look at the policy. Another model is installed by hand: `edgekit-runtime install --forced`.",
            code="other_model",
        )


def _ask(transport: Transport, sha256: str, file: File, received: int) -> tuple[int, Iterable[bytes]]:
    """The first byte of what comes, and what comes."""
    if received >= file.size_bytes:
        # All of it came in, and the power went before it was looked at; or it is too much, and is begun anew.
        received = file.size_bytes if received == file.size_bytes else 0
        if received:
            return received, ()
    path = f"blobs/{sha256}"
    answer = transport.get(path, at=received)
    if answer.status in {404, 410}:
        raise ArtifactError(
            f"{path}: the server does not have it",
            expected="every file of a release that is signed",
            way_out="Upload the files of the release again.",
            code="missing",
        )
    if answer.status not in {200, 206} or answer.at > received:
        raise unreachable(path, f"status {answer.status}")
    return answer.at, answer.parts


def _each(parts: Iterable[bytes], going_on: Callable[[], None], sha256: str, left: int) -> Iterator[bytes]:
    for part in parts:
        going_on()
        left -= len(part)
        yield part
    if left > 0:
        # Not every end is told from a break; what came stays, and the next try asks for the rest.
        raise unreachable(f"blobs/{sha256}", f"the answer ended {left:,} bytes before the end")


def _not_it(release: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"{release_path(release)}: {found}",
        expected="the canonical document of the release with this hash",
        way_out="Publish the release again with `edgekit publish`.",
        code="manifest",
    )
