"""A TaskRun as the API server gives it, and the status that the operator writes into it. Pure.

The schema of the resource is checked by the API server, but a cluster may carry another version of it, and whoever may write the status
may write anything: what does not fit is `Invalid`, with the field's name, and becomes a condition. A status that does not fit is taken
for one that is not there, as far as it does not fit: nothing that a status says may stop the operator.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from perdure.codec import resolved
from perdure.kubernetes.order import UID
from perdure.model import ContinuityPolicy, Permissions, TaskSpec, Usage
from perdure.text import clean

GROUP, VERSION, KIND, PLURAL = "perdure.dev", "v1alpha1", "TaskRun", "taskruns"
FINALIZER = f"{GROUP}/unsaved-work"
RETRY, ABANDON = f"{GROUP}/retry", f"{GROUP}/abandon"
QUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
MOST_RECORDS = 50
SENTENCE = 2000
"""Characters of a sentence in a status."""

Phase = Literal["Pending", "Queued", "Running", "Succeeded", "Failed", "Cancelled", "Suspended"]
FINAL: frozenset[str] = frozenset({"Succeeded", "Failed", "Cancelled"})
Mode = Literal["Claim", "Shared", "Checkpoints"]


class Invalid(ValueError):
    """What the TaskRun asks for cannot be done; the message names the field."""


class _Camel(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class KeyRef(_Camel, frozen=True):
    """A key of a ConfigMap or a Secret."""

    name: str
    key: str


class PromptFrom(_Camel, frozen=True):
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None


class Source(_Camel, frozen=True):
    """The key of a Secret in which a version of the instructions stands."""

    version: int
    name: str
    key: str


class Repository(_Camel, frozen=True):
    url: str
    base: str = ""
    branch: str = ""
    credentials_secret_name: str = ""


class EnvVar(_Camel, frozen=True):
    name: str
    value: str = ""


class ResumeFrom(_Camel, frozen=True):
    mode: Literal["Auto", "Fresh", "Session"] = "Auto"
    session_id: str = ""
    from_: str = msgspec.field(default="", name="from")


class Policy(_Camel, frozen=True):
    attempts: int = 3
    timeout_seconds: float = 3600
    stall_seconds: float = 600
    budget_usd: float = msgspec.field(default=0.0, name="budgetUSD")
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    when_full: str = ""
    verify: str = ""
    verify_rounds: int = 3
    verify_timeout_seconds: float = 1800
    files: tuple[str, ...] = ()


class Volume(_Camel, frozen=True):
    """`spec.workspace`: where the task's state lies between two attempts."""

    mode: Mode = "Claim"
    claim_name: str = ""
    storage_class_name: str = ""
    size: str = "10Gi"
    checkpoints: str = ""
    checkpoints_secret_name: str = ""
    reclaim: Literal["Keep", "Delete"] = "Keep"


class Pod(_Camel, frozen=True):
    """`spec.pod`: what is particular about the pods of the attempts. Parts of a pod's own schema stay as they are given."""

    image: str = ""
    resources: dict[str, Any] = {}
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    affinity: dict[str, Any] = {}
    service_account_name: str = ""
    priority_class_name: str = ""
    runtime_class_name: str = ""
    scheduler_name: str = ""
    image_pull_secrets: list[dict[str, Any]] = []
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    volumes: list[dict[str, Any]] = []
    volume_mounts: list[dict[str, Any]] = []
    termination_grace_period_seconds: int = 60


class Spec(_Camel, frozen=True):
    service: str = ""
    task: str = ""
    agent: str = "claude"
    prompt: str = ""
    prompt_from: PromptFrom | None = None
    context_version: int = 1
    repository: Repository | None = None
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    agent_args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    credentials_secret_name: str = ""
    resume: ResumeFrom = ResumeFrom()
    policy: Policy = Policy()
    workspace: Volume = Volume()
    suspend: bool = False
    labels: dict[str, str] = {}
    pod: Pod = Pod()

    @property
    def secret(self) -> Source | None:
        """Where the newest instructions stand, if that is a Secret: the operator does not read it, the pod does."""
        ref = self.prompt_from.secret_key_ref if self.prompt_from is not None else None
        return Source(version=self.context_version, name=ref.name, key=ref.key) if ref is not None else None


class Spent(_Camel, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = msgspec.field(default=0.0, name="costUSD")

    @property
    def usage(self) -> Usage:
        return Usage(input=self.input_tokens, output=self.output_tokens, cost_usd=self.cost_usd)


class Verdict(_Camel, frozen=True):
    """An attempt's receipt."""

    verdict: str = ""
    rung: str = ""
    reasons: tuple[str, ...] = ()


class Record(_Camel, frozen=True):
    """One attempt. It is at work as long as it has no outcome."""

    number: int
    job: str = ""
    job_uid: str = msgspec.field(default="", name="jobUID")
    pod: str = ""
    node: str = ""
    context_version: int = 1
    started: str = ""
    ended: str = ""
    outcome: str = ""
    detail: str = ""
    infrastructure: bool = False
    session_id: str = ""
    receipt: Verdict | None = None
    usage: Spent | None = None
    exit_code: int | None = None


class Lying(_Camel, frozen=True):
    """`status.workspace`: where the work lies."""

    claim_name: str = ""
    path: str = ""
    branch: str = ""
    commit: str = ""
    checkpoints: str = ""
    saved: bool = False


class Told(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A condition. All of it is always written: the API server asks for it."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: str


class Status(_Camel, frozen=True):
    phase: str = ""
    observed_generation: int = 0
    context_version: int = 0
    attempt: int = 0
    attempts_allowed: int = 0
    used_before: int = 0
    """Attempts that used up one of those allowed and stand in `attempts` no more."""
    run_after: str = ""
    reason: str = ""
    session_id: str = ""
    receipt: str = ""
    retried: str = ""
    workspace: Lying = Lying()
    usage: Spent = Spent()
    conditions: tuple[Told, ...] = ()
    attempts: tuple[Record, ...] = ()
    contexts: int = 0
    """How many versions of the instructions there were."""
    instructions_from: tuple[Source, ...] = ()
    """The newest versions that stand in Secrets. Not in the ConfigMap: who may write that would choose the Secret that is read."""

    @property
    def open(self) -> Record | None:
        """The attempt that is at work."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and not last.outcome else None

    def condition(self, type: str) -> Told | None:
        """The condition of a type, where it is true."""
        return next((each for each in self.conditions if each.type == type and each.status == "True"), None)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A TaskRun: what is asked for, and where it stands."""

    namespace: str
    name: str
    uid: str
    version: str
    """`metadata.resourceVersion`: every write to the status says that it is still this one."""
    generation: int
    deleting: bool
    finalizers: tuple[str, ...]
    labels: dict[str, str]
    retry: str
    abandoned: bool
    spec: Spec
    invalid: str
    """Why the spec cannot be used; empty where it can. Then `spec` holds what every TaskRun has."""
    status: Status
    raw_status: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def held(self) -> bool:
        return FINALIZER in self.finalizers

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.uid.encode()).hexdigest()[:8]

    @property
    def named(self) -> str:
        """What its objects are called, but the claim and the Jobs."""
        return f"{self.name[:40].rstrip('-.')}-{self.hash}"

    @property
    def secrets(self) -> dict[int, Source]:
        """The versions of the instructions that stand in Secrets, as far as they are known."""
        newest = (self.spec.secret,) if self.spec.secret is not None else ()
        return {each.version: each for each in (*self.status.instructions_from, *newest)}

    def job(self, attempt: int) -> str:
        return f"{self.named}-{attempt}"

    @property
    def claim(self) -> str:
        """The claim of mode Claim: the same for all TaskRuns of one task and agent."""
        spec = self.spec
        if not spec.task:
            return self.named
        whole = "/".join((self.namespace, spec.service, spec.task, spec.agent))
        told = _plain(f"{spec.service}-{spec.task}")[:48].rstrip("-")
        return f"{told}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

    def lies_on(self, claim: str, maker: str) -> bool:
        """Whether work of this TaskRun may lie on a claim, which the TaskRun `maker` made. Where its spec cannot be read, it may."""
        return bool(self.invalid) or claim in (self.claim, self.status.workspace.claim_name) or self.spec.resume.from_ == maker


def wanted(body: dict[str, Any]) -> Wanted:
    """The TaskRun in an object of the API server. Never raises for what is in `spec` or `status`."""
    meta = body["metadata"]
    annotations, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    spec, invalid = Spec(), ""
    try:
        spec = msgspec.convert(body.get("spec") or {}, resolved(Spec))
        _check(spec, meta["uid"])
    except (msgspec.ValidationError, Invalid) as error:
        invalid = said(f"spec: {error}".replace("$.", ""))
    raw = body.get("status") or {}
    return Wanted(
        namespace=meta["namespace"], name=meta["name"], uid=meta["uid"], version=meta.get("resourceVersion", ""),
        generation=meta.get("generation", 1), deleting=bool(meta.get("deletionTimestamp")), finalizers=tuple(meta.get("finalizers") or ()),
        labels={name: labels[name] for name in QUEUE_LABELS if name in labels},
        retry=str(annotations.get(RETRY, ""))[:253], abandoned=annotations.get(ABANDON) == "true",
        spec=spec, invalid=invalid, status=_status(raw), raw_status=raw,
    )  # fmt: skip


def _status(raw: dict[str, Any]) -> Status:
    """What fits of a status. Its parts are read one by one, so that a part that does not fit takes no other with it."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Status):
        if field.encode_name in raw:
            try:
                found[field.name] = msgspec.convert(raw[field.encode_name], resolved(field.type))
            except msgspec.ValidationError:
                continue
    return Status(**found)


def _check(spec: Spec, uid: str) -> None:
    """What every later step relies on. Raises Invalid."""
    if not UID.fullmatch(uid):
        raise Invalid("metadata.uid is no uid")
    source = spec.prompt_from
    refs = [] if source is None else [each for each in (source.config_map_key_ref, source.secret_key_ref) if each is not None]
    if bool(spec.prompt.strip()) + len(refs) != 1:
        raise Invalid("give the instructions in either prompt or promptFrom")
    if not spec.service and spec.repository is None:
        raise Invalid("give repository, or service for a task without a repository")
    if spec.workspace.mode == "Shared" and not (spec.workspace.claim_name and spec.service and spec.task):
        raise Invalid("workspace.mode Shared needs claimName, service and task")
    if spec.workspace.mode == "Checkpoints" and not spec.workspace.checkpoints:
        raise Invalid("workspace.mode Checkpoints needs workspace.checkpoints")
    if spec.context_version < 1 or spec.policy.attempts < 1:
        raise Invalid("contextVersion and policy.attempts count from 1")


def task_spec(spec: Spec) -> TaskSpec:
    """What the pod is to do, as everywhere in perdure; the prompt goes its own way."""
    policy, repository = spec.policy, spec.repository
    return TaskSpec(
        prompt="", agent=spec.agent, service=spec.service, task=spec.task, model=spec.model, permissions=spec.permissions,
        repo=repository.url if repository else "", base=repository.base if repository else "",
        branch=repository.branch if repository else "", agent_args=spec.agent_args, env={each.name: each.value for each in spec.env},
        timeout_s=policy.timeout_seconds, stall_s=policy.stall_seconds, attempts=policy.attempts, budget_usd=policy.budget_usd,
        continuity=policy.continuity, when_full=policy.when_full, verify=policy.verify, verify_rounds=policy.verify_rounds,
        verify_timeout_s=policy.verify_timeout_seconds, files=policy.files, labels=spec.labels,
    )  # fmt: skip


def said(text: str, most: int = SENTENCE) -> str:
    """What somebody else said, fit for a status: without control characters, on one line, cut."""
    line = " ".join(clean(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def stamp(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC, with milliseconds: `metadata`'s own format has none, and attempts need them."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> int:
    """RFC 3339 as milliseconds; 0 for what is none."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return 0
    return int(found.timestamp() * 1000) if found.tzinfo is not None else 0


def _plain(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()).strip("-") or "task"
