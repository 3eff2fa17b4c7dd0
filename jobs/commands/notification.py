"""Messages about a run to a webhook, such as one of Slack or Teams; whatever it does, the run goes on.

The URL of a webhook is a secret: who knows it can post. It is stored nowhere, and messages repeat only its host.
"""

import contextlib
import html
import http.client
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Final, Literal

from maskrcnn.errors import UsageError
from maskrcnn.io.url import WEB_SCHEMES, redact_all

from .plain_text import plain

log = logging.getLogger("maskrcnn")

NOTIFY: Final = "MASKRCNN_NOTIFY"
"""The environment variable of `--notify`."""
Event = Literal["finished", "stopped", "failure_rate"]
TIMEOUT_S: Final = 4.0
"""A webhook that says nothing for so long gets no further attention."""
WAIT_S: Final = 5.0
"""How long the end of a command waits for the messages that are not posted yet."""


def check_webhook(url: str) -> str:
    """Return the URL of a webhook.

    Raises:
        UsageError: it is not such a URL.
    """
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(url)
        sound = url.isascii() and url.isprintable() and " " not in url and parts.port != 0
        if sound and parts.scheme in WEB_SCHEMES and parts.hostname and "@" not in parts.netloc:
            return url
    raise UsageError(
        "--notify takes the http:// or https:// URL of a webhook, without a user, percent-encoded"
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes an answer that names another address as a refusal: a message that is sent on is one without its content."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


class Webhook:
    """Posts messages in threads of their own.

    Args:
        url: as `check_webhook` returned it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urllib.parse.urlsplit(url)
        self._place = f"{parts.scheme}://{parts.hostname}"
        self._threads: list[threading.Thread] = []

    def post(self, event: Event, output: str, message: str, facts: Mapping[str, Any]) -> None:
        """Begin to post a message.

        Args:
            event: what happened.
            output: the run's directory.
            message: one line for people.
            facts: further fields, of JSON values.
        """
        host = socket.gethostname()
        output, message = (plain(redact_all(text)) for text in (output, message))
        # Slack and Teams show this field, and read it as markup.
        text = html.escape(f"maskrcnn on {host}: {output}: {message}", quote=False)
        content = {"event": event, "output": output, "host": host, "message": message, "text": text, **facts}
        body = json.dumps(content).encode()
        thread = threading.Thread(target=self._send, args=(body,), name="notify", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _send(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "maskrcnn-ray"}
        request = urllib.request.Request(self._url, body, headers)  # noqa: S310 (its scheme was checked)
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
        log.warning("the webhook at %s of --notify got no message: %s", self._place, reason)

    def wait(self) -> None:
        """Wait, not for long, until what was begun is posted; Ctrl-C ends the waiting alone."""
        until = time.monotonic() + WAIT_S
        with contextlib.suppress(KeyboardInterrupt):
            for thread in self._threads:
                thread.join(max(until - time.monotonic(), 0))
            if any(thread.is_alive() for thread in self._threads):
                self._warn(f"no answer within {WAIT_S:.0f} s")
