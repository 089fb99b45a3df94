"""Plans: all problems are reported at once, with their lines, and tasks are assigned to
conversations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.rules.plan import Forking, Plan, PlanError, Strand, Unforkable
from perdure.rules.plan.checks import planned
from perdure.rules.plan.conversations import assign_strands, order

DEFAULTS: dict[str, Any] = {
    "agent": "claude", "model": "", "permissions": "edit", "timeout": 60.0, "attempts": 3, "continuity": "disclose",
}  # fmt: skip


def line_of(*path: object) -> int:
    """Return the line of a value in a plan: task n is on line 10 n + 10, its name on the next line,
    its needs on the one after."""
    return 10 * int(str(path[1])) + 10 + {"name": 1, "needs": 2}[str(path[2])]


def plan(**needs: str) -> Plan:
    """Make a plan from the names of tasks, each with its needs. A keyword cannot contain `@`, so
    `codex_x` stands for a task of Codex."""
    return planned(
        {"name": "p", "tasks": [task(name, text) for name, text in needs.items()]},
        line_of,
        "p.toml",
        DEFAULTS,
    )


def task(name: str, needs: str) -> dict[str, Any]:
    agent = {"agent": "codex"} if name.startswith("codex") else {}
    return {"name": name, "prompt": f"Do {name}.", "needs": needs.split(), **agent}


def problems(*tasks: tuple[str, str]) -> list[str]:
    with pytest.raises(PlanError) as caught:
        planned(
            {"name": "p", "tasks": [task(*each) for each in tasks]}, line_of, "p.toml", DEFAULTS
        )
    return caught.value.problems


def test_everything_wrong_is_told_at_once() -> None:
    """Duplicate names, unknown needs and cycles are reported, with their lines, in the order of the
    file."""
    assert problems(("a", "b"), ("b", "c"), ("c", "a x"), ("a", ""), ("d", "d")) == [
        "p.toml:12: these tasks need each other: a -> b -> c -> a",
        "p.toml:32: 'c' needs 'x', which does not exist",
        "p.toml:41: the task 'a' exists already, on line 11",
        "p.toml:52: these tasks need each other: d -> d",
    ]


def test_two_cycles_are_two_problems() -> None:
    """Each cycle is reported with its own path, even if the cycles share a task."""
    assert problems(("a", "b"), ("b", "a c"), ("c", "b")) == [
        "p.toml:12: these tasks need each other: a -> b -> a",
        "p.toml:22: these tasks need each other: b -> c -> b",
    ]


def test_one_line_is_one_conversation() -> None:
    """Tasks of which each needs the previous one share one conversation and workdir."""
    assert assign_strands(plan(a="", b="a", c="b")) == {
        "a": Strand(name="a"),
        "b": Strand(name="a", goes_on="a"),
        "c": Strand(name="a", goes_on="b"),
    }


def test_branches_are_forks_and_are_merged() -> None:
    """The first task that needs another one continues its conversation. The other tasks that need
    it fork the conversation at its end. A task with several needs continues one of them and merges
    the rest."""
    assert assign_strands(plan(a="", b="a", c="a", d="b c", e="d a")) == {
        "a": Strand(name="a"),
        "b": Strand(name="a", goes_on="a"),
        "c": Strand(name="c", forks="a", files_of="a"),
        "d": Strand(name="a", goes_on="b", merges=("c",)),
        "e": Strand(name="a", goes_on="d"),
    }


def test_another_agent_begins_its_own_conversation() -> None:
    """Different agents never share a conversation. A task of another agent begins a new
    conversation with the files, and later tasks of that agent continue it."""
    assert assign_strands(plan(a="", codex_b="a", codex_c="codex_b", d="codex_c a")) == {
        "a": Strand(name="a"),
        "codex_b": Strand(name="codex_b", files_of="a"),
        "codex_c": Strand(name="codex_b", goes_on="codex_b"),
        "d": Strand(name="a", goes_on="a", merges=("codex_c",)),
    }


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 9))
    needs = {
        f"t{n}": " ".join(f"t{m}" for m in sorted(draw(st.sets(st.integers(0, n - 1), max_size=3))))
        if n
        else ""
        for n in range(count)
    }
    names = draw(st.permutations(list(needs)))
    return plan(**{name: needs[name] for name in names})


@given(plans())
def test_every_task_has_its_turn(made: Plan) -> None:
    """Each task is in the order once, after all tasks that it needs. No conversation is continued
    by two tasks at once."""
    done: list[str] = []
    for each in order(made):
        assert set(each.needs) <= set(done)
        done.append(each.name)
    assert sorted(done) == sorted(each.name for each in made.tasks)
    followed = [strand.goes_on for strand in assign_strands(made).values() if strand.goes_on]
    assert len(followed) == len(set(followed))


@given(plans())
def test_whoever_needs_a_task_has_its_files(made: Plan) -> None:
    """A task has the files of every task that it needs: through its conversation, through the
    workdir that it begins with, or by a merge. No task is merged twice."""
    strands = assign_strands(made)
    has: dict[str, set[str]] = {}
    for each in order(made):
        strand = strands[each.name]
        before = strand.goes_on or strand.files_of
        has[each.name] = {each.name} | (has[before] if before else set())
        for merged in strand.merges:
            assert merged not in has[each.name]
            has[each.name] |= has[merged]
        assert set(each.needs) <= has[each.name]


CAN = {"claude": Forking.ANYWHERE, "codex": Forking.AT_END}.__getitem__


def test_a_fork_at_the_end_is_made_before_the_conversation_goes_on() -> None:
    """If a conversation can be forked only at its end, the forks are made before the next task
    continues it. A fork that itself needs that task cannot be made."""
    made = plan(codex_a="", codex_b="codex_a", codex_c="codex_a", codex_d="codex_a codex_b")
    assert assign_strands(made, CAN) == {
        "codex_a": Strand(name="codex_a"),
        "codex_b": Strand(name="codex_a", goes_on="codex_a", lets=("codex_c",)),
        "codex_c": Strand(name="codex_c", forks="codex_a", files_of="codex_a"),
        "codex_d": Strand(name="codex_a", goes_on="codex_b"),
    }
    crossed = plan(
        codex_a="",
        codex_b="codex_a",
        codex_c="codex_b",
        codex_d="codex_c",
        codex_e="codex_a codex_d",
    )
    assert assign_strands(crossed, CAN)["codex_e"] == Strand(name="codex_a", goes_on="codex_d")
    late = plan(codex_a="", codex_b="codex_a", x="codex_b", codex_c="codex_b", codex_e="codex_a x")
    assert assign_strands(late, CAN)["codex_e"] == Strand(
        name="codex_a", goes_on="codex_c", merges=("x",), instead="serial"
    )


def test_what_cannot_be_forked_waits_or_gets_a_brief() -> None:
    """For a fork that cannot be made, the plan's setting `unforkable` decides. The task either runs
    at the end of the strand in the same conversation, or at the same time in a new one."""
    made = plan(a="", b="a", c="a", d="a")
    assert assign_strands(made, lambda agent: Forking.NEVER) == {
        "a": Strand(name="a"),
        "b": Strand(name="a", goes_on="a"),
        "c": Strand(name="a", goes_on="b", instead="serial"),
        "d": Strand(name="a", goes_on="c", instead="serial"),
    }
    briefed = assign_strands(
        replace(made, unforkable=Unforkable.BRIEF), lambda agent: Forking.NEVER
    )
    assert briefed["d"] == Strand(name="d", forks="a", files_of="a", instead="brief")


@given(plans(), st.sampled_from(list(Forking)), st.sampled_from(list(Unforkable)))
def test_a_plan_never_waits_for_itself(made: Plan, can: Forking, unforkable: Unforkable) -> None:
    """Some task may always begin until all are done, whatever the agents' programs can do. Each
    strand is a single line of tasks."""
    strands = assign_strands(replace(made, unforkable=unforkable), lambda agent: can)
    done: set[str] = set()
    while len(done) < len(strands):
        begins = [
            each.name
            for each in made.tasks
            if each.name not in done
            and {*each.needs, *strands[each.name].lets} <= done
            and strands[each.name].goes_on in {*done, ""}
        ]
        assert begins
        done.add(begins[0])
    for name, strand in strands.items():
        assert strand.name == (strands[strand.goes_on].name if strand.goes_on else name)
        assert bool(strand.forks) <= (not strand.goes_on)
    gone_on = [strand.goes_on for strand in strands.values() if strand.goes_on]
    assert len(gone_on) == len(set(gone_on))


def test_strict_and_a_brief_are_at_odds() -> None:
    """A plan that forbids lost conversations cannot ask for a brief instead."""
    with pytest.raises(PlanError) as caught:
        planned(
            {"name": "p", "continuity": "strict", "unforkable": "brief", "tasks": [task("a", "")]},
            lambda *path: 7,
            "p.toml",
            DEFAULTS,
        )
    assert caught.value.problems[0].startswith("p.toml:7: unforkable: ")
