"""A candidate beside the live version: it may drop, it may never delay.

```
application ── predict ──→ live version ──→ answer
                   └─ some of them, copied ─→ ring ─→ a process of its own: candidate, comparators ─→ windows ─→ spool
```

The live process only copies an input and an answer into shared memory, and only where there is room. Everything else
happens in a process that the system runs when nobody else wants the processor, within a share of it, within a limit of
memory, and not while the device is hot. Whatever that process does, hang, crash or leak, the live version does not
notice; it is ended, and after a few times the candidate is refused.
"""

from __future__ import annotations
