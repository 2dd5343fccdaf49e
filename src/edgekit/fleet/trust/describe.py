"""What changes from one root or targets to the next, in lines for the person who is about to sign."""

from __future__ import annotations

from collections.abc import Mapping

from tuf.api.metadata import Role, Root, Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.trust.layout import say_day


def describe(old: Root | Targets | None, new: Root | Targets) -> tuple[str, ...]:
    """Everything that differs; both are such as `rules` let through, so nothing else can.

    Args:
        old: what is published; None for the first.
        new: what is proposed.
    """
    before = f"version {old.version}, expires {say_day(old.expires)}" if old else "nothing"
    head = f"{new.type}: {before} → version {new.version}, expires {say_day(new.expires)}"
    lines = [head]
    if isinstance(new, Targets):
        lines += _releases(old if isinstance(old, Targets) else None, new)
    was = _roles(old)
    for name, role in _roles(new).items():
        lines += _keys(name, was.get(name), role)
    return tuple(lines)


def _releases(old: Targets | None, new: Targets) -> list[str]:
    before = old.targets if old else {}
    gone = [path for path in before if path not in new.targets]
    come = [path for path in new.targets if path not in before]
    count = f"  {len(new.targets)} releases, {len(come)} new, {len(gone)} retired"
    return [
        count,
        *(f"  − release {_release(before, path)}" for path in sorted(gone)),
        *(f"  + release {_release(new.targets, path)}" for path in sorted(come)),
    ]


def _release(targets: Mapping[str, object], path: str) -> str:
    custom = getattr(targets[path], "custom", None) or {}
    release = path.removeprefix("releases/").removesuffix(".json")
    return f"{custom.get('model')} {custom.get('version')} ({custom.get('size', 0):,} bytes, id {release})"


def _keys(name: str, old: Role | None, new: Role) -> list[str]:
    before = set(old.keyids) if old else set()
    lines = [f"  − key of {name} {keyid}" for keyid in sorted(before - set(new.keyids))]
    lines += [f"  + key of {name} {keyid}" for keyid in sorted(set(new.keyids) - before)]
    if old is None or old.threshold != new.threshold:
        was = f"{old.threshold} → " if old else ""
        lines.append(f"  threshold of {name} {was}{new.threshold} of {len(new.keyids)} keys")
    elif before != set(new.keyids):
        lines.append(f"  threshold of {name} stays {new.threshold}, now of {len(new.keyids)} keys")
    return lines


def _roles(signed: Root | Targets | None) -> Mapping[str, Role]:
    if isinstance(signed, Root):
        return signed.roles
    if isinstance(signed, Targets) and signed.delegations:
        return signed.delegations.roles or {}
    return {}
