"""A cluster to try out: `python -m tests.servers.kubernetes` prints the kubeconfig for kubectl, and
removes the cluster at Ctrl-C."""

from __future__ import annotations

import signal

from tests.servers.kubernetes.cluster import KUBECTL, running

if __name__ == "__main__":
    with running() as cluster:
        print(
            f"export KUBECONFIG={cluster.kubeconfig}\n{KUBECTL} get nodes\nlogs and volumes: "
            f"{cluster.top}\nCtrl-C ends it",
            flush=True,
        )
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
