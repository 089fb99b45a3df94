"""Which tasks of a plan share a conversation. Pure.

A task goes on in the *strand* of the first need that nobody else goes on in, and forks it
otherwise. What the agents' programs can do (`Forking`) has a say in it: what cannot be forked goes
on at the strand's end instead, or begins with a brief.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from perdure.rules.plan import Forking, Plan, PlanTask, Strand, Unforkable


def order(plan: Plan) -> list[PlanTask]:
    """The tasks, each behind what it needs, and otherwise as the file has them."""
    left, done = list(plan.tasks), dict[str, PlanTask]()
    while left:
        task = next(task for task in left if all(need in done for need in task.needs))
        left.remove(task)
        done[task.name] = task
    return list(done.values())


def weave(
    plan: Plan, forking: Callable[[str], Forking] = lambda agent: Forking.ANYWHERE
) -> dict[str, Strand]:
    """Which tasks share a conversation and a workdir, by the task's name. `forking` says what an
    agent's program can do.

    Agents never share a conversation: a task of another agent begins its own, with the files of
    what it needs.
    """
    loom = _Loom(plan, forking)
    for task in order(plan):
        loom.add(task)
    return loom.woven()


class _Loom:
    """The strands as far as they are woven."""

    def __init__(self, plan: Plan, forking: Callable[[str], Forking]) -> None:
        self._plan, self._forking = plan, forking
        self._strands: dict[str, Strand] = {}
        self._next: dict[str, str] = {}
        """Who goes on after a task."""
        self._holds: dict[str, frozenset[str]] = {}
        """What each task's workdir has in it when it begins its own work: the tasks of its own and
        of merged strands."""
        self._later: dict[str, set[str]] = {task.name: set(task.needs) for task in plan.tasks}
        """What has to come before each task: what it needs, and more."""
        self._lets: dict[str, tuple[str, ...]] = {}

    def add(self, task: PlanTask) -> None:
        akin = [need for need in task.needs if self._plan.task(need).agent == task.agent]
        free = next((need for need in akin if need not in self._next), "")
        if free or not akin:
            self._lay(task, goes_on=free, files_of=free or next(iter(task.needs), ""))
        elif self._can_fork(task, akin[0]):
            self._lay(task, forks=akin[0], files_of=akin[0])
        elif self._plan.unforkable is Unforkable.BRIEF:
            self._lay(task, forks=akin[0], files_of=akin[0], instead=Unforkable.BRIEF)
        else:
            last = self._last(akin[0])
            self._lay(task, goes_on=last, files_of=last, instead=Unforkable.SERIAL)

    def woven(self) -> dict[str, Strand]:
        return {
            name: replace(strand, lets=self._lets.get(name, ()))
            for name, strand in self._strands.items()
        }

    def _lay(
        self,
        task: PlanTask,
        *,
        goes_on: str = "",
        forks: str = "",
        files_of: str = "",
        instead: str = "",
    ) -> None:
        there = self._holds[files_of] | {files_of} if files_of else frozenset[str]()
        merges = tuple(need for need in task.needs if need not in there)
        for need in merges:
            there |= self._holds[need] | {need}
        self._holds[task.name] = frozenset(there)
        name = task.name
        if goes_on:
            name = self._strands[goes_on].name
            self._next[goes_on] = task.name
            self._later[task.name].add(goes_on)
        self._strands[task.name] = Strand(
            name=name,
            goes_on=goes_on,
            forks=forks,
            files_of="" if goes_on else files_of,
            merges=merges,
            instead=instead,
        )

    def _can_fork(self, task: PlanTask, need: str) -> bool:
        """Whether a fork can be made at the need's end. Where that is where the conversation stands
        now, who goes on in it waits until the fork is made, unless the fork itself waits for
        him."""
        can = self._forking(task.agent)
        if can is not Forking.AT_END:
            return can is Forking.ANYWHERE
        goes_on = self._next[need]
        if self._waits(task.name, goes_on):
            return False
        self._later[goes_on].add(task.name)
        self._lets[goes_on] = (*self._lets.get(goes_on, ()), task.name)
        return True

    def _waits(self, task: str, other: str) -> bool:
        """Whether `task` can only begin after `other`."""
        seen, left = set[str](), [task]
        while left:
            at = left.pop()
            if at == other:
                return True
            if at not in seen:
                seen.add(at)
                left += self._later[at]
        return False

    def _last(self, task: str) -> str:
        """The end of a task's strand, as far as it is woven."""
        while task in self._next:
            task = self._next[task]
        return task


def joins(strand: Strand) -> str:
    """How a task joins the conversations, in words."""
    if strand.goes_on:
        words = f"goes on after {strand.goes_on}"
    elif strand.forks:
        words = f"forks {strand.forks}"
    else:
        words = "begins a conversation"
    if strand.instead == "serial":
        words += ", in the place of a fork"
    if strand.instead == "brief":
        words = f"begins with a brief of {strand.forks}, in the place of a fork"
    if strand.files_of and not strand.forks:
        words += f" with the files of {strand.files_of}"
    return words + (f", merges {' and '.join(strand.merges)}" if strand.merges else "")
