"""S3, and what speaks its protocol: how each thing that a store does is requested, and what refusals mean."""

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from ...errors import plural
from ..refusals import Refusal
from ..url import Url
from . import s3_client
from .remote_store import RemoteStore, prefix_of, stat_of
from .s3_client import error_code
from .s3_faults import REGION_CODES, s3_fault
from .store import Fault, NotSetUpError, ObjectStat, Page

_ETAG: Final = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")
_ONE_PUT_BYTES: Final = 5 * 2**30  # S3's limit for a single PUT
_PAGE: Final = 1000
"""Uploads that S3 lists at once."""
_CONDITION_FAILED: Final = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
"""There is an object, or one is being written; after the latter S3 asks for another attempt."""
_NOT_IMPLEMENTED: Final = ("NotImplemented", "501")


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
            if error_code(error) in (*REGION_CODES, "400", "403", "404"):
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
        prefix = prefix_of(url)
        for page in self._pages(url, prefix + stem):
            files = [o for o in page.get("Contents", []) if not o["Key"].endswith("/")]
            yield (
                [o["Key"][len(prefix) :] for o in files],
                [stat_of({**o, "size": o["Size"]}) for o in files],
            )

    def folders(self, url: Url) -> list[str]:
        """Return the names of the folders in a folder: of the keys below it, the part up to the next slash."""
        prefix = prefix_of(url)
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
        return error_code(error) in _CONDITION_FAILED

    def is_unconditional(self, error: BaseException) -> bool:
        """Return whether this S3 does not know `If-None-Match`."""
        return error_code(error) in _NOT_IMPLEMENTED

    # Removing

    def remove(self, url: Url) -> None:
        """Remove an object; a missing one is no error."""
        self._call(url, "delete_object", Key=url.key)

    def remove_tree(self, url: Url) -> None:
        """Remove all objects below a folder, a page by one request."""
        for page in self._pages(url, prefix_of(url)):
            keys = [{"Key": found["Key"]} for found in page.get("Contents", [])]
            # s3fs's own bulk deletion does not report what could not be deleted.
            if keys:
                answer = self._call(url, "delete_objects", Delete={"Objects": keys, "Quiet": True})
                if errors := answer.get("Errors"):
                    remain = plural(len(errors), "object")
                    why = f"{remain} could not be removed ({errors[0].get('Code')}); check the credentials' rights"
                    raise NotSetUpError(Fault("access_denied", why))

    def abort_uploads(self, url: Url) -> int:
        """Abort the multipart uploads below a folder that were never completed; return their number."""
        request: dict[str, Any] = {"Prefix": prefix_of(url), "MaxUploads": _PAGE}
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
        return s3_fault(error, url) or super().explain(error, url)
