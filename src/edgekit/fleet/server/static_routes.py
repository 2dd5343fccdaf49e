"""Signed metadata, releases and their files, as any server of files has them: tags, ranges, and how long to keep them.

Everything here is signed or named by its hash, so it is for everybody, and a cache in between can do no harm.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from edgekit.fleet.errors import InvalidError, NotFoundError
from edgekit.fleet.server.answers import Problem, problems
from edgekit.fleet.server.auth import Common
from edgekit.fleet.storage.blobs import Blobs, read

router: Final = APIRouter(tags=["files"])
FOLDERS: Final = ("metadata", "targets", "blobs", "deltas")
# What has a hash or a number in its name never changes.
_NEVER: Final = re.compile(r"[0-9a-f]{64}(\..*)?|[0-9]+\.[\w.-]+\.json")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
MAX_CHANGING_BYTES: Final = 4 << 20
KEEP, ASK = "public, max-age=31536000, immutable", "no-cache"


@dataclass(frozen=True, slots=True)
class _Known:
    """What is there under a name.

    Attributes:
        size: in bytes.
        tag: of what is there now.
        keep: header `Cache-Control`.
        content: of what may change, so that tag and content are of the same moment; else None.
    """

    size: int
    tag: str
    keep: str
    content: bytes | None


def _answered(folder: str, path: str, common: Common, request: Request) -> Response:
    name = f"{folder}/{path}"
    known = _known(common.fleet.blobs, name)
    headers = {
        "ETag": known.tag, "Cache-Control": known.keep, "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff",
    }  # fmt: skip
    if _matches(request.headers.get("if-none-match", ""), known.tag):
        return Response(status_code=304, headers=headers)
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    asked = request.headers.get("range", "")
    # If-Range: a stretch only of what the other end has the rest of.
    if request.headers.get("if-range", known.tag) != known.tag:
        asked = ""
    at, end, status = 0, known.size, 200
    if (match := _RANGE.fullmatch(asked)) and any(match.groups()):
        at, end = _stretch(match[1], match[2], known.size)
        if at >= end:
            return _unsatisfied(known.size)
        status = 206
        headers["Content-Range"] = f"bytes {at}-{end - 1}/{known.size}"
    headers["Content-Length"] = str(end - at)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    if known.content is not None:
        return Response(known.content[at:end], status, headers, kind)
    if at >= end:
        return Response(b"", status, headers, kind)
    return StreamingResponse(common.fleet.blobs.open(name, at, end - at), status, headers, kind)


def _known(blobs: Blobs, name: str) -> _Known:
    """What is there.

    Raises:
        NotFoundError: nothing, or what is no name: a path that leads out of the folder is none.
    """
    try:
        size = blobs.size(name)
    except InvalidError:
        size = None
    if size is None:
        raise NotFoundError(
            name[:200],
            expected="a file that was published",
            way_out="Look at the metadata for what there is.",
            code="no_file",
        )
    if _NEVER.fullmatch(name.rpartition("/")[2]):
        return _Known(size, _tag(f"{name}:{size}".encode()), KEEP, None)
    content = read(blobs, name, MAX_CHANGING_BYTES)
    return _Known(len(content), _tag(content), ASK, content)


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _matches(asked: str, tag: str) -> bool:
    """If-None-Match: RFC 9110, 13.1.2; a weak tag matches, too."""
    return asked.strip() == "*" or any(each.strip().removeprefix("W/") == tag for each in asked.split(","))


def _stretch(first: str, last: str, size: int) -> tuple[int, int]:
    """From and to (RFC 9110, 14.1.2); nothing is in between where the stretch is not within the file."""
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return size, size
    return int(first), min(int(last) + 1, size) if last else size


def _unsatisfied(size: int) -> Response:
    problem = Problem(
        code="bad_range",
        what="a stretch that is not within the file",
        expected=f"bytes from 0 to {size - 1}" if size else "no stretch of an empty file",
        way_out="Ask for the whole file.",
    )
    return Response(problem.model_dump_json(), 416, {"Content-Range": f"bytes */{size}"}, "application/json")


_BYTES: Final = {
    "application/json": {"schema": {}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The file.", "content": _BYTES},
    206: {"description": "A stretch of it.", "content": _BYTES},
    304: {"description": "What the other end has is what is there."},
    **problems(404, 413, 416, 422, 503),
}


def _add(folder: str) -> None:
    def file(path: str, common: Common, request: Request) -> Response:
        return _answered(folder, path, common, request)

    for method in ("GET", "HEAD"):
        router.add_api_route(
            f"/{folder}/{{path:path}}", file, methods=[method], responses=_ANSWERS, response_class=Response,
            summary=f"A file of {folder}", operation_id=f"{method.lower()}_{folder}",
        )  # fmt: skip


for _folder in FOLDERS:
    _add(_folder)
