"""The `spec` of a TaskRun: its fields, and their conversion to perdure's own TaskSpec. Pure.

`wanted` decodes the spec and calls `check` for rules that a schema cannot express. `manifests` and
`status_moves` use the result.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.kubernetes.objects import Dollars, dollars, dollars_or_zero
from perdure.kubernetes.order import UID
from perdure.model import ContinuityPolicy, Permissions, TaskSpec
from perdure.model.choices import OnDenied, OnEdit, OnLeftover

Mode = Literal["Claim", "Shared", "Checkpoints"]
LAST_WORD = {None: "", True: "on", False: "off"}


class Invalid(ValueError):
    """Raised for a TaskRun with an invalid spec. The message names the field."""


class Camel(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base class of the parts of a TaskRun. In JSON the fields have camel-case names, as is usual
    in Kubernetes."""


class KeyRef(Camel, frozen=True):
    """A key of a ConfigMap or a Secret."""

    name: str
    key: str


class PromptFrom(Camel, frozen=True):
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None


class FileFrom(Camel, frozen=True):
    """A task file: its path in the workdir, and the key of a ConfigMap or Secret with its
    content."""

    path: str
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None


class SpecSource(Camel, frozen=True):
    """The place of one version of the instructions in the cluster: a key of a Secret."""

    version: int
    name: str
    key: str


class SecretRef(Camel, frozen=True):
    """A reference to a Secret in the TaskRun's namespace, by name."""

    name: str


class Repository(Camel, frozen=True):
    url: str
    base: str = ""
    branch: str = ""
    credentials_secret_ref: SecretRef | None = None
    credentials_secret_name: str = ""

    @property
    def credentials_secret(self) -> str:
        """Return the name of the repository's Secret; empty for none. It is in
        `credentials_secret_ref` or in the deprecated field `credentials_secret_name`."""
        return _secret(self.credentials_secret_ref, self.credentials_secret_name)


class EnvVar(Camel, frozen=True):
    name: str
    value: str = ""


class ResumeFrom(Camel, frozen=True):
    mode: Literal["Auto", "Fresh", "Session", "Fork"] = "Auto"
    session_id: str = ""
    from_: str = msgspec.field(default="", name="from")


class Policy(Camel, frozen=True):
    attempts: int = 3
    timeout_seconds: float = 3600
    stall_seconds: float = 600
    budget: Dollars = msgspec.field(default=0, name="budgetUSD")
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    when_full: str = ""
    on_denied: OnDenied | None = None
    request_expiry_seconds: float = 7 * 86_400
    on_leftover: OnLeftover | None = None
    last_word: bool | None = None
    verify: str = ""
    verify_rounds: int = 3
    verify_timeout_seconds: float = 1800
    files: tuple[str, ...] = ()

    @property
    def budget_usd(self) -> float:
        """Return the budget in dollars; 0 for no limit."""
        return dollars_or_zero(self.budget)


class SpecVolume(Camel, frozen=True):
    """The field `spec.workspace`: where the task's state is kept between two attempts."""

    mode: Mode = "Claim"
    claim_name: str = ""
    storage_class_name: str = ""
    size: str = ""
    checkpoints: str = ""
    checkpoints_secret_ref: SecretRef | None = None
    checkpoints_secret_name: str = ""
    reclaim: Literal["Keep", "Delete"] = "Keep"

    @property
    def checkpoints_secret(self) -> str:
        """Return the name of the checkpoint store's Secret; empty for none. It is in
        `checkpoints_secret_ref` or in the deprecated field `checkpoints_secret_name`."""
        return _secret(self.checkpoints_secret_ref, self.checkpoints_secret_name)


Amounts = dict[str, Any]
"""Kubernetes quantities by resource, such as `500m` for `cpu`. A quantity is a text or a number."""
Resources = dict[str, Any]
"""The `resources` of a container: `requests` and `limits`, each with `Amounts`."""
PodVolume = dict[str, Any]
"""An entry of a pod's `volumes`."""
VolumeMount = dict[str, Any]
"""An entry of a container's `volumeMounts`."""
Toleration = dict[str, Any]
"""An entry of a pod's `tolerations`."""
PullSecret = dict[str, Any]
"""An entry of a pod's `imagePullSecrets`: a reference to a Secret."""


class Pod(Camel, frozen=True):
    """The field `spec.pod`: settings for the pods of the attempts. Fields that Kubernetes also has
    are passed on unchanged."""

    image: str = ""
    image_pull_policy: str = ""
    resources: Resources = {}
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    affinity: dict[str, Any] = {}
    service_account_name: str = ""
    priority_class_name: str = ""
    runtime_class_name: str = ""
    scheduler_name: str = ""
    image_pull_secrets: list[PullSecret] = []
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    volumes: list[PodVolume] = []
    volume_mounts: list[VolumeMount] = []
    termination_grace_period_seconds: int = 60


class Spec(Camel, frozen=True):
    service: str = ""
    task: str = ""
    agent: str = "claude"
    prompt: str = ""
    prompt_from: PromptFrom | None = None
    context_version: int = 1
    files: tuple[FileFrom, ...] = ()
    on_edit: OnEdit = OnEdit.MERGE
    repository: Repository | None = None
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    agent_args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    credentials_secret_ref: SecretRef | None = None
    credentials_secret_name: str = ""
    resume: ResumeFrom = ResumeFrom()
    policy: Policy = Policy()
    workspace: SpecVolume = SpecVolume()
    suspend: bool = False
    ttl_seconds_after_finished: int | None = None
    labels: dict[str, str] = {}
    pod: Pod = Pod()

    @property
    def secret(self) -> SpecSource | None:
        """Return the key of the Secret that contains the newest instructions; None if they are not
        in a Secret. The operator never reads this Secret; the pod does."""
        if self.prompt_from is not None:
            ref = self.prompt_from.secret_key_ref
        else:
            ref = None
        if ref is not None:
            return SpecSource(version=self.context_version, name=ref.name, key=ref.key)
        return None

    @property
    def credentials_secret(self) -> str:
        """Return the name of the agent's Secret; empty for none. It is in `credentials_secret_ref`
        or in the deprecated field `credentials_secret_name`."""
        return _secret(self.credentials_secret_ref, self.credentials_secret_name)


def _secret(ref: SecretRef | None, name: str) -> str:
    if ref is not None:
        return ref.name
    return name


def check(spec: Spec, uid: str) -> None:
    """Check rules for a spec that the resource's schema cannot express. All later code relies on
    them. Raises Invalid."""
    if not UID.fullmatch(uid):
        raise Invalid("metadata.uid is not a uid")
    source = spec.prompt_from
    refs = []
    if source is not None:
        for each in (source.config_map_key_ref, source.secret_key_ref):
            if each is not None:
                refs.append(each)
    if bool(spec.prompt.strip()) + len(refs) != 1:
        raise Invalid("give the instructions in either prompt or promptFrom")
    for file in spec.files:
        if (file.config_map_key_ref is None) == (file.secret_key_ref is None):
            raise Invalid(
                "give the content of each of files in either configMapKeyRef or secretKeyRef"
            )
    _check_secrets(spec)
    if not spec.service and spec.repository is None:
        raise Invalid("give repository, or service for a task without a repository")
    if spec.workspace.mode == "Shared" and not (
        spec.workspace.claim_name and spec.service and spec.task
    ):
        raise Invalid("workspace.mode Shared needs claimName, service and task")
    if spec.workspace.mode == "Checkpoints" and not spec.workspace.checkpoints:
        raise Invalid("workspace.mode Checkpoints needs workspace.checkpoints")
    if spec.resume.mode == "Fork" and not (spec.resume.from_ and spec.workspace.mode == "Claim"):
        raise Invalid("resume.mode Fork needs resume.from, and workspace.mode Claim")
    try:
        dollars(spec.policy.budget)
    except ValueError as error:
        raise Invalid(f"policy.budgetUSD: {error}") from error
    if spec.context_version < 1 or spec.policy.attempts < 1:
        raise Invalid("contextVersion and policy.attempts count from 1")


def _check_secrets(spec: Spec) -> None:
    """Check that each Secret is named in only one field: either the current field or its deprecated
    form. Raises Invalid."""
    pairs = [
        ("credentialsSecret", spec.credentials_secret_ref, spec.credentials_secret_name),
        (
            "workspace.checkpointsSecret",
            spec.workspace.checkpoints_secret_ref,
            spec.workspace.checkpoints_secret_name,
        ),
    ]
    if (repository := spec.repository) is not None:
        ref, name = repository.credentials_secret_ref, repository.credentials_secret_name
        pairs.append(("repository.credentialsSecret", ref, name))
    for field, ref, name in pairs:
        if ref is not None and name:
            raise Invalid(f"{field}Name is the earlier form of {field}Ref: give one of the two")


def task_spec(spec: Spec) -> TaskSpec:
    """Return the task as perdure's TaskSpec. Its prompt is empty, because the instructions are
    passed to the pod separately."""
    policy, repository = spec.policy, spec.repository
    return TaskSpec(
        prompt="",
        agent=spec.agent,
        service=spec.service,
        task=spec.task,
        model=spec.model,
        permissions=spec.permissions,
        repo=repository.url if repository else "",
        base=repository.base if repository else "",
        branch=repository.branch if repository else "",
        agent_args=spec.agent_args,
        env={each.name: each.value for each in spec.env},
        timeout_s=policy.timeout_seconds,
        stall_s=policy.stall_seconds,
        attempts=policy.attempts,
        budget_usd=policy.budget_usd,
        continuity=policy.continuity,
        when_full=policy.when_full,
        on_denied=policy.on_denied or "",
        on_leftover=policy.on_leftover or "",
        last_word=LAST_WORD[policy.last_word],
        verify=policy.verify,
        verify_rounds=policy.verify_rounds,
        verify_timeout_s=policy.verify_timeout_seconds,
        files=policy.files,
        labels=spec.labels,
    )
