"""Names for the JSON that perdure exchanges with the API server, and functions for the parts of
`metadata` that several modules read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KubernetesObject = dict[str, Any]
"""An object that the API server returned. The API server checks `metadata`, and the rest of an
object of a built-in kind. Anyone with permission can write anything into a TaskRun's status."""
Manifest = dict[str, Any]
"""An object that perdure builds and asks the API server to create."""
MergePatch = dict[str, Any]
"""The fields of an object to change, as a JSON merge patch. Null removes a field."""
PodSpec = dict[str, Any]
"""The `spec` of a pod."""
Container = dict[str, Any]
"""An entry of the `containers` or `initContainers` of a pod's spec."""
UntrustedObject = Mapping[str, object]
"""An object that the API server returned, or a part of one, of which each value is checked before
it is used."""


def labels_of(body: KubernetesObject) -> dict[str, str]:
    """Return the labels of an object."""
    found: dict[str, str] = body["metadata"].get("labels") or {}
    return found


def annotations_of(body: KubernetesObject) -> dict[str, str]:
    """Return the annotations of an object."""
    found: dict[str, str] = body["metadata"].get("annotations") or {}
    return found


def is_being_deleted(body: KubernetesObject) -> bool:
    """Return whether an object is to be deleted. It still exists, for example because of a
    finalizer."""
    return bool(body["metadata"].get("deletionTimestamp"))
