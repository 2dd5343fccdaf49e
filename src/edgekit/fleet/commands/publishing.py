"""From a bundle on disk to a version of the fleet: upload, propose, sign with the keys that are here, submit."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.client import Client, Progress, unseen
from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust.pending import Pending
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.contract import MANIFEST_FILE, ContractError, File, Release
from edgekit_runtime.errors import DeviceError

REPORT: Final = "report.json"
MAX_REPORT_BYTES: Final = 1_000_000
# Long, and of use beside the bundle alone.
_LONG: Final = ("layers", "trials", "stages", "search", "environment")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bundle as it will be published.

    Attributes:
        release: with the name and version that were asked for.
        files: sha256 to file.
        manifest: bytes of the manifest, which may be another than the bundle's in name and version.
        report: of the bundle, {} where it has none.
    """

    release: Release
    files: Mapping[str, Path]
    manifest: bytes
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        version: as the server has it.
        sent_bytes: that were not there before.
        missing: signatures that are still needed, as the server says them.
    """

    version: Mapping[str, Any]
    sent_bytes: int
    missing: Sequence[Mapping[str, Any]]

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"version": dict(self.version), "sent_bytes": self.sent_bytes, "missing": list(self.missing)}


def prepare(path: Path, model: str, version: str) -> Prepared:
    """Read a bundle.

    Args:
        path: of the bundle.
        model: name of the model; "" as the manifest has it.
        version: of the model; "" as the manifest has it.

    Raises:
        InvalidError: it is no bundle, or the name or version is none.
    """
    try:
        bundle = Bundle.open(path)
        found = bundle.release()
        manifest = replace(bundle.manifest, name=model or found.name, version=version or found.version)
        content = manifest.to_json().encode()
        files = {**found.files, MANIFEST_FILE: File(hashlib.sha256(content).hexdigest(), len(content))}
        release = Release(manifest.name, manifest.version, files)
        paths = {file.sha256: bundle.locate(name) for name, file in files.items() if name != MANIFEST_FILE}
    except DeviceError as error:
        raise InvalidError(
            error.what, expected=error.expected, way_out=error.way_out, code=error.code
        ) from error
    except ContractError as error:
        raise InvalidError(
            f"{error.key}: {error.found}", expected=error.expected, way_out="Correct --model or --version.",
            code="release",
        ) from error  # fmt: skip
    return Prepared(release, paths, content, _report(path / REPORT))


def publish(
    client: Client,
    prepared: Prepared,
    *,
    parent: str = "",
    notes: str = "",
    signers: Sequence[CryptoSigner] = (),
    first_root: bytes | None = None,
    progress: Progress = unseen,
) -> Outcome:
    """Publish a bundle; after an interrupt the same again goes on.

    Args:
        client: of the server.
        prepared: of `prepare`.
        parent: version that it was made from.
        notes: for people.
        signers: keys of targets that are here.
        first_root: that this person trusts, from elsewhere.
        progress: of the upload.

    Raises:
        FleetError: as the server has it.
    """
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / MANIFEST_FILE
        manifest.write_bytes(prepared.manifest)
        files = {**prepared.files, prepared.release.files[MANIFEST_FILE].sha256: manifest}
        sent = client.upload(files, progress)
    body = {
        "release": prepared.release.to_json(),
        "report": prepared.report,
        "parent": parent,
        "notes": notes,
    }
    client.post("versions", body)
    missing = sign_waiting(client, signers, first_root=first_root, only=prepared.release.id)
    return Outcome(client.get(f"versions/{prepared.release.id}"), sent, missing)


def sign_waiting(
    client: Client,
    signers: Sequence[CryptoSigner],
    *,
    first_root: bytes | None = None,
    show: Callable[[Sequence[str]], None] | None = None,
    only: str = "",
) -> Sequence[Mapping[str, Any]]:
    """Sign what waits on the server.

    Args:
        client: of the server.
        signers: keys of targets; none to ask only who is missing.
        first_root: that this person trusts, from elsewhere.
        show: is given what is signed, line by line, and may raise.
        only: id of the release that this is about, where nobody looks at what else waits; "" for all of it.

    Returns:
        Signatures that are still missing.

    Raises:
        ConflictError: more waits than the one release.
    """
    waiting = client.get("targets/pending")
    if waiting is None:
        return ()
    if not signers:
        return list(waiting["missing"])
    pending = Pending.from_bytes(waiting["document"].encode())
    if only and not _is_about(pending, only):
        return ()
    if show is not None:
        show(proposals.describe(pending))
    for signer in signers:
        pending = proposals.sign(pending, signer, datetime.now(UTC), first_root=first_root)
    return list(client.post("targets", {"document": pending.to_bytes().decode()})["missing"])


def _is_about(pending: Pending, release: str) -> bool:
    """Whether a proposal brings one release and nothing else; False where that one is signed already."""
    path, new = release_path(release), pending.new_targets
    before = pending.targets.signed.targets if pending.targets else {}
    if path in before and not (new and path not in new.signed.targets):
        return False
    delegations = pending.targets.signed.delegations if pending.targets else None
    if (
        pending.new_root is None
        and new is not None
        and new.signed.delegations == delegations
        and set(new.signed.targets) == {*before, path}
    ):
        return True
    raise ConflictError(
        f"more waits for signatures than release {release[:16]}…, which is proposed",
        expected="nothing beside it, as nobody looked at that",
        way_out="Look at all of it and sign it: `edgekit fleet sign --key KEY`.",
        code="proposal_more",
    )


def _report(path: Path) -> dict[str, Any]:
    """The report, without its longest parts where it would be too long."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidError(
            f"{path}: {error}", expected="the report in JSON", way_out="Write the bundle anew: `edgekit compress`.",
            code="report",
        ) from error  # fmt: skip
    if not isinstance(found, dict):
        return {}
    for key in _LONG:
        if len(json.dumps(found, ensure_ascii=False).encode()) <= MAX_REPORT_BYTES:
            break
        found.pop(key, None)
    return found
