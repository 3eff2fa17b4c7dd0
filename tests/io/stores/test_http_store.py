"""Reading from the web: the body or an error code, and never a byte to or from an address that is not allowed."""

import contextlib
import datetime
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webserver import Site, answer

from maskrcnn.errors import ItemError
from maskrcnn.io.stores import http_store
from maskrcnn.io.stores.http_store import is_public, read_web
from maskrcnn.io.stores.request_count import take_retries
from maskrcnn.io.url import redact

BODY = bytes(range(256)) * 1000


def in_turn(*answers: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Answer with each function in turn, and then always with the last."""
    left = list(answers)

    def respond(request: Any) -> Any:
        return (left.pop(0) if len(left) > 1 else left[0])(request)

    return respond


def ok(request: Any) -> None:
    answer(request, 200, BODY)


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.stop()


def loopback(address: str) -> bool:
    return address == "127.0.0.1"


def fetch(uri: str, max_bytes: int = 10**7, **options: Any) -> bytes:
    """Read from a test's own server, without waiting between attempts."""
    return read_web(uri, max_bytes, **({"is_allowed": loopback, "pause": lambda _: None} | options))


def failure(uri: str, **options: Any) -> ItemError:
    with pytest.raises(ItemError) as caught:
        fetch(uri, **options)
    return caught.value


# Bodies


def test_the_body_as_it_is(site: Site) -> None:
    site.answers["/a.jpg"] = ok
    assert fetch(f"{site.url}/a.jpg") == BODY
    assert fetch(f"{site.url}/a.jpg", max_bytes=len(BODY)) == BODY
    assert site.headers[0]["Host"] == f"127.0.0.1:{site.port}"
    assert "Authorization" not in site.headers[0]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", "/"),
        ("/a%20b%2Fc.jpg", "/a%20b%2Fc.jpg"),
        ("/é.jpg", "/%C3%A9.jpg"),
        ("/e\u0301.jpg", "/e%CC%81.jpg"),
        ("/a+b;c,d'e(1)*~.jpg", "/a+b;c,d'e(1)*~.jpg"),
        ("/a.jpg?x=1&y=%2F&z=a/b?c", "/a.jpg?x=1&y=%2F&z=a/b?c"),
        ("/a.jpg#part", "/a.jpg"),
        ("//twice//a.jpg", "//twice//a.jpg"),
        ('/"<a>".jpg', "/%22%3Ca%3E%22.jpg"),
    ],
)
def test_the_request_is_for_the_path_of_the_url(site: Site, given: str, asked: str) -> None:
    failure(site.url + given)
    assert site.asked == [asked]


def test_compressed_bodies_are_not_unpacked(site: Site) -> None:
    site.answers["/a"] = lambda request: answer(request, 200, b"\x1f\x8bpacked", Content_Encoding="gzip")
    assert fetch(f"{site.url}/a") == b"\x1f\x8bpacked"
    assert site.headers[0]["Accept-Encoding"] == "identity"


def chunked(body: bytes, end: bytes = b"0\r\n\r\n") -> Callable[[Any], None]:
    def respond(request: Any) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n" + end)
        request.close_connection = True

    return respond


def test_chunked_bodies(site: Site) -> None:
    site.answers["/a"] = chunked(BODY)
    site.answers["/cut"] = chunked(BODY, end=b"")
    assert fetch(f"{site.url}/a") == BODY
    assert failure(f"{site.url}/a", max_bytes=len(BODY) - 1).code == "too_many_bytes"
    assert failure(f"{site.url}/cut").code == "storage_error"


def test_a_body_without_a_length_ends_with_the_connection(site: Site) -> None:
    def respond(request: Any) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(BODY)

    site.answers["/a"] = respond
    assert fetch(f"{site.url}/a") == BODY
    assert failure(f"{site.url}/a", max_bytes=len(BODY) - 1).code == "too_many_bytes"


# Failures


@pytest.mark.parametrize(
    ("status", "code", "requests"),
    [
        (404, "not_found", 1),
        (410, "not_found", 1),
        (401, "access_denied", 1),
        (403, "access_denied", 1),
        (400, "storage_error", 1),
        (204, "storage_error", 1),
        (206, "storage_error", 1),
        (304, "storage_error", 1),
        (451, "storage_error", 1),
        (500, "storage_error", http_store.ATTEMPTS),
        (503, "storage_error", http_store.ATTEMPTS),
        (429, "storage_error", http_store.ATTEMPTS),
    ],
)
def test_a_status_has_its_code(site: Site, status: int, code: str, requests: int) -> None:
    site.answers["/a"] = lambda request: answer(request, status)
    error = failure(f"{site.url}/a")
    assert error.code == code
    assert str(status) in error.message
    assert len(site.asked) == requests


def test_an_empty_body_is_an_empty_file(site: Site) -> None:
    site.answers["/a"] = lambda request: answer(request, 200)
    assert failure(f"{site.url}/a").code == "empty_file"


def cut_off(request: Any) -> None:
    answer(request, 200, BODY[:1000], Content_Length=len(BODY))
    request.close_connection = True


def reset(request: Any) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    request.connection.close()


def nonsense(request: Any) -> None:
    request.wfile.write(b"\0\xff not http\r\n\r\n")


def half_a_header(request: Any) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")


def endless_headers(request: Any) -> None:
    request.send_response(200)
    for i in range(1000):
        request.send_header(f"X-{i}", "x")
    request.end_headers()


@pytest.mark.parametrize(
    "fault", [cut_off, reset, nonsense, half_a_header, lambda request: answer(request, 503)]
)
def test_a_temporary_failure_is_retried(site: Site, fault: Callable[[Any], None]) -> None:
    site.answers["/a"] = in_turn(fault, fault, ok)
    take_retries()
    assert fetch(f"{site.url}/a") == BODY
    assert len(site.asked) == 3
    assert take_retries() == 2


@pytest.mark.parametrize("fault", [cut_off, reset, nonsense, half_a_header, endless_headers])
def test_retries_are_limited(site: Site, fault: Callable[[Any], None]) -> None:
    site.answers["/a"] = fault
    pauses: list[float] = []
    error = failure(f"{site.url}/a", pause=pauses.append)
    assert error.code == "storage_error"
    assert "after 4 attempts" in error.message
    assert pauses == [0.5, 1.0, 2.0]
    assert len(site.asked) == http_store.ATTEMPTS


def test_a_server_may_ask_for_a_longer_pause_within_reason(site: Site) -> None:
    pauses: list[float] = []
    site.answers["/a"] = in_turn(
        lambda request: answer(request, 429, Retry_After=3),
        lambda request: answer(request, 503, Retry_After=86_400),
        lambda request: answer(request, 503, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
        ok,
    )
    assert fetch(f"{site.url}/a", pause=pauses.append) == BODY
    assert pauses == [3.0, 10.0, 2.0]


def test_unreachable_hosts(site: Site) -> None:
    error = failure("http://no-such-host.invalid/a")
    # Where no name can be resolved at all, it is the network that fails, and not a host that is gone.
    assert (error.code, "no address" in error.message) in (("not_found", True), ("storage_error", False))
    site.stop()
    assert "ECONNREFUSED, after 4 attempts" in failure(f"{site.url}/a").message.replace(")", "")


def test_a_body_that_is_too_large_is_refused_before_it_arrives(site: Site) -> None:
    # The body never comes; who waited for it would wait for ever.
    stopped = threading.Event()

    def announce(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(10**12))
        request.end_headers()
        stopped.wait(60)

    site.answers["/a"] = announce
    assert failure(f"{site.url}/a").code == "too_many_bytes"
    stopped.set()


def test_a_body_that_never_ends_is_refused(site: Site) -> None:
    def pour(request: Any) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(BODY)

    site.answers["/a"] = pour
    assert failure(f"{site.url}/a").code == "too_many_bytes"


def drip_headers(request: Any) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not threading.Event().wait(0.02):
        request.wfile.write(b"x")


def drip_body(request: Any) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    while not threading.Event().wait(0.02):
        request.wfile.write(b"x")


def drip_without_a_length(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    while not threading.Event().wait(0.02):
        request.wfile.write(b"x")


@pytest.mark.parametrize("drip", [drip_headers, drip_body, drip_without_a_length])
def test_a_server_that_sends_too_slowly_is_given_up(
    site: Site, drip: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_store, "DEADLINE_S", 0.6)
    site.answers["/a"] = drip
    assert failure(f"{site.url}/a").code == "storage_error"


# Addresses that are not allowed

HIDDEN = """
127.0.0.1 127.1 127.255.255.254 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 localhost localhost. LOCALHOST
0 0.0.0.0 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.100.100.200 169.254.169.254
0xa9fea9fe 2852039166 168.63.129.16 192.0.0.192 192.0.2.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255
[::] [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:a9fe:a9fe] [::127.0.0.1] [fe80::1]
[fc00::1] [fd00:ec2::254] [fec0::1] [ff02::1] [64:ff9b::7f00:1] [64:ff9b::169.254.169.254] [2002:7f00:1::]
[2002:a9fe:a9fe::] [2001:db8::1] [100::1] \uff11\uff12\uff17.\uff10.0.1 127\u30020\u30020\u30021
\u2460\u2461\u2466.0.0.1
""".split()


@pytest.mark.parametrize("host", HIDDEN)
def test_private_addresses_are_refused_in_every_spelling(site: Site, host: str) -> None:
    site.answers["/a"] = ok
    error = failure(f"http://{host}:{site.port}/a", is_allowed=is_public)
    assert error.code in ("access_denied", "not_found")
    assert "not a public address" in error.message or "has no address" in error.message
    assert site.asked == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_the_one_embedded_in_it(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    carriers = [
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number),
        ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1),
    ]
    assert {is_public(str(carrier)) for carrier in carriers} == {is_public(str(inner))}
    if not inner.is_global:
        assert not is_public(str(inner))


@given(st.ip_addresses(v=6))
def test_only_global_unicast_is_public(address: ipaddress.IPv6Address) -> None:
    if is_public(str(address)):
        # From 3.13 on, Python calls no address of 6to4 global; such a one is as public as the address in it.
        assert address.is_global or address.sixtofour
        assert {address.is_multicast, address.is_link_local, address.is_site_local} == {False}


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:hush@127.0.0.1/a",
        "http://user@127.0.0.1/a",
        "http://@127.0.0.1/a",
        "http://127.0.0.1\\@example.com/a",
        "http:\\\\127.0.0.1/a",
        "http://127.0.0.1/a\\b",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/a\tb",
        "http://127.0.0.1/a\r\nHost: x",
        "http://127.0.0.1/\0",
        "http://127.0.0.1:99999/a",
        "http://127.0.0.1:http/a",
        "http:///a",
        "http://",
        "http://[::1/a",
        "http://a..b/a",
        "http://" + "a" * 64 + ".example/a",
        "http://127.0.0.1%2f@example.com/a",
        "http://[fe80::1%25eth0]/a",
        "http://ex ample/a",
        "http://127.0.0.1#@example.com/",
    ],
)
def test_ambiguous_urls_are_refused(uri: str) -> None:
    error = failure(uri, is_allowed=lambda address: False)
    assert error.code == "access_denied"
    assert "hush" not in error.message


@given(st.text() | st.text("http://:@[]?#%\\.0123456789abcdef"))
def test_any_url_gives_a_code(rest: str) -> None:
    def nobody(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "nobody")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", nobody)
        assert failure(f"http://{rest}").code in ("access_denied", "not_found")


def test_one_private_address_among_public_ones_is_enough(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in ("8.8.8.8", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert "127.0.0.1" in failure(f"http://both.example:{site.port}/a", is_allowed=is_public).message
    assert site.asked == []


def test_a_name_that_resolves_differently_a_moment_later_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = Site("127.0.0.2")
    other = Site("127.0.0.1", checked.port)
    checked.answers["/a"] = lambda request: answer(request, 200, b"checked")
    other.answers["/a"] = lambda request: answer(request, 200, b"another")
    answers = iter(["127.0.0.2", "127.0.0.1", "127.0.0.1"])
    genuine = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **options: Any) -> Any:
        return genuine(next(answers) if host == "rebound.example" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    uri = f"http://rebound.example:{checked.port}/a"
    assert fetch(uri, is_allowed=lambda address: address == "127.0.0.2") == b"checked"
    assert checked.headers[0]["Host"] == f"rebound.example:{checked.port}"
    assert "127.0.0.1" in failure(uri, is_allowed=lambda address: address == "127.0.0.2").message
    assert other.asked == []
    checked.stop()
    other.stop()


def test_the_next_address_is_tried_if_one_does_not_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **options: Any) -> Any:
        if host != "two.example":
            return genuine(host, *rest, **options)
        return genuine("127.0.0.3", *rest, **options) + genuine("127.0.0.1", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    site.answers["/a"] = ok
    assert fetch(f"http://two.example:{site.port}/a", is_allowed=lambda address: True) == BODY


def test_proxies_of_the_environment_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.answers["/a"] = ok
    assert fetch(f"{site.url}/a") == BODY


# Redirects


def redirect(to: str, status: int = 302) -> Callable[[Any], None]:
    return lambda request: answer(request, status, Location=to)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["/b", "b", "//127.0.0.1:{port}/b", "http://127.0.0.1:{port}/b?x=1"])
def test_redirects_are_followed(site: Site, status: int, to: str) -> None:
    site.answers |= {"/a": redirect(to.format(port=site.port), status), "/b": ok}
    assert fetch(f"{site.url}/a") == BODY


def test_five_redirects_and_no_more(site: Site) -> None:
    site.answers |= {f"/{i}": redirect(f"/{i + 1}") for i in range(6)} | {"/6": ok}
    assert fetch(f"{site.url}/1") == BODY
    site.asked.clear()
    assert "more than 5 redirects" in failure(f"{site.url}/0").message
    site.answers["/round"] = redirect("/round")
    assert failure(f"{site.url}/round").code == "storage_error"


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.2:{port}/a",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:{port}/a",
        "http://2130706434:{port}/a",
        "//127.0.0.2:{port}/a",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "ftp://127.0.0.1/a",
        "s3://bucket/key",
        "http://user:hush@127.0.0.1:{port}/b",
        "http://127.0.0.2:{port}\\@127.0.0.1:{port}/b",
        "/b\\c",
        "/b c",
        "http://[",
    ],
)
def test_a_redirect_is_checked_like_any_other_url(site: Site, to: str) -> None:
    site.answers |= {"/a": redirect(to.format(port=site.port)), "/b": ok}
    error = failure(f"{site.url}/a")
    assert error.code == "access_denied"
    assert "hush" not in error.message
    assert site.asked == ["/a"]


def test_a_redirect_without_a_location_is_a_failure(site: Site) -> None:
    site.answers["/a"] = lambda request: answer(request, 302)
    assert failure(f"{site.url}/a").code == "storage_error"


# TLS


@pytest.fixture
def secure_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site with its own certificate for `images.example`, which the environment trusts."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "images.example")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("images.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    site = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    http_store._tls.cache_clear()
    genuine = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **options: genuine(
            "127.0.0.1" if str(host).endswith(".example") else host, *rest, **options
        ),
    )
    yield site
    site.stop()
    http_store._tls.cache_clear()


def test_the_certificate_must_be_the_hosts_not_the_addresss(secure_site: Site) -> None:
    secure_site.answers["/a"] = ok
    assert fetch(f"https://images.example:{secure_site.port}/a") == BODY
    for host in ("other.example", "127.0.0.1"):
        error = failure(f"https://{host}:{secure_site.port}/a")
        assert error.code == "storage_error"
        assert "certificate is not valid" in error.message
    assert len(secure_site.asked) == 1


def test_a_redirect_from_https_to_http_is_refused(secure_site: Site, site: Site) -> None:
    site.answers["/a"] = ok
    secure_site.answers["/a"] = redirect(f"{site.url}/a?secret")
    error = failure(f"https://images.example:{secure_site.port}/a")
    assert error.message.startswith(
        f"a redirect from https to http://127.0.0.1:{site.port} is not read: correct"
    )
    assert site.asked == []


# Messages


@pytest.mark.parametrize("fault", [cut_off, reset, nonsense, redirect("http://10.0.0.1/?Signature=hush")])
def test_no_message_repeats_a_query(
    site: Site, fault: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    site.answers["/a"] = fault
    for path in ("a", "missing"):
        assert "hush" not in failure(f"{site.url}/{path}?X-Amz-Signature=hush").message
    assert "hush" not in caplog.text


@given(st.binary() | st.binary().map(lambda rest: b"HTTP/1.1 200 OK\r\n" + rest))
def test_any_answer_gives_bytes_or_a_code(said: bytes) -> None:
    with raw_server(said) as port, contextlib.suppress(ItemError):
        assert fetch(f"http://127.0.0.1:{port}/") in said


@contextlib.contextmanager
def raw_server(said: bytes) -> Iterator[int]:
    """Send this to each client that connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(4096)
                        connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_no_message_repeats_what_a_server_sent(site: Site) -> None:
    site.answers["/a"] = lambda request: request.wfile.write(b"HTTP/1.1 500 <script>\x1b[31m\r\n\r\n")
    message = failure(f"{site.url}/a").message
    assert "500 Internal Server Error" in message
    assert re.search(r"script|\x1b", message) is None


def test_what_is_redacted() -> None:
    assert redact("HTTP://host/a?b#c") == "HTTP://host/a"
    assert redact("https://host/#c") == "https://host/"
    assert redact("/data/what?#.jpg") == "/data/what?#.jpg"
