"""The test message that a person sends to a channel to try it."""

from __future__ import annotations

import secrets
import time

from perdure.model import RunState, TaskRun, TaskSpec, Usage
from perdure.model.notices import Notice, NoticeEvent
from perdure.rules.notification import body_of


def trial_notice(channel: str, page: str) -> Notice:
    """Return a test notice, about a made-up run, for the channel of this name. `page` is the
    address of the dashboard."""
    now = int(time.time() * 1000)
    run = TaskRun(
        id="test",
        name="test",
        spec=TaskSpec(prompt="This is a test of perdure notify."),
        state=RunState.SUCCEEDED,
        created=now,
        updated=now,
    )
    return Notice(
        id=f"ntc_test_{secrets.token_hex(8)}",
        channel=channel,
        line=0,
        event=NoticeEvent.DONE,
        run=run.id,
        at=now,
        body=body_of(NoticeEvent.DONE, None, run, Usage(), now, page),
    )
