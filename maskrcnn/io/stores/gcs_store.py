"""Google Cloud Storage: its credentials, and what its answers mean."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from fsspec import config, filesystem
from fsspec.asyn import sync

from ..refusals import Refusal
from ..url import Url
from . import deadlines
from .deadlines import TooSlowError, in_time
from .fsspec_store import FsspecStore
from .remote_store import prefix_of, stat_of
from .request_count import LIST, count_request, count_retry
from .store import Fault, NotSetUpError, ObjectStat, Page, one_line, raised_and_not_logged

_LOGIN: Final = "run `gcloud auth application-default login`"
_KEYS: Final = f"{_LOGIN}, or set GOOGLE_APPLICATION_CREDENTIALS; a public bucket needs FSSPEC_GS_TOKEN=anon"
_KEY_FILE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_EMULATOR: Final = "STORAGE_EMULATOR_HOST"


class GcsStore(FsspecStore):
    """Buckets of Google Cloud Storage (`GOOGLE_APPLICATION_CREDENTIALS`; `FSSPEC_GS_TOKEN=anon` reads public ones).

    Args:
        scheme: `gs` or `gcs`.
    """

    client_errors: ClassVar = (
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("gcsfs.retry", "NonRetryableError"),
        ("google.auth.exceptions", "GoogleAuthError"),
    )

    def __init__(self, scheme: str) -> None:
        super().__init__(scheme, ("GOOGLE_", "CLOUDSDK_", _EMULATOR), extra="gcs")

    def connect(self, environment: Mapping[str, str]) -> Any:
        """Return a new fsspec file system, which has its credentials.

        gcsfs on its own would ask a metadata server several times, and then go on without credentials.

        Raises:
            ImportError: gcsfs is not installed.
            NotSetUpError: there are no credentials, or they cannot be read.
        """
        # Read when gcsfs is imported. To find out a bucket's kind, which matters for writes that append, it would open
        # another connection, by gRPC: its threads outlive no fork, and where only HTTP passes it waits a minute.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        # Read when google.auth is imported: elsewhere than on Google's machines nobody answers.
        os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
        os.environ.setdefault("GCE_METADATA_TIMEOUT", "2")
        import gcsfs.retry  # noqa: PLC0415
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

        raised_and_not_logged("gcsfs", "google.auth", "google.auth._default")
        chosen = any("token" in config.conf.get(name, {}) for name in ("gs", "gcs"))  # FSSPEC_GS_TOKEN
        token = {} if chosen or environment.get(_EMULATOR) else {"token": "google_default"}
        try:
            found = filesystem(
                self.scheme,
                skip_instance_cache=True,
                use_listings_cache=False,
                session_kwargs=_session_options(),
                **token,
            )
            found.credentials.maybe_refresh()
        except (
            GoogleAuthError,
            gcsfs.retry.HttpError,
            gcsfs.retry.NonRetryableError,
            OSError,
            ValueError,
        ) as error:
            raise NotSetUpError(_credential_fault(error, environment)) from error
        return found

    def _request(self, operation: str, *arguments: Any, sent: int = 0, **options: Any) -> Any:
        """Return what an operation of gcsfs returns, whose repetitions are counted, and which has an end."""
        client = self.client()

        async def attempt(expect: Callable[[int], None]) -> Any:
            _under_way.set(_UnderWay(expect))
            return await getattr(client, f"_{operation}")(*arguments, **options)

        return sync(client.loop, in_time, attempt, sent)

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Return a range of an object's bytes. Raises ItemError: `changed`; an etag of another form is ignored."""
        client = self.client()
        planned = etag if etag and etag.isdecimal() else None
        request: dict[str, Any] = {"ifGenerationMatch": planned} if planned else {}
        if start or stop is not None:
            request["headers"] = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        try:
            headers, body = self._request("call", "GET", client.url(url.path), **request)
        except self.failures() as error:
            if planned and isinstance(error, FileExistsError):  # what gcsfs makes of 412
                raise Refusal.CHANGED_ETAG_UNKNOWN.error(planned=planned) from error
            # No range of an empty object is satisfiable.
            if start == 0 and getattr(error, "code", None) == 416:
                return b""
            raise
        # A server may ignore the condition.
        if planned and (now := headers.get("X-Goog-Generation", planned)) != planned:
            raise Refusal.CHANGED_ETAG.error(etag=now, planned=planned)
        return cast(bytes, body)

    def stat(self, url: Url) -> ObjectStat:
        """Return size and generation. Raises FileNotFoundError where there is no object."""
        if not url.key:
            raise FileNotFoundError(errno.ENOENT, "a bucket is not an object", url.text)
        return stat_of(self._request("call", "GET", "b/{}/o/{}", url.bucket, url.key, json_out=True))

    def _pages(self, url: Url, prefix: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Yield what lies below a prefix of the URL's bucket, page by page."""
        while True:
            page = self._request("call", "GET", "b/{}/o", url.bucket, prefix=prefix, json_out=True, **request)
            yield page
            if not page.get("nextPageToken"):
                return
            request["pageToken"] = page["nextPageToken"]

    def scan(self, url: Url, stem: str = "") -> Iterator[Page]:
        """Yield the objects below a folder; names that end in `/` mark folders, and are left out."""
        prefix = prefix_of(url)
        for page in self._pages(url, prefix + stem):
            files = [found for found in page.get("items", []) if not found["name"].endswith("/")]
            yield [found["name"][len(prefix) :] for found in files], [stat_of(found) for found in files]

    def folders(self, url: Url) -> list[str]:
        """Return the names of the folders in a folder: of the names below it, the part up to the next slash."""
        prefix = prefix_of(url)
        pages = self._pages(url, prefix, delimiter="/")
        return [found[len(prefix) : -1] for page in pages for found in page.get("prefixes", [])]

    def put(self, url: Url, data: bytes, *, only_new: bool = False) -> None:
        """Write an object; from 5 MB by several requests, of which the last one makes the object."""
        options: dict[str, Any] = {"mode": "create"} if only_new else {}
        self._request("pipe_file", url.path, data, sent=len(data), **options)

    def put_file(self, url: Url, local: Path) -> None:
        """Write a local file's content, likewise."""
        self._request("put_file", str(local), url.path, sent=local.stat().st_size)

    def explain(self, error: BaseException, url: Url) -> Fault:
        """Describe what gcsfs raised."""
        return _fault(error, url) or super().explain(error, url)


@dataclass
class _UnderWay:
    """An operation of gcsfs."""

    expect: Callable[[int], None]
    asked: set[tuple[str, str]] = field(default_factory=set)


_under_way: Final[ContextVar[_UnderWay | None]] = ContextVar("_under_way", default=None)


def _session_options() -> dict[str, Any]:
    """Return the options of gcsfs's HTTP sessions: a limit to waiting, and a look at what is repeated."""
    import aiohttp  # noqa: PLC0415

    async def on_start(_session: Any, _context: Any, request: Any) -> None:
        asked = (request.method, str(request.url))
        # The parts of a large object have one address, to which each is sent by a PUT.
        operation = _under_way.get()
        if operation is not None:
            is_page = request.method == "GET" and request.url.path.endswith("/o")
            count_request(LIST if is_page else request.method)
        if operation is not None and request.method != "PUT":
            if asked in operation.asked:
                count_retry()
            operation.asked.add(asked)

    async def on_end(_session: Any, _context: Any, request: Any) -> None:
        if (operation := _under_way.get()) is not None:
            operation.expect(request.response.content_length or 0)

    looking = aiohttp.TraceConfig()
    looking.on_request_start.append(on_start)
    looking.on_request_end.append(on_end)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=deadlines.READ_TIMEOUT_S)
    return {"timeout": limits, "trace_configs": [looking]}


def _credential_fault(error: Exception, environment: Mapping[str, str]) -> Fault:
    from google.auth import exceptions as google  # noqa: PLC0415

    file = environment.get(_KEY_FILE, "")
    if isinstance(error, google.TransportError):
        return Fault.of(
            Refusal.UNREACHABLE, endpoint="the server that issues Google's credentials", setting="the proxy"
        )
    if isinstance(error, google.DefaultCredentialsError) and not file:
        return Fault.of(Refusal.CREDENTIALS_MISSING, advice=_KEYS)
    if isinstance(error, google.DefaultCredentialsError):
        why = "is not a file of Google's credentials" if os.path.isfile(file) else "does not exist"  # noqa: PTH113
        cause = f"{file} {why}; check GOOGLE_APPLICATION_CREDENTIALS"
        return Fault.of(Refusal.CREDENTIALS_UNREADABLE, cause=cause)
    cause = f"Google did not accept them, or they have expired; {_LOGIN}, or renew the key"
    return Fault.of(Refusal.CREDENTIALS_UNREADABLE, cause=cause)


def _fault(error: BaseException, url: Url) -> Fault | None:
    """Describe an answer of Google's; None if it is another failure."""
    import aiohttp  # noqa: PLC0415 (only Google's client raised it: it is loaded)

    code, text = getattr(error, "code", None), str(error)
    name = errno.errorcode.get(getattr(error, "errno", None) or 0) or type(error).__name__
    refusal: Refusal | None = None
    if isinstance(error, NotSetUpError | FileNotFoundError):
        return None
    if isinstance(error, TooSlowError):
        return Fault.of(Refusal.TOO_SLOW)
    if code == 401:
        refusal = Refusal.CREDENTIALS_REFUSED
    elif text.startswith("Forbidden: ") or code == 403:
        refusal, code = Refusal.ACCESS_DENIED, 403
    elif code == 429:
        refusal = Refusal.STORE_BUSY
    elif isinstance(code, int) and code >= 500:
        refusal = Refusal.STORE_FAILING
    elif "requester pays" in text:
        refusal, code = Refusal.ACCESS_DENIED, 400
    elif text.startswith("Bad Request: "):
        refusal = Refusal.BUCKET_NAME
    elif isinstance(error, aiohttp.ClientConnectionError):
        refusal = Refusal.UNREACHABLE
    elif isinstance(error, aiohttp.ClientError) or type(error).__module__.startswith("requests"):
        refusal = Refusal.CONNECTION_LOST
    elif code is not None:
        return Fault.of(Refusal.STORE_REFUSED, answer=one_line(error))
    if refusal is None:
        return None
    return Fault.of(
        refusal,
        answer=code,
        bucket=url.bucket,
        cause=name,
        endpoint="Google Cloud Storage",
        payer="; a requester-pays bucket needs FSSPEC_GS_REQUESTER_PAYS=true",
        setting="the proxy",
        tried="several attempts",
    )
