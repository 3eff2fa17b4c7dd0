"""S3: the requests behind `storage`, each repeated in one layer, and none without an end.

botocore repeats what the store refused or did not answer (503, 500, resets, time-outs), with back-off. What
remains to be repeated here, because botocore leaves it alone: answers whose body was cut off, and those that
come so slowly that a deadline passes. s3fs, which would repeat all that once more, only holds the connection.
"""

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from fsspec.asyn import sync

from .stores import aws_code, bucket_and_key, client_of, count_retry

DEADLINE_S: Final = 120.0
"""So long may a request and its repetitions take, …"""
BYTES_PER_S: Final = 2**16
"""… and as much longer as its body takes at this rate; then it is tried once more, on another connection."""
_PAUSES_S: Final = (0.1, 0.2)
"""Before a body that was cut off is asked for again."""
_PAGE: Final = 1000
"""Keys that S3 lists, and deletes, at once."""


class ChangedError(OSError):
    """An object no longer carries the etag that was asked for."""


class _CutOffError(OSError):
    """The body of an answer was not whole."""


class _TooSlowError(OSError):
    """An answer was not there in time."""


def get(url: str, start: int = 0, stop: int | None = None, *, etag: str | None = None) -> bytes:
    """Return an object's bytes, all or a range, by one request.

    Args:
        start, stop: the range in bytes; the object may end before `stop`.
        etag: refuse an object that carries another.

    Raises:
        ChangedError: it does.
        OSError, BotoCoreError: as in `call`.
    """
    request: dict[str, Any] = {"Key": bucket_and_key(url)[1]}
    if start or stop is not None:
        request["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    if etag is not None:
        request["IfMatch"] = f'"{etag}"'
    try:
        answer = call(url, "get_object", **request)
    except OSError as error:
        if etag is not None and aws_code(error) in ("PreconditionFailed", "412"):
            raise ChangedError(errno.ESTALE, f"it no longer carries the etag {etag}") from error
        # A range of an empty object cannot be satisfied.
        if start == 0 and aws_code(error) in ("InvalidRange", "416"):
            return b""
        raise
    # A store may ignore the condition.
    if etag is not None and (now := answer.get("ETag", etag).strip('"')) != etag:
        raise ChangedError(errno.ESTALE, f"its etag is {now}, planned was {etag}")
    body: bytes = answer["Body"]
    return body


def head(url: str) -> tuple[int, str]:
    """Return an object's size in bytes and its etag. Raises FileNotFoundError where there is none."""
    if not (key := bucket_and_key(url)[1]):
        raise FileNotFoundError(errno.ENOENT, "a bucket is no object", url)
    try:
        answer = call(url, "head_object", Key=key)
    except OSError as error:
        if aws_code(error) in ("400", "403", "404"):
            get(url, 0, 1)  # an answer to HEAD cannot say why, nor whether the bucket is there; this one does
        raise
    return int(answer["ContentLength"]), str(answer.get("ETag", "")).strip('"')


def put(url: str, data: bytes, **conditions: str) -> None:
    """Store an object in one PUT."""
    call(url, "put_object", Key=bucket_and_key(url)[1], Body=data, **conditions)


def pages(url: str, prefix: str) -> Iterator[list[dict[str, Any]]]:
    """Yield what lies below a prefix of the url's bucket, page by page: a million dictionaries take a gigabyte."""
    request = {"Prefix": prefix}
    while True:
        answer = call(url, "list_objects_v2", **request)
        yield answer.get("Contents", [])
        if not answer.get("IsTruncated"):
            return
        request["ContinuationToken"] = answer["NextContinuationToken"]


def folders(url: str) -> Iterator[str]:
    """Yield the names of the folders in a folder: of what keys that lie deeper go on with, up to the next slash."""
    prefix = bucket_and_key(url)[1] + "/"
    request = {"Prefix": prefix, "Delimiter": "/"}
    while True:
        answer = call(url, "list_objects_v2", **request)
        for found in answer.get("CommonPrefixes", []):
            yield found["Prefix"][len(prefix) : -1]
        if not answer.get("IsTruncated"):
            return
        request["ContinuationToken"] = answer["NextContinuationToken"]


def remove(url: str) -> None:
    """Remove an object; that it is missing is fine."""
    call(url, "delete_object", Key=bucket_and_key(url)[1])


def remove_below(url: str) -> None:
    """Remove all objects below a folder."""
    for page in pages(url, bucket_and_key(url)[1] + "/"):
        keys = [{"Key": found["Key"]} for found in page]
        # s3fs's own bulk deletion does not report what could not be deleted.
        if keys:
            answer = call(url, "delete_objects", Delete={"Objects": keys, "Quiet": True})
            if errors := answer.get("Errors"):
                raise PermissionError(errno.EACCES, f"{len(errors)} objects remain, {errors[0].get('Code')}")


def abort_uploads(url: str) -> int:
    """Abort the multipart uploads below a folder that were begun and not ended; return how many."""
    key = bucket_and_key(url)[1]
    request: dict[str, Any] = {"Prefix": key + "/" if key else "", "MaxUploads": _PAGE}
    seen: set[tuple[str, str]] = set()
    aborted = 0
    while True:
        try:
            answer = call(url, "list_multipart_uploads", **request)
        except OSError as error:
            if aws_code(error) in ("NotImplemented", "501", "MethodNotAllowed", "405"):
                return aborted
            raise
        # SeaweedFS says that there is more, and not where: the list is begun anew, with those that are left.
        uploads = {(one["Key"], one["UploadId"]) for one in answer.get("Uploads", [])} - seen
        seen |= uploads
        for key, upload_id in uploads:
            with contextlib.suppress(FileNotFoundError):  # it was ended meanwhile
                call(url, "abort_multipart_upload", Key=key, UploadId=upload_id)
                aborted += 1
        if not uploads or not answer.get("IsTruncated"):
            return aborted
        if "NextKeyMarker" in answer:
            request["KeyMarker"] = answer["NextKeyMarker"]
            request["UploadIdMarker"] = answer["NextUploadIdMarker"]


def call(url: str, operation: str, **request: Any) -> dict[str, Any]:
    """Make a request in the url's bucket, and return the answer; a `Body` in it is read.

    Raises:
        OSError: the store refused, failed or was too slow; refusals in s3fs's translation.
        BotoCoreError: there was no answer, or no request.
    """
    fs = client_of(url)
    answer: dict[str, Any] = sync(
        fs.loop, _in_time, fs, operation, {"Bucket": bucket_and_key(url)[0]} | fs.req_kw | request
    )
    return answer


async def _in_time(fs: Any, operation: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return await _within(fs, operation, request)
    except _TooSlowError:
        count_retry()
        return await _within(fs, operation, request)


async def _within(fs: Any, operation: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(DEADLINE_S + len(request.get("Body", b"")) / BYTES_PER_S) as limit:
            return await _whole(fs, operation, request, limit)
    except TimeoutError as error:
        if limit.expired():
            raise _TooSlowError(errno.ETIMEDOUT, "the store was too slow") from error
        raise


async def _whole(fs: Any, operation: str, request: dict[str, Any], limit: asyncio.Timeout) -> dict[str, Any]:
    """Return an answer with its body, asking again where that was cut off."""
    send = getattr(await fs.set_session(), operation)
    until = limit.when() or 0.0
    for pause in _PAUSES_S:
        try:
            return await _sent(send, request, limit, until)
        except _cut_off():
            count_retry()
            await asyncio.sleep(pause)
    return await _sent(send, request, limit, until)


async def _sent(
    send: Callable[..., Awaitable[dict[str, Any]]],
    request: dict[str, Any],
    limit: asyncio.Timeout,
    until: float,
) -> dict[str, Any]:
    from botocore import exceptions as boto  # noqa: PLC0415
    from s3fs.errors import translate_boto_error  # noqa: PLC0415

    try:
        answer = await send(**request)
    except boto.ClientError as error:
        raise translate_boto_error(error) from error
    if (body := answer.get("Body")) is not None:
        try:
            limit.reschedule(until + answer.get("ContentLength", 0) / BYTES_PER_S)
            answer["Body"] = await body.read()
        # Of a request as a whole they say that botocore gave up, and are not repeated.
        except (boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError) as error:
            raise _CutOffError(errno.EIO, f"the store cut off its answer: {error}") from error
        finally:
            body.close()  # one that was given up would keep its connection
    return answer


def _cut_off() -> tuple[type[BaseException], ...]:
    """Return what is raised by an answer that is not whole; the store may have done what it was asked for."""
    # Only who speaks to S3 pays for them.
    from aiohttp import ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    return _CutOffError, ClientError, ResponseParserError
