"""What S3 refuses, and why: what concerns every object of a bucket, and what one object alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from s3_servers import BUCKET, S3Server

from maskrcnn.errors import STORAGE_CODES, ItemError, RunError, StoreSetupError
from maskrcnn.io.inputs import list_inputs, open_input, read_input, stat_input
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.s3_client import region_of
from maskrcnn.io.url import Url

pytestmark = pytest.mark.s3

LIMIT = 10**6
URL = "s3://photos/a.png"


@dataclass
class Refusing:
    """An S3 that refuses every request in the same way, as the owner of a bucket elsewhere does."""

    status: int
    code: str
    more: str = ""
    """Further elements of the error."""
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    payers: set[str | None] = field(default_factory=set)
    """What requests said of who pays."""

    @contextmanager
    def serving(self, monkeypatch: pytest.MonkeyPatch) -> Iterator["Refusing"]:
        """Point the environment at it."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _refuse(self) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                outer.payers.add(self.headers.get("x-amz-request-payer"))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b"" if self.command == "HEAD" else outer.body
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = _refuse

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with S3Server(f"http://127.0.0.1:{server.server_port}").environment():
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
            yield self
        server.shutdown()
        server.server_close()

    @property
    def body(self) -> bytes:
        """The body of its answers."""
        return f"<Error><Code>{self.code}</Code>{self.more}</Error>".encode()


# What concerns every object

REGION = {"x-amz-bucket-region": "eu-west-1"}
ENDPOINT = "<Endpoint>photos.s3.eu-west-1.amazonaws.com</Endpoint>"
ELSEWHERE = {
    "signed for another region": Refusing(
        400,
        "AuthorizationHeaderMalformed",
        "<Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message><Region>eu-west-1</Region>",
    ),
    "redirected": Refusing(301, "PermanentRedirect", ENDPOINT, REGION),
    "redirected, with an endpoint": Refusing(301, "PermanentRedirect", ENDPOINT),
    "redirected for a while": Refusing(307, "TemporaryRedirect", ENDPOINT),
    "incompatible": Refusing(400, "IllegalLocationConstraintException", "", REGION),
}
NOWHERE = Refusing(301, "PermanentRedirect")


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_bucket_in_another_region_stops_everything_and_names_the_setting(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ELSEWHERE[elsewhere].serving(monkeypatch) as server:
        for act in (
            lambda: read_input(URL, LIMIT),
            lambda: stat_input(URL),
            lambda: open_input(URL, None),
            lambda: list_inputs("s3://photos/"),
            lambda: Storage("s3://photos/out").exists("x"),
            lambda: Storage("s3://photos/out").write("x", b"1"),
            lambda: Storage("s3://photos/out").create("x", b"1"),
        ):
            server.requests.clear()
            with pytest.raises(StoreSetupError, match="'photos' is in eu-west-1: set AWS_REGION=eu-west-1"):
                act()
            assert len(server.requests) < 12, "botocore asks for the region, and does not ask again"


def test_a_redirect_that_names_no_region_is_followed_to_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with NOWHERE.serving(monkeypatch) as server:
        for act in (lambda: read_input(URL, LIMIT), lambda: stat_input(URL)):
            server.requests.clear()
            with pytest.raises(StoreSetupError, match="is in another region: set AWS_REGION to the bucket's"):
                act()
            assert len(server.requests) < 12


@pytest.mark.parametrize(
    ("answer", "region"),
    [
        ({}, ""),
        ({"Error": {"Region": "eu-north-1"}}, "eu-north-1"),
        ({"Error": {"Message": "the region 'a' is wrong; expecting 'us-gov-west-1'"}}, "us-gov-west-1"),
        ({"Error": {"Endpoint": "b.s3-ap-southeast-2.amazonaws.com"}}, "ap-southeast-2"),
        ({"Error": {"Endpoint": "s3.cn-north-1.amazonaws.com.cn"}}, ""),
        ({"Error": {"Endpoint": "b.s3.cn-north-1.amazonaws.com.cn"}}, "cn-north-1"),
        ({"ResponseMetadata": {"HTTPHeaders": REGION}, "Error": {"Code": "301"}}, "eu-west-1"),
    ],
)
def test_the_region_that_an_answer_names(answer: dict[str, Any], region: str) -> None:
    assert region_of(answer) == region


@pytest.mark.parametrize(
    ("code", "status", "advice"),
    [
        ("ExpiredToken", 400, "renew them"),
        ("InvalidAccessKeyId", 403, "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, "AWS_SECRET_ACCESS_KEY"),
        ("RequestExpired", 403, "clock of this machine"),
        ("AllAccessDisabled", 403, "administrator"),
        ("UserSuspended", 403, "administrator"),
        ("AccountProblem", 403, "administrator"),
        ("InvalidPayer", 403, "administrator"),
        ("UnauthorizedAccess", 403, "does not accept the credentials"),
        ("InvalidSecurity", 403, "does not accept the credentials"),
        ("RequestTimeTooSkewed", 403, "clock of this machine"),
        ("NoSuchAccessPoint", 404, "no access point of this name; check its ARN"),
    ],
)
def test_credentials_that_are_refused_stop_everything(
    code: str, status: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Refusing(status, code).serving(monkeypatch),
        pytest.raises(StoreSetupError, match=rf"{advice}.*\({code}\)"),
    ):
        read_input(URL, LIMIT)


def test_both_names_of_the_region_are_read(monkeypatch: pytest.MonkeyPatch, moto_server: S3Server) -> None:
    del moto_server
    for region in ("eu-west-3", "ap-south-1"):
        monkeypatch.setenv("AWS_REGION", region)
        client = store_of(Url.parse(URL)).client()  # type: ignore[attr-defined]
        client.connect()
        assert client.s3.meta.region_name == region


# What concerns one object


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_is_one_row_that_says_what_to_do(
    storage_class: str, moto_server: S3Server
) -> None:
    key = f"cold/{storage_class}.png"
    moto_server.client().put_object(Bucket=BUCKET, Key=key, Body=b"x", StorageClass=storage_class)
    with pytest.raises(ItemError) as caught:
        read_input(f"s3://{BUCKET}/{key}", LIMIT)
    assert caught.value.code == "archived"
    assert "restore it" in caught.value.message
    assert "rights" not in caught.value.message
    assert "archived" not in STORAGE_CODES, "many of them do not mean that the store fails"
    with pytest.raises(ItemError) as caught:
        open_input(f"s3://{BUCKET}/{key}", None).read()
    assert caught.value.code == "archived"
    with pytest.raises(RunError, match="restore it"):
        Storage(f"s3://{BUCKET}/cold").read(f"{storage_class}.png")


def test_an_archive_tier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    more = "<StorageClass>INTELLIGENT_TIERING</StorageClass><AccessTier>ARCHIVE_ACCESS</AccessTier>"
    with (
        Refusing(403, "InvalidObjectState", more).serving(monkeypatch),
        pytest.raises(ItemError, match=r"archived: archived \(ARCHIVE_ACCESS\): restore it"),
    ):
        read_input(URL, LIMIT)


@pytest.mark.parametrize(
    ("status", "code", "row", "advice"),
    [
        (403, "AccessDenied", "access_denied", "FSSPEC_S3_REQUESTER_PAYS"),
        (400, "KMS.DisabledException", "access_denied", r"KMS key .*\(KMS.DisabledException\)"),
        (404, "NoSuchBucket", "not_found", "there is no bucket 'photos'"),
        (404, "NoSuchKey", "not_found", "it does not exist; check its name"),
        (503, "SlowDown", "storage_error", r"too many requests; use fewer actors, .*\(SlowDown\)"),
        (400, "ThrottlingException", "storage_error", "too many requests"),
        (503, "ServiceUnavailable", "storage_error", r"fails, after 1 attempt; try again later \(Serv"),
        (500, "InternalError", "storage_error", "fails, after 1 attempt; try again later"),
        (403, "QuotaExceeded", "storage_error", "no room left; free some"),
        (418, "Teapot", "storage_error", "look this answer up in its documentation: Teapot"),
    ],
)
def test_a_refusal_of_one_object_is_its_own(
    status: int, code: str, row: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Refusing(status, code).serving(monkeypatch),
        pytest.raises(ItemError, match=rf"^{row}: .*{advice}"),
    ):
        read_input(URL, LIMIT)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_that_fails_without_a_reason_has_words(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gateway(Refusing):
        body = b"<html>Bad Gateway</html>"

    with (
        Gateway(status, "").serving(monkeypatch),
        pytest.raises(ItemError, match=rf"storage_error: the store fails, .*; try again later \({status}\)"),
    ):
        read_input(URL, LIMIT)


def test_a_server_that_is_not_s3_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All inputs would be missing: it counts as a failure of the store, and an output is refused."""

    class Site(Refusing):
        body = b"<html><body>Not Found</body></html>"

    with Site(404, "").serving(monkeypatch):
        with pytest.raises(ItemError, match="not S3's; check AWS_ENDPOINT_URL") as caught:
            read_input(URL, LIMIT)
        assert caught.value.code in STORAGE_CODES
        with pytest.raises(StoreSetupError, match="check AWS_ENDPOINT_URL"):
            Storage("s3://photos/out").read("plan.json")


def test_a_name_that_no_bucket_has(moto_server: S3Server) -> None:
    del moto_server
    with pytest.raises(ItemError, match="not_found: 'no bucket' is not a name that a bucket can have"):
        read_input("s3://no bucket/a.png", LIMIT)


def test_who_pays_is_said_in_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with Refusing(403, "AccessDenied").serving(monkeypatch) as server:
        monkeypatch.setitem(
            fsspec.config.conf, "s3", {"requester_pays": True}
        )  # FSSPEC_S3_REQUESTER_PAYS=true
        monkeypatch.setenv("FSSPEC_S3_REQUESTER_PAYS", "true")
        for act in (lambda: read_input(URL, LIMIT), lambda: list_inputs("s3://photos/")):
            with pytest.raises((ItemError, RunError), match="FSSPEC_S3_REQUESTER_PAYS"):
                act()
    assert server.payers == {"requester"}


# Names

POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/photos"


@pytest.mark.parametrize(
    "bucket",
    [
        POINT,
        "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/photos",
        "arn:aws:s3::123456789012:accesspoint/photos.mrap",
        "arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/photos",
        "arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-01/accesspoint/photos",
        "photos-abc123-s3alias",
        "arnold",
    ],
)
def test_an_access_point_stands_in_place_of_a_bucket(bucket: str) -> None:
    for key in ("", "a", "a/b c.png"):
        url = Url.parse(f"s3://{bucket}/{key}")
        assert (url.bucket, url.key) == (bucket, key)
    below = Url.parse(f"s3://{bucket}").join("a.png")
    assert below.text == f"s3://{bucket}/a.png"
    assert Url.parse(below.text) == below


def test_an_access_point_is_asked_under_its_own_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client puts name and account before the endpoint, whose name then does not exist."""
    with Refusing(403, "AccessDenied").serving(monkeypatch):
        client = store_of(Url.parse(URL)).client()  # type: ignore[attr-defined]
        client.connect()
        hosts: list[str] = []

        def note(request: Any, **_: Any) -> None:
            hosts.append(request.url)
            raise PermissionError("seen")

        client.s3.meta.events.register("before-send.s3.GetObject", note)
        with pytest.raises(ItemError):
            read_input(f"s3://{POINT}/a/b.png", LIMIT)
    assert [host.split("//")[1].split(":")[0] for host in hosts] == ["photos-123456789012.127.0.0.1"]
    assert hosts[0].endswith("/a/b.png")


# As the command line says it


def test_a_manifest_of_a_bucket_elsewhere_and_an_output_there_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with ELSEWHERE["redirected"].serving(monkeypatch):
        for source, output in (
            ("s3://photos/in/", str(tmp_path / "out")),
            ("s3://photos/list.csv", str(tmp_path / "out")),
            (str(tmp_path / "photos"), "s3://photos/out"),
        ):
            result = CliRunner().invoke(main, ["plan", source, output, "--model", "planted"])
            assert result.exit_code == 2, result.output
            [line] = [line for line in result.output.splitlines() if line.startswith("error:")]
            assert "set AWS_REGION=eu-west-1" in line
            assert line.count("s3://") == 1, "the URL is said once"
