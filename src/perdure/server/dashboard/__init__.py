"""The dashboard: server-rendered pages over the store. Called by `perdure.server.application`.

- `context`: the services that pages share, and the cache of slow measurements.
- `visits`: one request of a signed-in user, and the pages that ask for confirmation.
- `endpoints`: makes routes from pages and actions. `pages`: templates; all values are escaped.
- `sign_in`, `openid_sign_in`: signing in and out. `links`: the page of a signed link.
- `board`, `tasks`, `timelines`, `conversations`: pages about runs, conversations and plans.
- `actions`: the actions on runs. `live`: updates of an open page. `devices`: push messages.
- `history`: the digest and the audit trail. `records`: failures and continuity, as statistics.
- `inbox`: deliveries. `machine`: the checks of this machine, and its disk usage.

A page is an ordinary function that runs in a thread of the server, so it may wait for the store,
git and the disk. Pages can be read without scripts. A GET changes nothing. Every form contains a
secret that belongs to the user's sign-in (`principal.form_secret`). An action that cannot be undone
on the same page asks for confirmation and names its consequences. The policy in `pages.CSP` forbids
inline scripts. It also forbids loading anything from another site.
"""

from __future__ import annotations

from functools import partial

from starlette.routing import BaseRoute, Mount

from perdure.model import TokenScope
from perdure.server.context import Parts
from perdure.server.dashboard import (
    actions,
    board,
    conversations,
    devices,
    history,
    inbox,
    links,
    live,
    machine,
    records,
    sign_in,
    tasks,
)
from perdure.server.dashboard.context import Measured, PageContext
from perdure.server.dashboard.endpoints import action_route, read_route
from perdure.server.dashboard.pages import HERE, Static
from perdure.server.limits import Reach


def routes(parts: Parts) -> list[BaseRoute]:
    """Return the routes of the pages."""
    desk = PageContext(
        engine=parts.engine,
        look=parts.store,
        settings=parts.settings,
        seed=parts.seed,
        checks=parts.checks,
        dispatch=parts.dispatch,
        measured=Measured(),
    )
    look = partial(read_route, desk)
    act = partial(action_route, desk)
    dispatch, admin = TokenScope.DISPATCH, TokenScope.ADMIN
    return [
        look("/", board.board, Reach.LIST),
        look("/runs/{name}", tasks.overview),
        look("/runs/{name}/log", tasks.log),
        look("/runs/{name}/diff", tasks.diff),
        look("/runs/{name}/patch", tasks.patch),
        look("/runs/{name}/checkpoints", tasks.checkpoints),
        look("/runs/{name}/instructions", tasks.instructions),
        look("/runs/{name}/report.json", tasks.as_json),
        look("/runs/{name}/attempts/{number}/stdout", tasks.raw),
        act("/new", dispatch, actions.new, actions.ask_new, Reach.TASK),
        act("/runs/{name}/retry", dispatch, actions.retry),
        act("/runs/{name}/update", dispatch, actions.update, actions.ask_update),
        act("/runs/{name}/tell", dispatch, actions.tell, actions.ask_tell),
        act("/runs/{name}/answer", TokenScope.ANSWER, actions.answer),
        act("/runs/{name}/stop", dispatch, actions.stop, actions.ask_stop),
        act("/runs/{name}/fork", dispatch, conversations.do_fork, conversations.ask_fork),
        act("/runs/{name}/restore/{number}", dispatch, actions.do_restore, actions.ask_restore),
        act("/runs/{name}/reset", admin, actions.do_reset, actions.ask_reset, Reach.WHOLE),
        act("/runs/{name}/remove", admin, actions.remove, actions.ask_remove),
        look("/notify", devices.devices, Reach.NOTHING),
        act("/notify/add", TokenScope.READ, devices.add, reach=Reach.NOTHING),
        act("/notify/renew", TokenScope.READ, devices.renew, reach=Reach.NOTHING),
        act("/notify/{id}/remove", TokenScope.READ, devices.remove, reach=Reach.NOTHING),
        act("/notify/{id}/test", TokenScope.READ, devices.test, reach=Reach.NOTHING),
        look("/digest", history.digests, Reach.LIST),
        look("/sessions", conversations.sessions),
        look("/sessions/{id}", conversations.session),
        act("/sessions/{id}/resume", dispatch, conversations.do_resume, conversations.ask_resume),
        look("/plans", conversations.plans),
        look("/plans/{name}", conversations.plan),
        look("/failures", records.failures),
        look("/continuity", records.continuity),
        look("/continuity.json", records.continuity_json),
        look("/disk", machine.disk),
        act("/disk/measure", dispatch, machine.measure),
        look("/inbox", inbox.inbox),
        look("/inbox/{number}", inbox.delivery),
        act("/inbox/{number}/replay", dispatch, inbox.replay, inbox.ask_replay),
        look("/checks", machine.checks),
        look("/audit", history.audit, Reach.LIST),
        look("/audit.jsonl", history.as_lines, Reach.LIST),
        *live.routes(desk, parts.journal, parts.principals),
        *_sign_in_routes(parts),
        links.route(desk),
        Mount("/static", Static(directory=HERE / "static")),
    ]


def _sign_in_routes(parts: Parts) -> list[BaseRoute]:
    """Return the routes for signing in and out with a token, and at an OpenID provider if one is
    configured."""
    chosen = parts.settings.openid
    public = parts.settings.serve_public_url
    if chosen is None:
        return sign_in.routes(parts.principals, public)
    from perdure.server.dashboard import openid_sign_in
    from perdure.server.openid import Provider

    sign_ins = openid_sign_in.SignIns(
        Provider(chosen, parts.settings.ca_file), parts.principals, public, parts.say
    )
    return [
        *sign_in.routes(parts.principals, public, sign_ins.name),
        *openid_sign_in.routes(sign_ins),
    ]
