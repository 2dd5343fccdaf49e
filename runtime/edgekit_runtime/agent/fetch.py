"""FETCH: brings a release from the server into the store, going on where the last try was cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from edgekit_runtime.agent.by_delta import ByDelta
from edgekit_runtime.agent.transfer import incoming
from edgekit_runtime.agent.transport import Transport
from edgekit_runtime.contract import ContractError, Release
from edgekit_runtime.errors import ArtifactError
from edgekit_runtime.store import MAX_RELEASE_BYTES, Store

Document = Callable[[str, int], bytes]
"""(path of a target, bytes at most) → its content, which the trusted roles have signed."""


def fetch(
    store: Store,
    document: Document,
    transport: Transport,
    going_on: Callable[[], None],
    counts: Counter[str] | None = None,
) -> Callable[[str], None]:
    """The deed of the phase FETCH.

    Args:
        store: of the device.
        document: of a signed target.
        transport: to the server.
        going_on: is called with every part that comes in, and may raise to cut the transfer off.
        counts: of deltas, as `ByDelta` keeps them.

    Returns:
        Takes the id of a release; raises NetworkError where it is to be tried again.
    """

    def deed(release: str) -> None:
        text = document(release_path(release), MAX_RELEASE_BYTES)
        found, state = _read(release, text), store.state()
        _check_model(store, found, state.live)
        store.check_room(found, state)
        by_delta = ByDelta(store, transport, going_on, found, state, Counter() if counts is None else counts)
        for sha256, file in store.missing(found).items():
            if not by_delta.bring(sha256, file.size_bytes):
                at, size = store.received(sha256), file.size_bytes
                at, parts = incoming(transport, f"blobs/{sha256}", size, at, going_on)
                store.add(sha256, size, parts, at=at)
                store.forget(store.delta(sha256).name)
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


def _not_it(release: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"{release_path(release)}: {found}",
        expected="the canonical document of the release with this hash",
        way_out="Publish the release again with `edgekit publish`.",
        code="manifest",
    )
