"""The agent: asks the server, drives the version manager, and tells what happened.

```
server ── policy, metadata (TUF) ─→ decide ─→ version manager ─→ store
       ── files, with resume ────────────────────────↑
       ←─ windows, reports, status ── spool ←──────── runtimes of the applications
```

Nothing of what serves waits for it: an application reads the store alone, and goes on when there is no agent at all.
"""

from __future__ import annotations
