"""Determines which account a run uses. Also parks accounts and agents that cannot be used for now:
a run that needs one of these has to wait. Called by `worker` before a claim and by `finish` after
an attempt.

An account is identified by a digest of the credentials and service settings in the agent's
environment. If the environment has neither, the path of the agent's home is digested instead,
because the home holds the agent's login. No secret is read from a file, and none can be recovered
from the digest.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from perdure.engine.attempt.engine import agent_environment, is_passed
from perdure.model import USUAL_MODEL, AccountSlot, Attempt, Parking, TaskRun
from perdure.patterns import late_pattern
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.crashes import pause_ms
from perdure.rules.lifecycle import limit_end

if TYPE_CHECKING:
    from perdure.model.forge.rules import Rule

ACCOUNT = late_pattern(r"KEY|TOKEN|BASE_URL|PROFILE|PROJECT|ORG", re.IGNORECASE)
_MODEL = r"(opus|sonnet|haiku|fable|gpt-\d\S*|gemini\S*|flash|pro)"
OF_A_MODEL = late_pattern(
    rf"\b{_MODEL}( \w+)? (limit|quota)|\b(limit|quota) (for|of|on) \S*{_MODEL}", re.IGNORECASE
)
"""Pattern of a message about a limit of a single model. The account's other models stay usable."""
TURN = "waits for its turn"
"""First words of `TaskRun.reason` if the run waits because too many runs of its account or rule are
running."""


def credentials_digest(environ: Mapping[str, str], run: TaskRun, driver: AgentDriver) -> str:
    """Return a digest of the credentials and service settings in the agent's environment; empty if
    there are none. A comparison of two digests shows whether the credentials changed, without
    revealing them."""
    given = agent_environment(environ, driver, run)
    own = []
    for name, value in sorted(given.items()):
        if is_passed(name, driver.variables) and ACCOUNT.search(name):
            own.append((name, value))
    if own:
        return hashlib.sha256(repr(own).encode()).hexdigest()[:8]
    return ""


def account_of(environ: Mapping[str, str], run: TaskRun, driver: AgentDriver) -> str:
    """Return the account's name: the agent's name, a slash and the digest that identifies the
    account, in eight hexadecimal digits."""
    mark = credentials_digest(environ, run, driver)
    home = str(driver.home({**environ, **run.spec.env}))
    return f"{run.spec.agent}/{mark or hashlib.sha256(home.encode()).hexdigest()[:8]}"


def account_slot(
    driver: Callable[[str], AgentDriver],
    environ: Mapping[str, str],
    rules: Mapping[str, Rule],
    account_jobs: Mapping[str, int],
    run: TaskRun,
) -> AccountSlot:
    """Return the account that the run uses, with the limits on the number of concurrent runs.
    Raises PerdureError."""
    agent = run.spec.agent
    jobs = account_jobs.get(agent, account_jobs.get("*", 0))
    rule = rules.get(run.spec.rule)
    return AccountSlot(
        account=account_of(environ, run, driver(agent)),
        agent=agent,
        model=run.spec.model or USUAL_MODEL,
        jobs=jobs,
        rule=run.spec.rule,
        rule_jobs=rule.concurrency if rule else 0,
    )


def active_parking(store: RunStore, seat: AccountSlot) -> Parking | None:
    """Return the pause (`Parking`) that currently applies to the account or the agent in `seat`;
    None if neither is paused. If several pauses apply, return the one that ends last."""
    found = []
    for p in store.parked():
        if p.what in (seat.account, seat.agent) and p.model in ("", seat.model):
            found.append(p)
    return max(found, key=lambda parking: parking.until, default=None)


def parkings(store: RunStore, run: TaskRun, attempt: Attempt, now: int) -> tuple[Parking, ...]:
    """Return the pauses that become necessary after an attempt. If the agent reported a usage
    limit, the account is paused until the limit ends. If the agent has repeatedly failed to start,
    the agent is paused.
    """
    found: list[Parking] = []
    outcome = attempt.outcome
    if outcome is None:
        return ()
    until = limit_end(outcome, now)
    if run.account and until is not None and until > now:
        if OF_A_MODEL.search(outcome.detail):
            model = run.spec.model or USUAL_MODEL
        else:
            model = ""
        reason = (
            f"account {run.account} is limited until {_clock(until)}: "
            f"{outcome.detail or 'a usage limit'} ({run.name})"
        )
        found.append(Parking(what=run.account, model=model, until=until, reason=reason))
    pause = pause_ms([attempt, *store.latest_attempts(run.spec.agent)], now)
    if pause:
        reason = (
            f"{run.spec.agent} does not start; next try at {_clock(now + pause)}: "
            f"{outcome.kind}: {outcome.detail} ({run.name})"
        )
        found.append(Parking(what=run.spec.agent, until=now + pause, reason=reason))
    return tuple(found)


def _clock(at: int) -> str:
    """Return a time as text in UTC, because machines in different time zones may share the
    store."""
    if at < 2**47:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(at, 2**53) / 1000))
    return "an unknown time"


def wait_for(store: RunStore, run: TaskRun, seat: AccountSlot) -> bool:
    """Return whether the run has to wait before it may be claimed. If so, store the reason with the
    run, and the end of the wait if it is known."""
    parking = active_parking(store, seat)
    if parking is not None:
        store.defer(run.id, parking.until, f"parked: {parking.reason}")
        return True
    if seat.jobs and store.seats_taken(seat.account) >= seat.jobs:
        reason = f"{TURN}: {seat.jobs} of {seat.jobs} runs of account {seat.account} are running"
    elif seat.rule_jobs and store.seats_taken_under(seat.rule) >= seat.rule_jobs:
        reason = (
            f"{TURN}: {seat.rule_jobs} of {seat.rule_jobs} runs of the agent "
            f"{seat.rule} are running"
        )
    else:
        return False
    if run.reason != reason:
        store.defer(run.id, run.run_after, reason)
    return True


def waits_for_turn(run: TaskRun) -> bool:
    """Return whether a queued run waits because too many other runs are running."""
    return run.reason.startswith(TURN)


def may_hold_seat(run: TaskRun, other: TaskRun) -> bool:
    """Return whether the queued `run` may be waiting for the running `other` to end."""
    same_rule = bool(run.spec.rule) and other.spec.rule == run.spec.rule
    return other.spec.agent == run.spec.agent or same_rule


def parking_keys(environ: Mapping[str, str], run: TaskRun, driver: AgentDriver) -> Sequence[str]:
    """Return the names of the run's account and agent. A pause whose `Parking.what` is one of these
    names affects the run."""
    return (account_of(environ, run, driver), run.spec.agent)
