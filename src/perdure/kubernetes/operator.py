"""The operator (`perdure operator`): turns TaskRuns into Jobs and writes the results into their
status.

Watches (`watches`) fill a cache and a queue. Workers take TaskRuns from the queue. For each one the
pure module `step` decides the next step and `reconciler` carries it out. All state is in the
cluster, so an operator that was killed continues at its next start. Two operators at once waste
work but do no harm. Every ten minutes all objects are listed again, in case a watch missed an
event.

The operator reports itself as unhealthy if a watch has been silent for three minutes or a worker
has been stuck for five. Kubernetes then restarts it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import kopf
import stamina.instrumentation
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError as NoConfig
from msgspec import Struct, field

from perdure.errors import PerdureError, UsageError
from perdure.kubernetes import api as kinds
from perdure.kubernetes.api import Api, Away, Refused
from perdure.kubernetes.defaults import NO_DEFAULTS, AttemptDefaults
from perdure.kubernetes.launch import NamespaceSetup
from perdure.kubernetes.manifests import Cluster
from perdure.kubernetes.memory import ClusterCache, Key
from perdure.kubernetes.metrics import OperatorMetrics, serve
from perdure.kubernetes.reconciler import TaskRunReconciler
from perdure.kubernetes.snapshot import job_seen, pod_seen
from perdure.kubernetes.status import AttemptStatus, safe_line
from perdure.kubernetes.transports import NONE_PERMITTED, Permitted
from perdure.kubernetes.wanted import FINALIZER, WantedRun
from perdure.kubernetes.watches import Queue, WatchActivity, listen, registry

ALL = "*"
STUCK_S = 300.0
RELIST_S = 600.0
LEAVE_S = 15.0
LET_GO_S = 10.0
MOST_WOKEN = 8
"""Maximum number of waiting TaskRuns that are queued for processing when an attempt ends."""
Say = Callable[[str], None]


class Options(Struct, frozen=True, kw_only=True):
    """The options of `perdure operator`."""

    namespaces: tuple[str, ...]
    """The namespaces to watch; empty for all."""
    image: str
    account: str = ""
    defaults: AttemptDefaults = NO_DEFAULTS
    permitted: Permitted = NONE_PERMITTED
    policy: Mapping[str, object] = field(default_factory=dict)
    """Spec of the network policy to create in every namespace with attempts; empty for none."""
    make_account: bool = False
    """Whether to create the attempts' service account in every namespace with attempts."""
    read_logs: bool = False
    """Whether to read the logs of running attempts, to learn the conversation's id before the
    attempt ends."""
    port: int = 8080
    workers: int = 16
    patience_s: float = 1800.0
    silent_limit_s: float = 180.0


def connection() -> SingleConfig:
    """Return the connection to the cluster, from the pod's service account or else from KUBECONFIG.
    Raises UsageError if there is neither."""
    try:
        found = KubeConfig.from_env().get()
    except (NoConfig, OSError) as error:
        raise UsageError(
            f"no cluster is configured: {safe_line(str(error), 200)}",
            "set KUBECONFIG, or run it in a pod (docs/how-to)",
        ) from error
    if found is None or found.user is None:
        raise UsageError(
            "no account of the cluster is configured",
            "set KUBECONFIG to a kubeconfig with a user that has a token or a certificate",
        )
    return found


class Operator:
    """One operator process. All its work happens on the event loop that runs `run`."""

    def __init__(
        self, config: SingleConfig, options: Options, say: Say, warn: Say | None = None
    ) -> None:
        self._config, self._options, self._say = config, options, say
        self._warn = warn or say
        self.memory, self.activity = ClusterCache(), WatchActivity()
        self.api = Api(config)
        cluster = Cluster(image=options.image, account=options.account)
        self.queue = Queue(self._work, self._failed)
        self.reconciler = TaskRunReconciler(
            api=self.api,
            memory=self.memory,
            cluster=cluster,
            defaults=options.defaults,
            permitted=options.permitted,
            namespaces=NamespaceSetup(options.policy, options.account * options.make_account),
            read_logs=options.read_logs,
            patience_ms=int(options.patience_s * 1000),
            began=self._began,
            ended=self._ended,
            moved=self.queue.moved,
        )
        self.numbers = OperatorMetrics(
            self.api,
            self.watch_age_s,
            lambda: len(self.queue),
            lambda: len(self.memory),
            self.memory.phases,
        )
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        self.port = 0
        self._put: dict[Key, float] = {}

    def watch_age_s(self) -> float:
        return self.activity.age_s(3 * max(len(self._options.namespaces), 1))

    async def run(self) -> None:
        """Run until `stop` is set. Raises PerdureError if it cannot start."""
        stamina.instrumentation.set_on_retry_hooks([])
        await self._check()
        try:
            runner, self.port = await serve(
                self._options.port, self.numbers, self.ill, self.unready
            )
        except OSError as error:
            raise UsageError(
                f"port {self._options.port} cannot be listened on: {error.strerror}",
                "--port takes another one",
            ) from error
        registered = registry(self.memory, self.put, self.queue.forget, self.activity, self._login)
        workers = [asyncio.create_task(self.queue.worker()) for _ in range(self._options.workers)]
        relist = asyncio.create_task(self._relist())
        where = ", ".join(self._options.namespaces) or "all namespaces"
        self._say(
            f"operator of {where}; attempts run {self._options.image}; probes and metrics on port "
            f"{self.port}"
        )
        try:
            await listen(registered, self._options.namespaces, self.stop, self.ready, self._say)
        finally:
            self.queue.close()
            relist.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    while self.stop.is_set() and self.queue.slowest_s:
                        await asyncio.sleep(0.02)
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, relist, return_exceptions=True)
            with suppress(TimeoutError, Away, Refused):
                async with asyncio.timeout(LET_GO_S):
                    await self._let_go()
            await runner.cleanup()
            await self.api.close()
            self._say(
                "operator: ended; running attempts continue, and the next start takes them over"
            )

    async def _let_go(self) -> None:
        """Remove the finalizers of TaskRuns in a namespace that is being deleted. Called when the
        operator ends: its own pod is among the first objects to be deleted, and afterwards no
        operator is left to remove the finalizers."""
        leaving = [each for each in self._options.namespaces if await self.api.is_leaving(each)]
        for key in self.memory:
            found = self.memory.of(key)
            if found is not None and key[0] in leaving and found[0].has_finalizer:
                left = [each for each in found[0].finalizers if each != FINALIZER]
                # The API server refuses this for a TaskRun that is already gone. The others still
                # have to be released.
                with suppress(Refused):
                    await self.api.patch(kinds.RUN, *key, {"metadata": {"finalizers": left}})

    def put(self, key: Key) -> None:
        """Queue a TaskRun for processing, because a watch reported an event about it."""
        self._put.setdefault(key, time.monotonic())
        self.queue.put(key)

    def ill(self) -> str:
        """Return why the operator should be restarted; empty if it is healthy."""
        deaf = self.watch_age_s()
        if deaf > self._options.silent_limit_s:
            return f"a watch has been silent for {deaf:.0f} s"
        stuck = self.queue.slowest_s
        if stuck > STUCK_S:
            return f"a TaskRun has been worked on for {stuck:.0f} s"
        return ""

    def unready(self) -> str:
        return self.ill() or ("" if self.ready.is_set() else "the watches have not started")

    async def _work(self, key: Key) -> float | None:
        put = self._put.pop(key, time.monotonic())
        jobs = self.api.counted["create", kinds.JOB]
        with self.numbers.reconcile.time():
            until = await self.reconciler.reconcile(key)
        if self.api.counted["create", kinds.JOB] > jobs:
            self.numbers.launch.observe(time.monotonic() - put)
        if until is None:
            return None
        return max(0.05, until / 1000 - time.time())

    def _failed(self, key: Key, error: Exception) -> None:
        self.numbers.failed.labels(
            type(error).__name__ if isinstance(error, Away | Refused) else "Fault"
        ).inc()
        self._warn(
            f"{'/'.join(key)}: will be retried: {type(error).__name__}: "
            f"{safe_line(str(error), 300)}"
        )

    def _began(self, run: WantedRun, record: AttemptStatus) -> None:
        self.numbers.begun.inc()
        self._say(f"{run.namespace}/{run.name}: attempt {record.number} begins as Job {record.job}")

    def _ended(self, run: WantedRun, record: AttemptStatus) -> None:
        self.numbers.end(run, record)
        self._wake(run)
        if record.receipt is not None:
            proof = f"; receipt {record.receipt.verdict}"
        else:
            proof = ""
        why = f" ({safe_line(record.detail, 200)})" if record.detail else ""
        self._say(
            f"{run.namespace}/{run.name}: attempt {record.number}: {record.outcome}{why}{proof}"
        )

    def _wake(self, run: WantedRun) -> None:
        """Queue the oldest waiting TaskRuns of the namespace. An attempt of `run` has ended, so
        there may be room for an attempt of another TaskRun."""
        left = 0
        for each in self.memory.line(run.namespace, run.uid):
            same = bool(each.claim) and each.claim == run.status.workspace.claim_name
            if not each.open and (same or (each.waits and left < MOST_WOKEN)):
                left += 1
                self.put((each.namespace, each.name))

    async def _check(self) -> None:
        """Check that the cluster answers, has the resource TaskRun, and lets this account list what
        the operator needs. Raises PerdureError."""
        for namespace in self._options.namespaces or (ALL,):
            for kind in (kinds.RUN, kinds.JOB, kinds.POD):
                if namespace != ALL:
                    where = f"in namespace {namespace}"
                else:
                    where = "in all namespaces"
                try:
                    await self.api.probe(kind, namespace)
                except Away as error:
                    sentence = (
                        f"the API server at {self._config.cluster.server} does not answer: "
                        f"{safe_line(str(error), 200)}"
                    )
                    raise PerdureError(
                        sentence, "check the address and the network; then start it again"
                    ) from error
                except Refused as error:
                    if error.code == 404:
                        hint = (
                            "kubectl apply --server-side -f "
                            "packaging/helm/perdure/crds/taskruns.yaml, or helm install"
                        )
                        raise PerdureError(
                            "this cluster does not know TaskRuns: the CustomResourceDefinition is "
                            "missing",
                            hint,
                        ) from error
                    sentence = f"no permission to list {kind} {where}: {safe_line(str(error), 300)}"
                    raise PerdureError(
                        sentence,
                        "apply the Role of the chart (templates/rbac.yaml), which grants it",
                    ) from error

    async def _relist(self) -> None:
        """List all objects again at regular intervals, in case a watch missed an event."""
        while True:
            await asyncio.sleep(RELIST_S)
            try:
                await self.look_at_all()
            except (Away, Refused) as error:
                self._warn(f"not everything could be listed: {safe_line(str(error), 200)}")

    async def look_at_all(self) -> None:
        """List all TaskRuns, Jobs and pods, update the cache, and queue every TaskRun."""
        for namespace in self._options.namespaces or (ALL,):
            asked = {}
            for key in self.memory:
                if namespace in (ALL, key[0]):
                    asked[key] = self.memory.uid(key)
            before = self.memory.before("" if namespace == ALL else namespace)
            jobs, pods = (
                await self.api.ours(kinds.JOB, namespace, job_seen),
                await self.api.ours(kinds.POD, namespace, pod_seen),
            )
            there = set(await self.api.reduced(kinds.RUN, namespace, self.memory.keep))
            self.memory.keep_all(
                before,
                list(filter(None, jobs)),
                list(filter(None, pods)),
            )
            for key, uid in asked.items():
                if key not in there:
                    self.memory.forget(key, uid)
            for key in there:
                self.put(key)

    def _login(self) -> kopf.ConnectionInfo:
        """Return the operator's credentials for the watches. kopf calls this again after the API
        server has refused a token. A token file is read at each call."""
        cluster, user = self._config.cluster, self._config.user
        if user is None or user.exec is not None:
            raise kopf.PermanentError(
                "the operator needs a token or a certificate; credentials from a program (exec) "
                "are not supported"
            )
        token = user.token
        if user.token_file:
            token = Path(user.token_file).read_text(encoding="utf-8").strip()
        near = self._config.abs_file
        return kopf.ConnectionInfo(
            server=cluster.server,
            ca_data=cluster.certificate_auth_data or None,
            insecure=cluster.insecure,
            ca_path=near(cluster.certificate_auth)
            if cluster.certificate_auth and not cluster.certificate_auth_data
            else None,
            token=token,
            username=user.username,
            password=user.password,
            certificate_data=user.client_cert_data or None,
            private_key_data=user.client_key_data or None,
            certificate_path=near(user.client_cert)
            if user.client_cert and not user.client_cert_data
            else None,
            private_key_path=near(user.client_key)
            if user.client_key and not user.client_key_data
            else None,
        )


def operate(options: Options, say: Say, warn: Say) -> None:
    """Run the operator until SIGTERM or SIGINT. A second signal ends it immediately."""

    async def main() -> None:
        operator = Operator(connection(), options, say, warn)

        def ask() -> None:
            if operator.stop.is_set():
                sys.exit(130)
            say("operator: stopping")
            operator.stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ask)
        await operator.run()

    asyncio.run(main())


def namespaces(asked: Sequence[str], everywhere: bool, own: str) -> tuple[str, ...]:
    """Return the namespaces to watch: those given as `asked`, or else the operator's own. An empty
    tuple means all namespaces. Raises UsageError if both `asked` and `everywhere` are given."""
    if everywhere and asked:
        raise UsageError("--namespace and --all-namespaces exclude each other")
    if everywhere:
        return ()
    return tuple(dict.fromkeys(asked)) or (own,)
