"""A web server on loopback, for tests."""

import contextlib
import http.server
import threading
from collections.abc import Callable
from typing import Any


class Site:
    """A web server on loopback whose answers are functions of the request, and which records its requests."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.posted: list[bytes] = []
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], Any]] = {}
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.requestline.split()[1])  # `path` loses one of two slashes
                site.headers.append(dict(self.headers))
                path = self.path.partition("?")[0]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    site.answers.get(path, lambda request: answer(request, 404, b"no"))(self)

            def do_POST(self) -> None:
                site.posted.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.do_GET()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((host, port), Handler)
        self.port = self.server.server_port
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def answer(
    request: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str | int
) -> None:
    request.send_response(status)
    for name, value in ({"Content_Length": len(body)} | headers).items():
        request.send_header(name.replace("_", "-"), str(value))
    request.end_headers()
    request.wfile.write(body)
