"""The applications of several devices in one process: each serves from the store of its device, and vouches for it.

`python -m examples.fleet.application STORE=INPUTS.npy … --every 0.1`; ends by SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

import numpy as np

from edgekit_runtime import DeviceError, Runtime
from edgekit_runtime.shadow.settings import Shadow

# Every input is compared, and told of soon: an example does not wait for hours.
SHADOW = Shadow(rate=1.0, cpu_share=8.0, only_idle=False, window_s=2.0, noise_every=4)
# Predictions after which the application is content with a version.
JUDGED = 40


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "devices", nargs="+", metavar="STORE=INPUTS", help="store, and what its device sees: .npy"
    )
    parser.add_argument(
        "--every", type=float, default=0.1, help="seconds between two predictions of a device"
    )
    options = parser.parse_args()
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    devices = [
        threading.Thread(target=_device, args=(Path(store), Path(inputs), options.every, stop))
        for store, _, inputs in (each.partition("=") for each in options.devices)
    ]
    for device in devices:
        device.start()
    for device in devices:
        device.join()


def _device(store: Path, inputs: Path, every_s: float, stop: threading.Event) -> None:
    seen = np.load(inputs, allow_pickle=False)
    while not stop.is_set():
        try:
            with Runtime(store, format="onnx", shadow=SHADOW, poll_s=0.5, window_s=2.0) as runtime:
                at = 0
                while not stop.wait(every_s):
                    runtime.predict(seen[at % len(seen)])
                    at += 1
                    if at % JUDGED == 0:
                        runtime.mark_good()
        except DeviceError:
            # Nothing is live yet.
            stop.wait(0.5)


if __name__ == "__main__":
    main()
