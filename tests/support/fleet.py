"""A server of the tests: signed metadata, files and posts, in memory; it fails when it is told to."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.agent.transport import NOT_TAKEN, Answer, unreachable
from edgekit_runtime.errors import NetworkError
from edgekit_runtime.policies import BUCKETS, Policy, Rule
from support.releases import Published
from support.repository import Repository

PART_BYTES = 1024


class Fleet:
    """Both the owner's side and the transport to it.

    Attributes:
        repository: signs.
        blobs: hash to content.
        asked: (path, first byte) of every `get`, in order.
        sent_bytes: of blobs.
        posts: bodies, as they came.
        samples: bodies of inputs whose answers differ, as they came.
        known: key of a report or a window to how often it came.
        offline: nothing is answered.
        break_after: bytes of a blob after which the line breaks, None where it holds.
        deaf: posts are taken, but where they bring a report or a window, the answer is lost.
        takes_windows: is up to posts that bring some.
        refuses: a post with this text in it is not taken, however often it comes; "" for none.
        labels: that answers to posts set, None where they name none.
    """

    def __init__(self) -> None:
        self.repository = Repository(datetime.now(timezone.utc))  # noqa: UP017 - as on Python 3.10
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        self.posts: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.known: dict[str, int] = {}
        self.offline = self.deaf = False
        self.takes_windows = True
        self.refuses = ""
        self.labels: Any = None
        self.break_after: int | None = None
        self.sent_bytes = 0

    # The owner

    def publish(self, published: Published) -> str:
        """Sign a release with the keys that are kept offline, and put its files on the server."""
        self.upload(published)
        release = published.release
        self.repository.add(release_path(release.id), release.to_json().encode())
        self.repository.publish("targets")
        return release.id

    def upload(self, published: Published) -> None:
        """Put files on the server, and sign nothing."""
        for path, file in published.release.files.items():
            self.blobs[file.sha256] = published.content[path]

    def select(
        self, release: str, *, bound: int = BUCKETS, mode: str = "live", channel: str = "stable"
    ) -> None:
        """Let a policy name one release, with the key that is online."""
        self.rule(Rule(release, "salt", bound, mode), channel=channel)

    def rule(self, *rules: Rule, channel: str = "stable") -> None:
        """Sign a policy with the key that is online."""
        document = Policy(rules).to_json().encode()
        self.repository.add(f"rollout/{channel}.json", document, role="rollout")
        self.repository.publish("rollout")

    # The transport

    def get(self, path: str, *, at: int = 0, tag: str = "") -> Answer:
        """As `Transport.get`."""
        self._reach(path)
        self.asked.append((path, at))
        kind, _, name = path.partition("/")
        content = self.blobs.get(name) if kind == "blobs" else self.repository.server.files.get(path)
        if content is None:
            return Answer(404, 0, "", iter(()))
        own = hashlib.sha256(content).hexdigest()[:16]
        if tag == own:
            return Answer(304, 0, own, iter(()))
        parts = self._parts(path, content[at:]) if kind == "blobs" else iter((content[at:],))
        return Answer(206 if at else 200, at, own, parts)

    def post(self, path: str, body: bytes) -> bytes:
        """As `Transport.post`."""
        self._reach(path)
        told = json.loads(gzip.decompress(body))
        if self.refuses and self.refuses in json.dumps(told):
            raise unreachable(path, "status 422", code=NOT_TAKEN)
        if path.endswith("/disagreements"):
            return self._take_sample(path, told)
        if told["windows"] and not self.takes_windows:
            raise unreachable(path, "status 500")
        self.posts.append(told)
        have = [each["key"] for each in (*told["reports"], *told["windows"])]
        for key in have:
            self.known[key] = self.known.get(key, 0) + 1
        if self.deaf and have:
            raise _network(path)
        answer = {"have": have} if self.labels is None else {"have": have, "labels": self.labels}
        return json.dumps(answer).encode()

    def _take_sample(self, path: str, told: dict[str, Any]) -> bytes:
        self.samples.append(told)
        self.known[told["key"]] = self.known.get(told["key"], 0) + 1
        if self.deaf:
            raise _network(path)
        return json.dumps({"have": [told["key"]]}).encode()

    def _reach(self, path: str) -> None:
        if self.offline:
            raise _network(path)

    def _parts(self, path: str, content: bytes) -> Iterator[bytes]:
        left = self.break_after
        for at in range(0, len(content), PART_BYTES):
            if left is not None and left <= 0:
                raise _network(path)
            part = content[at : at + PART_BYTES][:left]
            left = None if left is None else left - len(part)
            self.sent_bytes += len(part)
            yield part


def _network(path: str) -> NetworkError:
    return NetworkError(
        f"{path}: no network", expected="an answer", way_out="Try again later.", code="network"
    )
