"""`sessions stats`, `rebuild`, `create`, `extend` and `close`: print statistics of perdure's
records of conversations, and change these records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from perdure.cli.compose import environment, open_engine, open_to_read, settings
from perdure.cli.text import clean, clock, tokens
from perdure.model.codec import printed

if TYPE_CHECKING:
    import argparse

    from perdure.config import Settings
    from perdure.engine.sessions.service import Rebuilt
    from perdure.engine.sessions.statistics import Statistics
    from perdure.model import Attempt, SessionKey


def stats(agents: list[str], scope: str, since: str, *, as_json: bool) -> int:
    """Print how many attempts continued their conversation. `since` is a duration such as `24h`,
    which ends now. Empty `agents`, `scope` or `since` mean all attempts. Return the exit code."""
    from perdure.engine.sessions.statistics import statistics
    from perdure.errors import UsageError
    from perdure.model.durations import duration

    store = open_to_read(settings())
    try:
        begin = store.now() - int(duration(since) * 1000) if since else 0
    except ValueError as error:
        raise UsageError(f"--since {since}: {error}") from error
    ended: list[tuple[SessionKey, Attempt]] = []
    for agent in agents or [""]:
        ended += store.ended(begin, store.now() + 1, agent, scope)
    found = statistics(ended)
    if as_json:
        print(printed(found.report()))
    else:
        for name, value in _lines(found):
            print(f"{name:16}  {value}".rstrip())
    return 0


def _lines(found: Statistics) -> list[tuple[str, str]]:
    rate = found.success_rate
    lines = [
        ("attempts", f"{found.attempts}, {found.begun} of them started a conversation"),
        ("to continue", str(found.to_go_on)),
        ("continued", f"{found.went_on}" + (f" ({rate:.1%})" if rate is not None else "")),
    ]
    if found.verdicts:
        counts = [f"{count} {verdict}" for verdict, count in found.verdicts.items()]
        lines.append(("receipts", ", ".join(counts)))
    lines += [("fallback", f"{count} x {cause}") for cause, count in found.fallbacks.items()]
    lines += [("expired", f"{found.expired} session(s) had expired")] if found.expired else []
    lines += [
        ("tokens", f"{tokens(found.bought)} bought, {tokens(found.cached)} from the prompt cache")
    ]
    if found.saved is not None:
        if found.saved >= 0:
            word = "saved against cold starts"
        else:
            word = "more than cold starts would have taken"
        lines.append(("", f"{tokens(abs(found.saved))} {word}"))
    return lines


def change(chosen: Settings, arguments: argparse.Namespace, ref: str) -> int:
    """Run `sessions create SCOPE`, `extend REF` or `close REF`: change the record of a
    conversation, and print it. Return the exit code."""
    from perdure.cli.compose import conversation_index
    from perdure.engine.conversations.search import lifetime, live_key, records_of, report
    from perdure.errors import UsageError

    if arguments.what == "create" and len(arguments.agent) > 1:
        raise UsageError(
            "expected one --agent: a conversation belongs to one agent",
            "perdure sessions create SCOPE --agent NAME",
        )
    engine = open_engine(chosen)
    service = records_of(
        engine.store, engine.driver, engine.copies, engine.environ, engine.session_lifetime_s
    )
    length = lifetime(arguments.lifetime)
    if arguments.what == "create":
        session = service.create(
            arguments.agent[0] if arguments.agent else chosen.agent, ref, lifetime_s=length
        )
    else:
        key = live_key(engine.store, conversation_index(engine.store, arguments.agent), ref)
        if arguments.what == "extend":
            session = service.extend(key.agent, key.scope, length)
        else:
            service.close(key.agent, key.scope, arguments.cause)
            session = service.lineage(key.agent, key.scope)[-1]
    if arguments.json:
        print(printed(report(session)))
        return 0
    if session.expires:
        until = f"expires {clock(session.expires)}"
    else:
        until = "never expires"
    print(
        f"{session.id}  {session.key.agent}  {clean(session.key.scope)}  {session.state}; "
        f"{session.cause or until}"
    )
    return 0


def _rebuilt(each: Rebuilt) -> dict[str, object]:
    """Return the rebuilt records of one agent's conversations in a scope, as JSON shows them."""
    sessions = [{"id": session.id, "state": str(session.state)} for session in each.sessions]
    return {
        "agent": each.key.agent,
        "scope": each.key.scope,
        "sessions": sessions,
        "problem": each.problem,
    }


def rebuild(*, as_json: bool) -> int:
    """Rebuild lost records of conversations and print them. Return 6 if some could not be stored
    because an attempt is using the conversation."""
    from perdure.engine.sessions.service import Sessions

    chosen = settings()
    engine = open_engine(chosen)
    environ = environment(chosen)
    service = Sessions(
        store=engine.store,
        driver=engine.driver,
        home=lambda driver: driver.home(environ),
        copies=engine.copies,
        lifetime_s=engine.session_lifetime_s,
    )
    done = service.rebuild()
    if as_json:
        rows = list(map(_rebuilt, done))
        print(json.dumps({"schema_version": 1, "rebuilt": rows}, indent=2, ensure_ascii=False))
    else:
        for each in done:
            told = ", ".join(f"{clean(session.id)} ({session.state})" for session in each.sessions)
            print(f"{each.key.agent}  {clean(each.key.scope)}  {each.problem or told}")
        if not done:
            print("no record was missing")
    if any(each.problem for each in done):
        return 6
    return 0
