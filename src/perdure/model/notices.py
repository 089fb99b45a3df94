"""Data types for notices to people and for push messages to browsers. Also reads the channels of
notices from the configuration. Does no input or output.

A channel is a `[notify.NAME]` table of the user's or service's configuration. A notice is one
message to one channel, kept in an outbox until it is sent. A `PushDevice` is a person's browser,
with the person's choice of notices. `device_channel` returns its channel.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import time
from enum import StrEnum
from typing import Any

import msgspec

from perdure.model.forge.sources import address

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_HOURS = re.compile(r"(\d{2}):(\d{2})-(\d{2}):(\d{2})")
_MAIL = re.compile(r"[A-Za-z0-9._%+=-]{1,64}@[A-Za-z0-9.-]{1,190}")
_SERVER = re.compile(r"(smtp|smtps)://(?:([A-Za-z0-9._%+@=-]+)@)?([A-Za-z0-9.-]+)(?::(\d{1,5}))?")


class NoticeEvent(StrEnum):
    """The events about which people can be notified."""

    NEEDS_YOU = "needs_you"
    """The run continues only after a person has done something."""
    OVER_BUDGET = "over_budget"
    FAILED = "failed"
    DONE = "done"
    WAITING = "waiting"
    """The run waits until a certain time, such as the end of a usage limit."""


USUAL = (NoticeEvent.NEEDS_YOU, NoticeEvent.OVER_BUDGET, NoticeEvent.FAILED, NoticeEvent.DONE)
"""Events that a channel reports by default."""


class ChannelKind(StrEnum):
    """The way in which a channel sends messages."""

    WEBHOOK = "webhook"
    """An HTTP POST, signed as standardwebhooks.com describes."""
    MAIL = "mail"
    SERVICE = "service"
    """A service that the library Apprise supports: chat, push, text messages."""
    PUSH = "push"
    """A person's browser, by Web Push. Such a channel is not configured: the person adds it on the
    dashboard."""


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """A channel for notices, with its address and the limits on the runs and events that it
    reports."""

    name: str
    kind: ChannelKind
    url: str = ""
    """The address of a webhook."""
    secret_file: str = ""
    """File with the signing secret of the webhook (`whsec_...`), the password of the mail server,
    or the addresses of services. The configuration itself never contains secrets."""
    server: str = ""
    """Address of the mail server: `smtp://USER@HOST:587`, or `smtps://...`."""
    sender: str = ""
    recipients: tuple[str, ...] = ()
    events: tuple[NoticeEvent, ...] = USUAL
    labels: tuple[tuple[str, str], ...] = ()
    """Labels that a run must have to be reported; empty: no restriction."""
    roles: tuple[str, ...] = ()
    """Roles of the runs that are reported; empty: all."""
    links: bool = False
    """Whether messages contain links that allow or refuse an agent's call. Everybody who gets a
    message can use them."""
    quiet: str = ""
    """Time of day during which nothing is sent, such as `22:00-07:00`, in the machine's local time.
    """

    def __str__(self) -> str:
        where = {
            ChannelKind.WEBHOOK: self.url,
            ChannelKind.MAIL: ", ".join(self.recipients),
            ChannelKind.SERVICE: f"addresses in {self.secret_file}",
            ChannelKind.PUSH: "a browser",
        }
        return f"{self.name} ({self.kind}, {where[self.kind]})"

    @property
    def hours(self) -> tuple[time, time] | None:
        """Return the beginning and the end of the quiet hours; None if there are none."""
        found = _HOURS.fullmatch(self.quiet)
        if found is None:
            return None
        first, second, third, fourth = map(int, found.groups())
        return time(first, second), time(third, fourth)


class NoticeState(StrEnum):
    """The state of a notice in the outbox."""

    WAITING = "waiting"
    SENT = "sent"
    GIVEN_UP = "given_up"
    """The notice could not be sent for a week, or its channel is no longer in the configuration."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one channel. Times are in ms, by the store's clock."""

    id: str
    """Id of the notice. It is the same for every try, so a receiver can recognize a repetition."""
    channel: str
    line: int
    """Number of the line of the audit trail that the notice reports."""
    event: NoticeEvent
    run: str
    at: int
    body: str
    """The message as JSON. It is made when the event happens, not when the notice is sent."""
    state: NoticeState = NoticeState.WAITING
    due: int = 0
    tries: int = 0
    reason: str = ""
    """Reason why the latest try failed."""


class NoticeRun(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a run that a notice contains."""

    id: str
    name: str
    title: str
    link: str
    """Address of the issue or pull request that the run is about."""
    role: str
    agent: str
    state: str
    attempt: int
    cost_usd: float
    estimated: bool
    page: str
    """Address of the run's page on the dashboard; empty if `serve_public_url` is not set."""


class NoticeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The links with which a person answers an agent's call. Each can be used once, until `expires`
    (ms)."""

    request: int
    tool: str
    call: str
    """The main argument of the call, on one line."""
    allow: str
    """Address of the page that allows the call; empty if the call can only be refused."""
    deny: str
    expires: int


class NoticeData(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a notice."""

    run: NoticeRun
    message: str
    """Sentence that says what the person has to do, or why the run ended; may be empty."""
    until: int
    """For `waiting`: the time (ms) until which the run waits; otherwise 0."""
    answers: tuple[NoticeAnswer, ...] = ()
    """For `needs_you`: the calls that wait for an answer. Empty if the channel has no links."""


class NoticeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON body of a webhook. `type` is `run.EVENT`."""

    type: str
    timestamp: str
    data: NoticeData


def channels(value: object) -> tuple[Channel, ...]:
    """Return the channels in a `[notify]` table. `value` is the table, or its content as JSON text.
    Raises ValueError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("expected tables [notify.NAME], or the same as JSON") from None
    if not isinstance(value, Mapping):
        raise ValueError("expected a table [notify.NAME] with url, server or service_file")
    return tuple(_channel(str(name), table) for name, table in value.items())


WHERE = {
    "url": ChannelKind.WEBHOOK,
    "server": ChannelKind.MAIL,
    "service_file": ChannelKind.SERVICE,
}
"""Kind of a channel, by the setting that selects it."""
ALSO: dict[ChannelKind, tuple[str, ...]] = {
    ChannelKind.WEBHOOK: ("secret_file",),
    ChannelKind.MAIL: ("password_file", "from", "to"),
    ChannelKind.SERVICE: (),
}
COMMON = ("events", "labels", "roles", "links", "quiet")


def _channel(name: str, table: object) -> Channel:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is not a valid channel name: expected a-z, 0-9, - and _")
    if not isinstance(table, Mapping):
        raise ValueError(f"expected a table [notify.{name}]")
    kinds = [key for key in WHERE if key in table]
    if len(kinds) != 1:
        raise ValueError(f"{name} needs exactly one of {', '.join(WHERE)}")
    kind = WHERE[kinds[0]]
    known = (kinds[0], *ALSO[kind], *COMMON)
    if unknown := [key for key in table if key not in known]:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; known are {', '.join(known)}")
    return msgspec.structs.replace(_common(name, kind, table), **_place(name, kind, table))


def device_channel(name: str, endpoint: str, wishes: object) -> Channel:
    """Return the channel of a person's browser. `wishes` is a table with some of `events`,
    `labels`, `roles` and `quiet`. Raises ValueError."""
    if not isinstance(wishes, Mapping):
        raise ValueError("expected a table with events, labels, roles and quiet")
    found = _common(name, ChannelKind.PUSH, {**wishes, "links": False})
    return msgspec.structs.replace(found, url=endpoint)


def _common(name: str, kind: ChannelKind, table: Mapping[str, Any]) -> Channel:
    """Return a channel with the settings that all kinds have. Raises ValueError."""
    return Channel(
        name=name,
        kind=kind,
        events=_events(name, table.get("events")),
        labels=_labels(name, table.get("labels", {})),
        roles=_texts(f"roles of {name}", table.get("roles", [])),
        links=_links(name, table.get("links", False)),
        quiet=_quiet(name, table.get("quiet", "")),
    )


def _place(
    name: str, kind: ChannelKind, table: Mapping[str, Any]
) -> dict[str, str | tuple[str, ...]]:
    """Return the fields of `Channel` that say where the channel sends its messages. Raises
    ValueError."""
    if kind is ChannelKind.SERVICE:
        return {"secret_file": _file(f"service_file of {name}", table["service_file"])}
    if kind is ChannelKind.WEBHOOK:
        return {
            "url": address(f"url of {name}", table["url"]),
            "secret_file": _file(f"secret_file of {name}", table.get("secret_file")),
        }
    server = table["server"]
    found = _SERVER.fullmatch(server) if isinstance(server, str) else None
    if found is None or int(found[4] or 0) > 65535:
        raise ValueError(
            f"server of {name} must be an address such as smtp://user@mail.example.com:587"
        )
    people = _texts(f"to of {name}", table.get("to", []))
    sender = table.get("from", "")
    if not people or not all(map(_MAIL.fullmatch, (*people, str(sender)))):
        raise ValueError(f"{name} needs from and to, mail addresses such as ada@example.com")
    if bool(found[2]) != ("password_file" in table):
        raise ValueError(f"{name} needs a user in server and a password_file, or neither")
    held = {}
    if found[2]:
        held = {"secret_file": _file(f"password_file of {name}", table["password_file"])}
    return {"server": server, "sender": sender, "recipients": people, **held}


def _file(what: str, value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError(f"{what} must be an absolute path")
    return value


def _texts(what: str, value: object) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in found):
        raise ValueError(f"{what} must be a list of texts")
    return tuple(found)


def _events(name: str, value: object) -> tuple[NoticeEvent, ...]:
    if value is None:
        return USUAL
    found = _texts(f"events of {name}", value)
    if unknown := [each for each in found if each not in list(NoticeEvent)]:
        raise ValueError(
            f"{name} knows no event {unknown[0][:60]!r}; known are {', '.join(NoticeEvent)}"
        )
    return tuple(map(NoticeEvent, found))


def _labels(name: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f'labels of {name} must be a table such as {{team = "web"}}')
    return tuple((str(key), str(each)) for key, each in value.items())


def _links(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"links of {name} must be true or false")
    return value


def _quiet(name: str, value: object) -> str:
    wrong = ValueError(f"quiet of {name} must be a time span such as 22:00-07:00")
    if value == "":
        return ""
    if not isinstance(value, str) or not _HOURS.fullmatch(value):
        raise wrong
    first, _, second = value.partition("-")
    try:
        if time.fromisoformat(first) == time.fromisoformat(second):
            raise wrong
    except ValueError:
        raise wrong from None
    return value


PREFIX = "push:"
"""Beginning of the channel name of a browser. The name of a configured channel has no colon, so the
two cannot be the same."""
DEVICES_MOST = 10
"""Maximum number of browsers that one person may add."""
NAME_MOST = 60
_ENDPOINT = re.compile(
    r"https://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?/[!-\"$-~]*"
)
"""Pattern of an address of a push service: no user and no fragment, only printable ASCII."""
ENDPOINT_MOST = 1024
POINT_BYTES, AUTH_BYTES = 65, 16
"""Sizes in bytes of a browser's public key and of its authentication secret (RFC 8291, section 3).
"""


class PushDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that gets push messages. Times are in ms, by the store's clock."""

    id: str
    person: str
    """The person who added the browser, in the form of an actor of the audit trail, such as
    `token:ada`."""
    sign_in: str
    """SHA-256 of the cookie that the browser had when it was added or last used."""
    name: str
    """Name by which the person recognizes the browser, such as `Firefox on Linux`."""
    endpoint: str
    """The browser's own address at the push service. Never shown, because the address identifies
    the browser to everybody who knows it."""
    public_key: str
    """The browser's public key (P-256, base64url), with which messages are encrypted."""
    auth: str
    """Secret that browser and perdure share (base64url)."""
    server_key: str
    """perdure's public key when the browser was added. The push service accepts messages for the
    browser only from the owner of this key."""
    wishes: str
    """JSON of the events, labels, roles and quiet hours that the person chose."""
    repositories: tuple[str, ...] = ()
    """Patterns of the repositories whose runs the person may see. `labels` limits the runs by their
    labels. Empty: no restriction."""
    labels: tuple[str, ...] = ()
    added: int = 0
    expires: int = 0

    @property
    def channel(self) -> Channel:
        """Return the browser as a channel. Raises ValueError if the person's
        settings for this browser are not valid."""
        wishes = msgspec.json.decode(self.wishes)
        return device_channel(f"{PREFIX}{self.id}", self.endpoint, wishes)


class PushMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a push message, which the service worker reads as JSON."""

    id: str
    """Id of the notice. If the message is sent twice, both have the same id."""
    title: str
    text: str
    path: str
    """Path of the page that a click opens. The browser adds the host of the dashboard."""
    tag: str
    """Name of the run. A newer message about the same run replaces the older one on the screen."""


def device_id(person: str, endpoint: str) -> str:
    """Return the id of a person's browser. If two persons use the same browser, each gets a
    different id. So a notice that waits for one of them is never sent to the other."""
    return hashlib.sha256(f"{person}\n{endpoint}".encode()).hexdigest()[:24]


def check_endpoint(endpoint: str) -> None:
    """Raise ValueError unless a text from a browser has the form of a push service's address."""
    if len(endpoint) > ENDPOINT_MOST or not _ENDPOINT.fullmatch(endpoint):
        raise ValueError("expected the https address of a push service")


def key_bytes(what: str, text: str, size: int) -> bytes:
    """Return the bytes of a key in base64url. Raises ValueError unless it has `size` bytes."""
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != size or not text.isascii():
        raise ValueError(f"{what} must be {size} bytes in base64url")
    return found
