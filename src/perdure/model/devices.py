"""Data types for push messages to browsers: the browser of a person, what the person chose, and the
message. Does no input or output."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

import msgspec

from perdure.model.notices import Channel, device_channel

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
