"""A camera loop that outlives its model: `python -m examples.device.camera STORE FRAMES`.

Versions are installed and taken back while it runs, by the agent or by `edgekit-runtime install`; a candidate in the
shadow is compared on the side. The loop vouches for a new version when the first hundred frames went well.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from edgekit_runtime import DeviceError, Runtime, Shadow
from edgekit_runtime.postprocessing import softmax, top
from edgekit_runtime.runtime import Swap
from examples.device.frames import frames

VOUCH_AFTER = 100


def main(argv: list[str] | None = None) -> int:
    """Run until the frames end, or until it is interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, help="folder of the versions")
    parser.add_argument("frames", type=Path, help="folder of pictures, in place of a camera")
    parser.add_argument("--rounds", type=int, default=10, help="how often all of them are seen")
    parser.add_argument("--fps", type=float, default=15.0)
    parser.add_argument("--metrics", default="", metavar="HOST:PORT", help="where Prometheus may ask")
    options = parser.parse_args(argv)
    # A service is ended with this signal; leaving the `with` says that nothing crashed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with Runtime(options.store, shadow=Shadow(rate=0.2), metrics=options.metrics) as runtime:
            loop(runtime, options)
    except KeyboardInterrupt:
        return 130
    except (DeviceError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def loop(runtime: Runtime, options: argparse.Namespace) -> None:
    """Every frame through what serves now."""
    since = [0]

    def swapped(swap: Swap) -> None:
        since[0] = 0
        print(f"now {swap.after.name} {swap.after.version}", flush=True)

    runtime.on_swap(swapped)
    print(f"serving {runtime.info.name} {runtime.info.version}", flush=True)
    for number, pixels in enumerate(frames(options.frames, rounds=options.rounds)):
        began = time.perf_counter()
        best, share = top(softmax(runtime.predict_raw(pixels)), runtime.info.labels, 1)[0]
        since[0] += 1
        if since[0] == VOUCH_AFTER and runtime.mark_good():
            print(f"{runtime.info.version} does well", flush=True)
        if number % max(1, round(options.fps)) == 0:
            beside = runtime.shadow
            more = (
                f"; beside it {beside.agreed} of {beside.compared} agree"
                if beside and beside.compared
                else ""
            )
            print(f"frame {number}: {best} {share:.0%}{more}", flush=True)
        time.sleep(max(0.0, 1 / options.fps - (time.perf_counter() - began)))


if __name__ == "__main__":
    sys.exit(main())
