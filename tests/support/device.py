"""A device of the tests: a store, and the one that drives it without trying anything out."""

from __future__ import annotations

from pathlib import Path

from edgekit_runtime.events import MarkedGood
from edgekit_runtime.manager import Manager
from edgekit_runtime.store import Store
from support.adders import add
from support.releases import Published


class Device:
    """A store and the one that drives it."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.store.make()
        self.known: dict[str, Published] = {}
        self.manager = Manager(
            self.store,
            fetch=lambda release: add(self.store, self.known[release]) and None,
            stage=lambda _: None,
        )

    def install(self, published: Published, *, good: bool = False, shadow: bool = False) -> str:
        """Take a release in, past what stands in its way; returns its id."""
        release = published.release.id
        self.known[release] = published
        self.manager.install(release, forced=True, shadow=shadow)
        if good:
            self.manager.tell(MarkedGood(release))
            self.manager.go_on()
        return release
