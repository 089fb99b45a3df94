"""Sends one notice to one channel.

A channel gets a notice twice if perdure is killed after the receiver has accepted the notice and
before the acceptance is stored. Both copies of a webhook have the same `webhook-id`, and both
copies of a mail the same `Message-ID`, so a receiver can recognize them. Services of Apprise have
no such id.
"""

from __future__ import annotations

import base64
import http.client
import smtplib
import ssl
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

from perdure.errors import PerdureError
from perdure.model.codec import decode
from perdure.model.notices import Channel, ChannelKind, Notice, NoticeBody
from perdure.rules.notification import subject_of, text_of
from perdure.rules.text import one_line

TIMEOUT_S = 30.0
SECRET_MOST = 65_536
SIGNING = "whsec_"
KEY_LEAST = 16
"""Minimum length in bytes of the key in a signing secret. The key is the decoded text after
`whsec_`."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class NoticeRefused(PerdureError):
    """Raised if a notice could not be sent. The notifier tries again later."""


def send(channel: Channel, notice: Notice) -> None:
    """Send a notice to its channel. Raises NoticeRefused, whose message contains no secret."""
    body = decode(notice.body, NoticeBody)
    try:
        SENDERS[channel.kind](channel, notice, body)
    except NoticeRefused:
        raise
    except Exception as error:
        # The error of a library may contain the notice, so only its type is reported.
        raise NoticeRefused(f"{channel.name} failed: {type(error).__name__}") from error


def secret_of(channel: Channel) -> str:
    """Return the contents of the channel's secret file. Raises NoticeRefused."""
    try:
        with Path(channel.secret_file).open("rb") as file:
            return file.read(SECRET_MOST).decode().strip()
    except OSError as error:
        why = error.strerror or "it cannot be read"
        raise NoticeRefused(f"The secret in {channel.secret_file} is missing: {why}") from error
    except UnicodeDecodeError as error:
        raise NoticeRefused(f"The secret in {channel.secret_file} is not text") from error


def is_signing_secret(secret: str) -> bool:
    """Return whether a text is a signing secret in the form of Standard Webhooks. The library of
    Standard Webhooks is less strict: it also accepts a text without the prefix, and skips
    characters that are not base64. Most of a plain password would then not be part of the key."""
    if not secret.startswith(SIGNING):
        return False
    try:
        return len(base64.b64decode(secret.removeprefix(SIGNING), validate=True)) >= KEY_LEAST
    except ValueError:
        return False


def missing(channel: Channel) -> str:
    """Return the name of the library that the channel needs but that is not installed; empty if
    nothing is missing."""
    from importlib.util import find_spec

    needed = {ChannelKind.WEBHOOK: ("standardwebhooks",), ChannelKind.SERVICE: ("apprise",)}
    absent = [name for name in needed.get(channel.kind, ()) if find_spec(name) is None]
    if absent:
        return absent[0]
    return ""


# --- a webhook ---


def _webhook(channel: Channel, notice: Notice, body: NoticeBody) -> None:
    from standardwebhooks.webhooks import Webhook

    secret = secret_of(channel)
    if not is_signing_secret(secret):
        raise NoticeRefused(
            f"The secret in {channel.secret_file} is not a signing secret (whsec_ and base64 of at "
            f"least {KEY_LEAST} bytes)"
        )
    signer = Webhook(secret)
    # The method `sign` treats every time as UTC, even if the time has another time zone.
    now = datetime.now(UTC).replace(microsecond=0)
    headers = {
        "content-type": "application/json",
        "user-agent": "perdure",
        "webhook-id": notice.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signer.sign(notice.id, now, notice.body),
    }
    try:
        status = _posted(channel.url, notice.body.encode(), headers)
    except (OSError, http.client.HTTPException) as error:
        raise NoticeRefused(f"{channel.name} does not answer: {type(error).__name__}") from error
    if not 200 <= status < 300:
        raise NoticeRefused(f"{channel.name} answered {status}")


def _posted(url: str, content: bytes, headers: dict[str, str]) -> int:
    """Send a POST request, and return the HTTP status. Redirects are not followed."""
    place = urlsplit(url)
    host, secure = place.hostname or "", ssl.create_default_context()
    connection = (
        http.client.HTTPSConnection(host, place.port, timeout=TIMEOUT_S, context=secure)
        if place.scheme == "https"
        else http.client.HTTPConnection(host, place.port, timeout=TIMEOUT_S)
    )
    with closing(connection):
        connection.request("POST", place.path or "/", content, headers)
        return connection.getresponse().status


# --- mail ---


def _mail(channel: Channel, notice: Notice, body: NoticeBody) -> None:
    place = urlsplit(channel.server)
    message = EmailMessage()
    message["From"] = channel.sender
    message["To"] = ", ".join(channel.recipients)
    message["Subject"] = subject_of(notice, body)
    message["Message-ID"] = f"<{notice.id}@{channel.sender.rpartition('@')[2]}>"
    message["Date"] = formatdate(notice.at / 1000)
    # Asks automatic responders, such as vacation replies, not to answer (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text_of(notice, body))
    host, secure = place.hostname or "", ssl.create_default_context()
    try:
        if place.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, place.port or 465, timeout=TIMEOUT_S, context=secure
            )
        else:
            server = smtplib.SMTP(host, place.port or 587, timeout=TIMEOUT_S)
        with server:
            if place.scheme == "smtp" and host not in LOOPBACK:
                server.starttls(context=secure)
            if place.username:
                server.login(place.username, secret_of(channel))
            refused = server.send_message(message)
    except smtplib.SMTPResponseException as error:
        raise NoticeRefused(f"{channel.name} answered {error.smtp_code}") from error
    except smtplib.SMTPRecipientsRefused as error:
        raise NoticeRefused(f"{channel.name} refused every recipient") from error
    except (OSError, smtplib.SMTPException) as error:
        raise NoticeRefused(f"{channel.name} does not answer: {type(error).__name__}") from error
    if refused:
        # The other recipients have received the notice. If it were sent again, they would receive
        # it twice.
        names = one_line(", ".join(refused), 200)
        raise PartlyRefused(f"{channel.name} refused {names}")


class PartlyRefused(NoticeRefused):
    """Raised if the notice was sent, but the mail server refused some of the recipients. The notice
    is not sent again."""


# --- a service of Apprise ---


def _service(channel: Channel, notice: Notice, body: NoticeBody) -> None:
    import apprise

    services = apprise.Apprise()
    for line in secret_of(channel).splitlines():
        address = line.strip()
        if address and not address.startswith("#") and not services.add(address):
            raise NoticeRefused(
                f"{channel.secret_file} holds an address that Apprise does not know"
            )
    if not len(services):
        raise NoticeRefused(f"{channel.secret_file} holds no address")
    sent = services.notify(
        title=subject_of(notice, body),
        body=text_of(notice, body),
        body_format=apprise.NotifyFormat.TEXT,
    )
    if not sent:
        raise NoticeRefused(f"{channel.name} did not accept the notice")


SENDERS: dict[ChannelKind, Callable[[Channel, Notice, NoticeBody], None]] = {
    ChannelKind.WEBHOOK: _webhook,
    ChannelKind.MAIL: _mail,
    ChannelKind.SERVICE: _service,
}
