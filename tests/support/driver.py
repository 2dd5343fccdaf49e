"""A process that updates a store for ever, until somebody kills it: `python -m support.driver STORE BUNDLE...`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from edgekit_runtime.bundle import Bundle
from edgekit_runtime.events import Activated, Health, MarkedGood, RolledBack
from edgekit_runtime.manager import Manager
from edgekit_runtime.store import Store


def main(store: Store, bundles: list[Bundle]) -> None:
    """Install, activate, commit, roll back; in every order that is allowed."""
    known = {bundle.release().id: bundle for bundle in bundles}

    def fetch(release: str) -> None:
        store.add_release(known[release].release(), known[release].read)

    manager = Manager(store, fetch=fetch, stage=lambda _: None)
    manager.go_on()
    print("ready", flush=True)
    for number in itertools.count():
        state = store.state()
        release = next(each for each in known if each not in (state.live, state.candidate))
        if state.phase == "idle":
            manager.install(release, forced=True, shadow=number % 2 == 0)
        manager.tell(Activated())
        live = store.state().live or ""
        end = (MarkedGood(live), RolledBack(), Health(live, 1.0, 100, nans=99), MarkedGood(live))[number % 4]
        manager.tell(end)
        manager.go_on()


if __name__ == "__main__":
    main(Store(Path(sys.argv[1])), [Bundle.open(Path(each)) for each in sys.argv[2:]])
