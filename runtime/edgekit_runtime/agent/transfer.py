"""What comes of a file, from the byte at which the last try was cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edgekit_runtime.agent.transport import Transport, unreachable
from edgekit_runtime.errors import ArtifactError


def incoming(
    transport: Transport, path: str, size_bytes: int, received: int, going_on: Callable[[], None]
) -> tuple[int, Iterable[bytes]]:
    """Ask for what is missing of a file.

    Args:
        transport: to the server.
        path: on it.
        size_bytes: of the file.
        received: bytes of it that are here.
        going_on: is called with every part that comes in, and may raise to cut the transfer off.

    Returns:
        The first byte of what comes, and what comes; each part may raise NetworkError.

    Raises:
        ArtifactError: the server does not have it.
        NetworkError: no answer that can be used.
    """
    if received >= size_bytes:
        # All of it came in, and the power went before it was looked at; or it is too much, and is begun anew.
        received = size_bytes if received == size_bytes else 0
        if received:
            return received, ()
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
    return answer.at, _each(answer.parts, going_on, path, size_bytes - answer.at)


def _each(parts: Iterable[bytes], going_on: Callable[[], None], path: str, left: int) -> Iterator[bytes]:
    for part in parts:
        going_on()
        left -= len(part)
        yield part
    if left > 0:
        # Not every end is told from a break; what came stays, and the next try asks for the rest.
        raise unreachable(path, f"the answer ended {left:,} bytes before the end")
