"""What every test runs under: one thread a process, a cache of its own, and property tests without a stop-watch."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import settings

# Before torch is imported: two test processes with a thread pool each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Layers that are timed in tests are kept for this process and those that it starts, and never in the home folder.
if "EDGEKIT_CACHE" not in os.environ:
    os.environ["EDGEKIT_CACHE"] = tempfile.mkdtemp(prefix="edgekit-tests-cache-")
    atexit.register(shutil.rmtree, os.environ["EDGEKIT_CACHE"], ignore_errors=True)

# A shell starts what it runs in the background with SIGINT ignored, and every child inherits that: tests of Ctrl-C
# need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code. CI draws the same ones each time.
settings.register_profile("edgekit", deadline=None)
settings.register_profile("edgekit-ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("edgekit-ci" if os.environ.get("CI") else "edgekit")
