"""Inputs on the web: http and https, from public addresses only, and only in runs with `--allow-http`.

A manifest may come from a stranger, and the run that reads it may have access to a private network: metadata services
that hand out credentials, dashboards, other servers. So a URL is parsed once, its host is resolved once, every address
of it must be public, and the connection goes to an address that was checked: a name that resolves differently a moment
later changes nothing. A redirect is checked like any other URL.

http.client is used and not a larger client because it does nothing on its own: it follows no redirect, decompresses
nothing, keeps no cookie, and uses no proxy. Proxies are avoided: a proxy resolves names itself, without these checks.

Messages never repeat what follows the `?` of a URL, which may be a signature.
"""

import contextlib
import errno
import functools
import http
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from ...errors import ItemError, plural
from ..refusals import Refusal
from ..url import WEB_SCHEMES, Url
from .request_count import count_request, count_retry
from .store import InputStore

REDIRECTS: Final = 5
ATTEMPTS: Final = 4
CONNECT_S: Final = 10
READ_S: Final = 30
"""How long to wait for the next byte."""
DEADLINE_S: Final = 120
"""For one input, with all redirects and attempts; resolving a name has the system's own."""
_LONGEST_PAUSE_S: Final = 10.0
_PIECE_BYTES: Final = 2**18
_ADDRESSES: Final = 4
_REDIRECTING: Final = (301, 302, 303, 307, 308)
_REFUSALS: Final = {
    401: Refusal.WEB_FORBIDDEN,
    403: Refusal.WEB_FORBIDDEN,
    404: Refusal.WEB_MISSING,
    410: Refusal.WEB_MISSING,
}
_AGAIN: Final = (429, 500, 502, 503, 504)

AddressCheck = Callable[[str], bool]


# Addresses


_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # a public number, but Azure's own service to its machines
            # Considered global by older Python versions.
            *("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20"),
        ),
    )
)


def is_public(address: str) -> bool:
    """Return whether a numeric address is on the public internet, together with any IPv4 address embedded in it.

    >>> [is_public(a) for a in ("93.184.215.14", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            carried = ipaddress.IPv4Address(ip.packed[-4:])
        if carried is not None:
            return is_public(str(carried))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


@dataclass(frozen=True, slots=True)
class _Place:
    """A parsed URL: nothing reads its text a second time."""

    secure: bool
    host: str
    """ASCII; an IPv6 address without its brackets."""
    port: int
    target: str
    """Path and query, ASCII."""

    @property
    def origin(self) -> str:
        """Scheme, host and port: the part that messages may contain."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.secure else ''}://{host}:{self.port}"


def _place_of(uri: str) -> _Place:
    """Parse a URL. Raises ItemError: `access_denied`, if it is not one that may be read."""
    if re.search(r"[\x00-\x20\x7f\\]", uri):
        raise _refused("a url with a blank, a backslash or a control character")
    try:
        parts = urllib.parse.urlsplit(uri)
        host, port = parts.hostname or "", parts.port
        host = host if ":" in host else host.encode("idna").decode()
    except ValueError as error:  # UnicodeError is one
        raise _refused("a malformed url") from error
    if parts.scheme not in WEB_SCHEMES:
        raise _refused(f"a redirect to {parts.scheme}://")
    if "@" in parts.netloc:
        raise _refused("a url with a user or a password in it")
    if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host):
        raise _refused("a url without a valid host")
    secure = parts.scheme == "https"
    target = urllib.parse.quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), _UNESCAPED)
    return _Place(secure, host, port or (443 if secure else 80), target)


_UNESCAPED: Final = "%/?:@!$&'()*+,;=-._~[]|"
"""Characters that are not escaped: separators, and those that may be part of an escape already."""


def _refused(what: str) -> ItemError:
    return Refusal.WEB_REFUSED.error(what=what)


def _addresses(place: _Place, is_allowed: AddressCheck) -> list[str]:
    """Resolve a host. Raises ItemError: `access_denied`, if one of its addresses is not allowed."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise
        raise Refusal.NO_ADDRESS.error(host=place.host) from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    for address in addresses:
        if not is_allowed(address):
            raise _refused(f"{place.host} at {address}, which is not a public address,")
    return addresses[:_ADDRESSES]


# One request


class _Connection(http.client.HTTPConnection):
    """A connection to addresses that were checked, whatever the host's name may resolve to now."""

    def __init__(self, place: _Place, addresses: list[str]) -> None:
        super().__init__(place.host, place.port)
        self.default_port = 443 if place.secure else 80  # the header `Host` is without it
        self._secure = place.secure
        self._addresses = addresses
        self._socket: socket.socket | None = None
        self.was_cut = False

    def connect(self) -> None:
        """Connect to the first address that answers; over TLS, verify that it is the host."""
        for address in self._addresses:
            try:
                raw = socket.create_connection((address, self.port), CONNECT_S)
                break
            except OSError as error:
                failure = error
        else:
            raise failure
        raw.settimeout(READ_S)
        # In two steps, so that `cut` finds the socket during the handshake.
        self.sock = self._socket = (
            _tls().wrap_socket(raw, server_hostname=self.host, do_handshake_on_connect=False)
            if self._secure
            else raw
        )
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def cut(self) -> None:
        """End a wait of another thread, for which this may look like the end of the answer."""
        self.was_cut = True
        with contextlib.suppress(OSError):
            # Not `self.sock`, which http.client drops when the body begins; nor its own `shutdown`, which removes from
            # a TLS socket what the other thread uses.
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextlib.contextmanager
def _cut_at(deadline: float, connection: _Connection) -> Iterator[None]:
    """Cut the connection at a deadline: a server that sends a byte now and then never triggers a timeout."""
    timer = threading.Timer(max(deadline - time.monotonic(), 0), connection.cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


class _Again(Exception):  # noqa: N818 (not an error: another attempt)
    """A failure that another attempt may avoid, and how long the server asks to wait, in seconds."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def _get(place: _Place, max_bytes: int, is_allowed: AddressCheck, deadline: float) -> bytes | str:
    """Return the body, or the target of a redirect.

    Raises:
        ItemError: as `read_web`.
        _Again, OSError, HTTPException: the attempt failed.
    """
    connection = _Connection(place, _addresses(place, is_allowed))
    headers = {"User-Agent": "maskrcnn-ray", "Accept": "image/*,*/*", "Connection": "close"}
    count_request("GET")
    with _cut_at(deadline, connection):
        connection.request("GET", place.target, headers=headers)
        with connection.getresponse() as answer:
            found = _taken(answer, max_bytes)
    if connection.was_cut:
        raise _Again("the answer did not end")
    return found


def _taken(answer: http.client.HTTPResponse, max_bytes: int) -> bytes | str:
    if answer.status in _REDIRECTING and (location := answer.headers["Location"]):
        return str(location)
    if answer.status in _AGAIN:
        asked = answer.headers["Retry-After"] or ""
        raise _Again(
            f"the server answered {_words(answer.status)}",
            float(asked) if re.fullmatch(r"\d{1,6}", asked) else 0.0,
        )
    if answer.status != http.HTTPStatus.OK:
        raise _REFUSALS.get(answer.status, Refusal.WEB_FAILED).error(status=_words(answer.status))
    return _body(answer, max_bytes)


def _words(status: int) -> str:
    # Not the server's phrase, which may contain anything.
    return f"{status} {http.client.responses.get(status, '')}".rstrip()


def _body(answer: http.client.HTTPResponse, max_bytes: int) -> bytes:
    announced, received = answer.length or 0, 0
    pieces: list[bytes] = []
    while max(announced, received) <= max_bytes and (piece := answer.read(_PIECE_BYTES)):
        pieces.append(piece)
        received += len(piece)
    if max(announced, received) > max_bytes:
        raise Refusal.TOO_MANY_BYTES_READ.error(limit=max_bytes)
    if received < announced:  # http.client reports this only of chunked bodies
        raise _Again(f"the body ended {plural(announced - received, 'byte')} early")
    if not received and not answer.chunked and "Content-Length" not in answer.headers:
        raise _Again("the answer ended in its headers")  # http.client takes this for the end of the headers
    return b"".join(pieces)


# One input


class HttpStore(InputStore):
    """Inputs on the web."""

    def failures(self) -> tuple[type[BaseException], ...]:
        """Return an empty tuple: `read_web` raises only ItemError."""
        return ()

    def read_input(self, url: Url, max_bytes: int, etag: str | None) -> bytes:  # noqa: ARG002
        """Read a URL; its etag is not compared. Raises ItemError, as `read_web`."""
        return read_web(url.text, max_bytes)

    def open_input(self, url: Url, etag: str | None) -> BinaryIO:  # noqa: ARG002
        """Refuse, for no ranges are read on the web. Raises ItemError: `unsupported_format`."""
        raise Refusal.WEB_RASTER.error()

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:  # noqa: ARG002
        """Refuse likewise. Raises ItemError: `unsupported_format`."""
        raise Refusal.WEB_RASTER.error()


def read_web(
    uri: str,
    max_bytes: int,
    *,
    is_allowed: AddressCheck = is_public,
    pause: Callable[[float], None] = time.sleep,
) -> bytes:
    """Read a URL, with at most five redirects, and four attempts if the server or the network fails.

    Any number of threads may read at once.

    Args:
        uri: http or https.
        max_bytes: a larger body is refused before, or as soon as, its size is known.
        is_allowed: whether to connect to a numeric address.
        pause: waits a number of seconds between two attempts.

    Raises:
        ItemError: `not_found` (404, 410, a host without an address), `access_denied` (401, 403, an address that is not
            public, a URL that is not allowed), `too_many_bytes`, `empty_file`, `storage_error`.
    """
    deadline = time.monotonic() + DEADLINE_S
    for attempt in range(ATTEMPTS):
        try:
            data = _followed(uri, max_bytes, is_allowed, deadline)
        except ssl.SSLCertVerificationError as error:
            raise Refusal.CERTIFICATE.error() from error
        except (_Again, OSError, http.client.HTTPException) as error:
            seconds = min(max(0.5 * 2**attempt, getattr(error, "pause_s", 0.0)), _LONGEST_PAUSE_S)
            late = time.monotonic() + seconds >= deadline
            if attempt + 1 == ATTEMPTS or late:
                tried = f"after {attempt + 1} attempts" + (f" in {DEADLINE_S} s" if late else "")
                raise Refusal.WEB_GAVE_UP.error(cause=_cause(error), tried=tried) from error
            count_retry()
            pause(seconds)
        else:
            if not data:
                raise Refusal.EMPTY.error()
            return data
    raise RuntimeError("no attempt was made")


def _followed(uri: str, max_bytes: int, is_allowed: AddressCheck, deadline: float) -> bytes:
    place = _place_of(uri)
    for _ in range(1 + REDIRECTS):
        answer = _get(place, max_bytes, is_allowed, deadline)
        if isinstance(answer, bytes):
            return answer
        try:
            uri = urllib.parse.urljoin(uri, answer)
        except ValueError as error:
            raise _refused("a redirect to a malformed url") from error
        before, place = place, _place_of(uri)
        if before.secure and not place.secure:
            raise _refused(f"a redirect from https to {place.origin}")
    raise Refusal.REDIRECTS.error(count=REDIRECTS)


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server was silent for too long"
    if isinstance(error, _Again):
        return str(error)
    if isinstance(error, http.client.IncompleteRead):
        return "the body ended early"
    # Not its text, which may contain what the server sent.
    name = errno.errorcode.get(getattr(error, "errno", None) or 0) or type(error).__name__
    return f"the connection failed ({name})"
