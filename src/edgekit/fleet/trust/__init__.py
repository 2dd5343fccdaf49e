"""What devices believe: a repository of The Update Framework (TUF), its keys, and how it is published.

```
publishing   what is stored → what is stored next, in an order that no cut and no race can break      (thin shell)
pending      a change of root or targets that people sign one after the other, on machines that are offline
rules        what may follow a root or a targets; which signatures count
describe     what a person is about to sign, line by line
repository   (what a role says, a change) → what it says next
documents    where signed documents lie                  keys   private keys in files
layout       names, roles, lifetimes
```

`root` and `targets` are signed with keys that are kept offline. `timestamp`, `snapshot` and `rollout` are signed by the
server. `rollout` is delegated `rollout/*` and nothing else, so it selects releases and cannot make any.
"""
