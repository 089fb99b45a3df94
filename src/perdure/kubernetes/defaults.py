"""The defaults that a cluster's administrator sets for all attempts. Pure. They come from `perdure
operator --defaults JSON`, which the chart fills from `attempts.pod` and `attempts.workspace`.

A TaskRun's own values take precedence. Selectors and resources are merged by name. Tolerations and
pull Secrets are added to those of the TaskRun.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec
from msgspec.structs import replace

from perdure.kubernetes.spec import (
    Amounts,
    Camel,
    Pod,
    PullSecret,
    SecretRef,
    SpecVolume,
    Toleration,
)
from perdure.kubernetes.wanted import WantedRun
from perdure.model.codec import resolved

Pull = Literal["Always", "IfNotPresent", "Never"]
Entry = TypeVar("Entry")


class PodDefaults(Camel, frozen=True, forbid_unknown_fields=True):
    """Defaults for `spec.pod`."""

    image_pull_policy: Pull | None = None
    image_pull_secrets: list[PullSecret] = msgspec.field(default_factory=list)
    resources: dict[str, Amounts] = msgspec.field(default_factory=dict)
    node_selector: dict[str, str] = msgspec.field(default_factory=dict)
    tolerations: list[Toleration] = msgspec.field(default_factory=list)
    priority_class_name: str = ""
    runtime_class_name: str = ""
    scheduler_name: str = ""


class VolumeDefaults(Camel, frozen=True, forbid_unknown_fields=True):
    """Defaults for `spec.workspace`."""

    size: str = ""
    storage_class_name: str = ""
    checkpoints: str = ""
    checkpoints_secret_ref: SecretRef | None = None
    checkpoints_secret_name: str = ""
    """Deprecated form of `checkpoints_secret_ref`."""


class AttemptDefaults(Camel, frozen=True, forbid_unknown_fields=True):
    """Defaults for the attempts of all TaskRuns."""

    pod: PodDefaults = PodDefaults()
    workspace: VolumeDefaults = VolumeDefaults()
    ttl_seconds_after_finished: int | None = None


NO_DEFAULTS = AttemptDefaults()


def defaults_of(text: str) -> AttemptDefaults:
    """Return the defaults that a JSON text contains. Raises ValueError; its message names the
    invalid field."""
    try:
        found = msgspec.json.decode(text, type=resolved(AttemptDefaults))
    except msgspec.DecodeError as error:  # msgspec.ValidationError is a subclass of DecodeError.
        raise ValueError(str(error)) from error
    if found.workspace.checkpoints_secret_ref is not None and (
        found.workspace.checkpoints_secret_name
    ):
        raise ValueError(
            "workspace.checkpointsSecretName is the earlier form of checkpointsSecretRef: give one "
            "of the two"
        )
    return found


def filled(run: WantedRun, given: AttemptDefaults) -> WantedRun:
    """Return the TaskRun with defaults for the fields that it does not set."""
    if given == NO_DEFAULTS or run.invalid:
        return run
    spec = run.spec
    ttl = spec.ttl_seconds_after_finished
    return replace(
        run,
        spec=replace(
            spec,
            pod=_pod(spec.pod, given.pod),
            workspace=_volume(spec.workspace, given.workspace),
            ttl_seconds_after_finished=given.ttl_seconds_after_finished if ttl is None else ttl,
        ),
    )


def _pod(pod: Pod, given: PodDefaults) -> Pod:
    parts = {*given.resources, *pod.resources}
    resources = {}
    for part in parts:
        resources[part] = {**given.resources.get(part, {}), **(pod.resources.get(part) or {})}
    return replace(
        pod,
        image_pull_policy=pod.image_pull_policy or given.image_pull_policy or "",
        image_pull_secrets=_together(pod.image_pull_secrets, given.image_pull_secrets),
        resources=_consistent(resources, pod),
        node_selector={**given.node_selector, **pod.node_selector},
        tolerations=_together(pod.tolerations, given.tolerations),
        priority_class_name=pod.priority_class_name or given.priority_class_name,
        runtime_class_name=pod.runtime_class_name or given.runtime_class_name,
        scheduler_name=pod.scheduler_name or given.scheduler_name,
    )


def _consistent(resources: dict[str, Amounts], pod: Pod) -> dict[str, Amounts]:
    """Return the resources without the defaults that could contradict the TaskRun's own values. If
    the TaskRun sets only a request, the default limit is dropped. If it sets only a limit, the
    default request is dropped."""
    own = {part: pod.resources.get(part) or {} for part in ("requests", "limits")}
    pairs = (("requests", "limits"), ("limits", "requests"))
    kept = dict(resources)
    for part, other in pairs:
        if part in kept:
            allowed = {}
            for name, value in kept[part].items():
                if name in own[part] or name not in own[other]:
                    allowed[name] = value
            kept[part] = allowed
    return {part: values for part, values in kept.items() if values}


def _volume(volume: SpecVolume, given: VolumeDefaults) -> SpecVolume:
    if volume.mode != "Claim":
        return volume
    found = replace(
        volume,
        size=volume.size or given.size,
        storage_class_name=volume.storage_class_name or given.storage_class_name,
    )
    if volume.checkpoints:
        return found
    # A Secret has the credentials of one checkpoint store. The default Secret is therefore only
    # used together with the default store.
    return replace(
        found,
        checkpoints=given.checkpoints,
        checkpoints_secret_ref=given.checkpoints_secret_ref,
        checkpoints_secret_name=given.checkpoints_secret_name,
    )


def _together(own: list[Entry], given: list[Entry]) -> list[Entry]:
    """Return the TaskRun's own entries, followed by the defaults that are not among them."""
    return [*own, *(each for each in given if each not in own)]
