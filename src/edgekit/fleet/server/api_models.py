"""What people and programs send to the server, and what it answers."""

from __future__ import annotations

import keyword
from typing import Annotated, Any, Final

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from edgekit.fleet.conduct.steering import EVENTS
from edgekit.fleet.identity import access
from edgekit.fleet.rules.gates import Limits
from edgekit.fleet.rules.rollouts import MODES, Plan
from edgekit.fleet.statistics.ratios import LARGEST_RATIO
from edgekit.fleet.trust.layout import ROLES
from edgekit_runtime import cohorts
from edgekit_runtime.labels import MAX_LABELS
from edgekit_runtime.policies import MAX_DISAGREEMENTS

# Text without what PostgreSQL does not keep and terminals obey.
PLAIN: Final = r"^[^\x00-\x1f\x7f]*$"
LINES: Final = r"^[^\x00]*$"
WEB: Final = r"^https?://[!-~]+$"
ID: Final = r"^[0-9a-f]{64}$"
SMALL_ID: Final = r"^[0-9a-f]{1,32}$"

Id = Annotated[str, Path(pattern=ID, description="sha256 of the release")]
RolloutId = Annotated[str, Path(pattern=SMALL_ID)]
Search = Annotated[str, Query(max_length=256, pattern=PLAIN)]
Limit = Annotated[int, Query(ge=1, le=500)]
Seconds = Annotated[int, Query(ge=0, le=10**11)]
Serial = Annotated[int, Query(ge=0, le=2**62)]


def _whole(value: object) -> object:
    """To JSON 1.0 is a whole number, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Share = Annotated[float, Field(ge=0, le=1)]
Labels = dict[str, str]
# Of a channel or a device; both stand in addresses.
NAME: Final = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$"
# As `edgekit_runtime.labels` reads them; that says what is wrong with a name, and here it is documented only.
_LABEL: Final[JsonDict] = {"pattern": f"^{cohorts.NAME.pattern}$", "not": {"enum": [*keyword.kwlist]}}
LabelsGiven = Annotated[
    dict[str, Annotated[str, Field(max_length=cohorts.MAX_VALUE, pattern=PLAIN)]],
    Field(max_length=MAX_LABELS, json_schema_extra={"propertyNames": _LABEL}),
]

_DEFAULTS: Final = Plan()
_LIMITS: Final = Limits()


class Asked(BaseModel):
    """What comes: nothing in it that is not known, no number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Why(Asked):
    """A reason, for the log."""

    why: str = Field("", max_length=1000, pattern=PLAIN)


class Files(Asked):
    """Files by hash."""

    sha256: list[Annotated[str, Field(pattern=ID)]] = Field(max_length=5000)


class Proposal(Asked):
    """A version, whose files were uploaded before."""

    release: str = Field(max_length=2 << 20)
    report: dict[str, Any] = {}
    parent: str = Field("", max_length=64, pattern=PLAIN)
    notes: str = Field("", max_length=16_000, pattern=LINES)


class Document(Asked):
    """A file as text, such as a proposal with signatures."""

    document: str = Field(max_length=8 << 20)


class KeysAsked(Asked):
    """Other keys of a role, or of several that the server signs."""

    roles: list[Annotated[str, Field(pattern=f"^({'|'.join(ROLES)})$")]] = Field(min_length=1, max_length=5)
    add: list[Annotated[str, Field(max_length=1000)]] = Field(
        [], max_length=16, description="public keys in PEM"
    )
    remove: list[Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]] = Field(
        [], max_length=16, description="ids of keys, or their first characters"
    )
    threshold: Annotated[Whole, Field(ge=1, le=16)] | None = None
    lost: bool = Field(False, description="too few keys of targets are left to sign")


class Settle(Asked):
    """A version for the devices of a channel, from now on."""

    release: str = Field(pattern=ID)
    cohort: str = Field("", max_length=1024, pattern=PLAIN)
    why: str = Field("", max_length=1000, pattern=PLAIN)


class LimitsAsked(Asked):
    """As `edgekit.fleet.rules.gates.Limits`."""

    agreement: Share = _LIMITS.agreement
    errors: Share = _LIMITS.errors
    nans: Share = _LIMITS.nans
    latency_ratio: Annotated[float, Field(ge=1 / LARGEST_RATIO, le=LARGEST_RATIO)] = _LIMITS.latency_ratio
    failures: Share = _LIMITS.failures
    drift: Annotated[float, Field(ge=0, le=100)] = _LIMITS.drift
    devices: Annotated[Whole, Field(ge=1, le=10**9)] = _LIMITS.devices
    samples: Annotated[Whole, Field(ge=1, le=10**9)] = _LIMITS.samples
    alpha: Annotated[float, Field(ge=1e-6, le=0.5)] = _LIMITS.alpha


class RolloutAsked(Asked):
    """A rollout; its plan as `edgekit.fleet.rules.rollouts.Plan`."""

    model: str = Field(min_length=1, max_length=128, pattern=PLAIN)
    version: str = Field(min_length=1, max_length=64, pattern=PLAIN)
    channel: str = Field("stable", pattern=NAME)
    stages: list[Annotated[float, Field(gt=0, le=100)]] = Field(
        list(_DEFAULTS.stages), min_length=1, max_length=20
    )
    mode: str = Field(_DEFAULTS.mode, pattern=f"^({'|'.join(MODES)})$")
    cohort: str = Field("", max_length=1024, pattern=PLAIN)
    soak_s: Whole = Field(_DEFAULTS.soak_s, ge=0, le=10**9)
    timeout_s: Whole = Field(_DEFAULTS.timeout_s, ge=0, le=10**9)
    patience_s: Whole = Field(_DEFAULTS.patience_s, ge=0, le=10**9)
    first_devices: Whole = Field(_DEFAULTS.first_devices, ge=0, le=10**9)
    widest_shadow: float = Field(_DEFAULTS.widest_shadow, ge=0, le=100)
    disagreements: Whole = Field(_DEFAULTS.disagreements, ge=0, le=MAX_DISAGREEMENTS)
    limits: LimitsAsked = LimitsAsked()

    def plan(self) -> Plan:
        """It, checked.

        Raises:
            InvalidError: it is no plan.
        """
        given = self.model_dump(exclude={"model", "version", "channel", "stages", "limits"})
        return Plan(stages=tuple(self.stages), limits=Limits(**self.limits.model_dump()), **given)


class CodesAsked(Asked):
    """Codes for new devices."""

    labels: LabelsGiven = {}
    channel: str = Field("stable", pattern=NAME)
    seconds: Whole = Field(86400, ge=1, le=90 * 86400)
    count: Whole = Field(1, ge=1, le=1000)


class LabelsAsked(Asked):
    """All labels of a device."""

    labels: LabelsGiven


class ChannelAsked(Asked):
    """A channel of a device."""

    channel: str = Field(pattern=NAME)


class TokenAsked(Asked):
    """A token for a person or a program."""

    name: str = Field(pattern=f"^{access.NAME.pattern}$")
    role: str = Field(pattern=f"^({'|'.join(access.ROLES)})$")
    days: Whole = Field(365, ge=1, le=3650)


class WebhookAsked(Asked):
    """Where decisions are told."""

    url: str = Field(max_length=2048, pattern=WEB)
    events: list[Annotated[str, Field(pattern=f"^({'|'.join(EVENTS)})$")]] = Field([], max_length=32)


# Answers


class Missing(BaseModel):
    """Files that are not there yet."""

    missing: list[str]


class Uploaded(BaseModel):
    """A file that is there to stay."""

    sha256: str
    size_bytes: int


class Version(BaseModel):
    """As `edgekit.fleet.releases.registry.Version`."""

    id: str
    model: str
    version: str
    parent: str
    state: str
    size_bytes: int
    formats: dict[str, int]
    lineage: dict[str, Any]
    figures: dict[str, dict[str, float]]
    accepted: bool | None
    notes: str
    published_s: int
    published_by: str


class Versions(BaseModel):
    """Versions, newest first."""

    versions: list[Version]


class Difference(BaseModel):
    """One figure of two versions."""

    format: str
    figure: str
    before: float | None
    after: float | None


class Differences(BaseModel):
    """Figures of two versions, side by side."""

    figures: list[Difference]


class MissingSignatures(BaseModel):
    """Signatures that are still needed, and the ids of keys that may give them."""

    role: str
    count: int
    keys: list[str]


class Waiting(BaseModel):
    """What waits for signatures: the file to sign, what it changes in words, and who is missing."""

    document: str
    lines: list[str]
    missing: list[MissingSignatures]


class Signed(BaseModel):
    """What came of signatures; published where none is missing."""

    published: bool
    missing: list[MissingSignatures]


class RoleKeys(BaseModel):
    """As `edgekit.fleet.releases.rotation.RoleKeys`."""

    role: str
    version: int
    expires_s: int
    threshold: int
    keys: list[str]
    held: list[str]


class Keys(BaseModel):
    """Who signs what, and the keys that this server holds."""

    roles: list[RoleKeys]


class Rotation(BaseModel):
    """A change of keys that waits for signatures, and the files of keys that this server made for it."""

    lines: list[str]
    made: list[str]


class SettledOn(BaseModel):
    """What a part of the devices of a channel runs outside rollouts."""

    cohort: str
    release: str
    version: str


class Channel(BaseModel):
    """A channel; the first rule that fits a device holds."""

    name: str
    model: str
    settled: list[SettledOn]


class Channels(BaseModel):
    """All channels."""

    channels: list[Channel]


class Verdict(BaseModel):
    """As `edgekit.fleet.rules.gates.Verdict`."""

    gate: str
    outcome: str
    why: str
    limit: float
    estimate: float | None
    lower: float | None
    upper: float | None
    devices: int
    meant: int
    slice: str


class Look(BaseModel):
    """What the gates said at some moment."""

    id: int
    rollout: str
    at_s: int
    stage: int
    phase: str
    bound: int
    verdicts: list[Verdict]
    counts: dict[str, Any]


class Looks(BaseModel):
    """Looks at the gates, newest first."""

    looks: list[Look]


class Decision(BaseModel):
    """What was decided, by whom and why."""

    id: int
    rollout: str
    revision: int
    at_s: int
    kind: str
    stage: int
    actor: str
    why: str
    verdicts: list[Verdict]


class Decisions(BaseModel):
    """Decisions, newest first."""

    decisions: list[Decision]


class Rollout(BaseModel):
    """As `edgekit.fleet.rules.rollouts.Rollout`, with the names that belong to it."""

    id: str
    model: str
    version: str
    channel: str
    release: str
    baseline: str
    salt: str
    plan: dict[str, Any]
    state: str
    stage: int
    phase: str
    live_bound: int
    shadow_bound: int
    counted_s: float
    soaked_s: float
    looked_s: float
    why: str
    revision: int
    created_s: int
    created_by: str


class RolloutWithLook(Rollout):
    """A rollout, and what its gates said last."""

    look: Look | None


class Created(RolloutWithLook):
    """A rollout that began, and why it may end without a verdict."""

    warnings: list[str]


class Estimate(BaseModel):
    """As `edgekit.fleet.rules.arms.Estimate`."""

    devices: int
    mean: float | None
    lower: float | None
    upper: float | None


class MeasureOfArms(BaseModel):
    """As `edgekit.fleet.rules.arms.Difference`."""

    name: str
    says: str
    candidate: Estimate
    control: Estimate
    difference: float | None
    lower: float | None
    upper: float | None
    effect: float
    pairs: int
    verdict: str
    decides: bool


class Arms(BaseModel):
    """As `edgekit.fleet.rules.arms.Compared`: both arms of an A/B comparison, at the last look."""

    at_s: int
    verdict: str
    measures: list[MeasureOfArms]
    candidate: int
    control: int
    ratio_p: float
    ratio_alpha: float
    psi: float | None
    jensen_shannon: float | None
    decides: bool


class Rollouts(BaseModel):
    """Rollouts, newest first."""

    rollouts: list[Rollout]


class Compared(BaseModel):
    """As `edgekit.fleet.windows.comparison`: everything together, over time, and the parts that can be asked for."""

    total: dict[str, Any]
    series: list[dict[str, Any]]
    slices: list[str]


class Device(BaseModel):
    """A device, as it was heard of last."""

    id: str
    revoked: bool
    channel: str
    labels: Labels
    enrolled_s: int
    seen_s: int
    phase: str
    live: str
    candidate: str
    last_good: str
    pinned: bool
    status: dict[str, Any]
    erased_s: int


class Disagreement(BaseModel):
    """An input on which a device's two versions differ, without what it holds."""

    id: int
    device: str
    key: str
    rollout: str
    live: str
    candidate: str
    live_label: str
    candidate_label: str
    at_s: int
    received_s: int
    size_bytes: int


class Disagreements(BaseModel):
    """Of a rollout, newest first."""

    disagreements: list[Disagreement]


class Devices(BaseModel):
    """Devices by id; `after` asks for the next page, and is empty on the last."""

    devices: list[Device]
    after: str


class Code(BaseModel):
    """Good for one device, once."""

    code: str
    expires_s: int


class Codes(BaseModel):
    """Codes, which are never shown again."""

    codes: list[Code]


class NewToken(BaseModel):
    """A token, which is never shown again."""

    token: str


class Token(BaseModel):
    """A token without its secret."""

    id: str
    name: str
    role: str
    created_s: int
    created_by: str
    expires_s: int
    revoked: bool


class Tokens(BaseModel):
    """All tokens, newest first."""

    tokens: list[Token]


class AuditRow(BaseModel):
    """Who did what."""

    sequence: int
    at_s: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    previous: str
    hash: str


class AuditRows(BaseModel):
    """Rows of the log, newest first."""

    rows: list[AuditRow]


class AuditVerdict(BaseModel):
    """Whether the log is whole; its end, to be noted elsewhere; and the first row that is wrong, where one is."""

    whole: bool
    sequence: int
    hash: str
    broken_at: int | None
    why: str


class Webhook(BaseModel):
    """Where decisions are told."""

    id: str
    url: str
    events: list[str]
    created_s: int
    created_by: str
    waiting: int
    failed: int
    failure: str


class Webhooks(BaseModel):
    """All of them."""

    webhooks: list[Webhook]


class NewWebhook(BaseModel):
    """The secret that signs what is sent, which is never shown again."""

    id: str
    secret: str
