"""Makes the links with which a person can answer a notice, and stores the key that signs them.

The key is a file in the state directory. Only the user that perdure runs as can read it. If one
host sends the notices and another host serves the links, both need the same key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from perdure.engine.attempt.engine import EngineStore, moved_to
from perdure.engine.notices.keys import key_in
from perdure.errors import PerdureError, StoreError
from perdure.host.redaction import Redactor
from perdure.model.codec import decode, encode
from perdure.model.notices import Channel, Notice, NoticeAnswer, NoticeBody, NoticeEvent
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.rules.answer_links import link_to, signed
from perdure.rules.approvals import why_not_allowed
from perdure.rules.text import one_line

KEY = "link-key"
KEY_BYTES = 32
LINKED_MOST = 5
"""Maximum number of requests for which one notice contains links."""
CALL_MOST = 300
"""Maximum length of the text that summarizes a tool call in a notice, in characters."""


def link_key(state: Path, *, make: bool = False) -> bytes:
    """Return the key that signs links. If the key does not exist, create it if `make` is set;
    otherwise return empty bytes. Raises StoreError."""
    found = key_in(state / KEY, (lambda: secrets.token_bytes(KEY_BYTES)) if make else None)
    if found and len(found) != KEY_BYTES:
        raise StoreError(
            f"The key {state / KEY} is damaged", "remove it; older links become invalid"
        )
    return found


def linking(
    store: EngineStore, state: Path, redactor: Redactor, public_url: str
) -> Callable[[Channel, Notice], Notice]:
    """Return a function that adds links to a notice just before the notice is sent. The notice in
    the store has no links."""

    def linked(channel: Channel, notice: Notice) -> Notice:
        if not channel.links or not public_url or notice.event is not NoticeEvent.NEEDS_YOU:
            return notice
        try:
            answers = answers_of(store, state, redactor, channel, notice.run, public_url)
        except PerdureError:
            return notice  # A notice without links is better than none.
        if not answers:
            return notice
        from msgspec.structs import replace

        body = decode(notice.body, NoticeBody)
        return replace(notice, body=encode(replace(body, data=replace(body.data, answers=answers))))

    return linked


def answers_of(
    store: EngineStore, state: Path, redactor: Redactor, channel: Channel, run: str, public_url: str
) -> tuple[NoticeAnswer, ...]:
    """Return, for each of a run's first `LINKED_MOST` open approval requests, the links that allow
    or deny the call. Raises StoreError."""
    now = store.now()
    opened = []
    for each in store.requests(run):
        is_open = each.state is RequestState.OPEN and each.expires > now
        if is_open and each.kind is RequestKind.APPROVAL:
            opened.append(each)
    if not opened or moved_to(state, run).exists():
        return ()
    key = link_key(state, make=True)

    def address(request: AgentRequest, answer: AnswerKind) -> str:
        return f"{public_url}/link/{signed(link_to(request, answer, channel.name), key)}"

    found = []
    for each in opened[:LINKED_MOST]:
        found.append(
            NoticeAnswer(
                request=each.number,
                tool=one_line(each.tool, CALL_MOST),
                call=one_line(redactor.text(each.summary), CALL_MOST),
                allow="" if why_not_allowed(each) else address(each, AnswerKind.ALLOW),
                deny=address(each, AnswerKind.DENY),
                expires=each.expires,
            )
        )
    return tuple(found)
