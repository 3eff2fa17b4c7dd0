"""A proxy before the server of a store that fails in the ways networks and stores do, by a schedule and not by chance.

Requests are forwarded with their `Host` header, which their signature covers: a client of the proxy
signs for it, and the server behind it checks that signature (the proxy's own, if it removes a header).
A rule says which requests fail, how, and how often:

    proxy.on("GET", refuse(503, "SlowDown"), times=2)
    proxy.on("PUT", lose_reply, key="plan.json")

`proxy.requests` holds the requests, in order.
"""

import http.client
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

PER_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")


@dataclass(frozen=True)
class Request:
    """A client's request."""

    method: str
    path: str
    """With bucket and key, unquoted, without the query."""
    headers: dict[str, str]
    """Names are in lower case."""
    port: int
    """Of the client: two requests of one port came over one connection."""


@dataclass(frozen=True)
class Answer:
    """The server's answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Exchange:
    """A request in progress, which a fault can handle in its own way."""

    request: Request
    body: bytes
    handler: BaseHTTPRequestHandler
    upstream: str
    credentials: Credentials
    without: set[str] = field(default_factory=set)
    """Headers that are removed before the server."""

    def ask(self) -> Answer:
        """Forward the request and return the server's answer."""
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        connection.putrequest(
            self.handler.command, self.handler.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in self._headers().items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(self.body)))
        connection.endheaders(self.body)
        response = connection.getresponse()
        # An answer to HEAD promises a length and has no body.
        keep = [(n, v) for n, v in response.getheaders() if n.lower() not in PER_HOP]
        answer = Answer(response.status, keep, response.read())
        if self.handler.command == "HEAD":
            keep.append(("Content-Length", response.getheader("Content-Length", "0")))
        connection.close()
        return answer

    def _headers(self) -> dict[str, str]:
        headers = {
            n: v for n, v in self.handler.headers.items() if n.lower() not in {*PER_HOP, *self.without}
        }
        if self.without:  # the signature covers them
            url = f"http://{self.handler.headers['Host']}{self.handler.path}"
            signed = AWSRequest(self.handler.command, url, headers, self.body)
            S3SigV4Auth(self.credentials, "s3", "us-east-1").add_auth(signed)
            headers = dict(signed.headers.items())
        return headers

    def begin(self, answer: Answer) -> None:
        """Send the head of an answer, with the length of its whole body."""
        self.handler.send_response_only(answer.status)
        for name, value in answer.headers:
            self.handler.send_header(name, value)
        if self.handler.command != "HEAD":
            self.handler.send_header("Content-Length", str(len(answer.body)))
        self.handler.end_headers()

    def send(self, data: bytes) -> None:
        """Send a part of the body."""
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection; with a reset, as a machine does after a restart."""
        if reset:
            self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handler.close_connection = True


Fault = Callable[[Exchange], None]


def answer(exchange: Exchange) -> None:
    """Forward the request: no fault."""
    reply = exchange.ask()
    exchange.begin(reply)
    exchange.send(reply.body)


def refuse(status: int, code: str) -> Fault:
    """Answer with an error in place of the server, which does not get the request."""

    def fault(exchange: Exchange) -> None:
        error = f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()
        body = b"" if exchange.request.method == "HEAD" else error
        # Azure's client reads the code of the header.
        exchange.begin(Answer(status, [("Content-Type", "application/xml"), ("x-ms-error-code", code)], body))
        exchange.send(body)

    return fault


def reset(exchange: Exchange) -> None:
    """Break the connection before the server gets the request."""
    exchange.hang_up(reset=True)


def lose_reply(exchange: Exchange) -> None:
    """Forward the request, and break the connection instead of replying."""
    exchange.ask()
    exchange.hang_up(reset=True)


def cut_off(exchange: Exchange) -> None:
    """Send half of the announced body."""
    reply = exchange.ask()
    exchange.begin(reply)
    exchange.send(reply.body[: len(reply.body) // 2])
    exchange.hang_up()


def stall(exchange: Exchange) -> None:
    """Send half of the announced body, and nothing more for a while."""
    reply = exchange.ask()
    exchange.begin(reply)
    exchange.send(reply.body[: len(reply.body) // 2])
    time.sleep(3)
    exchange.hang_up()


def drip(exchange: Exchange) -> None:
    """Send the body at one byte per second, until the client disconnects."""
    reply = exchange.ask()
    exchange.begin(reply)
    for i in range(len(reply.body)):
        exchange.send(reply.body[i : i + 1])
        time.sleep(1)


def ignoring(header: str) -> Fault:
    """Remove a header, so that the server behaves like one that does not support it."""

    def fault(exchange: Exchange) -> None:
        exchange.without.add(header.lower())
        answer(exchange)

    return fault


class FaultProxy:
    """A running proxy on loopback; one thread per connection."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str) -> None:
        self.requests: list[Request] = []
        self._rules: list[list[Any]] = []
        self._lock = threading.Lock()
        upstream = urllib.parse.urlsplit(endpoint).netloc
        credentials = Credentials(access_key, secret_key)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: object) -> None:
                pass

            def exchange(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, path, headers, self.client_address[1])
                outer._fault_of(request)(Exchange(request, body, self, upstream, credentials))

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = exchange

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass  # clients hang up; a fault of the proxy itself shows in the client's failure

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def on(self, method: str, fault: Fault, *, times: int | None = 1, key: str = "") -> None:
        """Apply a fault to the next `times` requests of a method whose path ends with `key`; None: to all of them."""
        with self._lock:
            self._rules.append([method, key, fault, times])

    def clear(self) -> None:
        """Forget all rules and requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def seen(self, method: str) -> int:
        """Return the number of requests of a method."""
        return sum(request.method == method for request in self.requests)

    def stop(self) -> None:
        """Stop accepting requests."""
        self._server.shutdown()
        self._server.server_close()

    def _fault_of(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            for rule in self._rules:
                method, key, fault, times = rule
                if method == request.method and request.path.endswith(key) and times != 0:
                    rule[3] = None if times is None else times - 1
                    return fault
        return answer
