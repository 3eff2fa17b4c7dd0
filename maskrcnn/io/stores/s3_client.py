"""Requests to S3, each repeated in one layer, and none without an end.

botocore repeats what the store refused or did not answer (503, 500, resets, time-outs), with back-off
(`AWS_MAX_ATTEMPTS`, 6 by default, some 15 s in all). Of its modes it is the one named legacy: in the standard one, all
requests of a process share one budget of retries, and once a burst of refusals has used it up, every further refusal
is final.

What remains to be repeated here, because botocore does not: answers whose body was cut off, and those that come so
slowly that a deadline passes. s3fs, which would repeat all that once more, only holds the connection. All repetitions
are counted (`take_retries`).
"""

import asyncio
import datetime
import errno
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from fsspec import filesystem
from fsspec.asyn import sync

from . import deadlines
from .deadlines import in_time
from .request_count import LIST, count_request, count_retry
from .s3_settings import check_endpoint, max_attempts, retry_mode, setup_faults
from .store import raised_and_not_logged

_REDIRECTED: Final = (301, 302, 307)
_PAUSES_S: Final = (0.1, 0.2)
"""Before a body that was cut off is requested again."""


class CutOffError(OSError):
    """The body of an answer was incomplete."""


# Connections


def connect(environment: Mapping[str, str]) -> Any:
    """Return a new s3fs file system that caches no listing. Raises ImportError, NotSetUpError."""
    check_endpoint(environment)
    config = {
        "retries": {
            "mode": retry_mode(environment, "legacy"),
            "total_max_attempts": max_attempts(environment, 6),
        },
        "connect_timeout": 5,
        "read_timeout": deadlines.READ_TIMEOUT_S,
        "max_pool_connections": 64,
        "http_session_cls": _http_session_class(),
    }
    caches = {"skip_instance_cache": True, "use_listings_cache": False}
    # Of the two names of this variable botocore reads only AWS_DEFAULT_REGION.
    region = {"region_name": environment.get("AWS_REGION") or None}
    with setup_faults():
        s3 = filesystem("s3", config_kwargs=config, client_kwargs=region, session=_session(), **caches)
    s3.retries = 1
    return s3


def _session() -> Any:
    """Return a session whose clients, also those that s3fs makes anew, count what they send again."""
    from aiobotocore.session import AioSession  # noqa: PLC0415

    raised_and_not_logged("botocore.credentials", "aiobotocore.credentials")
    session = AioSession()
    session.register("before-send.s3", _count)
    session.register("needs-retry.s3", _sign_again)
    session.register("needs-retry.s3.HeadBucket", _end_redirects)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time_of)
    return session


def _time_of(value: Any) -> Any:
    """Return a time of an answer; of a listing, which has one for each object, in a hundredth of botocore's time."""
    try:
        time = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        time = None  # another way to write it, which botocore knows
    if time is None or time.tzinfo is None:
        from botocore.utils import parse_timestamp  # noqa: PLC0415

        return parse_timestamp(value)
    return time


def _http_session_class() -> type:
    """Return the usual HTTP session, but one that sends nothing twice on its own, without back-off and uncounted."""
    from aiobotocore.httpsession import AIOHTTPSession  # noqa: PLC0415

    class SendingOnce(AIOHTTPSession):  # type: ignore[misc]  # without types
        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            session._retry_connection = False  # noqa: SLF001  # aiohttp has no other name for it
            return session

    return SendingOnce


def _count(request: Any, **_: object) -> None:
    count_request(LIST if "list-type=2" in request.url else request.method)
    # botocore numbers its attempts: `attempt=2; max=6`
    number = re.search(r"attempt=(\d+)", str(request.headers.get("amz-sdk-request")))
    if number and int(number[1]) > 1:
        count_retry()


def _sign_again(response: Any, attempts: int, **_: object) -> float | None:
    """Repeat a request once that was too old when it arrived: its process may have been suspended."""
    code = response[1].get("Error", {}).get("Code") if response else None
    return 0.0 if code == "RequestTimeTooSkewed" and attempts == 1 else None


def _end_redirects(response: Any, operation: Any, **_: object) -> None:
    """Raise the refusal of a request for a bucket's region that does not contain it.

    botocore asks for the region of a bucket that redirects, and would ask again for each redirected answer.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415

    if response and response[0].status_code in _REDIRECTED and not region_of(response[1]):
        raise ClientError(response[1], operation.name)


# Requests


def call(client: Any, operation: str, **request: Any) -> dict[str, Any]:
    """Send a request and return the answer, its `Body` as bytes if it has one.

    Args:
        client: from `connect`.
        operation: botocore's name of it, like `get_object`.
        request: its parameters.

    Raises:
        OSError: the store refused, failed or was too slow; refusals in s3fs's translation.
        BotoCoreError: there was no answer, or no request could be sent.
    """

    async def whole(expect: Callable[[int], None]) -> dict[str, Any]:
        return await _whole(client, operation, client.req_kw | request, expect)

    answer: dict[str, Any] = sync(client.loop, in_time, whole, len(request.get("Body", b"")))
    return answer


def error_code(error: BaseException) -> str:
    """Return the code of S3's answer, like `NoSuchBucket`, or "" if something else failed."""
    return str(answer_of(error).get("Error", {}).get("Code", ""))


def answer_of(error: BaseException) -> Mapping[str, Any]:
    """Return S3's answer to a request that it refused; empty if something else failed."""
    return getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}


def region_of(answer: Mapping[str, Any]) -> str:
    """Return the region that S3's refusal names as the bucket's, or ""."""
    refusal = answer.get("Error", {})
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    stated = headers.get("x-amz-bucket-region") or refusal.get("Region")
    said = f"{refusal.get('Message', '')} {refusal.get('Endpoint', '')}"
    found = re.search(r"expecting '([a-z0-9-]+)'|\.s3[.-]([a-z0-9-]+)\.amazonaws\.", said)
    return str(stated or (found and (found[1] or found[2])) or "")


async def _whole(
    client: Any, operation: str, request: dict[str, Any], expect: Callable[[int], None]
) -> dict[str, Any]:
    """Return an answer with its body, requesting it again where that was cut off."""
    send = getattr(await _set_up(client), operation)
    for pause in _PAUSES_S:
        try:
            return await _sent(send, request, expect)
        except _cut_off():
            count_retry()
            await asyncio.sleep(pause)
    return await _sent(send, request, expect)


async def _set_up(client: Any) -> Any:
    """Return the client of the connection, which has its credentials.

    Raises:
        NotSetUpError: an endpoint, region, profile or option is invalid, or credentials cannot be read.
    """
    with setup_faults():
        connected = await client.set_session()
        # Read here, where a file of theirs that is missing cannot be taken for an object.
        credentials = connected._get_credentials()  # noqa: SLF001  # botocore has no other name for them
        if credentials is not None:
            await credentials.get_frozen_credentials()
    return connected


async def _sent(
    send: Callable[..., Awaitable[dict[str, Any]]], request: dict[str, Any], expect: Callable[[int], None]
) -> dict[str, Any]:
    from botocore import exceptions as boto  # noqa: PLC0415
    from s3fs.errors import translate_boto_error  # noqa: PLC0415

    try:
        answer = await send(**request)
    except boto.ClientError as error:
        raise translate_boto_error(error) from error
    if (body := answer.get("Body")) is not None:
        try:
            expect(answer.get("ContentLength", 0))
            answer["Body"] = await body.read()
        # Raised by a request as a whole, they mean that botocore gave up, and are not repeated.
        except (boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError) as error:
            raise CutOffError(errno.EIO, f"the store cut off its answer: {error}") from error
        finally:
            body.close()  # otherwise a body that was abandoned would keep its connection
    return answer


def _cut_off() -> tuple[type[BaseException], ...]:
    """Return what an incomplete answer raises; the store may have done what was requested."""
    # Imported only where S3 is used.
    from aiohttp import ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    return CutOffError, ClientError, ResponseParserError
