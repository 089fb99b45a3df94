"""Tests of a run that a person has opened. No attempt uses this run, its workdir or its
conversation until it is taken back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, NotFound
from perdure.model import Condition, SessionKey, SessionState, TaskRun, TaskSpec
from perdure.model.events import RunOpened, RunTakenBack
from perdure.testing.stores.samples import (
    LEASE_S,
    SUCCESS,
    Store,
    claimed,
    events_of,
    ids_of,
    session_of,
    submit,
)

OPEN = Condition(type="open", message="a person has it", at=1)


def opened(store: Store, run: TaskRun) -> TaskRun:
    """Open the run and return it."""
    return store.open_run(run.id, OPEN, session_of(run, "native", SessionState.CONFIRMED))


class Opening:
    """Tests of `open_run` and `take_back`."""

    def test_no_attempt_starts_while_a_person_has_it(self, store: Store) -> None:
        """An open run that is queued is not claimed, neither by its name nor as the next due run.
        Once it is taken back, it can be claimed."""
        run = submit(store)
        assert opened(store, run).conditions == (OPEN,)
        assert store.claim("ann", LEASE_S) is None
        assert store.claim("ann", LEASE_S, run.id) is None
        back = store.take_back(run.id, [], RunTakenBack(session_id="native"))
        assert back.conditions == ()
        assert claimed(store, run).attempt == 1

    def test_its_neighbours_wait_as_well(self, store: Store) -> None:
        """While a run is open, no other run that shares its workdir or conversation is claimed."""
        shared = TaskSpec(prompt="x", scope="talk")
        run, same_talk, same_place = (
            submit(store, shared, where="here"),
            submit(store, shared),
            submit(store, where="here"),
        )
        other = submit(store)
        opened(store, run)
        assert [store.claim("ann", LEASE_S, each.id) for each in (same_talk, same_place)] == [
            None,
            None,
        ]
        beside = store.opened_beside(store.get(same_talk.id))
        assert beside is not None and beside.id == run.id
        assert store.opened_beside(store.get(other.id)) is None
        assert claimed(store, other).attempt == 1

    def test_a_run_at_work_is_not_opened(self, store: Store) -> None:
        """A person cannot open a run that is running or already open. The same holds if another run
        with the same conversation is running or open. In these cases Conflict is raised and nothing
        is stored."""
        shared = TaskSpec(prompt="x", scope="talk")
        run, neighbour = submit(store, shared), submit(store, shared)
        claim = claimed(store, neighbour)
        for each in (run, neighbour):
            with pytest.raises(Conflict):
                opened(store, each)
        assert store.sessions() == []
        store.finish(claim, SUCCESS)
        opened(store, run)
        for each in (run, neighbour):
            with pytest.raises(Conflict, match="open"):
                opened(store, each)

    def test_what_became_of_the_conversation_is_stored_with_it(self, store: Store) -> None:
        """`take_back` stores the sessions and its event together. If it is called again, it only
        adds the event."""
        run = submit(store)
        opened(store, run)
        old, new = (
            session_of(run, "native", SessionState.RETIRED),
            session_of(run, "branched", SessionState.CONFIRMED),
        )
        told = RunTakenBack(session_id="branched", turns=2, others=("branched",))
        store.take_back(run.id, [replace(old, cause="left"), replace(new, parent="native")], told)
        live = store.session(SessionKey(run.spec.agent, run.scope))
        assert live is not None and (live.id, live.parent) == ("branched", "native")
        assert events_of(store.history(run.id))[-2:] == [
            RunOpened(session_id="native"),
            told,
        ]
        assert store.take_back(run.id, [], told).conditions == ()
        with pytest.raises(NotFound):
            store.take_back("nobody", [], told)

    def test_sessions_are_found_by_id_and_runs_by_conversation(self, store: Store) -> None:
        """Sessions are listed newest first, and found by id. `run_of` returns the newest run of a
        conversation."""
        first, second = (
            submit(store, TaskSpec(prompt="x", scope="talk")),
            submit(store, TaskSpec(prompt="y", scope="talk")),
        )
        for run, updated in ((submit(store), 5), (submit(store), 9)):
            store.put_session(replace(session_of(run, f"id-{updated}"), updated=updated))
        assert ids_of(store.sessions()) == ["id-9", "id-5"]
        assert ids_of(store.sessions("id-5")) == ["id-5"]
        assert ids_of(store.sessions(limit=1)) == ["id-9"]
        found = store.run_of(SessionKey("claude", "talk"))
        assert found is not None and found.id == second.id != first.id
        assert store.run_of(SessionKey("claude", "silence")) is None

    def test_the_run_under_a_rule(self, store: Store) -> None:
        """`run_under` returns the newest run of a rule and a scope. It finds the run even if the
        run was handed over to another agent. It does not find removed runs."""
        submit(store, TaskSpec(prompt="x", scope="talk"))
        run = submit(store, TaskSpec(prompt="y", scope="talk", rule="dev"))
        store.reassign(run.id, replace(run.spec, agent="codex"))
        found = store.run_under("dev", "talk")
        assert found is not None and found.id == run.id and found.spec.agent == "codex"
        assert store.run_under("dev", "silence") is None and store.run_under("eye", "talk") is None
        store.request_cancel(run.id)
        store.remove(run.id)
        assert store.run_under("dev", "talk") is None
