"""The page on which people add their browsers. After that, a browser gets push messages about the
events and runs that its person has chosen on this page.

`push.js` asks the browser for its subscription and sends it with the form. The endpoint and the
keys come from the browser, so they are checked when they arrive, and again when a message is sent.
"""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import JSONResponse, Response

from perdure.engine.notices.push import Devices, PushSender, sender_of
from perdure.engine.notices.trial import trial_notice
from perdure.errors import Conflict, NotFound, UsageError
from perdure.model.notices import (
    NAME_MOST,
    PREFIX,
    Channel,
    ChannelKind,
    NoticeEvent,
    PushDevice,
    check_endpoint,
    device_id,
)
from perdure.rules.text import one_line
from perdure.server.dashboard.pages import HEADERS
from perdure.server.dashboard.visits import Visit
from perdure.server.principal import digest

HERE = "/notify"
KEPT_MS = 30 * 86_400_000
"""Time in ms for which a browser is kept after its person last opened the dashboard in it."""
FIELD_MOST = 500
WORDS = {
    NoticeEvent.NEEDS_YOU: "a run needs me",
    NoticeEvent.OVER_BUDGET: "a run is over its budget",
    NoticeEvent.FAILED: "a run has failed",
    NoticeEvent.DONE: "a run is done",
    NoticeEvent.WAITING: "a run waits for long",
}
"""For each event, its description on the page."""
BROWSERS = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"))
SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Macintosh", "Linux")
_testing = threading.Lock()


class DeviceRow(Struct, frozen=True):
    """A browser of the user, as the page shows it."""

    id: str
    name: str
    mark: str
    """SHA-256 of the endpoint. By this value, the script `push.js` finds the row of the browser in
    which it runs."""
    events: str
    only: str
    added: int


def devices(visit: Visit) -> Response:
    """Show `/notify`: the form that adds this browser, and the user's browsers."""
    if not visit.desk.settings.serve_push_contact:
        return visit.page("devices.html", key="", rows=())
    found = _own(visit)
    wishes = Channel(name="", kind=ChannelKind.PUSH, events=(NoticeEvent.NEEDS_YOU,))
    if found:
        wishes = found[-1].channel
    return visit.page(
        "devices.html",
        key=_sender(visit).server_key(),
        rows=list(map(_row, found)),
        events=[(str(each), word, each in wishes.events) for each, word in WORDS.items()],
        wishes=wishes,
        name=browser_of(visit.request.headers.get("user-agent", "")),
        zone=datetime.now().astimezone().strftime("%H:%M %Z"),
    )


def add(visit: Visit) -> Response:
    """Add the browser that sends the form. If the browser was added before, the choices in the form
    replace the earlier ones."""
    if not visit.desk.settings.serve_push_contact:
        raise Conflict("Push messages are off on this server", "the setting serve_push_contact")
    sender = _sender(visit)
    device = replace(
        _device(visit),
        name=one_line(visit.given("name"), NAME_MOST) or "a browser",
        public_key=visit.given("p256dh"),
        auth=visit.given("auth"),
        server_key=sender.server_key(),
        wishes=json.dumps(_wishes(visit)),
    )
    try:
        check_endpoint(device.endpoint)
        sender.check(device)
        _ = device.channel  # Raises ValueError if the person's choices are not valid.
    except ValueError as error:
        raise UsageError(str(error).replace(f"{PREFIX}{device.id}", "this device")) from None
    visit.desk.engine.store.put_device(device)
    return visit.to(HERE, "device_added")


def renew(visit: Visit) -> Response:
    """Postpone the expiry of the browser, because its person has opened the dashboard in it. The
    response says whether the browser is in the store."""
    known = visit.desk.engine.store.renew_device(_device(visit))
    return JSONResponse({"known": known}, headers=HEADERS)


def remove(visit: Visit) -> Response:
    """Remove one of the user's browsers."""
    visit.desk.engine.store.remove_device(_named(visit).id)
    return visit.to(HERE, "device_removed")


def test(visit: Visit) -> Response:
    """Send a message to one of the user's browsers now. Only one such message is sent at a time,
    because a slow push service would otherwise hold up the pages of other people."""
    device = _named(visit)
    if not _testing.acquire(blocking=False):
        raise Conflict("Another test message is being sent", "try again in a few seconds")
    try:
        sending = Devices(visit.desk.engine.store, _sender(visit))
        sending.send(trial_notice(f"{PREFIX}{device.id}", ""))
    finally:
        _testing.release()
    return visit.to(HERE, "device_tested")


def browser_of(agent: str) -> str:
    """Return a name for a browser from its User-Agent header, such as `Firefox on Linux`."""
    name = next((name for word, name in BROWSERS if word in agent), "")
    if not name and "Safari" in agent:
        name = "Safari"
    system = next((each for each in SYSTEMS if each in agent), "")
    words = [name or "A browser", system.replace("Macintosh", "macOS")]
    return " on ".join(filter(None, words))


def _device(visit: Visit) -> PushDevice:
    """Return a record of the browser that sends the request. The record has the person and the
    limits. The keys and the person's choices are left empty."""
    endpoint, principal = visit.given("endpoint"), visit.principal
    expires = visit.now + KEPT_MS
    if principal.expires:
        expires = min(expires, principal.expires)
    return PushDevice(
        id=device_id(principal.actor, endpoint),
        person=principal.actor,
        sign_in=digest(principal.cookie),
        name="",
        endpoint=endpoint,
        public_key="",
        auth="",
        server_key="",
        wishes="",
        repositories=principal.limits.repositories,
        labels=tuple(f"{name}={pattern}" for name, pattern in principal.limits.labels),
        expires=expires,
    )


def _wishes(visit: Visit) -> dict[str, object]:
    """Return what the person chose in the form. Raises UsageError."""
    events = [str(each) for each in NoticeEvent if visit.given(f"on_{each}")]
    if not events:
        raise UsageError("Nothing was chosen", "choose at least one event")
    labels = {}
    for pair in _list(visit, "labels"):
        name, equals, value = pair.partition("=")
        if not name.strip() or not equals:
            raise UsageError(f"{pair[:40]!r} is not a label", "write labels as team=web")
        labels[name.strip()] = value.strip()
    return {
        "events": events,
        "labels": labels,
        "roles": _list(visit, "roles"),
        "quiet": visit.given("quiet").strip(),
    }


def _list(visit: Visit, field: str) -> list[str]:
    """Return the items of a field, which are separated by commas. Raises UsageError."""
    text = visit.given(field)
    if len(text) > FIELD_MOST:
        raise UsageError(f"The field {field} is too long", f"at most {FIELD_MOST} characters")
    return [each.strip() for each in text.split(",") if each.strip()]


def _sender(visit: Visit) -> PushSender:
    return sender_of(visit.desk.settings)


def _own(visit: Visit) -> list[PushDevice]:
    """Return the user's browsers, oldest first. A user never sees the browsers of other people."""
    found = visit.desk.engine.store.devices()
    return [each for each in found if each.person == visit.principal.actor]


def _named(visit: Visit) -> PushDevice:
    """Return the browser that the path names. Raises NotFound if it is not the user's."""
    for each in _own(visit):
        if each.id == visit.named("id"):
            return each
    raise NotFound("You have no such device")


def _row(device: PushDevice) -> DeviceRow:
    wishes = device.channel
    only = [f"{name}={value}" for name, value in wishes.labels] + list(wishes.roles)
    if wishes.quiet:
        only.append(f"not {wishes.quiet}")
    return DeviceRow(
        id=device.id,
        name=device.name,
        mark=hashlib.sha256(device.endpoint.encode()).hexdigest(),
        events=", ".join(str(each).replace("_", " ") for each in wishes.events),
        only=", ".join(only),
        added=device.added,
    )
