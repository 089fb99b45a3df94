"""Decides which tasks of a plan share a conversation. Pure.

Tasks that share a conversation form a *strand*. A task can continue the conversation of a task that
it needs, if both have the same agent. It continues the first such conversation that no other task
continues. If other tasks continue all of these conversations, it forks the first one. Some agents'
programs cannot make that fork (`Forking`). Then the task continues at the end of the strand
instead, or begins a new conversation with a brief.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from perdure.rules.plan import Forking, Plan, PlanTask, Strand, Unforkable


def order(plan: Plan) -> list[PlanTask]:
    """Return the tasks sorted so that each comes after the tasks that it needs. Otherwise the order
    of the file is kept."""
    left, done = list(plan.tasks), dict[str, PlanTask]()
    while left:
        task = next(task for task in left if done.keys() >= set(task.needs))
        left.remove(task)
        done[task.name] = task
    return list(done.values())


def assign_strands(
    plan: Plan, forking: Callable[[str], Forking] = lambda agent: Forking.ANYWHERE
) -> dict[str, Strand]:
    """Return the strand of each task, by the task's name. Tasks of one strand share a conversation
    and a workdir. `forking` returns where an agent's program can fork a conversation. Different
    agents never share a conversation: a task of another agent begins its own, with the files of
    the tasks that it needs."""
    loom = _StrandPlanner(plan, forking)
    for task in order(plan):
        loom.add(task)
    return loom.strands()


class _StrandPlanner:
    """Assigns a strand to one task after another, in the order of the plan."""

    def __init__(self, plan: Plan, forking: Callable[[str], Forking]) -> None:
        self._plan, self._forking = plan, forking
        self._strands: dict[str, Strand] = {}
        self._next: dict[str, str] = {}
        """The next task in the same conversation, by the name of the task before it."""
        self._holds: dict[str, frozenset[str]] = {}
        """For each task, the tasks whose work is in its workdir when it begins: earlier tasks of
        its strand, and merged tasks."""
        self._later: dict[str, set[str]] = {task.name: set(task.needs) for task in plan.tasks}
        """For each task, the tasks that have to end before it begins: its needs, and the tasks that
        this planner adds."""
        self._lets: dict[str, tuple[str, ...]] = {}

    def add(self, task: PlanTask) -> None:
        akin = [need for need in task.needs if self._plan.task(need).agent == task.agent]
        free = next((need for need in akin if need not in self._next), "")
        if free or not akin:
            self._assign(task, goes_on=free, files_of=free or next(iter(task.needs), ""))
        elif self._reserve_fork(task, akin[0]):
            self._assign(task, forks=akin[0], files_of=akin[0])
        elif self._plan.unforkable is Unforkable.BRIEF:
            self._assign(task, forks=akin[0], files_of=akin[0], instead=Unforkable.BRIEF)
        else:
            last = self._last(akin[0])
            self._assign(task, goes_on=last, files_of=last, instead=Unforkable.SERIAL)

    def strands(self) -> dict[str, Strand]:
        found = {}
        for name, strand in self._strands.items():
            found[name] = replace(strand, lets=self._lets.get(name, ()))
        return found

    def _assign(
        self,
        task: PlanTask,
        *,
        goes_on: str = "",
        forks: str = "",
        files_of: str = "",
        instead: str = "",
    ) -> None:
        if files_of:
            there = self._holds[files_of] | {files_of}
        else:
            there = frozenset[str]()
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

    def _reserve_fork(self, task: PlanTask, need: str) -> bool:
        """Return whether the conversation can be forked where the task `need` ends. If so, record
        that the next task in that conversation has to wait.

        Some agents can fork only the current end of a conversation, so that next task waits until
        the fork is made. No fork is possible if the forking task itself has to wait for that next
        task.
        """
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
        """Return whether `task` can only begin after `other`."""
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
        """Return the last task that was assigned so far to the strand of this task."""
        while task in self._next:
            task = self._next[task]
        return task


def joins(strand: Strand) -> str:
    """Return in words how a task takes part in the conversations."""
    if strand.goes_on:
        words = f"continues after {strand.goes_on}"
    elif strand.forks:
        words = f"forks {strand.forks}"
    else:
        words = "starts a conversation"
    if strand.instead == "serial":
        words += ", instead of a fork"
    if strand.instead == "brief":
        words = f"starts with a brief of {strand.forks}, instead of a fork"
    if strand.files_of and not strand.forks:
        words += f" with the files of {strand.files_of}"
    return words + (f", merges {' and '.join(strand.merges)}" if strand.merges else "")
