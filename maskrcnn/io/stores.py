"""Stores: their names, the connections to them, and what their failures mean.

Credentials and endpoints come from the environment or the node's role alone (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, …; `FSSPEC_S3_ANON=true` reads public buckets).

Retries have one owner, botocore (`AWS_MAX_ATTEMPTS`, 6 by default, some 15 s in all); `s3` adds the repetition of
bodies that were cut off, which botocore leaves alone. All are counted (`take_retries`). Of botocore's modes it is
the one named legacy: the standard one has a purse from which all requests of a process pay for their retries, and
once a burst of refusals has emptied it, every further refusal is final.

A client raises whatever it likes. Here each failure is given its words once, and one of two fates: an input's
becomes an `ItemError`, the output's a `RunError`. A fault that every object shares, like expired credentials,
is the run's even where an input meets it.
"""

import contextlib
import errno
import functools
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from fsspec import filesystem

from ..errors import ItemError, RunError

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
S3_SCHEMES: Final = ("s3", "s3a")
READ_TIMEOUT_S: Final = 60.0
"""Without a byte from S3."""
_REMOTE: Final = (*S3_SCHEMES, "gs", "gcs", "memory")


# Names


def is_remote(url: str) -> bool:
    """Return whether a url names an object store.

    >>> is_remote("s3://bucket/key"), is_remote("/data/a.jpg"), is_remote("file:///data/a.jpg")
    (True, False, False)
    """
    return split_url(url)[0] != ""


def is_s3(url: str) -> bool:
    """Return whether a url is in S3."""
    return split_url(url)[0] in S3_SCHEMES


def join(root: str, name: str) -> str:
    """Return the url of `name` below `root`.

    >>> join("s3://bucket/images/", "a b.jpg"), join("/", "a.jpg"), join("", "a.jpg")
    ('s3://bucket/images/a b.jpg', '/a.jpg', 'a.jpg')
    """
    return name if not root else root.rstrip("/") + "/" + name


def split_url(url: str) -> tuple[str, str]:
    """Return the scheme ("" for local files) and what follows it."""
    match = _SCHEME.match(url)
    if match is None:
        return "", url
    scheme = match[1].lower()
    return ("" if scheme in ("file", "local") else scheme), url[match.end() :]


def bucket_and_key(url: str) -> tuple[str, str]:
    """Return the two parts of an S3 url.

    >>> bucket_and_key("s3://bucket/a/b.jpg")
    ('bucket', 'a/b.jpg')
    """
    bucket, _, key = split_url(url)[1].partition("/")
    return bucket, key


_ESCAPED: Final = re.compile(r"\\x[89a-f][0-9a-f]")


def text_of(root: str, name: str) -> str:
    """Return the name of a file below a root, escaped if it is not UTF-8, so that it is no other file's."""
    if name.isascii() or is_remote(root) or name.encode(errors="replace").decode() == name:
        return name
    # Backslashes are escaped too, so that no two names become one; where such a file exists, one more is put in.
    text = os.fsencode(name).replace(b"\\", rb"\x5c").decode(errors="backslashreplace")
    while os.path.lexists(join(root, text)):
        text = text.replace("\\x", r"\\x", 1)
    return text


# Connections


def check_url(url: str) -> None:
    """Refuse a url of no known store, or with a user in it. Raises RunError."""
    scheme, rest = split_url(url)
    if scheme not in _REMOTE:
        raise RunError(f"{scheme}:// is no store that is known here; use a local path, s3:// or gs://")
    if "@" in rest.partition("/")[0]:
        raise RunError(f"{scheme}:// urls take no user and password; credentials come from the environment")


def client_of(url: str) -> Any:
    """Return the fsspec filesystem of a remote url, shared by the process's threads. Raises RunError."""
    check_url(url)
    scheme = split_url(url)[0]
    # fsspec runs all threads' calls on one loop; another process or environment needs its own connection.
    environment = tuple(
        sorted(i for i in os.environ.items() if i[0].startswith(("AWS_", "FSSPEC_", "GOOGLE_")))
    )
    try:
        return _connect(scheme, os.getpid(), environment)
    except ImportError as error:
        raise RunError(f"{scheme}:// needs a package that is not installed: {error}") from error


@functools.lru_cache(maxsize=8)
def _connect(scheme: str, _pid: int, environment: tuple[tuple[str, str], ...]) -> Any:
    common = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme not in S3_SCHEMES:
        return filesystem(scheme, **common)
    tuning = dict(environment)
    retries = {
        "mode": tuning.get("AWS_RETRY_MODE", "legacy"),
        "total_max_attempts": int(tuning.get("AWS_MAX_ATTEMPTS", 6)),
    }
    config = {
        "retries": retries,
        "connect_timeout": 5,
        "read_timeout": READ_TIMEOUT_S,
        "max_pool_connections": 64,
        "http_session_cls": _http_session_class(),
    }
    s3 = filesystem("s3", config_kwargs=config, session=_session(), **common)
    s3.retries = 1
    return s3


def _session() -> Any:
    """Return a session whose clients, also those that s3fs makes anew, count what they send again."""
    from aiobotocore.session import AioSession  # noqa: PLC0415

    session = AioSession()
    session.register("before-send.s3", _count_repeats)
    session.register("needs-retry.s3", _sign_again)
    return session


def _http_session_class() -> type:
    """Return the usual HTTP session, which sends nothing twice on its own, without back-off and uncounted."""
    from aiobotocore.httpsession import AIOHTTPSession  # noqa: PLC0415

    class SendingOnce(AIOHTTPSession):  # type: ignore[misc]  # without types
        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            session._retry_connection = False  # noqa: SLF001  # aiohttp has no other name for it
            return session

    return SendingOnce


def _count_repeats(request: Any, **_: object) -> None:
    # botocore numbers its attempts: `attempt=2; max=6`
    header = request.headers.get("amz-sdk-request", b"")
    number = re.search(r"attempt=(\d+)", header.decode() if isinstance(header, bytes) else header)
    if number and int(number[1]) > 1:
        count_retry()


def _sign_again(response: Any, attempts: int, **_: object) -> float | None:
    """Let a request that was too old when it arrived be made once more: its process may have been suspended."""
    code = response[1].get("Error", {}).get("Code") if response else None
    return 0.0 if code == "RequestTimeTooSkewed" and attempts == 1 else None


# Retries


class _Tally:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        with self._lock:
            self._count += 1

    def take(self) -> int:
        with self._lock:
            count, self._count = self._count, 0
            return count


_retries: Final = _Tally()


def count_retry() -> None:
    """Note that a request to S3 is made again."""
    _retries.add()


def take_retries() -> int:
    """Return how many requests to S3 were repetitions since the last call, in the whole process."""
    return _retries.take()


# Failures


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, in words."""

    code: str
    """The `ItemError` code, if an input's."""
    line: str
    every: bool = False
    """Whether every object is concerned, so that it is the run's fault and never an item's."""


_CREDENTIAL_CODES: Final = {
    "ExpiredToken": "the credentials have expired; renew them",
    "InvalidAccessKeyId": "the store does not know the access key; check AWS_ACCESS_KEY_ID",
    "InvalidToken": "the session token is not valid; renew the credentials",
    "RequestTimeTooSkewed": "the clock of this machine differs from the store's; set it",
    "SignatureDoesNotMatch": "the secret key does not match; check AWS_SECRET_ACCESS_KEY",
    "TokenRefreshRequired": "the session token must be renewed",
}
_OS_ERRORS: Final = {
    errno.ENOENT: "it does not exist",
    errno.EISDIR: "it is a folder or a device, not a file",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EFBIG: "the file is larger than the disk or `ulimit -f` allows",
    errno.EIO: "reading or writing fails; is the disk sound?",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied; check the folder's owner and mode",
    errno.EPERM: "not permitted; check the folder's owner and mode",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long",
}


def failures() -> tuple[type[BaseException], ...]:
    """Return what the clients that are loaded raise. ValueError: a malformed bucket or path."""
    known = (
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
        ("aiohttp", ("ClientError",)),
        ("gcsfs.retry", ("HttpError",)),
        ("google.auth.exceptions", ("GoogleAuthError",)),
    )
    loaded = [getattr(sys.modules[m], name) for m, names in known if m in sys.modules for name in names]
    return (OSError, ValueError, *loaded)


def _fault(error: BaseException, url: str) -> Fault:
    if split_url(url)[0] in S3_SCHEMES:
        return _s3_fault(error, url)
    if isinstance(error, UnicodeEncodeError):
        return Fault("not_found", f"the name {error.object!a} is not UTF-8; rename it")
    code = "storage_error"
    unnameable = isinstance(error, ValueError) or getattr(error, "errno", None) == errno.ENAMETOOLONG
    if unnameable or isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        code = "not_found"  # what no file can be named is not there
    elif isinstance(error, PermissionError):
        code = "access_denied"
    number = errno.ENOENT if isinstance(error, FileNotFoundError) else getattr(error, "errno", None)
    if number == errno.ENOENT and _ESCAPED.search(url):
        return Fault(code, "it does not exist; its name, escaped here, is probably not UTF-8: rename it")
    return Fault(code, _OS_ERRORS.get(number or 0) or _one_line(error))


def _s3_fault(error: BaseException, url: str) -> Fault:
    # Only S3 raised it: botocore is loaded, and `import maskrcnn` need not pay for it.
    from botocore import exceptions as boto  # noqa: PLC0415

    code = aws_code(error)
    no_credentials = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
    if code in _CREDENTIAL_CODES:
        return Fault("access_denied", f"{_CREDENTIAL_CODES[code]} ({code})", every=True)
    if isinstance(error, no_credentials):
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"
        return Fault("access_denied", f"no credentials; {advice}", every=True)
    if isinstance(error, boto.ConnectionError):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        return Fault("storage_error", f"cannot reach the S3 endpoint ({endpoint}); check it", every=True)
    if isinstance(error, FileNotFoundError):
        bucket = f"there is no bucket {bucket_and_key(url)[0]!r}; create it or check its name"
        return Fault("not_found", bucket if code == "NoSuchBucket" else _OS_ERRORS[errno.ENOENT])
    if isinstance(error, PermissionError):
        return Fault("access_denied", f"access denied ({code or 403}); check the credentials' rights")
    words = _one_line(error)
    return Fault("storage_error", words if code in words else f"{words} ({code})")


def aws_code(error: BaseException) -> str:
    """Return the code of S3's answer, like `NoSuchBucket`, or "" if that is not what failed."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _one_line(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or error  # without [Errno 5]
    return " ".join(str(words).split())[:300] or type(error).__name__


@contextlib.contextmanager
def output_faults(doing: str, url: str, *, missing: bool = False) -> Iterator[None]:
    """Turn a store's failure into `RunError`; with `missing`, let FileNotFoundError through."""
    try:
        yield
    except failures() as error:
        fault = _fault(error, url)
        if missing and fault.code == "not_found":
            raise FileNotFoundError(errno.ENOENT, fault.line, url) from error
        raise RunError(f"cannot {doing} {url}: {fault.line}") from error


@contextlib.contextmanager
def input_faults(uri: str) -> Iterator[None]:
    """Turn a store's failure into `ItemError`, or `RunError` where every item would fail alike."""
    try:
        yield
    except failures() as error:
        fault = _fault(error, uri)
        if fault.every:
            raise RunError(f"cannot read {uri}: {fault.line}") from error
        raise ItemError(fault.code, fault.line) from error


# Random access


class RangeReader(io.RawIOBase):
    """A remote file of known size, read by range requests.

    Args:
        read_range: returns the bytes from a start to a stop.
        size: in bytes.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is requested."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return up to so many bytes, by one request."""
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        if stop <= self._position:
            return b""
        data = self._read_range(self._position, stop)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Return the rest, by one request."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, by one request."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
