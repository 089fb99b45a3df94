"""Reads and writes the TaskRuns of a cluster with the permissions of a kubeconfig. Called by
`perdure --cluster` (kubectl perdure).

Every failure is reported as one sentence and a next step: no configuration, no answer, no such
resource, no permission, or no such TaskRun. A rejection is reported in the API server's own words,
which name the field. Results are plain JSON. The client library lightkube, which the extra
`kubectl` installs, is imported only when it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perdure.errors import Conflict, NotFound, StoreError, UsageError
from perdure.host.extras import install_command
from perdure.kubernetes.objects import KubernetesObject, Manifest, MergePatch
from perdure.kubernetes.view import word
from perdure.kubernetes.wanted import GROUP, KIND, PLURAL, VERSION
from perdure.rules.text import one_line

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
INSTALL = (
    "kubectl apply --server-side -f packaging/helm/perdure/crds/taskruns.yaml, or helm install "
    "perdure packaging/helm/perdure"
)
EXEC_API = "client.authentication.k8s.io/"


class TaskRuns:
    """A client for the TaskRuns of one cluster. `namespace` is the default namespace. Call `close`
    after use."""

    def __init__(self, kubeconfig: str = "", context: str = "", namespace: str = "") -> None:
        """Open the client without sending a request. Raises UsageError if no cluster is
        configured."""
        _need_library()
        from lightkube import Client
        from lightkube.generic_resource import create_namespaced_resource

        found = _configuration(kubeconfig, context)
        self.server = found.cluster.server
        self.namespace = namespace or found.namespace
        self._kind = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
        with self._converted_errors(""):
            self._client = Client(
                config=found, namespace=self.namespace, field_manager="perdure-cli"
            )

    def close(self) -> None:
        self._client.close()

    def list(self, *, everywhere: bool = False) -> list[KubernetesObject]:
        """Return all TaskRuns of the namespace, or of all namespaces."""
        with self._converted_errors(""):
            namespace = "*" if everywhere else self.namespace
            return list(map(dict, self._client.list(self._kind, namespace=namespace)))

    def get(self, name: str) -> KubernetesObject:
        with self._converted_errors(name):
            return dict(self._client.get(self._kind, name, namespace=self.namespace))

    def create(self, body: Manifest) -> KubernetesObject:
        """Create a TaskRun and return it. Raises Conflict if the name is taken, and UsageError with
        the API server's words if the server rejects it."""
        name = str(body["metadata"]["name"])
        with self._converted_errors(name):
            made = self._kind(apiVersion=f"{GROUP}/{VERSION}", kind=KIND, **body)
            return dict(self._client.create(made, namespace=self.namespace))

    def patch(
        self, name: str, change: MergePatch, *, seen: KubernetesObject | None = None
    ) -> KubernetesObject:
        """Apply a merge patch and return the changed TaskRun. Raises Conflict if the TaskRun has
        changed since `seen`, the TaskRun as it was read before. Without `seen`, the patch is
        applied in any case."""
        from lightkube.types import PatchType

        if seen is not None:
            change = {
                **change,
                "metadata": {
                    **change.get("metadata", {}),
                    "resourceVersion": seen["metadata"]["resourceVersion"],
                },
            }
        with self._converted_errors(name):
            return dict(
                self._client.patch(
                    self._kind, name, change, namespace=self.namespace, patch_type=PatchType.MERGE
                )
            )

    def person(self) -> str:
        """Return the name by which the API server knows the user of this kubeconfig."""
        from lightkube.generic_resource import create_global_resource

        group, kind = "authentication.k8s.io", "SelfSubjectReview"
        review = create_global_resource(group, "v1", kind, "selfsubjectreviews")
        with self._converted_errors("", what=kind):
            found = self._client.create(review(apiVersion=f"{group}/v1", kind=kind))
        return word(dict(found), "status.userInfo.username")

    def log(self, pod: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of a pod's log. The lines are untrusted and not cleaned. Raises NotFound
        if the pod does not exist, and Conflict if it has not started yet."""
        with self._converted_errors(pod, what="pod"):
            for line in self._client.log(
                pod, namespace=self.namespace, container="perdure", follow=follow, newlines=False
            ):
                yield str(line)

    def job(self, name: str) -> KubernetesObject:
        with self._converted_errors(name, what="Job"):
            found = self._client.get(_kind("batch", "Job", "jobs"), name, namespace=self.namespace)
            return dict(found)

    def pod(self, name: str) -> KubernetesObject:
        with self._converted_errors(name, what="pod"):
            found = self._client.get(_kind("", "Pod", "pods"), name, namespace=self.namespace)
            return dict(found)

    def create_pod(self, body: Manifest) -> KubernetesObject:
        name = str(body["metadata"]["name"])
        with self._converted_errors(name, what="pod"):
            made = _kind("", "Pod", "pods")(apiVersion="v1", kind="Pod", **body)
            return dict(self._client.create(made, namespace=self.namespace))

    def delete_pod(self, name: str) -> None:
        with self._converted_errors(name, what="pod"):
            self._client.delete(_kind("", "Pod", "pods"), name, namespace=self.namespace)

    @contextmanager
    def _converted_errors(self, name: str, what: str = "TaskRun") -> Iterator[None]:
        """Convert errors of lightkube and the API server, raised in the `with` block, to perdure's
        own errors."""
        import httpx2
        from lightkube.core.exceptions import ApiError, ConfigError

        try:
            yield
        except ApiError as error:
            raise self._refused(error.status, name, what) from None
        except httpx2.HTTPStatusError as error:
            if error.response.status_code == 404:
                raise self._not_installed() from None
            raise StoreError(
                f"the API server {self.server} answers with {error.response.status_code}"
            ) from None
        except httpx2.HTTPError as error:
            raise StoreError(
                f"the API server {self.server} does not answer: {error}",
                "kubectl cluster-info",
            ) from None
        except (ConfigError, OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"the kubeconfig for {self.server} cannot be used: {error}",
                "kubectl cluster-info",
            ) from None

    def _refused(self, status: Any, name: str, what: str) -> Exception:
        code, message = (
            int(status.code or 0),
            str(status.message or status.reason or "no reason is given"),
        )
        named = status.details is not None and bool(status.details.name)
        if code == 404 and not named:
            return self._not_installed()
        if code == 404:
            return NotFound(
                f"there is no {what} {name!r} in the namespace {self.namespace}",
                f"kubectl perdure ls -n {self.namespace}",
            )
        if code == 401:
            return StoreError(
                f"the API server {self.server} does not accept your credentials: {message}",
                "kubectl auth whoami",
                transient=False,
            )
        if code == 403:
            may = (
                f"kubectl auth can-i --list -n {self.namespace}; the ClusterRole perdure-edit has "
                f"these permissions"
            )
            return StoreError(f"you may not do that: {message}", may, transient=False)
        if code == 409:
            taken = status.reason == "AlreadyExists"
            if taken:
                said = "has its name already"
            else:
                said = "was changed by another client at the same time"
            return Conflict(
                f"a {what} {said}: {name}" if taken else f"{what} {name} {said}",
                f"kubectl perdure show {name}",
            )
        if code == 400 and what == "pod":
            return Conflict(
                f"the pod {name} has not started: {message}",
                f"kubectl describe pod {name} -n {self.namespace}",
            )
        if code in (400, 413, 422):
            return UsageError(
                f"the API server rejects it: {message}",
                "kubectl explain taskruns.perdure.dev.spec",
            )
        return StoreError(
            f"the API server {self.server} answers with {code}: {message}", "try again in a moment"
        )

    def _not_installed(self) -> NotFound:
        return NotFound(f"the cluster {self.server} has no resource {PLURAL}.{GROUP}", INSTALL)


def _kind(group: str, kind: str, plural: str) -> Any:
    """Return the resource class of a built-in kind of Kubernetes. It is the same class that the
    operator uses."""
    from perdure.kubernetes.api import resource

    return resource(group, "v1", kind, plural)


def _need_library() -> None:
    try:
        import lightkube  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the commands for a cluster need the library {error.name}, which is not installed",
            install_command("kubectl"),
        ) from None


def _configuration(kubeconfig: str, context: str) -> Any:
    """Return the configuration that kubectl would use. Sources, in this order: the given file,
    KUBECONFIG, `~/.kube/config`, a pod's service account. Raises UsageError if none is usable."""
    from lightkube import KubeConfig
    from lightkube.core.exceptions import ConfigError

    named = kubeconfig or os.environ.get("KUBECONFIG", "")
    if os.pathsep in named:
        raise UsageError(
            "KUBECONFIG names several files", "name one of them with --kubeconfig FILE"
        )
    path = Path(named or "~/.kube/config").expanduser()
    try:
        if not named and not path.is_file() and (ACCOUNT / "token").exists():
            found = KubeConfig.from_service_account(ACCOUNT)
        else:
            found = KubeConfig.from_file(path)
        one = found.get(context or None)
    except ConfigError as error:
        if "found" in locals() and found.contexts:
            names = f"known are {', '.join(sorted(found.contexts))}"
        else:
            names = "kubectl config get-contexts"
        raise UsageError(
            f"no cluster is named: {error}", f"--kubeconfig FILE, --context NAME; {names}"
        ) from None
    except Exception as error:
        # The file may contain anything, so a broken one can raise errors of yaml or msgspec,
        # KeyError or TypeError.
        raise UsageError(
            f"the kubeconfig {path} cannot be read: {one_line(str(error), 300)}",
            "kubectl config view",
        ) from None
    if one is None or one.user is None:
        raise UsageError(
            f"the context {context or found.current_context!r} of {path} has no user",
            "kubectl config get-contexts",
        )
    return _with_newer_login(one)


def _with_newer_login(one: Any) -> Any:
    """Change the configuration so that lightkube 1.0.1 can use a login program (`user.exec`) with
    v1 of the ExecCredential protocol. Return the configuration.

    lightkube accepts only the two versions before v1, which are the same in all fields that
    lightkube uses. v1 is therefore declared as v1beta1. lightkube also does not tell the program
    which version to use, so an environment variable is added that does.
    """
    from lightkube.config.models import NameValue

    login = one.user.exec
    if login is None:
        return one
    info = {
        "apiVersion": login.apiVersion,
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }
    login.env = [*(login.env or ()), NameValue("KUBERNETES_EXEC_INFO", json.dumps(info))]
    if login.apiVersion == f"{EXEC_API}v1":
        login.apiVersion = f"{EXEC_API}v1beta1"
    return one
