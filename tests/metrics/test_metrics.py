"""The metrics of `/metrics` for a store with runs: each of them, on a second scrape, after a
restart, and for hostile names."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.engine.attempt import Engine
from perdure.errors import StoreError
from perdure.model import Condition, OutcomeKind, RunState, TaskSpec
from perdure.model.events import CollisionSeen
from perdure.telemetry.metrics.exposition import MetricsPage
from perdure.telemetry.metrics.follower import OVERLAP_MS, AttemptTallies
from perdure.testing.stores.samples import LAPSED_S, begun, claimed, ending, submit
from tests.metrics.lives import a_life, scraped

TOP = Path(__file__).parents[2]


@pytest.fixture
def meter(engine: Engine) -> MetricsPage:
    return MetricsPage(engine, "1.2.3", fresh_s=0)


def test_what_attempts_add_up_to(engine: Engine, meter: MetricsPage) -> None:
    """The metrics have the outcomes, receipts, resumes, fallbacks, tokens, cost and savings of the
    attempts."""
    a_life(engine.store)
    found = scraped(meter)
    assert found["perdure_attempts_total", "claude", "succeeded"] == 2
    assert found["perdure_attempts_total", "claude", "timed_out"] == 1
    assert found["perdure_attempts_total", "claude", "stalled"] == 0
    assert [
        found["perdure_receipts_total", "claude", verdict]
        for verdict in ("fresh", "native", "rebuilt")
    ] == [1, 1, 1]
    assert [
        found["perdure_resumes_total", "claude", verdict] for verdict in ("native", "rebuilt")
    ] == [1, 1]
    assert found["perdure_fallbacks_total", "claude", "lost, new conversation with a brief"] == 1
    assert (
        found["perdure_fallbacks_total", "claude", "refused by the agent"]
        == found["perdure_resumes_total", "claude", "broken"]
        == 0
    )
    assert (
        sum(value for (name, *_), value in found.items() if name == "perdure_fallbacks_total") == 1
    )
    assert [
        found["perdure_tokens_total", "claude", kind] for kind in ("fresh", "cached", "output")
    ] == [2000, 1100, 160]
    assert found["perdure_cost_dollars_total", "claude"] == pytest.approx(0.85)
    assert found["perdure_tokens_saved", "claude"] == 1100 - 150
    assert found["perdure_attempt_duration_seconds_count", "claude"] == 3
    assert found["perdure_attempt_duration_seconds_bucket", "claude", "+Inf"] == 3
    assert found["perdure_build_info", "1.2.3"] == 1


def test_how_things_stand(engine: Engine, meter: MetricsPage) -> None:
    """There are metrics of runs by state, waiting runs and their time, expired leases, runs that
    need a person, and collisions."""
    store = engine.store
    submit(store, TaskSpec(prompt="do it", agent="codex"))
    asks = submit(store)
    condition = Condition(type="needs_person", message="?", at=1)
    store.finish(
        claimed(store, asks), ending(OutcomeKind.NEEDS_INPUT, RunState.FAILED, condition=condition)
    )
    claim = claimed(store, submit(store), lease_s=LAPSED_S)
    store.begin(claim, begun(claim.run))
    store.record(claim, [CollisionSeen(session_id="s", detail="d")])
    found = scraped(meter)
    assert (
        found["perdure_runs", "codex", "queued"] == found["perdure_runs", "claude", "running"] == 1
    )
    assert found["perdure_runs", "claude", "queued"] == 0
    assert found["perdure_runs_due",] == 1 and found["perdure_queue_age_seconds",] >= 0
    assert found["perdure_attempts_running", "claude", ""] == found["perdure_runs_lapsed",] == 1
    assert found["perdure_oldest_lapsed_seconds",] >= 0
    assert (
        found["perdure_runs_need_person", "claude"] == 1
        and found["perdure_runs_need_person", "codex"] == 0
    )
    assert found["perdure_collisions_total", "claude"] == 1
    assert found["perdure_disk_free_bytes", "state"] > 0 and found["perdure_disk_crowded",] in (
        0,
        1,
    )


def test_a_new_process_tells_the_same(engine: Engine, meter: MetricsPage) -> None:
    """Counters are read from the store, so a process that starts later shows the same numbers as
    one that has counted from the beginning."""
    for agent in ("claude", "codex", "claude"):
        a_life(engine.store, agent)
        scraped(meter)
    old, new = scraped(meter), scraped(MetricsPage(engine, "1.2.3"))
    totals = {
        address: value
        for address, value in old.items()
        if address[0].endswith("_total") or "duration" in address[0]
    }
    assert (
        totals == {address: new[address] for address in totals}
        and totals["perdure_attempts_total", "claude", "succeeded"] == 4
    )


def test_the_past_is_read_in_parts_and_shown_whole(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While older attempts are still being read, no total is shown that would jump later. They are
    read page by page, and none is lost or counted twice."""
    monkeypatch.setattr("perdure.telemetry.metrics.follower.PAGE", 2)
    monkeypatch.setattr("perdure.telemetry.metrics.follower.OVERLAP_MS", 0)
    for _ in range(3):
        a_life(engine.store)
    following, calls = AttemptTallies(engine.store), 0
    while not following.complete:
        following.catch_up(read_s=0)
        calls += 1
    assert calls > 3
    assert sum(following.tallies["claude"].outcomes.values()) == 9
    following.catch_up()
    assert sum(following.tallies["claude"].outcomes.values()) == 9


def test_many_that_ended_in_one_moment_are_read_in_parts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If more attempts end within one millisecond than a call reads, each call continues after the
    previous one, and the reading ends."""
    monkeypatch.setattr("perdure.telemetry.metrics.follower.PAGE", 2)
    for _ in range(3):
        a_life(engine.store)
    with engine.store._database.writing() as (cursor, now):  # type: ignore[attr-defined]
        cursor.execute(
            "UPDATE attempts SET ended = ?, body = json_set(body, '$.ended', ?)", (now, now)
        )
    following = AttemptTallies(engine.store)
    for _ in range(5):
        following.catch_up(read_s=0)
    assert following.complete and sum(following.tallies["claude"].outcomes.values()) == 9
    following.catch_up()
    assert sum(following.tallies["claude"].outcomes.values()) == 9


def test_what_is_seen_late_is_counted(engine: Engine) -> None:
    """An attempt is counted even if its end was stored after that of a later one. An attempt from a
    clock that was years ahead hides no others."""
    late, early = (engine.store.get(a_life(engine.store)).id for _ in range(2))
    following = AttemptTallies(engine.store)
    database = engine.store._database  # type: ignore[attr-defined]
    with database.writing() as (cursor, now):
        # One attempt is missing at the first read, as if its transaction were still open. The other
        # one ends in ten years.
        cursor.execute(
            "UPDATE attempts SET ended = NULL, outcome = NULL WHERE run = ? AND number = 3", (late,)
        )
        ahead = now + 10 * 365 * 86_400_000
        cursor.execute(
            "UPDATE attempts SET ended = ?, body = json_set(body, '$.ended', ?) WHERE run = ? AND "
            "number = 3",
            (ahead, ahead, early),
        )
    following.catch_up()
    assert sum(following.tallies["claude"].outcomes.values()) == 5
    with database.writing() as (cursor, now):
        ended = now - OVERLAP_MS // 2
        cursor.execute(
            "UPDATE attempts SET ended = ?, outcome = 'timed_out', body = json_set(body, "
            "'$.ended', ?) WHERE run = ? AND number = 3",
            (ended, ended, late),
        )
    for _ in range(2):
        following.catch_up()
        assert sum(following.tallies["claude"].outcomes.values()) == 6


def test_hostile_names_are_no_labels(engine: Engine, meter: MetricsPage) -> None:
    """A run from another machine may name any agent. All unknown names share one label value, and
    add no line of their own."""
    for agent in ('x"} 1\nperdure_runs{agent="y', "x" * 4000, "\u202e\x1b[31m", "acp-own"):
        a_life(engine.store, agent)
    found = scraped(meter)
    assert {address[1] for address in found if address[0] == "perdure_attempts_total"} == {
        "other",
        "acp-own",
    }
    assert found["perdure_runs", "other", "queued"] == 3
    assert found["perdure_attempts_total", "other", "succeeded"] == 6


def test_the_disk_is_measured_beside(engine: Engine, meter: MetricsPage) -> None:
    """A scrape never waits for the measurement of the disk. Its metrics are there as soon as the
    measurement has ended."""
    (engine.state / "other").mkdir()
    (engine.state / "other" / "file").write_bytes(b"x" * 100_000)
    while ("perdure_disk_bytes", "other") not in (found := scraped(meter)):
        pass
    assert (
        found["perdure_disk_bytes", "other"] >= 100_000
        and found["perdure_disk_bytes", "database"] > 0
    )
    assert found["perdure_disk_measured_timestamp_seconds",] > 0


def test_many_scrapes_cost_one(engine: Engine) -> None:
    """A second scrape soon after the first gets the same result. A missing store is reported as an
    error, not as zeros."""
    meter = MetricsPage(engine, "1.2.3", fresh_s=3600)
    first = scraped(meter)
    a_life(engine.store)
    assert scraped(meter) == first
    fresh = MetricsPage(engine, "1.2.3")
    engine.store.close()
    with pytest.raises(StoreError):
        fresh.exposition()


def test_openmetrics_for_who_asks_for_it(meter: MetricsPage) -> None:
    """A client that asks for OpenMetrics, such as Prometheus, gets it. An invalid Accept header
    gets an answer, too."""
    usual = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    for accept in (
        usual,
        "application/openmetrics-text;version=1.x",
        "application/openmetrics-text;version==;escaping=\0",
    ):
        text, content_type = meter.exposition(accept)
        assert (
            content_type
            == "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
        )
        assert text.endswith(b"# EOF\n")
    assert (
        meter.exposition("text/plain;version=x")[1]
        == meter.exposition("\0" * 9999)[1]
        == "text/plain; version=0.0.4; charset=utf-8"
    )
