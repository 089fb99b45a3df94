"""Tests of how runs are added and found, and how a person changes them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, NotFound
from perdure.model import (
    NOTHING_GIVEN,
    Condition,
    Decision,
    Given,
    OnEdit,
    OutcomeKind,
    RunState,
    TaskFile,
    TaskSpec,
)
from perdure.model.events import ContextAdded
from perdure.rules.lifecycle import BUDGET_IS_SPENT
from perdure.testing.stores.samples import (
    AGAIN,
    FAILURE,
    LEASE_S,
    STOPPED,
    SUCCESS,
    Store,
    claimed,
    ending,
    ids_of,
    place,
    run_ids_of,
    submit,
)

FILES = Given(
    files=(TaskFile("a b.md", "0" * 64, 3), TaskFile("bin/run\n", "1" * 64, 9, executable=True)),
    whole=True,
)


class Adding:
    """Tests that check which runs may be added and which are refused."""

    def test_a_new_run_is_queued_and_due(self, store: Store) -> None:
        """`add` returns a queued run with its first instructions. `get` and `find` then return the
        same run."""
        run = submit(store, TaskSpec(prompt="write it", attempts=5, labels={"a": "b"}))
        assert (run.state, run.attempt, run.context_version, run.attempts_allowed) == (
            RunState.QUEUED,
            0,
            1,
            5,
        )
        assert store.get(run.id) == run
        assert [(c.version, c.text) for c in store.contexts(run.id)] == [(1, "write it")]
        assert ids_of(store.find([RunState.QUEUED])) == [run.id]

    def test_the_same_key_is_the_same_run(self, store: Store) -> None:
        """If a run is added whose key and spec equal those of an existing run, the existing run is
        returned. This holds even while the existing run is running."""
        spec = TaskSpec(prompt="x", key="delivery-1", env={"A": "1"}, agent_args=("-v",))
        run = submit(store, spec)
        claimed(store, run)
        assert submit(store, spec).id == run.id
        assert len(store.find()) == 1

    def test_a_key_with_another_spec_is_refused(self, store: Store) -> None:
        """A run is refused if its key is known and its spec is different. The error names the
        existing run and a next step."""
        run = submit(store, TaskSpec(prompt="x", key="k"))
        with pytest.raises(Conflict, match=run.name) as refused:
            submit(store, TaskSpec(prompt="y", key="k"))
        assert refused.value.hint
        assert len(store.find()) == 1

    def test_the_same_key_means_the_same_files(self, store: Store) -> None:
        """A run is refused if its key is known and it has other files than the existing run, or no
        files."""
        spec = TaskSpec(prompt="x", key="k")
        run = store.add(spec, "feedc0de01", "calm-owl", place("p"), FILES)
        assert store.add(spec, "feedc0de02", "wild-elk", place("p"), FILES).id == run.id
        for other in (
            NOTHING_GIVEN,
            replace(FILES, on_edit=OnEdit.KEEP),
            replace(FILES, files=FILES.files[:1]),
        ):
            with pytest.raises(Conflict, match="calm-owl"):
                store.add(spec, "feedc0de03", "wild-elk", place("p"), other)

    def test_a_taken_name_is_refused(self, store: Store) -> None:
        """A run is refused if another run already has its name."""
        submit(store, name="calm-owl")
        with pytest.raises(Conflict, match="calm-owl") as refused:
            submit(store, name="calm-owl")
        assert "perdure logs -f calm-owl" in refused.value.hint

    def test_a_workdir_or_conversation_at_work_is_refused(self, store: Store) -> None:
        """While a run is running, no other run may be added to its workspace or scope. After the
        run has ended, this is allowed."""
        run = submit(store, TaskSpec(prompt="x", scope="issue-7"), where="shared")
        claim = claimed(store, run)
        with pytest.raises(Conflict, match=run.name):
            submit(store, where="shared")
        with pytest.raises(Conflict, match=run.name):
            submit(store, TaskSpec(prompt="y", scope="issue-7"))
        submit(store, TaskSpec(prompt="y", scope="issue-7", agent="codex"))
        store.finish(claim, SUCCESS)
        submit(store, TaskSpec(prompt="y", scope="issue-7"), where="shared")


class FindSuite:
    """Tests of how a run is found."""

    def test_a_run_answers_to_four_names(self, store: Store) -> None:
        """A run is found by its id, name, key, or a unique prefix of its id."""
        run = store.add(TaskSpec(prompt="x", key="order/9"), "feedc0de01", "calm-owl", place("p"))
        for ref in ("feedc0de01", "calm-owl", "order/9", "feed"):
            assert store.get(ref) == run

    def test_no_such_run_is_told_with_near_names(self, store: Store) -> None:
        """An unknown reference raises NotFound, with similar names in the hint. A prefix of an id
        must have more than three characters."""
        store.add(TaskSpec(prompt="x"), "feedc0de01", "calm-owl", place("p"))
        with pytest.raises(NotFound) as missing:
            store.get("calm-owls")
        assert "calm-owl" in missing.value.hint
        for ref in ("", "fee", "%", "feed%", "____", "FEED"):
            with pytest.raises(NotFound):
                store.get(ref)

    def test_an_ambiguous_beginning_is_refused(self, store: Store) -> None:
        """A prefix that fits two ids raises NotFound. The hint names both runs."""
        store.add(TaskSpec(prompt="x"), "feedc0de01", "calm-owl", place("p"))
        store.add(TaskSpec(prompt="x"), "feedc0de02", "wild-elk", place("q"))
        with pytest.raises(NotFound) as unclear:
            store.get("feedc0de")
        assert "calm-owl" in unclear.value.hint and "wild-elk" in unclear.value.hint

    def test_lists_are_newest_first(self, store: Store) -> None:
        """`find` can filter by state. It returns at most `limit` runs, newest first."""
        runs = [submit(store) for _ in range(5)]
        done, stopped = runs[1], runs[3]
        store.finish(claimed(store, done), SUCCESS)
        store.request_cancel(stopped.id)
        assert ids_of(store.find()) == ids_of(reversed(runs))
        assert ids_of(store.find(limit=2)) == [runs[4].id, runs[3].id]
        assert ids_of(store.find([RunState.SUCCEEDED, RunState.CANCELLED])) == [
            stopped.id,
            done.id,
        ]
        assert ids_of(store.find([RunState.QUEUED], limit=1)) == [runs[4].id]

    def test_lists_by_change_begin_with_the_latest(self, store: Store) -> None:
        """`last_changed` returns at most `limit` runs, the one that changed last first."""
        first, second, third = [submit(store) for _ in range(3)]
        store.request_cancel(first.id)
        found = store.last_changed()
        updated = [row.updated for row in found]
        assert updated == sorted(updated, reverse=True)
        assert set(ids_of(found)) == {first.id, second.id, third.id}
        assert ids_of(store.last_changed([RunState.CANCELLED])) == [first.id]
        assert (
            list(store.last_changed(limit=1)) == list(found[:1])
            and list(store.last_changed(limit=0)) == []
        )

    def test_a_list_goes_on_where_its_page_ended(self, store: Store) -> None:
        """The pages of a list together contain every run once, newest first, even if runs are added
        between two pages. The list can be limited to one agent or scope."""
        runs = []
        for number in range(5):
            runs.append(
                submit(store, TaskSpec(prompt="x", agent="codex" if number % 2 else "claude"))
            )
        first = store.find(limit=2)
        submit(store)
        rest = [
            *store.find(limit=2, before=first[-1].ordinal),
            *store.find(before=store.find(limit=2, before=first[-1].ordinal)[-1].ordinal),
        ]
        assert ids_of([*first, *rest]) == ids_of(reversed(runs))
        assert ids_of(store.find(agent="codex")) == [runs[3].id, runs[1].id]
        assert ids_of(store.find([RunState.QUEUED], before=first[-1].ordinal, agent="codex")) == [
            runs[1].id
        ]
        assert ids_of(store.find(scope=runs[0].scope)) == [runs[0].id]
        assert store.find(scope="nobody's") == [] and store.find(before=1) == []

    def test_the_journal_of_all_runs(self, store: Store) -> None:
        """The records of all runs are returned in pages, in the order of their numbers. A separate
        method returns the newest number."""
        assert store.newest_record() == 0 and store.journal() == []
        runs = [submit(store) for _ in range(3)]
        store.request_cancel(runs[0].id)
        found = store.journal()
        told = chain.from_iterable(store.history(run.id) for run in runs)
        assert [record.seq for record in found] == sorted({record.seq for record in told})
        assert found[-1].seq == store.newest_record() and run_ids_of(found[:3]) == ids_of(runs)
        assert (
            list(store.journal(found[1].seq, 2)) == list(found[2:4])
            and store.journal(found[-1].seq) == []
        )


class Persons:
    """Tests of what a person may request: update, retry, stop."""

    def test_new_instructions_reopen_a_final_run(self, store: Store) -> None:
        """`update` adds instructions. If the run was final, it is queued and due again, and one
        more attempt is allowed."""
        run = submit(store, TaskSpec(prompt="x", attempts=1))
        for state, end in ((2, SUCCESS), (3, FAILURE), (4, STOPPED)):
            store.finish(claimed(store, run), end)
            updated = store.update(run.id, f"version {state}")
            assert (
                updated.state,
                updated.context_version,
                updated.attempts_allowed,
                updated.finished,
            ) == (
                RunState.QUEUED,
                state,
                state,
                None,
            )
            assert isinstance(store.history(run.id)[-2].event, ContextAdded)
        versions = [(context.version, context.text) for context in store.contexts(run.id)]
        assert versions[1:] == [(2, "version 2"), (3, "version 3"), (4, "version 4")]

    def test_files_stay_with_their_version(self, store: Store) -> None:
        """Each version of the instructions keeps the task files that were given with it."""
        run = store.add(TaskSpec(prompt="x"), "feedc0de01", "calm-owl", place("p"), FILES)
        store.update(run.id, "no files")
        store.update(run.id, "again", replace(FILES, on_edit=OnEdit.REPLACE))
        assert [c.given for c in store.contexts(run.id)] == [
            FILES,
            NOTHING_GIVEN,
            replace(FILES, on_edit=OnEdit.REPLACE),
        ]

    def test_new_instructions_for_a_running_attempt_come_next(self, store: Store) -> None:
        """If instructions are added while an attempt is running, the run is queued again when the
        attempt ends. The next attempt gets the new instructions."""
        for end in (SUCCESS, FAILURE):
            run = submit(store, TaskSpec(prompt="x", attempts=1))
            claim = claimed(store, run)
            assert store.update(run.id, "and this").state is RunState.RUNNING
            after = store.finish(claim, end)
            assert (after.state, after.attempts_allowed, after.finished) == (
                RunState.QUEUED,
                2,
                None,
            )
            claimed(store, run)
            assert [attempt.context_version for attempt in store.attempts(run.id)] == [1, 2]

    def test_new_instructions_do_not_exceed_a_spent_budget(self, store: Store) -> None:
        """If an attempt spends the budget, its run needs a person, even if instructions were added
        meanwhile. The instructions stay stored for the next retry."""
        message = f"{BUDGET_IS_SPENT}: perdure retry --budget-usd raises it"
        for kind in (OutcomeKind.BUDGET_SPENT, OutcomeKind.LOST):
            run = submit(store)
            claim = claimed(store, run)
            store.update(run.id, "and this")
            condition = Condition(type="needs_person", message=message, at=store.now())
            after = store.finish(claim, ending(kind, RunState.FAILED, condition=condition))
            assert (after.state, after.conditions) == (RunState.FAILED, (condition,))
            assert store.requeue(run.id, "asked for").context_version == 2

    def test_a_message_is_accepted_once(self, store: Store) -> None:
        """If a message is sent again with the same key and text, it is not added again. With the
        same key and another text, it raises Conflict. If the run has ended, the message becomes its
        new instructions."""
        run = submit(store, TaskSpec(prompt="x", attempts=1))
        claim = claimed(store, run)
        for _ in range(2):
            assert store.update(run.id, "use tabs", message="k1").context_version == 2
        with pytest.raises(Conflict):
            store.update(run.id, "other", message="k1")
        assert [each.message for each in store.contexts(run.id)] == ["", "k1"]
        assert store.finish(claim, SUCCESS).state is RunState.QUEUED
        store.finish(claimed(store, run), SUCCESS)
        late = store.update(run.id, "use spaces", message="k2")
        assert (late.state, late.context_version) == (RunState.QUEUED, 3)
        assert store.update(run.id, "use tabs", message="k1").context_version == 3

    def test_a_message_that_the_turn_took_needs_no_attempt(self, store: Store) -> None:
        """If the running turn received a message, the version of the instructions that the attempt
        has seen increases. No further attempt is then needed. This version never decreases."""
        run = submit(store, TaskSpec(prompt="x", attempts=1))
        claim = claimed(store, run)
        store.update(run.id, "use tabs", message="k1")
        store.update(run.id, "use two", message="k2")
        store.record(claim, [], received=3)
        store.record(claim, [], received=2)
        (attempt,) = store.attempts(run.id)
        assert (attempt.context_version, attempt.messages) == (3, 2)
        assert store.finish(claim, SUCCESS).state is RunState.SUCCEEDED

    def test_stopped_stays_stopped(self, store: Store) -> None:
        """If an attempt is cancelled, its run ends, even if newer instructions were added. If a
        stop was requested, the run ends even if the attempt's outcome would allow a retry."""
        run, other = submit(store), submit(store)
        claim = claimed(store, run)
        store.update(run.id, "and this")
        assert store.finish(claim, STOPPED).state is RunState.CANCELLED
        claim = claimed(store, other)
        store.request_cancel(other.id)
        after = store.finish(claim, AGAIN)
        assert (after.state, after.cancel_requested) == (RunState.CANCELLED, False)

    def test_a_stop_applies_to_earlier_instructions_too(self, store: Store) -> None:
        """Instructions are added during an attempt, and then a stop is requested. The run is
        cancelled when the attempt ends, whatever the outcome of the attempt. The run then has no
        condition."""
        condition = Condition(type="needs_person", message="log in", at=store.now())
        refused = ending(OutcomeKind.AUTH_FAILED, RunState.FAILED, condition=condition)
        for end in (SUCCESS, FAILURE, AGAIN, refused):
            run = submit(store)
            claim = claimed(store, run)
            store.update(run.id, "and this")
            store.request_cancel(run.id)
            after = store.finish(claim, end)
            assert (after.state, after.reason) == (RunState.CANCELLED, "stopped on request")
            assert (after.cancel_requested, after.conditions) == (False, ())

    def test_a_retry_allows_one_more(self, store: Store) -> None:
        """`requeue` makes a failed, cancelled or waiting run due now. By default, one more attempt
        is allowed."""
        run = submit(store, TaskSpec(prompt="x", attempts=1))
        store.finish(claimed(store, run), FAILURE)
        again = store.requeue(run.id, "asked for")
        assert (again.state, again.attempts_allowed, again.reason, again.finished) == (
            RunState.QUEUED,
            2,
            "asked for",
            None,
        )
        later = Decision(state=RunState.QUEUED, run_after=store.now() + 3_600_000)
        store.finish(claimed(store, run), replace(AGAIN, decision=later))
        assert store.claim("ann", LEASE_S, run.id) is None
        assert store.requeue(run.id, "asked for").attempts_allowed == 3
        store.finish(claimed(store, run), STOPPED)
        assert store.requeue(run.id, "asked for").state is RunState.QUEUED
        store.finish(claimed(store, run), STOPPED)
        assert store.requeue(run.id, "asked for", 5).attempts_allowed == 9

    def test_a_retry_is_refused_while_running_and_after_success(self, store: Store) -> None:
        """Requeueing a running or a successful run raises Conflict. The error's hint names a next
        step."""
        run = submit(store)
        claim = claimed(store, run)
        with pytest.raises(Conflict, match=run.name) as running:
            store.requeue(run.id, "again")
        store.finish(claim, SUCCESS)
        with pytest.raises(Conflict, match=run.name) as done:
            store.requeue(run.id, "again")
        assert "logs" in running.value.hint and "update" in done.value.hint
        again = store.requeue(run.id, "restored", after_success=True)
        assert (again.state, again.reason) == (RunState.QUEUED, "restored")

    def test_a_stop_is_a_wish_while_running(self, store: Store) -> None:
        """A stop request cancels a queued run immediately. For a running run, the request is only
        stored; a final run is not changed. A second request changes nothing."""
        queued, run = submit(store), submit(store)
        assert store.request_cancel(queued.id).state is RunState.CANCELLED
        assert store.get(queued.id).finished is not None
        claim = claimed(store, run)
        first = store.request_cancel(run.id)
        assert (first.state, first.cancel_requested) == (RunState.RUNNING, True)
        assert store.request_cancel(run.id) == first
        done = store.finish(claim, STOPPED)
        assert store.request_cancel(run.id) == done
        assert not store.requeue(run.id, "after all").cancel_requested

    def test_a_removed_run_is_gone_from_the_list(self, store: Store) -> None:
        """No reference finds a removed run, and the run cannot be changed. Its name and key can be
        used again. Its journal and attempts can still be read by its id."""
        run = submit(store, TaskSpec(prompt="x", key="order-1"), name="calm-owl")
        store.finish(claimed(store, run), SUCCESS)
        history = store.history(run.id)
        store.remove("calm-owl")
        for ref in (run.id, run.name, "order-1"):
            with pytest.raises(NotFound):
                store.get(ref)
        verbs: list[Callable[[], object]] = [
            lambda: store.update(run.id, "more"),
            lambda: store.requeue(run.id, ""),
            lambda: store.remove(run.id),
        ]
        for verb in verbs:
            with pytest.raises(NotFound):
                verb()
        assert not store.find() and not store.find([RunState.SUCCEEDED])
        assert store.history(run.id) == history and len(store.attempts(run.id)) == 1
        again = submit(store, TaskSpec(prompt="y", key="order-1"), name="calm-owl")
        assert store.get("calm-owl").id == store.get("order-1").id == again.id

    def test_only_a_finished_run_is_removed(self, store: Store) -> None:
        """Removing a run that waits or is running raises Conflict and changes nothing. The error's
        hint names a next step."""
        run = submit(store)
        with pytest.raises(Conflict, match=run.name):
            store.remove(run.id)
        claimed(store, run)
        with pytest.raises(Conflict, match=run.name) as running:
            store.remove(run.id)
        assert "stop" in running.value.hint and store.get(run.id).state is RunState.RUNNING

    def test_unknown_runs_are_not_found(self, store: Store) -> None:
        """If a run is unknown, methods that change it raise NotFound, and methods that read about
        it return nothing."""
        verbs: list[Callable[[], object]] = [
            lambda: store.requeue("nobody", ""),
            lambda: store.update("nobody", "x"),
            lambda: store.request_cancel("nobody"),
            lambda: store.remove("nobody"),
        ]
        for verb in verbs:
            with pytest.raises(NotFound):
                verb()
        assert (
            not store.attempts("nobody")
            and not store.contexts("nobody")
            and not store.history("nobody")
        )
