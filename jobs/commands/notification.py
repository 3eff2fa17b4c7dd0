"""Messages about a run to a webhook, such as one of Slack or Teams; whatever it does, the run goes on.

The URL of a webhook is a secret: who knows it can post. It is stored nowhere, and messages repeat only its host.
"""

import html
import socket
from collections.abc import Mapping
from typing import Any, Final, Literal

from maskrcnn.io.url import redact_all

from .plain_text import plain
from .posting import Poster, check_server

OPTION: Final = "--notify"
NOTIFY: Final = "MASKRCNN_NOTIFY"
"""The environment variable of `--notify`."""
Event = Literal["finished", "stopped", "failure_rate"]


def check_webhook(url: str) -> str:
    """Return the URL of a webhook.

    Raises:
        UsageError: it is not such a URL.
    """
    return check_server(url, OPTION, "a webhook")


class Webhook(Poster):
    """Posts messages in threads of their own.

    Args:
        url: as `check_webhook` returned it.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, OPTION, "webhook")

    def notify(self, event: Event, output: str, message: str, facts: Mapping[str, Any]) -> None:
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
        self.post({"event": event, "output": output, "host": host, "message": message, "text": text, **facts})
