"""Post JSON to a server while a command does something else; whatever the server does, the command goes on."""

import contextlib
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from maskrcnn.errors import UsageError
from maskrcnn.io.url import WEB_SCHEMES

log = logging.getLogger("maskrcnn")

TIMEOUT_S: Final = 4.0
"""A server that says nothing for so long gets no further attention."""
WAIT_S: Final = 5.0
"""How long the end of a command waits for what is not posted yet."""


def check_server(url: str, option: str, what: str) -> str:
    """Return the URL of a server that is posted to.

    Args:
        url: the URL.
        option: the option that names it.
        what: what the server is, with its article.

    Raises:
        UsageError: it is not such a URL.
    """
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(url)
        sound = url.isascii() and url.isprintable() and " " not in url and parts.port != 0
        if sound and parts.scheme in WEB_SCHEMES and parts.hostname and "@" not in parts.netloc:
            return url
    raise UsageError(f"{option} takes the http:// or https:// URL of {what}, without a user, percent-encoded")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes an answer that names another address as a refusal: a message that is sent on is one without its content."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


class Poster:
    """Posts JSON to one server, each in a thread of its own, after the one before.

    Args:
        url: as `check_server` returned it; a secret, of which warnings repeat only the host.
        option: the option that names it, for warnings.
        what: what the server is, for warnings.
        headers: further headers of its requests.
    """

    def __init__(self, url: str, option: str, what: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        parts = urllib.parse.urlsplit(url)
        self._name = f"the {what} at {parts.scheme}://{parts.hostname} of {option}"
        self._headers = {"Content-Type": "application/json", "User-Agent": "maskrcnn-ray"} | dict(
            headers or {}
        )
        self._threads: list[threading.Thread] = []
        self._warned = False

    def post(self, content: Mapping[str, Any]) -> None:
        """Begin to post JSON values."""
        before = self._threads[-1] if self._threads else None
        arguments = (json.dumps(content).encode(), before)
        thread = threading.Thread(target=self._send, args=arguments, name="post", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _send(self, body: bytes, before: threading.Thread | None) -> None:
        if before is not None:
            before.join(TIMEOUT_S)
        request = urllib.request.Request(self._url, body, self._headers)  # noqa: S310 (its scheme was checked)
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            self._warn(f"it answered {error.code}")
        except urllib.error.URLError as error:
            self._warn(str(error.reason))
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._warn(str(error) if isinstance(error, OSError) else type(error).__name__)

    def _warn(self, reason: str) -> None:
        """Log what went wrong, the first time: a server that is down would be named again and again."""
        if self._warned:
            return
        self._warned = True
        log.warning("%s got no message: %s", self._name, reason)

    def wait(self, until: float) -> None:
        """Wait until what was begun is posted, at most until a time of the monotonic clock."""
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        if any(thread.is_alive() for thread in self._threads):
            self._warn(f"no answer within {WAIT_S:.0f} s")


def wait_for(*posters: Poster | None) -> None:
    """Wait, not for long, until what was begun is posted; Ctrl-C ends the waiting alone."""
    until = time.monotonic() + WAIT_S
    with contextlib.suppress(KeyboardInterrupt):
        for poster in posters:
            if poster is not None:
                poster.wait(until)
