"""Sending of webhooks: signed, to public addresses only, within bounded time, and without following redirects.

The host is resolved once, and the connection is made to an address that was checked: a name that resolves differently the
second time (DNS rebinding) reaches nothing else.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpcore
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from services.errors import InvalidRequest, InvalidSettings
from services.jobs.deliveries import Attempt
from services.kinds.shared import JobRequest
from services.settings import Settings
from services.timestamps import utc_now

ATTEMPT_SECONDS = 15.0
"""Longest time of an attempt, from the look-up of the name to the end of the response."""

RESPONSE_LIMIT_BYTES = 64 * 1024
"""Largest response that is read; its content is not used."""

GONE = 410
"""Status by which a receiver says that it wants no more of them."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefusedError(httpcore.ConnectError):
    """The host of a webhook has an address that is not public."""


class ResponseTooLargeError(httpcore.RemoteProtocolError):
    """The response of a receiver is longer than it may be."""


def sender_of(settings: Settings) -> "WebhookSender | None":
    """Returns the sender of the settings, None without a secret.

    Raises:
        InvalidSettings: the secret is not one of Standard Webhooks.
    """
    secret = settings.webhook_key
    if secret is None:
        return None
    try:
        return WebhookSender(secret, allow_private=settings.webhook_allow_private)
    except (ValueError, EmptyWebhookSecretError) as error:
        raise InvalidSettings(
            "GRAFTWERK_WEBHOOK_SECRET is not base64.", "Make one: `echo whsec_$(openssl rand -base64 32)`."
        ) from error


def check_webhook(request: JobRequest, settings: Settings) -> None:
    """Checks that this service can send the webhook of a request, if it has one.

    Raises:
        InvalidRequest: the service has no secret, or the address is that of a private network.
    """
    if request.webhook is None:
        return
    if settings.webhook_key is None:
        raise InvalidRequest(
            "The request has a webhook, but this service has no secret to sign its messages with.",
            "Leave `webhook` out, or set GRAFTWERK_WEBHOOK_SECRET for API and janitor.",
        )
    host = urlsplit(request.webhook.url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return  # a name is resolved when the message is sent
    if not settings.webhook_allow_private and not is_public(address):
        raise InvalidRequest(
            f"The address {host} of the webhook is not public.",
            "Use a public address, or set GRAFTWERK_WEBHOOK_ALLOW_PRIVATE.",
        )


def embedded_address(address: Address) -> Address:
    """Returns the IPv4 address that an IPv6 address leads to, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_public(address: Address) -> bool:
    """Returns True if an address is one of the internet: not private, loopback, link-local, multicast or reserved."""
    address = embedded_address(address)
    return address.is_global and not address.is_multicast


class WebhookSender:
    """Sends messages of one service; `allow_private` also sends to addresses that are not public.

    Raises:
        ValueError: the secret is not one of Standard Webhooks.
    """

    def __init__(self, secret: str, *, allow_private: bool) -> None:
        self._webhook = Webhook(secret)
        self._allow_private = allow_private

    def send(self, url: str, message_id: str, body: str) -> Attempt:
        """Sends a message and returns the outcome; nothing is raised for a receiver that does not accept it."""
        at, start = utc_now(), time.monotonic()
        try:
            status_code, error, is_final = self._post(url, message_id, body), None, False
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as problem:
            status_code, is_final = None, isinstance(problem, AddressRefusedError)
            error = str(problem) or type(problem).__name__
        seconds = round(time.monotonic() - start, 3)
        return Attempt(
            at=at,
            seconds=seconds,
            status_code=status_code,
            error=error,
            is_final=is_final or status_code == GONE,
        )

    def _post(self, url: str, message_id: str, body: str) -> int:
        now = datetime.now(UTC)
        headers: dict[bytes | str, bytes | str] = {
            "content-type": "application/json",
            "user-agent": "graftwerk",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body),
        }
        backend = CheckedBackend(time.monotonic() + ATTEMPT_SECONDS, allow_private=self._allow_private)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), ATTEMPT_SECONDS)
        with (
            httpcore.ConnectionPool(
                network_backend=backend, ssl_context=ssl.create_default_context()
            ) as pool,
            pool.stream(
                "POST", url, headers=headers, content=body.encode(), extensions={"timeout": timeouts}
            ) as response,
        ):
            _read(response)
            return response.status


def _read(response: httpcore.Response) -> None:
    size = 0
    for block in response.iter_stream():
        size += len(block)
        if size > RESPONSE_LIMIT_BYTES:
            raise ResponseTooLargeError(f"The response is longer than {RESPONSE_LIMIT_BYTES} bytes.")


class CheckedBackend(httpcore.NetworkBackend):
    """Connections to checked addresses only, all of whose operations end at one moment."""

    def __init__(self, deadline: float, *, allow_private: bool) -> None:
        self._deadline = deadline
        self._allow_private = allow_private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connects to the first address of the host that accepts it."""
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in self._addresses(host, port):
            try:
                stream = self._backend.connect_tcp(
                    address, port, _left(self._deadline), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return DeadlineStream(stream, self._deadline)
        raise failure or httpcore.ConnectError(f"{host} has no address.")

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} is not known: {error}.") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        refused = [one for one in addresses if not is_public(ipaddress.ip_address(one.partition("%")[0]))]
        if refused and not self._allow_private:
            raise AddressRefusedError(
                f"{host} has the address {refused[0]}, which is not public. GRAFTWERK_WEBHOOK_ALLOW_PRIVATE permits it."
            )
        return addresses


class DeadlineStream(httpcore.NetworkStream):
    """Connection whose operations all end at one moment: a receiver that sends a byte at a time holds nothing."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Reads until the deadline."""
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Writes until the deadline."""
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Begins TLS; the certificate must be that of the name, not of the address."""
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """Returns what the connection knows of itself."""
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout(f"The receiver took longer than {ATTEMPT_SECONDS:.0f} s.")
    return left
