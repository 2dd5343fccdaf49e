"""Another process that uses the storage of a fleet: says "ready", waits for a line, acts, prints what came of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count

from edgekit.fleet.storage import audit
from edgekit.fleet.storage.blobs import open_blobs
from edgekit.fleet.storage.database import Database, insert_new
from edgekit.fleet.storage.tables import reports


def report_of(number: int, who: str = "") -> dict[str, object]:
    """Return a row of `reports`; the same number has the same key."""
    return {
        "device": f"device-{number}",
        "key": str(number),
        "kind": "installed",
        "release": "0" * 64,
        "reason": who,
        "at_s": 1,
        "received_s": 2,
    }


class Actor:
    """A process of this module."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def hear(self) -> str:
        """Wait for its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        """Let it act."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()


def act(action: str, url: str, words: list[str]) -> None:
    """Do one of the things of which tests need two at once."""
    if action == "put":
        _put(url, *words)
        return
    database = Database.open(url, create=action == "migrate")
    print("ready", flush=True)
    sys.stdin.readline()
    if action == "migrate":
        database.migrate()
        print(database.revision(), flush=True)
    elif action == "insert":
        new = 0
        for start in range(0, 300, 30):
            rows = [report_of(number, words[0]) for number in range(start, start + 30)]
            if words[0] == "backwards":
                rows.reverse()
            new += len(database.write(lambda c, rows=rows: insert_new(c, reports, rows, ["device", "key"])))
        print(new, flush=True)
    elif action == "audit":
        for number in range(20):
            database.write(
                lambda c, number=number: audit.append(c, words[0], "test", "", {"number": number}, number)
            )
        print("done", flush=True)
    elif action == "lease":
        print(database.lease("one", words[0], float(words[1])), flush=True)
        time.sleep(60)


def _put(url: str, name: str) -> None:
    def parts() -> Iterator[bytes]:
        for number in count():
            yield b"x" * 100_000
            if number == 20:
                print("half", flush=True)
                time.sleep(60)

    print("ready", flush=True)
    sys.stdin.readline()
    open_blobs(url).put(name, parts(), max_bytes=10**9, replace=True)


if __name__ == "__main__":
    act(sys.argv[1], sys.argv[2], sys.argv[3:])
