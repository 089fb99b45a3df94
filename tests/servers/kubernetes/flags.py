"""The configuration of the control plane: ports, keys, tokens, flags. It is written once for each
cluster, before anything runs."""

from __future__ import annotations

import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.servers.kubernetes.api import Access
from tests.servers.ports import free_port

TransportError = httpx2.HTTPError

ACCOUNTS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    **{
        f"node-{name}": (f"system:node:{name}", "system:masters")
        for name in ("one", "two", "three", "four", "kwok")
    },
}
"""The tokens that exist from the beginning, with user and group."""

CONTROLLERS = (
    *(
        "job-controller",
        "cronjob-controller",
        "ttl-after-finished-controller",
        "garbage-collector-controller",
        "namespace-controller",
    ),
    *(
        "serviceaccount-controller",
        "root-ca-certificate-publisher-controller",
        "persistentvolume-binder-controller",
    ),
    *(
        "persistentvolumeclaim-protection-controller",
        "persistentvolume-protection-controller",
        "pod-garbage-collector-controller",
    ),
    *(
        "node-lifecycle-controller",
        "taint-eviction-controller",
        "deployment-controller",
        "replicaset-controller",
        "disruption-controller",
    ),
    *("resourcequota-controller", "clusterrole-aggregation-controller"),
)

AUDITED = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  userGroups: ["system:masters"]
- level: None
  users: ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver", "system:anonymous"]
- level: None
  userGroups: ["system:serviceaccounts:kube-system"]
- level: Metadata
"""
"""Requests of the control plane and of the tests themselves are not counted."""


@dataclass(frozen=True)
class Plan:
    """The configuration. `flags` has the flags of each program by its name, `tokens` the token of
    each account."""

    server: str
    ca_file: Path
    key_file: Path
    tokens: dict[str, str]
    flags: dict[str, list[str]]
    audit: Path

    def access(self, account: str) -> Access:
        return Access(self.server, self.ca_file, self.tokens[account], account)


def plan(top: Path) -> Plan:
    """Write the files that the programs read below `top`, and return the configuration."""
    etcd, peer, api = (f"127.0.0.1:{free_port()}" for _ in range(3))
    tokens = {name: secrets.token_hex(16) for name in ACCOUNTS}
    (top / "tokens.csv").write_text(
        "".join(
            f'{tokens[name]},{user},{name},"{group}"\n' for name, (user, group) in ACCOUNTS.items()
        )
    )
    (top / "audited.yaml").write_text(AUDITED)
    ca_file, key_file = certificate(top)
    _run(
        "openssl",
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-out",
        str(top / "accounts.key"),
    )
    _run(
        "openssl",
        "pkey",
        "-in",
        str(top / "accounts.key"),
        "-pubout",
        "-out",
        str(top / "accounts.pub"),
    )
    server = f"https://{api}"
    for name in ("kube-controller-manager", "kube-scheduler"):
        Access(server, ca_file, tokens[name]).kubeconfig(top / f"{name}.kubeconfig")
    parts = {
        "etcd": [str(top / "etcd"), f"http://{etcd}", f"http://{peer}"],
        "kube-apiserver": [
            *(f"--etcd-servers=http://{etcd}", f"--secure-port={api.split(':')[1]}", "--bind-address=127.0.0.1"),
            *("--advertise-address=127.0.0.1", f"--tls-cert-file={ca_file}", f"--tls-private-key-file={key_file}"),
            *(f"--cert-dir={top}", "--service-cluster-ip-range=10.96.0.0/24", "--endpoint-reconciler-type=none"),
            *("--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={top / 'accounts.pub'}"),
            *(f"--service-account-signing-key-file={top / 'accounts.key'}", "--authorization-mode=Node,RBAC"),
            *(f"--token-auth-file={top / 'tokens.csv'}", "--allow-privileged=true"),
            *(f"--audit-policy-file={top / 'audited.yaml'}", f"--audit-log-path={top / 'audit.log'}"),
            "--storage-initialization-timeout=2m",
        ],
        "kube-controller-manager": [
            *(f"--kubeconfig={top / 'kube-controller-manager.kubeconfig'}", "--leader-elect=false"),
            "--use-service-account-credentials=true",
            *(f"--service-account-private-key-file={top / 'accounts.key'}", f"--root-ca-file={ca_file}", "--bind-address=127.0.0.1"),
            *("--secure-port=0", f"--controllers={','.join(CONTROLLERS)}", f"--cert-dir={top}"),
            # With these flags a lost node is noticed within seconds, and its pods are evicted at
            # once.
            *("--node-monitor-period=1s", "--node-monitor-grace-period=10s", "--node-eviction-rate=100"),
            *("--concurrent-job-syncs=20", "--kube-api-qps=400", "--kube-api-burst=800", "--pvclaimbinder-sync-period=2s"),
        ],
        "kube-scheduler": [
            *(f"--kubeconfig={top / 'kube-scheduler.kubeconfig'}", "--leader-elect=false", "--bind-address=127.0.0.1", "--secure-port=0"),
            *(f"--cert-dir={top}", "--kube-api-qps=400", "--kube-api-burst=800"),
        ],
    }  # fmt: skip
    return Plan(server, ca_file, key_file, tokens, parts, top / "audit.log")


def certificate(top: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that is its own authority. Return the paths of certificate
    and key."""
    kind = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=perdure test",
    ]
    names = [
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
        "-addext",
        "keyUsage=critical,digitalSignature,keyCertSign",
    ]
    ca_file, key_file = top / "certificate.pem", top / "key.pem"
    _run("openssl", "req", "-x509", *kind, *names, "-keyout", str(key_file), "-out", str(ca_file))
    ca_file.chmod(0o644)
    return ca_file, key_file


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
