"""A small API server in this process, and complete operators that start and end beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import Cluster, User
from msgspec.structs import replace

from perdure.kubernetes.operator import Operator, Options
from tests.kubernetes import making
from tests.kubernetes.apiserver import Server

OPTIONS = Options(namespaces=("default",), image="perdure:1", port=0, workers=4)


class Stage:
    """A server, and operators that start and end beside it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.said: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.operators: list[Operator] = []

    def config(self) -> SingleConfig:
        cluster = Cluster(server=f"http://127.0.0.1:{self.server.port}")
        found = KubeConfig.from_one(
            cluster=cluster, user=User(token="x"), context_name="test", namespace="default"
        )
        single = found.get()
        assert single is not None
        return single

    def begin(self, *more: str) -> Operator:
        """Start an operator for the namespace default and for the namespaces in `more`. Return
        it."""
        options = replace(OPTIONS, namespaces=(*OPTIONS.namespaces, *more))
        operator = Operator(self.config(), options, self.said.append)
        self.operators.append(operator)
        self.tasks.append(asyncio.create_task(operator.run()))
        return operator

    async def kill(self) -> None:
        """Stop the operator as SIGKILL would: it does nothing more."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()

    def make(self, name: str = "fix", **spec: Any) -> None:
        self.server.add("taskruns", making.taskrun(name, **spec))

    def status(self, name: str = "fix") -> dict[str, Any]:
        found: dict[str, Any] = self.server.objects["taskruns"]["default", name].get("status") or {}
        return found

    def condition(self, kind: str, name: str = "fix") -> dict[str, Any]:
        """Return the condition of this type if it is true, or an empty object."""
        true = (
            each
            for each in self.status(name).get("conditions", [])
            if each["type"] == kind and each["status"] == "True"
        )
        return next(true, {})

    def finalizers(self, name: str = "fix") -> list[str]:
        found = self.server.objects["taskruns"]["default", name]["metadata"].get("finalizers")
        return list(found or ())

    def delete(self, name: str) -> None:
        """Delete the TaskRun, as a person does."""
        self.server.remove("taskruns", self.server.objects["taskruns"]["default", name])

    def touch(self, name: str = "fix", **annotations: str) -> None:
        """Change an annotation of the TaskRun, so that the operator processes it now."""
        run = self.server.objects["taskruns"]["default", name]
        run["metadata"].setdefault("annotations", {}).update(
            annotations or {"touched": str(self.server.version)}
        )
        self.server.put("taskruns", run)

    def change(self, name: str = "fix", **spec: Any) -> None:
        """Change fields of the TaskRun's spec, as a person does."""
        run = self.server.objects["taskruns"]["default", name]
        run["spec"] |= spec
        run["metadata"]["generation"] += 1
        self.server.put("taskruns", run)

    async def rest(self) -> None:
        """Wait until no operator has anything left to do."""
        await self.until(
            lambda: not any(each.queue.slowest_s or len(each.queue) for each in self.operators)
        )

    async def gone(self, name: str) -> None:
        await self.until(lambda: ("default", name) not in self.server.objects["taskruns"])

    async def until(self, met: Callable[[], Any]) -> Any:
        while not (found := met()):
            for task in self.tasks:
                if task.done():
                    task.result()
            await asyncio.wait([asyncio.create_task(self.server.changed.wait())], timeout=0.2)
        return found

    async def done(self, name: str = "fix") -> dict[str, Any]:
        found: dict[str, Any] = await self.until(
            lambda: self.status(name).get("phase") in ("Succeeded", "Failed") and self.status(name)
        )
        return found


def play(script: Callable[[int], Any], story: Callable[[Stage], Awaitable[None]]) -> Stage:
    """Run a story on a new stage, and return the stage."""

    async def main() -> Stage:
        server = Server(script)
        runner = await server.start()
        stage = Stage(server)
        try:
            await story(stage)
        finally:
            await stage.kill()
            await runner.cleanup()
        return stage

    return asyncio.run(main())


def whole(stage: Stage, outcomes: list[str], name: str = "fix") -> None:
    """Check that each attempt had one Job, one start and one outcome."""
    status = stage.status(name)
    assert [each["outcome"] for each in status["attempts"]] == outcomes
    assert [each["number"] for each in status["attempts"]] == list(range(1, len(outcomes) + 1))
    assert set(stage.server.jobs_made.values()) == {1}, stage.server.jobs_made
    assert stage.server.began == sorted(set(stage.server.began))
