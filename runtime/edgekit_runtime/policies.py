"""Which devices should run which release: what the fleet signs, and how a device reads it. Standard library only.

A policy is a static document that any server of files can hold. It only selects: the releases that it names have to be
signed by the keys that are kept offline. Each device decides alone whether it is meant, so nobody has to keep a list.

Its rules are read from the first to the last: those of a rollout that runs, then what is settled. Where a rollout ends,
its rules go away, and its devices come to the settled one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Final

from edgekit_runtime.cohorts import Cohort
from edgekit_runtime.strict_json import (
    ContractError,
    Fields,
    check_choice,
    check_pattern,
    check_text,
    check_whole,
    parse,
    within,
)

SCHEMA: Final = 1
BUCKETS: Final = 1_000_000
LIVE, SHADOW = "live", "shadow"
MODES: Final = (LIVE, SHADOW)
MAX_RULES: Final = 64
MAX_SALT: Final = 128
# Of a window that may be sent with their inputs.
MAX_DISAGREEMENTS: Final = 100
# As many rules as there may be, with cohorts as long as they may be.
MAX_POLICY_BYTES: Final = 256 << 10

_ID: Final = re.compile(r"[0-9a-f]{64}")
_OPTIONAL: Final = "disagreements"


@dataclass(frozen=True, slots=True)
class Rule:
    """Devices, and what they should run.

    Attributes:
        release: id.
        salt: another one draws other devices first.
        bound: devices whose bucket is below it are meant: 10,000 is 1%, `BUCKETS` all of them, 0 none.
        mode: "live", or "shadow": beside what serves.
        cohort: expression over labels that devices have to fit, too; "" for all.
        disagreements: in the shadow, how many of a window's inputs with differing answers may be sent; 0: none, and
            then a document does not name it.
    """

    release: str
    salt: str
    bound: int
    mode: str = LIVE
    cohort: str = ""
    disagreements: int = 0

    def __post_init__(self) -> None:
        check_pattern("release", self.release, _ID, "64 hexadecimal digits")
        check_text("salt", self.salt, empty=False)
        if len(self.salt) > MAX_SALT:
            raise ContractError("salt", f"{len(self.salt)} characters", f"at most {MAX_SALT}")
        check_whole("bound", self.bound, 0, BUCKETS)
        check_choice("mode", self.mode, MODES)
        check_whole("disagreements", self.disagreements, 0, MAX_DISAGREEMENTS)
        if self.disagreements and self.mode != SHADOW:
            raise ContractError("disagreements", str(self.disagreements), "0 but in the shadow")
        _cohort(self.cohort)

    def includes(self, device: str, labels: Mapping[str, str]) -> bool:
        """Whether a device is meant."""
        return bucket_of(self.salt, device) < self.bound and _cohort(self.cohort).includes(labels)


@dataclass(frozen=True, slots=True)
class Policy:
    """`policy.json` of a channel.

    Attributes:
        rules: the first that includes a device holds.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if len(self.rules) > MAX_RULES:
            raise ContractError("rules", f"{len(self.rules)} rules", f"at most {MAX_RULES}")

    def rules_for(self, device: str, labels: Mapping[str, str]) -> Iterator[Rule]:
        """The rules that include a device, the one that holds first."""
        return (rule for rule in self.rules if rule.includes(device, labels))

    def rule_for(self, device: str, labels: Mapping[str, str]) -> Rule | None:
        """The rule that holds for a device; None where it is not meant.

        Args:
            device: id.
            labels: name to value.
        """
        return next(self.rules_for(device, labels), None)

    def to_json(self) -> str:
        """Return the canonical document."""
        tree = {"schema": SCHEMA, "rules": [_tree(rule) for rule in self.rules]}
        return json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, document: str | bytes) -> Policy:
        """Read a policy.

        Raises:
            ContractError: the document breaks the contract; the error names the key.
        """
        top = Fields(parse(document), "", required=("schema", "rules"))
        if (schema := top.whole("schema")) != SCHEMA:
            raise ContractError("schema", str(schema), f"{SCHEMA}; a newer edgekit-runtime may read it")
        return cls(top.each("rules", _rule))


def bucket_of(salt: str, device: str) -> int:
    """Where a device falls, from 0 to `BUCKETS` - 1: the first 64 bits of SHA-256(salt NUL device), modulo.

    Args:
        salt: of the rollout.
        device: id.
    """
    digest = hashlib.sha256(f"{salt}\0{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


@lru_cache(maxsize=256)
def _cohort(text: str) -> Cohort:
    return Cohort.parse(text)


def _tree(rule: Rule) -> dict[str, object]:
    """What a device that knows no disagreements can read, where there are to be none."""
    tree = asdict(rule)
    if not rule.disagreements:
        del tree[_OPTIONAL]
    return tree


def _rule(value: object, path: str) -> Rule:
    required = [each.name for each in fields(Rule) if each.name != _OPTIONAL]
    tree = Fields(value, path, required=required, optional=(_OPTIONAL,))
    release, salt, mode, cohort = (tree.text(key) for key in ("release", "salt", "mode", "cohort"))
    bound = tree.whole("bound")
    disagreements = tree.whole(_OPTIONAL) if _OPTIONAL in tree.names else 0
    return within(path, lambda: Rule(release, salt, bound, mode, cohort, disagreements))
