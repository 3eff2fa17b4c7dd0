"""S3, and what speaks its protocol: how each thing that a store does is requested, and what refusals mean."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from ..errors import plural
from . import s3_client
from .refusals import Refusal
from .remote_store import RemoteStore, stat_of
from .s3_client import answer_of, error_code, region_of
from .store import MISSING, Fault, ObjectStat, Page, one_line
from .url import Url

_ETAG: Final = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")
_ONE_PUT_BYTES: Final = 5 * 2**30  # S3's limit for a single PUT
_PAGE: Final = 1000
"""Uploads that S3 lists at once."""
_CONDITION_FAILED: Final = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
"""There is an object, or one is being written; after the latter S3 asks for another attempt."""
_NOT_IMPLEMENTED: Final = ("NotImplemented", "501")
_SETUP_CODES: Final = {
    "AccountProblem": "the account that owns the credentials is not in order; ask its administrator",
    "AllAccessDisabled": "the account's access to S3 is disabled; ask its administrator",
    "ExpiredToken": "the credentials have expired; renew them",
    "ExpiredTokenException": "the credentials have expired; renew them",
    "InvalidAccessKeyId": "the store does not know the access key; check AWS_ACCESS_KEY_ID",
    "InvalidToken": "the session token is not valid; renew the credentials",
    "RequestExpired": "the clock of this machine differs from the store's; set it",
    "RequestTimeTooSkewed": "the clock of this machine differs from the store's; set it",
    "SignatureDoesNotMatch": "the secret key does not match; check AWS_SECRET_ACCESS_KEY",
    "TokenRefreshRequired": "the session token must be renewed",
}
"""Refusals that concern every object, with what to do."""
_REGION_CODES: Final = (
    *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"),
    *("TemporaryRedirect", "301", "302", "307"),
)
"""The bucket is in another region than the one that the client is set up for."""


class S3Store(RemoteStore):
    """Buckets of S3 (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …; `FSSPEC_S3_ANON=true` reads public buckets)."""

    client_errors: ClassVar = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    )

    def __init__(self) -> None:
        super().__init__("s3", ("AWS_",))

    def connect(self, environment: Mapping[str, str]) -> Any:
        """Return a new s3fs file system."""
        return s3_client.connect(environment)

    def _call(self, url: Url, operation: str, **request: Any) -> dict[str, Any]:
        return s3_client.call(self.client(), operation, Bucket=url.bucket, **request)

    # Reading

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Return a range of an object's bytes. Raises ItemError: `changed`; an etag not of S3's form is ignored."""
        planned = etag if etag and _ETAG.fullmatch(etag) else None
        request: dict[str, Any] = {"Key": url.key}
        if start or stop is not None:
            request["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if planned is not None:
            request["IfMatch"] = f'"{planned}"'
        try:
            answer = self._call(url, "get_object", **request)
        except OSError as error:
            if planned is not None and error_code(error) in ("PreconditionFailed", "412"):
                raise Refusal.CHANGED_ETAG_UNKNOWN.error(planned=planned) from error
            # No range of an empty object is satisfiable.
            if start == 0 and error_code(error) in ("InvalidRange", "416"):
                return b""
            raise
        # A store may ignore the condition.
        if planned is not None and (now := answer.get("ETag", planned).strip('"')) != planned:
            raise Refusal.CHANGED_ETAG.error(etag=now, planned=planned)
        body: bytes = answer["Body"]
        return body

    def stat(self, url: Url) -> ObjectStat:
        """Return size and etag. Raises FileNotFoundError where there is no object."""
        if not url.key:
            raise FileNotFoundError(errno.ENOENT, "a bucket is not an object", url.text)
        try:
            answer = self._call(url, "head_object", Key=url.key)
        except OSError as error:
            if error_code(error) in (*_REGION_CODES, "400", "403", "404"):
                # An answer to HEAD has no room for the reason, or whether the bucket exists; this one has.
                self.read_range(url, 0, 1)
            raise
        return ObjectStat(int(answer["ContentLength"]), str(answer.get("ETag", "")).strip('"'))

    # Listing

    def _pages(self, url: Url, prefix: str, **request: str) -> Iterator[dict[str, Any]]:
        """Yield what lies below a prefix of the URL's bucket, page by page: a million dictionaries take a gigabyte."""
        request["Prefix"] = prefix
        while True:
            answer = self._call(url, "list_objects_v2", **request)
            yield answer
            if not answer.get("IsTruncated"):
                return
            request["ContinuationToken"] = answer["NextContinuationToken"]

    def scan(self, url: Url, stem: str = "") -> Iterator[Page]:
        """Yield the objects below a folder; keys that end in `/` mark folders, and are left out."""
        prefix = _prefix_of(url)
        for page in self._pages(url, prefix + stem):
            files = [o for o in page.get("Contents", []) if not o["Key"].endswith("/")]
            yield (
                [o["Key"][len(prefix) :] for o in files],
                [stat_of({**o, "size": o["Size"]}) for o in files],
            )

    def folders(self, url: Url) -> list[str]:
        """Return the names of the folders in a folder: of the keys below it, the part up to the next slash."""
        prefix = _prefix_of(url)
        pages = self._pages(url, prefix, Delimiter="/")
        return [
            found["Prefix"][len(prefix) : -1] for page in pages for found in page.get("CommonPrefixes", [])
        ]

    # Writing

    def put(self, url: Url, data: bytes, *, only_new: bool = False) -> None:
        """Write an object in one PUT."""
        condition = {"IfNoneMatch": "*"} if only_new else {}
        self._call(url, "put_object", Key=url.key, Body=data, **condition)

    def put_file(self, url: Url, local: Path) -> None:
        """Write a local file's content in one PUT; from 5 GiB as a multipart upload, which is as atomic."""
        if local.stat().st_size < _ONE_PUT_BYTES:
            self.put(url, local.read_bytes())
        else:
            self.client().put_file(str(local), url.path, chunksize=2**28, max_concurrency=2)

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether S3 found an object, or another writer of one."""
        return super().is_conflict(error) or error_code(error) in _CONDITION_FAILED

    def is_unconditional(self, error: BaseException) -> bool:
        """Return whether this S3 does not know `If-None-Match`."""
        return error_code(error) in _NOT_IMPLEMENTED

    # Removing

    def remove(self, url: Url) -> None:
        """Remove an object; a missing one is no error."""
        self._call(url, "delete_object", Key=url.key)

    def remove_tree(self, url: Url) -> None:
        """Remove all objects below a folder, a page by one request."""
        for page in self._pages(url, _prefix_of(url)):
            keys = [{"Key": found["Key"]} for found in page.get("Contents", [])]
            # s3fs's own bulk deletion does not report what could not be deleted.
            if keys:
                answer = self._call(url, "delete_objects", Delete={"Objects": keys, "Quiet": True})
                if errors := answer.get("Errors"):
                    remain = plural(len(errors), "object")
                    raise PermissionError(
                        errno.EACCES, f"{remain} could not be removed ({errors[0].get('Code')})"
                    )

    def abort_uploads(self, url: Url) -> int:
        """Abort the multipart uploads below a folder that were never completed; return their number."""
        request: dict[str, Any] = {"Prefix": _prefix_of(url), "MaxUploads": _PAGE}
        seen: set[tuple[str, str]] = set()
        aborted = 0
        while True:
            try:
                answer = self._call(url, "list_multipart_uploads", **request)
            except OSError as error:
                if error_code(error) in (*_NOT_IMPLEMENTED, "MethodNotAllowed", "405"):
                    return aborted
                raise
            # SeaweedFS reports that there are more, but not where: the list is begun anew, with those that are left.
            uploads = {(one["Key"], one["UploadId"]) for one in answer.get("Uploads", [])} - seen
            seen |= uploads
            for key, upload_id in uploads:
                with contextlib.suppress(FileNotFoundError):  # it was completed meanwhile
                    self._call(url, "abort_multipart_upload", Key=key, UploadId=upload_id)
                    aborted += 1
            if not uploads or not answer.get("IsTruncated"):
                return aborted
            if "NextKeyMarker" in answer:
                request["KeyMarker"] = answer["NextKeyMarker"]
                request["UploadIdMarker"] = answer["NextUploadIdMarker"]

    # Failures

    def explain(self, error: BaseException, url: Url) -> Fault:
        """Describe what S3 or its client raised."""
        code = error_code(error)
        if (shared := _shared_fault(error, url, code)) is not None:
            return shared
        message = one_line(error)
        fault = Fault("storage_error", message if code in message else f"{message} ({code})")
        if code == "InvalidObjectState":
            fault = Fault("archived", _archived(error))
        elif answer_of(error) and code in ("", "404"):  # S3 gives a reason
            fault = Fault("storage_error", "the answer is not S3's; check AWS_ENDPOINT_URL", lasting=True)
        elif "Invalid bucket name" in str(error):
            fault = Fault("not_found", f"{url.bucket!r} is not a name that a bucket can have")
        elif isinstance(error, FileNotFoundError):
            bucket = f"there is no bucket {url.bucket!r}; create it or check its name"
            fault = Fault("not_found", bucket if code == "NoSuchBucket" else MISSING)
        elif code.startswith("KMS."):
            why = f"the KMS key that encrypts it cannot be used ({code}); check its state and its policy"
            fault = Fault("access_denied", why)
        elif isinstance(error, PermissionError):
            rights = (
                "check the credentials' rights; a requester-pays bucket needs FSSPEC_S3_REQUESTER_PAYS=true"
            )
            fault = Fault("access_denied", f"access denied ({code or 403}); {rights}")
        return fault


def _shared_fault(error: BaseException, url: Url, code: str) -> Fault | None:
    """Describe a failure that every object of a bucket shares; None for others."""
    # Only S3 raised it: botocore is loaded, and `import maskrcnn` need not load it.
    from botocore import exceptions as boto  # noqa: PLC0415

    answer = ("access_denied", "")
    if code in _SETUP_CODES:
        answer = ("access_denied", f"{_SETUP_CODES[code]} ({code})")
    elif code in _REGION_CODES:
        answer = ("storage_error", _other_region(error, url, code))
    elif isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"
        answer = ("access_denied", f"no credentials; {advice}")
    elif isinstance(error, (s3_client.NotSetUpError, *_credential_errors())):
        advice = "check the variables AWS_… (profile, region, endpoint) and the files in ~/.aws"
        answer = ("access_denied", f"{one_line(error)}; {advice}")
    elif isinstance(error, boto.ConnectionError):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        answer = ("storage_error", f"cannot reach the S3 endpoint ({endpoint}); check it")
    return Fault(*answer, affects_all=True) if answer[1] else None


def _other_region(error: BaseException, url: Url, code: str) -> str:
    region = region_of(answer_of(error))
    here = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    there = (
        f"{region}: set AWS_REGION={region}" if region else "another region: set AWS_REGION to the bucket's"
    )
    return f"the bucket {url.bucket!r} is in {there} (it is {here or 'not set'} now; {code})"


def _archived(error: BaseException) -> str:
    """Return what to do with an object in Glacier, Deep Archive, or an archive tier of Intelligent-Tiering."""
    refusal = answer_of(error).get("Error", {})
    where = refusal.get("AccessTier") or refusal.get("StorageClass")
    kind = f"archived ({where})" if where else "archived"
    return f"{kind}: restore it (`aws s3api restore-object`), and then run `maskrcnn retry`"


def _credential_errors() -> tuple[type[BaseException], ...]:
    """Return what botocore raises where it cannot get credentials, whatever the request."""
    from botocore import exceptions as boto  # noqa: PLC0415

    return boto.CredentialRetrievalError, boto.InvalidConfigError, boto.SSOError, boto.TokenRetrievalError


def _prefix_of(url: Url) -> str:
    return url.key.rstrip("/") + "/" if url.key else ""
