"""Sends notices to people's browsers by Web Push (RFC 8030): encrypted for the browser (RFC 8291),
and signed with perdure's own key (RFC 8292).

`PushSender` sends one message. The address of a browser comes from that browser, so it may be
anything. A message is sent by https only. If `serve_push_hosts` names servers, messages are sent
only to these servers. Otherwise they are sent only to public addresses. The server's name is
resolved once, and the connection goes to an address that was checked. No redirect is followed, and
no answer is read beyond its status.

`Devices` adds each browser to the notifier as a channel. A browser gets only notices about runs
that its person may see. It gets no notices about what happened before it was added.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct

from perdure.engine.notices.keys import key_in
from perdure.engine.notices.senders import NoticeRefused
from perdure.errors import StoreError
from perdure.host.git.servers import host_of, refusal_reason
from perdure.model import TaskRun
from perdure.model.codec import decode
from perdure.model.notices import (
    AUTH_BYTES,
    POINT_BYTES,
    PREFIX,
    Channel,
    Notice,
    NoticeBody,
    NoticeEvent,
    PushDevice,
    key_bytes,
)
from perdure.protocols import DeviceStore
from perdure.rules.access import limits_of
from perdure.rules.notification import push_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from perdure.config import Settings

KEY = "push-key"
LIBRARIES = ("cryptography", "http_ece", "joserfc")
CONNECT_S, WHOLE_S = 5.0, 10.0
"""Time limits of a connection attempt and of a whole request, in seconds."""
TRIED_MOST = 3
"""Maximum number of a server's addresses to which a connection is attempted."""
TOKEN_S = 12 * 3600
"""Lifetime of a signed token in seconds. RFC 8292 allows at most a day."""
KEPT_S = 7 * 86_400
"""Maximum age of a notice in seconds. Until the notice has this age, a push service keeps it for a
browser that is offline."""
URGENT = (NoticeEvent.NEEDS_YOU, NoticeEvent.OVER_BUDGET)
GONE = (404, 410)
"""HTTP statuses with which a push service reports that a browser gets no messages at this address
any more (RFC 8030, 7.3)."""


class DeviceGone(NoticeRefused):
    """Raised if a browser gets no messages any more. The browser is then removed from the store."""


class PushSender(Struct, frozen=True, kw_only=True):
    """Sends notices to browsers. `contact`: the mail address that push services see. `hosts`: the
    servers to which messages may be sent; empty: any server with a public address."""

    state: Path
    contact: str
    hosts: tuple[str, ...] = ()

    def server_key(self) -> str:
        """Return perdure's public key (base64url). A browser can be added only with this key. If
        there is no key pair yet, create it. Raises StoreError."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = _private_key(self.state).public_key()
        point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return base64.urlsafe_b64encode(point).decode().rstrip("=")

    def check(self, device: PushDevice) -> None:
        """Raise ValueError if messages cannot be sent to a browser because its keys are not valid
        or its server is not allowed. The server's name is not resolved."""
        from cryptography.hazmat.primitives.asymmetric import ec

        point = key_bytes("the key p256dh", device.public_key, POINT_BYTES)
        key_bytes("the key auth", device.auth, AUTH_BYTES)
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        except ValueError:
            raise ValueError("the key p256dh is no point of the curve P-256") from None
        self._check_server(urlsplit(device.endpoint))

    def send(self, device: PushDevice, notice: Notice) -> None:
        """Send a notice to a browser. Raises NoticeRefused, or DeviceGone."""
        if device.server_key != self.server_key():
            raise NoticeRefused(
                f"{device.channel.name} was added with another key: every host needs the same "
                f"file {KEY} in its state directory"
            )
        content = self._encrypted(device, push_of(notice, decode(notice.body, NoticeBody)))
        left_s = KEPT_S - max(0, int(time.time() - notice.at / 1000))
        headers = {
            "authorization": self._authorization(device.endpoint),
            "content-encoding": "aes128gcm",
            "content-type": "application/octet-stream",
            "ttl": str(max(60, left_s)),
            # If a message with the same topic still waits for the browser, this message replaces
            # it. So a repeated message does not arrive twice. A topic has at most 32 characters
            # (RFC 8030, section 5.4).
            "topic": notice.id.rpartition("_")[2][:32],
            "urgency": "high" if notice.event in URGENT else "normal",
            "user-agent": "perdure",
        }
        try:
            status = self._posted(device.endpoint, content, headers)
        # This clause comes first, because ssl.SSLCertVerificationError is a ValueError too.
        except (OSError, http.client.HTTPException) as error:
            name = type(error).__name__
            raise NoticeRefused(f"{device.channel.name} does not answer: {name}") from error
        except ValueError as error:
            raise NoticeRefused(f"{device.channel.name}: {error}") from error
        if status in GONE:
            raise DeviceGone(f"{device.channel.name} was removed: it answered {status}")
        if not 200 <= status < 300:
            raise NoticeRefused(f"{device.channel.name} answered {status}")

    def _encrypted(self, device: PushDevice, message: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec
        from http_ece import encrypt

        content: bytes = encrypt(
            message,
            private_key=ec.generate_private_key(ec.SECP256R1()),
            dh=key_bytes("the key p256dh", device.public_key, POINT_BYTES),
            auth_secret=key_bytes("the key auth", device.auth, AUTH_BYTES),
            version="aes128gcm",
        )
        return content

    def _authorization(self, endpoint: str) -> str:
        from joserfc import jwt
        from joserfc.jwk import ECKey

        place = urlsplit(endpoint)
        claims = {
            "aud": f"https://{place.netloc}",
            "exp": int(time.time()) + TOKEN_S,
            "sub": f"mailto:{self.contact}",
        }
        key = ECKey.import_key(_pem(self.state))
        token = jwt.encode({"typ": "JWT", "alg": "ES256"}, claims, key)
        return f"vapid t={token}, k={self.server_key()}"

    def _check_server(self, place: SplitResult) -> bool:
        """Return whether the settings name the endpoint's server. Raises ValueError if messages may
        not be sent to that server."""
        server = host_of(place.geturl())
        if server in self.hosts:
            return True
        if self.hosts:
            raise ValueError(f"messages are not sent to {server}: add it to serve_push_hosts")
        if place.port not in (None, 443):
            raise ValueError(f"messages are not sent to {server}: it is not the default port")
        if why := refusal_reason(place.hostname or "", private=False):
            raise ValueError(f"messages are not sent to {server}: its address is {why}")
        return False

    def _posted(self, endpoint: str, content: bytes, headers: dict[str, str]) -> int:
        """Send a POST request, and return the HTTP status. Raises ValueError if the server is not
        allowed."""
        place = urlsplit(endpoint)
        named = self._check_server(place)
        host, port = place.hostname or "", place.port or 443
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        for each in addresses:
            if why := refusal_reason(each, private=named):
                raise ValueError(f"messages are not sent to {host}: its address is {why}")
        target = place.path or "/"
        if place.query:
            target = f"{target}?{place.query}"
        context = ssl.create_default_context()
        plain = _connected(addresses[:TRIED_MOST], port)
        with closing(_Limited(plain, context, host)) as secure:
            connection = http.client.HTTPSConnection(host, port, context=context)
            connection.sock = secure.handshaken()
            with closing(connection):
                connection.request("POST", target, content, headers)
                return connection.getresponse().status


def sender_of(chosen: Settings) -> PushSender:
    """Return the sender that the settings describe."""
    return PushSender(
        state=chosen.state, contact=chosen.serve_push_contact, hosts=chosen.serve_push_hosts
    )


class _Limited:
    """A TLS connection that ends after `WHOLE_S`. A socket's own timeout applies to each read
    separately. A server that sends a byte now and then could therefore hold the connection for
    hours."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self.socket = context.wrap_socket(
            plain, server_hostname=host, do_handshake_on_connect=False
        )
        self._timer = threading.Timer(WHOLE_S, self._end)
        self._timer.daemon = True
        self._timer.start()

    def handshaken(self) -> ssl.SSLSocket:
        self.socket.do_handshake()
        return self.socket

    def _end(self) -> None:
        # `SSLSocket.shutdown` would discard the TLS state that the reading thread still uses, so
        # the method of the plain socket is called.
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._timer.cancel()
        self.socket.close()


def _connected(addresses: list[str], port: int) -> socket.socket:
    """Connect to the first of the addresses that accepts a connection. Raises OSError."""
    failed: OSError = OSError("the name has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), CONNECT_S)
        except OSError as error:
            failed = error
    raise failed


def _pem(state: Path) -> bytes:
    """Return the private key that signs tokens. Creates it if there is none. Raises StoreError."""
    return key_in(state / KEY, _fresh)


def _fresh() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _private_key(state: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    damaged = StoreError(
        f"The key {state / KEY} is damaged", "remove it; every device has to be added again"
    )
    try:
        found = load_pem_private_key(_pem(state), None)
    except ValueError:
        raise damaged from None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise damaged
    return found


def missing() -> list[str]:
    """Return the names of the libraries for push messages that are not installed."""
    from importlib.util import find_spec

    return [name for name in LIBRARIES if find_spec(name) is None]


class Devices(Struct, frozen=True):
    """Reads the browsers from the store, and sends notices to them."""

    store: DeviceStore
    sender: PushSender

    def all(self) -> Sequence[PushDevice]:
        """Return the browsers of all people, except expired ones. Raises StoreError."""
        return self.store.devices()

    def send(self, notice: Notice) -> None:
        """Send a notice to the browser that its channel names. Raises NoticeRefused, or DeviceGone
        if the browser was removed."""
        wanted = notice.channel.removeprefix(PREFIX)
        found = [each for each in self.store.devices() if each.id == wanted]
        if not found:
            raise DeviceGone(f"{notice.channel} was removed")
        try:
            self.sender.send(found[0], notice)
        except DeviceGone:
            self.store.remove_device(wanted)
            raise
        except NoticeRefused:
            raise
        except StoreError as error:  # The key that signs messages is unusable.
            raise NoticeRefused(str(error)) from error
        except Exception as error:
            # A failure of one browser must not keep others from getting messages. The text of a
            # library's error may contain the message, so only the error's type is reported.
            raise NoticeRefused(f"{notice.channel} failed: {type(error).__name__}") from error


def channels_for(devices: Sequence[PushDevice], run: TaskRun, at: int) -> list[Channel]:
    """Return the channels of the browsers that may get a notice about the run. The browser must
    have been added by the time `at`, and its person must be allowed to see the run."""
    place = run.workspace.repo if run.workspace is not None else ""
    repo = run.spec.repo or place
    found = []
    for device in devices:
        limits = limits_of(device.repositories, device.labels)
        if device.added <= at and limits.see(repo, run.spec.labels):
            # A device is skipped if the person's choices contain a value that this version does not
            # know.
            with suppress(ValueError):
                found.append(device.channel)
    return found
