"""Azure Blob Storage: its credentials, how each thing that a store does is requested, and what its answers mean.

adlfs finds the credentials, as it does for pandas and Dask; its connection is used by Azure's own client, whose
conditions, pages and retries adlfs does not offer.
"""

import base64
import errno
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from fsspec import filesystem
from fsspec.asyn import sync

from ..refusals import Refusal
from ..url import Url
from . import deadlines
from .deadlines import TooSlowError, in_time
from .remote_store import RemoteStore, prefix_of, stat_of
from .request_count import LIST, count_request, count_retry
from .store import Fault, NotSetUpError, ObjectStat, Page, one_line, raised_and_not_logged

T = TypeVar("T")

_HOST: Final = "host"
_ETAG: Final = re.compile(r"0x[0-9A-F]+")
_PAGE: Final = 5000
"""Blobs that Azure lists at once."""
_KEYS: Final = (
    "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and one of AZURE_STORAGE_ACCOUNT_KEY and "
    "AZURE_STORAGE_SAS_TOKEN, or run `az login`; a public container needs AZURE_STORAGE_ANON=true"
)
_SCOPE: Final = "https://storage.azure.com/.default"
_REFUSALS: Final[Mapping[str, Refusal]] = {
    **dict.fromkeys(
        ("AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"),
        Refusal.CREDENTIALS_REFUSED,
    ),
    "AccountIsDisabled": Refusal.ACCOUNT,
    **dict.fromkeys(("BlobArchived", "BlobBeingRehydrated"), Refusal.ARCHIVED_BLOB),
    "ContainerNotFound": Refusal.NO_CONTAINER,
    **dict.fromkeys(("InvalidResourceName", "OutOfRangeInput"), Refusal.CONTAINER_NAME),
    "InvalidUri": Refusal.OBJECT_NAME,
    **dict.fromkeys(
        ("PublicAccessNotPermitted", "KeyBasedAuthenticationNotPermitted"), Refusal.ACCESS_DENIED
    ),
    "ServerBusy": Refusal.STORE_BUSY,
}


class AzureStore(RemoteStore):
    """Containers of Azure Blob Storage (`AZURE_STORAGE_CONNECTION_STRING`, …; `AZURE_STORAGE_ANON=true`: public ones).

    A URL is `az://CONTAINER/KEY`, or in Hadoop's spelling `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY`.

    Args:
        scheme: `az`, `abfs` or `abfss`.
    """

    client_errors: ClassVar = (("azure.core.exceptions", "AzureError"), ("aiohttp", "ClientError"))

    def __init__(self, scheme: str) -> None:
        super().__init__(scheme, ("AZURE_",), extra="azure")

    def connect(self, environment: Mapping[str, str]) -> Any:
        """Return a new fsspec file system, which has its credentials.

        Raises:
            ImportError: adlfs is not installed.
            NotSetUpError: there are no credentials, or they cannot be read.
        """
        import adlfs  # noqa: F401, PLC0415 (the package may be missing)
        from azure.core.exceptions import ClientAuthenticationError  # noqa: PLC0415
        from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry  # noqa: PLC0415

        raised_and_not_logged("adlfs", "azure", "azure.identity")
        host = environment.get(_HOST, "")
        name = host.partition(".")[0]
        _check(environment, name)
        account = {"account_name": name, "account_host": host} if host else {}
        try:
            found = filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False, **account)
            if found.sync_credential is not None:
                found.sync_credential.get_token(_SCOPE)
        except ClientAuthenticationError as error:
            raise NotSetUpError(Fault.of(Refusal.CREDENTIALS_MISSING, advice=_KEYS)) from error
        except ValueError as error:
            what = "the AZURE_STORAGE_ variables name no account"
            raise NotSetUpError(Fault.of(Refusal.SETTING, what=what, advice=_KEYS)) from error
        # Azure's own pauses begin with 15 s.
        found.service_client = BlobServiceClient(
            found.service_client.url,
            credential=found.service_client.credential,
            retry_policy=ExponentialRetry(
                initial_backoff=1,
                increment_base=2,
                random_jitter_range=1,
                retry_total=4,
                retry_connect=4,
                retry_read=4,
                retry_status=4,
            ),
            connection_timeout=5,
            read_timeout=deadlines.READ_TIMEOUT_S,
            max_single_get_size=2**30,
            max_block_size=2**24,
        )
        return found

    def _request(self, url: Url, request: Callable[..., Awaitable[T]], sent: int = 0) -> T:
        """Return what a request to the URL's container returns, which gets the container and further arguments.

        Raises:
            FileNotFoundError: there is no such blob or container.
            AzureError: Azure refused otherwise, or failed.
        """
        name, _, host = url.bucket.partition("@")
        client = self.client(**({_HOST: host.replace(".dfs.", ".blob.")} if host else {}))
        from azure.core.exceptions import HttpResponseError, ResourceNotFoundError  # noqa: PLC0415 (it is installed)

        container = client.service_client.get_container_client(name)

        async def attempt(expect: Callable[[int], None]) -> T:
            answered = set()

            def on_answer(response: Any) -> None:
                answer = response.http_response
                asked_for = response.http_request
                is_page = asked_for.query.get("comp") == "list"
                count_request(LIST if is_page else asked_for.method)
                if answer.status_code < 300:
                    expect(int(answer.headers.get("Content-Length") or 0))
                    asked = response.http_request.headers.get("x-ms-range")
                    if asked in answered:  # the body of the answer before was cut off
                        count_retry()
                    answered.add(asked)

            return await request(container, raw_response_hook=on_answer, retry_hook=lambda **_: count_retry())

        try:
            return sync(client.loop, in_time, attempt, sent)  # type: ignore[no-any-return]
        except ResourceNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such blob", url.text) from error
        except TypeError as error:
            # Raised by Azure's client while it describes an answer that has a code, but no message.
            behind = _handled(error, HttpResponseError)
            raise behind or error from None

    # Reading

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Return a range of a blob's bytes. Raises ItemError: `changed`; an etag not of Azure's form is ignored."""
        planned = etag if etag and _ETAG.fullmatch(etag) else None
        options: dict[str, Any] = {}
        if start or stop is not None:
            options = {"offset": start, "length": None if stop is None else stop - start}
        if planned is not None:
            options["etag"] = f'"{planned}"'

        async def request(container: Any, **more: Any) -> tuple[bytes, str]:
            from azure.core import MatchConditions  # noqa: PLC0415

            if planned is not None:
                more["match_condition"] = MatchConditions.IfNotModified
            answer = await container.download_blob(url.key, **options, **more)
            return await answer.readall(), answer.properties.etag.strip('"')

        try:
            body, now = self._request(url, request)
        except self.failures() as error:
            status = getattr(error, "status_code", None)
            if planned is not None and status == 412:
                # What does not exist has not the etag either.
                raise Refusal.CHANGED_ETAG.error(etag=self.stat(url).etag, planned=planned) from error
            if start == 0 and status == 416:  # no range of an empty blob is satisfiable
                return b""
            raise
        if planned is not None and now != planned:  # a server may ignore the condition
            raise Refusal.CHANGED_ETAG.error(etag=now, planned=planned)
        return body

    def stat(self, url: Url) -> ObjectStat:
        """Return size and etag. Raises FileNotFoundError where there is no blob."""
        if not url.key:
            raise FileNotFoundError(errno.ENOENT, "a container is not a blob", url.text)

        async def request(container: Any, **more: Any) -> Any:
            return await container.get_blob_client(url.key).get_blob_properties(**more)

        found = self._request(url, request)
        if _is_folder(found):
            raise FileNotFoundError(errno.ENOENT, "a folder is not a blob", url.text)
        return stat_of(found)

    # Listing

    def scan(self, url: Url, stem: str = "") -> Iterator[Page]:
        """Yield the blobs below a folder, by pages, without those that mark folders."""
        prefix = prefix_of(url)
        options = {"name_starts_with": prefix + stem, "include": ["metadata"], "results_per_page": _PAGE}
        token: str | None = ""
        while token is not None:

            async def request(
                container: Any, token: str = token, **more: Any
            ) -> tuple[list[Any], str | None]:
                pages = container.list_blobs(**options, **more).by_page(token or None)
                found = [blob async for page in _first(pages) async for blob in page]
                return found, pages.continuation_token or None

            found, token = self._request(url, request)
            files = [blob for blob in found if not blob.name.endswith("/") and not _is_folder(blob)]
            yield [blob.name[len(prefix) :] for blob in files], [stat_of(blob) for blob in files]

    def folders(self, url: Url) -> list[str]:
        """Return the names of the folders in a folder: of the names below it, the part up to the next slash."""
        prefix = prefix_of(url)

        async def request(container: Any, **more: Any) -> list[str]:
            found = container.walk_blobs(name_starts_with=prefix, results_per_page=_PAGE, **more)
            return [item.name async for item in found if item.name.endswith("/") and item.name != prefix]

        return [name[len(prefix) : -1] for name in self._request(url, request)]

    # Writing

    def put(self, url: Url, data: bytes, *, only_new: bool = False) -> None:
        """Write a blob; from 64 MiB in blocks, which become one blob by a last request."""

        async def request(container: Any, **more: Any) -> None:
            await container.upload_blob(url.key, data, overwrite=not only_new, **more)

        self._request(url, request, len(data))

    def put_file(self, url: Url, local: Path) -> None:
        """Write a local file's content, likewise."""
        size = local.stat().st_size

        async def request(container: Any, **more: Any) -> None:
            with local.open("rb") as source:
                await container.upload_blob(url.key, source, length=size, overwrite=True, **more)

        self._request(url, request, size)

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether Azure found a blob, or another writer of one."""
        return super().is_conflict(error) or _code(error) in ("BlobAlreadyExists", "ConditionNotMet")

    def remove(self, url: Url) -> None:
        """Remove a blob. Raises FileNotFoundError where there is none."""

        async def request(container: Any, **more: Any) -> None:
            await container.delete_blob(url.key, **more)

        self._request(url, request)

    # Failures

    def explain(self, error: BaseException, url: Url) -> Fault:
        """Describe what Azure or its client raised."""
        return _fault(error, url) or super().explain(error, url)


def _handled(error: BaseException, kind: type[Exception]) -> BaseException | None:
    """Return the exception of a kind that was being handled when another one was raised; None if there is none."""
    found = error.__context__
    while found is not None and not isinstance(found, kind):
        found = found.__context__
    return found


async def _first(pages: Any) -> Any:
    """Yield the first page."""
    async for page in pages:
        yield page
        return


def _is_folder(blob: Any) -> bool:
    """Return whether a blob stands for a folder, in an account with hierarchical names."""
    return any(key.lower() == "hdi_isfolder" for key in blob.metadata or ())


def _check(environment: Mapping[str, str], account: str) -> None:
    """Raise NotSetUpError where Azure's client would take what is set, and every request would be refused.

    Args:
        environment: of the client.
        account: that a URL names, or "". The client would use the connection string's.
    """
    key, connection = (
        environment.get(f"AZURE_STORAGE_{name}", "") for name in ("ACCOUNT_KEY", "CONNECTION_STRING")
    )
    parts = dict(part.partition("=")[::2] for part in connection.split(";") if "=" in part)
    named = "AZURE_STORAGE_CONNECTION_STRING"
    faults = (
        (connection and not parts.keys() & {"AccountName", "BlobEndpoint"}, f"{named} names no account"),
        (
            connection and not parts.keys() & {"AccountKey", "SharedAccessSignature"},
            f"{named} has neither AccountKey nor SharedAccessSignature",
        ),
        (not _is_base64(parts.get("AccountKey", "")), f"the key in {named} is not base64"),
        (not connection and not _is_base64(key), "AZURE_STORAGE_ACCOUNT_KEY is not base64"),
    )
    for wrong, cause in faults:
        if wrong:
            raise NotSetUpError(Fault.of(Refusal.CREDENTIALS_UNREADABLE, cause=f"{cause}; copy it anew"))
    if account and connection and parts.get("AccountName") != account:
        what = f"{named} is not of the account {account!r}"
        raise NotSetUpError(Fault.of(Refusal.SETTING, what=what, advice="unset it, or leave out the account"))


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _code(error: BaseException) -> str:
    """Return the code of Azure's answer, like `BlobNotFound`, or "" if something else failed."""
    found = next((e for e in (error, error.__cause__) if getattr(e, "response", None) is not None), None)
    if found is None:
        return ""
    code = getattr(found, "error_code", None) or getattr(found, "status_code", "")
    return str(getattr(code, "value", code))


def _answered(error: BaseException, code: str) -> Refusal | None:
    """Return what an answer of Azure's means; None if it is of no known kind."""
    status, text = getattr(error, "status_code", None) or 0, str(error)
    if "date header" in text:
        return Refusal.CLOCK
    if "not valid in the specified time frame" in text:
        return Refusal.CREDENTIALS_EXPIRED
    if "failed to authenticate the request" in text:
        return Refusal.CREDENTIALS_REFUSED
    by_status = {401: Refusal.CREDENTIALS_REFUSED, 403: Refusal.ACCESS_DENIED, 429: Refusal.STORE_BUSY}
    return _REFUSALS.get(code) or by_status.get(status) or (Refusal.STORE_FAILING if status >= 500 else None)


def _unanswered(error: BaseException) -> Refusal | None:
    """Return what the client raised without an answer means; None if it is no failure of the client's."""
    # Only Azure's client raised it: they are loaded.
    from aiohttp import ClientConnectorError  # noqa: PLC0415
    from azure.core.exceptions import AzureError  # noqa: PLC0415

    if isinstance(error, TooSlowError):
        return Refusal.TOO_SLOW
    if isinstance(getattr(error, "inner_exception", None), ClientConnectorError):
        return Refusal.UNREACHABLE
    return Refusal.CONNECTION_LOST if isinstance(error, AzureError) else None


def _fault(error: BaseException, url: Url) -> Fault | None:
    """Describe an answer of Azure's, or what its client raised; None if it is another failure."""
    code = _code(error)
    if isinstance(error, NotSetUpError):
        return None
    if not code and type(error).__name__ in ("ClientAuthenticationError", "CredentialUnavailableError"):
        return Fault.of(Refusal.CREDENTIALS_MISSING, advice=_KEYS)
    refusal = _answered(error, code) if code else _unanswered(error)
    if refusal is None and code and not isinstance(error, FileNotFoundError):
        return Fault.of(Refusal.STORE_REFUSED, answer=f"{code}: {one_line(error)}"[:200])
    if refusal is None:
        return None
    cause = getattr(error, "inner_exception", None) or error
    return Fault.of(
        refusal,
        answer=code,
        cause=errno.errorcode.get(getattr(cause, "errno", None) or 0) or type(cause).__name__,
        container=url.bucket.partition("@")[0],
        endpoint="Azure Blob Storage",
        payer="",
        setting="the name of the account in AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING",
        tried="several attempts",
    )
