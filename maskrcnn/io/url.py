"""URLs and local paths, parsed once: where a file is, without any connection to it.

The rest of the library passes URLs as text; whoever needs a part of one parses it here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote

_NOT_ARN: Final = "(?:[^a/@:][^/@:]*|a(?:[^r/@:][^/@:]*)?|ar(?:[^n/@:][^/@:]*)?|arn[^/@:]+)"
USER_PATTERN: Final = (
    rf"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/]*@|{_NOT_ARN}:[^/@]*[^0-9/@][^/@]*/[^@]*@|{_NOT_ARN}:/[^@]*@)"
)
"""Matches a URL with a user or a password, which are refused: credentials come from the environment.

Secret keys of S3 contain slashes, which belong to the password if its beginning is neither a port nor an ARN's. The
pattern is one of Python and of RE2, which pyarrow uses.
"""
AZURE_ACCOUNT_PATTERN: Final = (
    r"^(?i:abfss?|az)://[a-z0-9$][a-z0-9-]*@[a-z0-9]+\.(?:dfs|blob)\.core\.(?:windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)"
    r"(?:/|$)"
)
"""Matches a URL in Hadoop's spelling, `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY`, which has no user.

Only hosts of Azure's: another one would be sent the credentials.
"""
WEB_SCHEMES: Final = ("http", "https")
_ACCESS_POINT: Final = re.compile(
    r"arn:[a-z0-9-]+:s3[a-z-]*:[a-z0-9-]*:[0-9]*:(outpost[/:][^/:]+[/:])?accesspoint[/:][^/]+"
)
"""Matches an access point of S3, which is named by its ARN in place of a bucket."""
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
LOCAL_SCHEMES: Final = ("file", "local")
FILE_URI: Final = r"^(?i:file):(?:/(?:[^/]|$)|//(?i:localhost)?/)"
"""Matches a file URI with an absolute path: `file:///a` (RFC 8089), `file:/a` (Java), `file://localhost/a`."""
_LOCAL: Final = re.compile(r"(?i:file):(?://(?i:localhost)(?=/)|//|(?=/))|(?i:local)://")


@dataclass(frozen=True, slots=True)
class Url:
    """The place of a file or a folder: a local path, an object in a store, or an address on the web."""

    scheme: str
    """In lower case; "" for local files."""
    bucket: str
    """What stands between `scheme://` and the next slash: a bucket, or a host; the ARN of an access point of S3. "" for
    local files."""
    key: str
    """What follows the bucket and its slash; for local files, their path."""

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> Self:
        """Parse a URL or a path; every text is one, and so is a `pathlib.Path`. `file:` and `local://` are paths.

        In a file URI, `%` and two digits stand for a byte of UTF-8, as `pathlib.Path.as_uri` writes it.

        >>> Url.parse("s3://bucket/a/b.jpg")
        Url(scheme='s3', bucket='bucket', key='a/b.jpg')
        >>> Url.parse("file:///data/a%20b.jpg")
        Url(scheme='', bucket='', key='/data/a b.jpg')
        >>> Url.parse("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/photos/a.jpg").key
        'a.jpg'
        """
        text = os.fspath(text)
        if (path := undecoded_path(text)) != text:
            return cls("", "", _decoded(path) if text[:5].lower() == "file:" else path)
        match = _SCHEME.match(text)
        if match is None:
            return cls("", "", text)
        scheme, rest = match[1].lower(), text[match.end() :]
        point = _ACCESS_POINT.match(rest) if scheme in ("s3", "s3a") else None
        bucket = point[0] if point else rest.partition("/")[0]
        return cls(scheme, bucket, rest[len(bucket) + 1 :])

    @property
    def is_local(self) -> bool:
        """Whether this is a path in the file system."""
        return not self.scheme

    @property
    def is_web(self) -> bool:
        """Whether this is an address on the web, http or https."""
        return self.scheme in WEB_SCHEMES

    @property
    def path(self) -> str:
        """Bucket and key, the name by which fsspec knows a file; for local files, their path."""
        return f"{self.bucket}/{self.key}" if self.key and not self.is_local else self.bucket or self.key

    @property
    def local_path(self) -> Path:
        """The path of a local file."""
        return Path(self.key)

    @property
    def text(self) -> str:
        """The URL as text; for local files, their path.

        >>> Url.parse("S3://bucket/a b.jpg").text, Url.parse("memory:///out").text, Url.parse("a.jpg").text
        ('s3://bucket/a b.jpg', 'memory:///out', 'a.jpg')
        """
        return self.path if self.is_local else f"{self.scheme}://{self.path}"

    def __str__(self) -> str:
        return self.text

    def join(self, name: str) -> "Url":
        """Return the URL of `name` below this one.

        >>> [Url.parse(root).join("a b.jpg").text for root in ("s3://bucket/images/", "s3://bucket", "/", "")]
        ['s3://bucket/images/a b.jpg', 's3://bucket/a b.jpg', '/a b.jpg', 'a b.jpg']
        """
        return Url(self.scheme, self.bucket, f"{self.key.rstrip('/')}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """What follows the last slash of the key."""
        return self.key.rpartition("/")[2]

    @property
    def folder(self) -> "Url":
        """The folder of this file.

        >>> [Url.parse(file).folder.text for file in ("s3://bucket/a/b.json", "s3://bucket/b.json", "/b.json", "b")]
        ['s3://bucket/a/', 's3://bucket', '/', '.']
        """
        folder = "".join(self.key.rpartition("/")[:2])
        return Url(self.scheme, self.bucket, folder or ("." if self.is_local else ""))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a local path is a file's; also for a name that no file can have, where `Path.is_file` raises.

    >>> is_file("a" * 10_000), is_folder("a" * 10_000), is_there("/")
    (False, False, True)
    """
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a local path is a folder's, likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def is_there(path: str | os.PathLike[str]) -> bool:
    """Return whether a local path exists, likewise."""
    return os.path.exists(path)  # noqa: PTH110


def undecoded_path(text: str) -> str:
    """Return a URI of a local file without its scheme; other texts as they are.

    >>> [undecoded_path(text) for text in ("file:/a%20b", "FILE://localhost/a", "local://a", "s3://a", "file:a")]
    ['/a%20b', '/a', 'a', 's3://a', 'file:a']
    """
    match = _LOCAL.match(text)
    return text[match.end() :] if match else text


def _decoded(path: str) -> str:
    """Return the path of a file URI; one that is not percent-encoded UTF-8 as it is."""
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError:
        return path
    return path if "\0" in decoded else decoded


def has_user(text: str) -> bool:
    """Return whether a URL has a user or a password in it.

    >>> [has_user(f"abfs://photos@{host}/a.png") for host in ("account.dfs.core.windows.net", "host")]
    [False, True]
    """
    return bool(re.match(USER_PATTERN, text)) and not re.match(AZURE_ACCOUNT_PATTERN, text)


def redact(text: str) -> str:
    """Return a URL for logs and messages: without user and password, and on the web without query and fragment.

    >>> redact("https://host/a.jpg?X-Amz-Signature=0123"), redact("s3://bucket/what?.jpg")
    ('https://host/a.jpg', 's3://bucket/what?.jpg')
    >>> redact("s3://KEY:SECRET@bucket/photos"), redact("s3://KEY:SEC/RET@bucket/photos")
    ('s3://…@bucket/photos', 's3://…@bucket/photos')
    """
    shown = text
    if has_user(text):
        shown = re.sub(USER_PATTERN, lambda match: f"{match[0].partition('://')[0]}://…@", text)
    return re.split(r"[?#]", shown, maxsplit=1)[0] if Url.parse(text).is_web else shown


def redact_all(text: str) -> str:
    """Return a text in which every URL is redacted, as in the message of another library.

    >>> redact_all("cannot reach 'https://user:secret@host/a?token=1': https://host/b?token=2.")
    "cannot reach 'https://…@host/a': https://host/b."
    """
    return _IN_TEXT.sub(lambda match: redact(match[1]) + match[2], text)


_IN_TEXT: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`<>]*?)([.,:;)\]]*(?=[\s'\"`<>]|$))")
"""A URL in a text, and the punctuation after it."""
