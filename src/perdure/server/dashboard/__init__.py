"""The dashboard: server-rendered pages over the store. `perdure.server.routes` is the caller.

The rooms: `context` (what pages work with), `visits` (one request of somebody who is signed in),
`pages` (templates; everything hostile is cleaned and escaped there), `sign_in` (in and out);
`board`, `tasks`, `sessions`, `plans`, `records`, `disk`, `inbox`, `checks` (the pages); `actions`
and `confirmation` (what can be done, and the pages that ask first); `live` (what comes while one
looks); `threads`, `timelines`, `lines`, `diffs`, `fingerprints` (pure: nouns to what is shown).

Pages are ordinary functions that run in the server's threads: they may wait for the store, git and
the disk. Reading works without a script. Nothing changes by a GET; every form carries the secret of
its sign-in (`principal.form_secret`), and what cannot be undone by the same page asks first, with
what follows from it. The policy in `rendering.CSP` lets a page load nothing from elsewhere and run
nothing that stands in it.
"""

from __future__ import annotations

from functools import partial

from starlette.routing import BaseRoute, Mount

from perdure.model import TokenScope
from perdure.server.context import Parts
from perdure.server.dashboard import (
    actions,
    board,
    checks,
    disk,
    inbox,
    live,
    plans,
    records,
    sessions,
    sign_in,
    tasks,
)
from perdure.server.dashboard.context import PageContext
from perdure.server.dashboard.endpoints import acting, looking
from perdure.server.dashboard.measurements import Measured
from perdure.server.dashboard.pages import HERE, Static


def routes(parts: Parts) -> list[BaseRoute]:
    """The addresses of the pages."""
    desk = PageContext(
        engine=parts.engine,
        look=parts.store,
        settings=parts.settings,
        seed=parts.seed,
        checks=parts.checks,
        dispatch=parts.dispatch,
        measured=Measured(),
    )
    look = partial(looking, desk)
    act = partial(acting, desk)
    dispatch, admin = TokenScope.DISPATCH, TokenScope.ADMIN
    return [
        look("/", board.board),
        look("/runs/{name}", tasks.overview),
        look("/runs/{name}/log", tasks.log),
        look("/runs/{name}/diff", tasks.diff),
        look("/runs/{name}/patch", tasks.patch),
        look("/runs/{name}/checkpoints", tasks.checkpoints),
        look("/runs/{name}/instructions", tasks.instructions),
        look("/runs/{name}/report.json", tasks.as_json),
        look("/runs/{name}/attempts/{number}/stdout", tasks.raw),
        act("/new", dispatch, actions.new, actions.ask_new),
        act("/runs/{name}/retry", dispatch, actions.retry),
        act("/runs/{name}/update", dispatch, actions.update, actions.ask_update),
        act("/runs/{name}/stop", dispatch, actions.stop, actions.ask_stop),
        act("/runs/{name}/fork", dispatch, sessions.do_fork, sessions.ask_fork),
        act("/runs/{name}/restore/{number}", dispatch, actions.do_restore, actions.ask_restore),
        act("/runs/{name}/reset", admin, actions.do_reset, actions.ask_reset),
        act("/runs/{name}/remove", admin, actions.remove, actions.ask_remove),
        look("/sessions", sessions.sessions),
        look("/sessions/{id}", sessions.session),
        act("/sessions/{id}/resume", dispatch, sessions.do_resume, sessions.ask_resume),
        look("/plans", plans.plans),
        look("/plans/{name}", plans.plan),
        look("/failures", records.failures),
        look("/continuity", records.continuity),
        look("/continuity.json", records.continuity_json),
        look("/disk", disk.disk),
        act("/disk/measure", dispatch, disk.measure),
        look("/inbox", inbox.inbox),
        look("/inbox/{number}", inbox.delivery),
        act("/inbox/{number}/replay", dispatch, inbox.replay, inbox.ask_replay),
        look("/checks", checks.checks),
        *live.routes(desk, parts.journal, parts.principals),
        *sign_in.routes(parts.principals, parts.settings.serve_public_url),
        Mount("/static", Static(directory=HERE / "static")),
    ]
