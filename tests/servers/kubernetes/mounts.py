"""A pod's volumes as directories, and their paths in a container
(kubernetes.io/docs/concepts/storage/volumes).

Supported kinds: emptyDir, configMap, secret, downwardAPI, projected (with service account tokens),
hostPath and persistentVolumeClaim. The files of an object are written once: a later change of the
object does not reach a running pod.

A hostPath is a directory below the machine's own `disk`, which no other machine can see. A
persistent volume below the cluster's `network` directory is the same on every machine, like a
network disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.servers.kubernetes.api import Api, Object
from tests.servers.kubernetes.environment import Sources, Wrong, expanded, field

TRANSIENT = "FailedMount"
"""Reason of the event about a volume that does not exist yet. In the meantime the container waits
with ContainerCreating."""


class Volumes:
    """The volumes of one pod. `place` is the pod's own directory."""

    def __init__(self, api: Api, place: Path, disk: Path, network: Path) -> None:
        self.api = api
        self.place = place
        self.disk = disk
        self.network = network

    def directories(self, pod: Object) -> dict[str, Path]:
        """Return the directory of each volume, by the volume's name. Raise Wrong while one is
        missing."""
        return {each["name"]: self._directory(pod, each) for each in pod["spec"].get("volumes", ())}

    def _directory(self, pod: Object, volume: Object) -> Path:
        group = pod["spec"].get("securityContext", {}).get("fsGroup")
        if "hostPath" in volume:
            return self._of_host(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            found = self._claimed(pod, volume["persistentVolumeClaim"]["claimName"])
            _give(
                found,
                group,
                0o660,
                pod["spec"].get("securityContext", {}).get("fsGroupChangePolicy", "Always"),
            )
            return found
        made = self.place / "volumes" / volume["name"]
        if made.exists():
            return made
        new = made.with_name(f".{made.name}.new")
        new.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            new.chmod(0o777)
        else:
            new.chmod(0o755)
            for path, (content, mode) in self._files(pod, volume).items():
                target = new / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                target.chmod(mode)
        # Files that are made from objects are read-only (kubernetes/pkg/volume/volume_linux.go,
        # roMask and rwMask).
        _give(new, group, 0o660 if "emptyDir" in volume else 0o440, "Always")
        new.rename(made)
        return made

    def _of_host(self, wanted: Object) -> Path:
        found = self.disk / wanted["path"].lstrip("/")
        kind = wanted.get("type", "")
        if kind == "DirectoryOrCreate":
            found.mkdir(parents=True, exist_ok=True)
        if not found.exists():
            raise Wrong(TRANSIENT, f"hostPath type check failed: {wanted['path']} is not there")
        return found

    def _claimed(self, pod: Object, name: str) -> Path:
        space = pod["metadata"]["namespace"]
        claim = self.api.find(f"/api/v1/namespaces/{space}/persistentvolumeclaims/{name}")
        if claim is None or claim["status"].get("phase") != "Bound":
            raise Wrong(TRANSIENT, f'persistentvolumeclaim "{name}" is not bound')
        volume = self.api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        path = Path(volume["spec"]["hostPath"]["path"])
        found = path if path.is_relative_to(self.network) else self.disk / path.relative_to("/")
        if not path.is_relative_to(self.network):
            found.mkdir(parents=True, exist_ok=True)
        if not found.is_dir():
            raise Wrong(
                TRANSIENT, f"{path} of persistentvolume {volume['metadata']['name']} is not there"
            )
        return found

    def _files(self, pod: Object, volume: Object) -> dict[str, tuple[bytes, int]]:
        if "projected" not in volume:
            kinds = {
                "configMap": "name",
                "secret": "secretName",
                "downwardAPI": "",
                "projected": "",
            }
            kind = next((each for each in kinds if each in volume), None)
            if kind is None:
                raise Wrong(
                    TRANSIENT,
                    f"this node agent knows no volume of {', '.join(set(volume) - {'name'})}",
                )
            return self._source(
                pod,
                kind,
                volume[kind],
                volume[kind].get(kinds[kind], ""),
                volume[kind].get("defaultMode", 0o644),
            )
        found = {}
        mode = volume["projected"].get("defaultMode", 0o644)
        for source in volume["projected"].get("sources", ()):
            for kind, wanted in source.items():
                found.update(self._source(pod, kind, wanted, wanted.get("name", ""), mode))
        return found

    def _source(
        self, pod: Object, kind: str, wanted: Object, name: str, mode: int
    ) -> dict[str, tuple[bytes, int]]:
        if kind == "downwardAPI":
            return {
                each["path"]: (
                    field(pod, each["fieldRef"]["fieldPath"]).encode(),
                    each.get("mode", mode),
                )
                for each in wanted["items"]
            }
        space = pod["metadata"]["namespace"]
        if kind == "serviceAccountToken":
            asked: dict[str, Any] = {"expirationSeconds": wanted.get("expirationSeconds", 3600)}
            if "audience" in wanted:
                asked["audiences"] = [wanted["audience"]]
            bound = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
            }
            body = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {**asked, "boundObjectRef": bound},
            }
            account = pod["spec"].get("serviceAccountName", "default")
            made = self.api.create(
                f"/api/v1/namespaces/{space}/serviceaccounts/{account}/token", body
            )
            return {wanted["path"]: (made["status"]["token"].encode(), mode)}
        sources = Sources(self.api, space)
        content = sources.config(name) if kind == "configMap" else sources.secret(name)
        if content is None:
            if wanted.get("optional"):
                return {}
            raise Wrong(TRANSIENT, f'{kind.lower()} "{name}" not found')
        if "items" not in wanted:
            return {key: (value, mode) for key, value in content.items()}
        found = {}
        for each in wanted["items"]:
            if each["key"] in content:
                found[each["path"]] = (content[each["key"]], each.get("mode", mode))
            elif not wanted.get("optional"):
                raise Wrong(TRANSIENT, f"references non-existent {kind.lower()} key: {each['key']}")
        return found


def mounts(
    container: Object, directories: dict[str, Path], environ: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the mounts of a container from its pod's volumes."""
    found = []
    for each in container.get("volumeMounts", ()):
        source = directories[each["name"]]
        below = each.get("subPath") or expanded(each.get("subPathExpr", ""), environ)
        if below:
            source = _below(source, below)
        found.append(
            {
                "source": str(source),
                "target": each["mountPath"],
                "readonly": bool(each.get("readOnly")),
            }
        )
    return found


def _below(volume: Path, path: str) -> Path:
    """Return a sub-path of a volume. It is made if necessary, with the volume's access rights. No
    symbolic link leads out of the volume."""
    whole = volume.stat()
    found = volume
    for part in Path(path).parts:
        found = found / part
        if part in ("..", "/") or found.is_symlink():
            raise Wrong(
                "CreateContainerConfigError",
                f"failed to prepare subPath {path}: it leads out of the volume",
            )
        if not found.exists():
            found.mkdir()
            os.chown(found, whole.st_uid, whole.st_gid)
            found.chmod(whole.st_mode & 0o7777)
    return found


def _give(top: Path, group: int | None, rights: int, policy: str) -> None:
    """Apply fsGroup: all files of a volume belong to a group with these rights, and so do new ones."""
    if group is None:
        return
    root = top.stat()
    entering = 0o2000 | rights | 0o110
    if policy == "OnRootMismatch" and root.st_gid == group and root.st_mode & entering == entering:
        return
    for directory, _, names in os.walk(top):
        for path, more in (
            (Path(directory), entering),
            *((Path(directory) / name, rights) for name in names),
        ):
            if not path.is_symlink():
                os.chown(path, -1, group)
                path.chmod(path.stat().st_mode & 0o7777 | more)
