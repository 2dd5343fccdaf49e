"""The applications of several boards in one process: each serves from the store of its board, as fast as it is told.

`python -m support.board_app STORE[:marked] … --every 0.05`; ends by SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from edgekit_runtime import DeviceError, Runtime
from edgekit_runtime.shadow.settings import Shadow
from support.candidates import inputs

# Every input is compared, and told of soon: a test does not wait for hours.
SHADOW = Shadow(rate=1.0, cpu_share=8.0, only_idle=False, window_s=2.0, noise_every=50)
INPUTS = 512
# Predictions after which the application is content.
JUDGED = 40


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--every", type=float, default=0.05)
    options = parser.parse_args()
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    boards = [
        threading.Thread(target=_board, args=(Path(path), mark == "marked", seed, options.every, stop))
        for seed, (path, _, mark) in enumerate(each.partition(":") for each in options.stores)
    ]
    for board in boards:
        board.start()
    for board in boards:
        board.join()


def _board(store: Path, marked: bool, seed: int, every_s: float, stop: threading.Event) -> None:
    seen = inputs(INPUTS, marked=marked, seed=seed)
    while not stop.is_set():
        try:
            with Runtime(store, format="onnx", shadow=SHADOW, poll_s=0.5, window_s=2.0) as runtime:
                at = 0
                while not stop.wait(every_s):
                    runtime.predict(seen[at % INPUTS])
                    at += 1
                    if at % JUDGED == 0:
                        runtime.mark_good()
        except DeviceError:
            # Nothing is live yet.
            stop.wait(0.5)


if __name__ == "__main__":
    main()
