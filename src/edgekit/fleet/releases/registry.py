"""Versions of models: what was published, by whom, out of what, and whether devices may take it.

```
    propose ──→ pending ── enough keys signed ──→ signed ── retire, and enough keys signed that ──→ gone from targets
```

A version never changes. Its id is the hash of its release, which names every file by hash; the same model and version
with other content is refused. What devices believe is in the signed targets (`signing`), not here: a row of this table
that somebody forged makes no device run anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, insert, select, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, InvalidError, NotFoundError, TooMuchError
from edgekit.fleet.identity.access import PUBLISH, Actor
from edgekit.fleet.rules.rollouts import OPEN
from edgekit.fleet.storage import audit
from edgekit.fleet.storage import blobs as storage
from edgekit.fleet.storage.blobs import Blobs
from edgekit.fleet.storage.database import lock
from edgekit.fleet.storage.tables import channels, rollouts, versions
from edgekit_runtime.bundle import MAX_MANIFEST_BYTES, check_release
from edgekit_runtime.contract import MANIFEST_FILE, ContractError, Manifest, Release
from edgekit_runtime.errors import ArtifactError
from edgekit_runtime.store import MAX_RELEASE_BYTES

PENDING, SIGNED, RETIRED = "pending", "signed", "retired"
# Held by who makes versions of uploaded files, and by who takes away files that no version names.
LOCK: Final = "registry"
# Bodies of the server are bounded to twice that; `edgekit publish` leaves layers and trials out of longer ones.
MAX_REPORT_BYTES: Final = 1 << 20
MAX_NOTES: Final = 16_000
# Of the report's provenance, what says where a version comes from.
LINEAGE: Final = ("model_sha256", "recipe_sha256", "calibration_sha256", "seed", "command")
_AGAIN: Final = "Publish the bundle again: `edgekit publish`."


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model.

    Attributes:
        id: of its release.
        model: name.
        version: of the model.
        parent: id of the version that it was made from, "" where there is none.
        state: "pending", "signed" or "retired".
        size_bytes: of its files.
        formats: of its artifacts, to their bytes.
        lineage: hashes of model, recipe and calibration data, as far as the report tells.
        figures: of the report: format to metric, drop, agreement, latency and size.
        accepted: whether the report says that every budget and proof holds; None without a report.
        notes: of the publisher.
        published_s: seconds since 1970.
        published_by: name.
    """

    id: str
    model: str
    version: str
    parent: str
    state: str
    size_bytes: int
    formats: Mapping[str, int]
    lineage: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, Any]]
    accepted: bool | None
    notes: str
    published_s: int
    published_by: str

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two versions.

    Attributes:
        format: of the artifact.
        figure: name.
        before: of the first version, None where it has none.
        after: of the second.
    """

    format: str
    figure: str
    before: float | None
    after: float | None


def propose(
    fleet: Fleet,
    actor: Actor,
    *,
    release: str | bytes,
    report: Mapping[str, Any],
    parent: str = "",
    notes: str = "",
) -> Version:
    """Take a version in, whose files were uploaded before; the same one again changes nothing.

    Args:
        fleet: of the server.
        actor: who publishes.
        release: canonical document of the release.
        report: of the bundle, {} where there is none.
        parent: version of the same model, or id, that it was made from.
        notes: for people.

    Raises:
        DeniedError: the actor is no publisher.
        InvalidError: the documents break the contract or each other, or a file is missing.
        ConflictError: the model has another version of this name.
        NotFoundError: there is no such parent.
        TooMuchError: the report or the notes are too long.
    """
    actor.check(PUBLISH)
    found = _release(release)
    manifest = _manifest(fleet.blobs, found)
    _check_report(report, notes)
    now_s = int(fleet.now())

    def work(connection: Connection) -> Version:
        lock(connection, LOCK)
        if (known := _row(connection, found.name, found.version)) is not None:
            return _same(known, found)
        # Again, now that nobody collects what no version names.
        _check_files(fleet.blobs, found)
        of = one(connection, found.name, parent).id if parent else ""
        connection.execute(
            insert(versions).values(
                id=found.id, model=found.name, version=found.version, parent=of, state=PENDING,
                size_bytes=found.size_bytes, release=found.to_json(), manifest=json.loads(manifest.to_json()),
                report=dict(report), lineage=lineage_of(report), notes=notes, published_s=now_s,
                published_by=actor.name,
            )
        )  # fmt: skip
        detail = {"model": found.name, "version": found.version, "bytes": found.size_bytes, "parent": of}
        audit.append(connection, actor.name, "version.proposed", found.id, detail, now_s)
        return one(connection, found.name, found.version)

    return fleet.database.write(work)


def retire(fleet: Fleet, actor: Actor, model: str, version: str, *, why: str = "") -> Version:
    """Let no device take a version any more, once the targets without it are signed.

    Raises:
        DeniedError: the actor is no publisher.
        NotFoundError: there is no such version.
        ConflictError: a channel is settled on it, or a rollout of it is open.
    """
    actor.check(PUBLISH)
    now_s = int(fleet.now())

    def work(connection: Connection) -> Version:
        lock(connection, "rollouts")
        found = one(connection, model, version)
        if found.state == RETIRED:
            return found
        _check_unused(connection, found)
        connection.execute(update(versions).where(versions.c.id == found.id).values(state=RETIRED))
        detail = {"model": model, "version": version, "why": why}
        audit.append(connection, actor.name, "version.retired", found.id, detail, now_s)
        return one(connection, model, version)

    return fleet.database.write(work)


def listed(connection: Connection, model: str = "") -> list[Version]:
    """All versions, of one model or of all, newest first."""
    query = select(versions).order_by(versions.c.published_s.desc(), versions.c.version.desc())
    if model:
        query = query.where(versions.c.model == model)
    return [_version(row) for row in connection.execute(query)]


def one(connection: Connection, model: str, version: str) -> Version:
    """A version by its name, or by its id.

    Raises:
        NotFoundError: there is none.
    """
    row = _row(connection, model, version)
    if row is None:
        raise _unknown(f"version {version[:64]!r} of {model[:64]!r}")
    return _version(row)


def by_id(connection: Connection, release: str) -> Version:
    """A version by the id of its release.

    Raises:
        NotFoundError: there is none.
    """
    row = connection.execute(select(versions).where(versions.c.id == release)).first()
    if row is None:
        raise _unknown(f"release {release[:64]!r}")
    return _version(row)


def report_of(connection: Connection, release: str) -> dict[str, Any]:
    """The report of a version, {} where it has none."""
    found = connection.scalars(select(versions.c.report).where(versions.c.id == release)).first()
    return dict(found or {})


def compared(before: Version, after: Version) -> list[Difference]:
    """The figures of two versions side by side, those that either has."""
    found = []
    for form in sorted({*before.figures, *after.figures}):
        old, new = before.figures.get(form, {}), after.figures.get(form, {})
        found += [Difference(form, key, old.get(key), new.get(key)) for key in sorted({*old, *new})]
    return found


def lineage_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Where a version comes from, as far as a report tells."""
    provenance = report.get("provenance")
    if not isinstance(provenance, Mapping):
        return {}
    return {key: provenance[key] for key in LINEAGE if isinstance(provenance.get(key), str | int)}


def figures_of(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Format to the figures that a report has of it; whatever is no number is left out."""
    found: dict[str, dict[str, float]] = {}
    artifacts = report.get("artifacts")
    for form, told in artifacts.items() if isinstance(artifacts, Mapping) else ():
        if not isinstance(told, Mapping):
            continue
        latency = told.get("latency_ms")
        flat = {
            key: told.get(key) for key in ("metric", "drop", "agreement", "snr_db", "size_bytes", "speedup")
        }
        flat |= {"latency_p50_ms": latency.get("p50")} if isinstance(latency, Mapping) else {}
        found[str(form)] = {
            key: value
            for key, value in flat.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
    return found


def _release(document: str | bytes) -> Release:
    if len(document) > MAX_RELEASE_BYTES:
        raise TooMuchError(
            f"a release of {len(document):,} bytes", expected=f"at most {MAX_RELEASE_BYTES:,}, which devices take",
            way_out="Put fewer files into the bundle.", code="too_large",
        )  # fmt: skip
    try:
        found = Release.from_json(document)
    except ContractError as error:
        raise InvalidError(
            f"release: {error}", expected="release.json", way_out=_AGAIN, code="release"
        ) from error
    if found.to_json().encode() != (document.encode() if isinstance(document, str) else document):
        raise InvalidError(
            "a release in another spelling", expected="the canonical document, whose hash is its id",
            way_out=_AGAIN, code="release",
        )  # fmt: skip
    if not found.name.isprintable() or len(found.name) > 128:
        raise InvalidError(
            f"a model named {found.name[:40]!a}…", expected="at most 128 characters that can be shown",
            way_out="Give another --model.", code="release",
        )  # fmt: skip
    return found


def _manifest(blobs: Blobs, release: Release) -> Manifest:
    """The manifest among the uploaded files, which are all there, in the right size."""
    _check_files(blobs, release)
    content = storage.read(blobs, f"blobs/{release.files[MANIFEST_FILE].sha256}", MAX_MANIFEST_BYTES)
    try:
        manifest = Manifest.from_json(content)
        check_release(release, manifest)
    except ContractError as error:
        raise InvalidError(
            f"manifest: {error}", expected="manifest.json", way_out=_AGAIN, code="manifest"
        ) from error
    except ArtifactError as error:
        raise InvalidError(
            error.what, expected=error.expected, way_out=error.way_out, code="manifest"
        ) from error
    return manifest


def _check_files(blobs: Blobs, release: Release) -> None:
    wrong = {
        path: size
        for path, file in release.files.items()
        if (size := blobs.size(f"blobs/{file.sha256}")) != file.size_bytes
    }
    if wrong:
        path, size = min(wrong.items())
        found = "is not there" if size is None else f"has {size} bytes"
        raise InvalidError(
            f"{path} {found}" + (f", and {len(wrong) - 1} more files" if len(wrong) > 1 else ""),
            expected=f"{release.files[path].size_bytes} bytes with the sha256 {release.files[path].sha256}",
            way_out="Upload every file of the release first: `edgekit publish` does.",
            code="not_uploaded",
        )


def _check_report(report: Mapping[str, Any], notes: str) -> None:
    try:
        text = json.dumps(report, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (ValueError, RecursionError) as error:
        raise InvalidError(
            f"report: {error}", expected="plain JSON", way_out=_AGAIN, code="report"
        ) from error
    if size > MAX_REPORT_BYTES or len(notes) > MAX_NOTES:
        raise TooMuchError(
            f"a report of {size:,} bytes and notes of {len(notes):,} characters",
            expected=f"at most {MAX_REPORT_BYTES:,} and {MAX_NOTES:,}",
            way_out="Say less; the bundle keeps its whole report.", code="too_large",
        )  # fmt: skip
    # PostgreSQL keeps no such text.
    if "\\u0000" in text or "\x00" in notes:
        raise InvalidError("a zero byte in the report", expected="text", way_out=_AGAIN, code="report")


def _same(known: Row[Any], found: Release) -> Version:
    if known.id == found.id:
        return _version(known)
    raise ConflictError(
        f"{found.name} {found.version} is published with other content, {known.id[:16]}…",
        expected="versions that never change",
        way_out="Give this one a version of its own with --version.",
        code="version_exists",
    )


def _check_unused(connection: Connection, version: Version) -> None:
    query = select(rollouts.c.id).where(and_(rollouts.c.release == version.id, rollouts.c.state.in_(OPEN)))
    if (rollout := connection.scalars(query).first()) is not None:
        raise _used(
            version, f"rollout {rollout} of it is open", f"Abort it: `edgekit rollout abort {rollout}`."
        )
    for row in connection.execute(select(channels).where(channels.c.model == version.model)):
        if any(each["release"] == version.id for each in row.settled):
            raise _used(
                version, f"{row.name} is settled on it", "Settle the channel on another version first."
            )


def _unknown(what: str) -> NotFoundError:
    return NotFoundError(
        f"no {what}", expected="a version that was published", way_out="`edgekit fleet versions` lists them.",
        code="unknown",
    )  # fmt: skip


def _used(version: Version, found: str, way_out: str) -> ConflictError:
    return ConflictError(
        f"{version.model} {version.version}: {found}", expected="a version that nobody is told to run",
        way_out=way_out, code="version_used",
    )  # fmt: skip


def _row(connection: Connection, model: str, version: str) -> Row[Any] | None:
    named = and_(versions.c.model == model, (versions.c.version == version) | (versions.c.id == version))
    return connection.execute(select(versions).where(named)).first()


def _version(row: Row[Any]) -> Version:
    artifacts = row.manifest.get("artifacts", ())
    accepted = row.report.get("accepted")
    return Version(
        row.id, row.model, row.version, row.parent, row.state, row.size_bytes,
        {each["format"]: each["size_bytes"] for each in artifacts}, row.lineage, figures_of(row.report),
        accepted if isinstance(accepted, bool) else None, row.notes, row.published_s, row.published_by,
    )  # fmt: skip
