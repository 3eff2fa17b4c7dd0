"""The Hugging Face Hub: read only, at a commit that is looked up when a run is planned, and what its answers mean."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from ..refusals import Refusal
from ..url import Url
from .fsspec_store import FsspecStore
from .request_count import count_request
from .store import Fault, NotSetUpError, ObjectStat, Page, raised_and_not_logged

_ENDPOINT: Final = "HF_ENDPOINT"
_CHECK: Final = "check the name, hf://datasets/OWNER/NAME@REVISION/PATH"
_FORBIDDEN: Final = "the Hugging Face Hub refuses the read"
_CONDITIONS: Final = "accept the data set's conditions on its page, and set HF_TOKEN"
_COMMIT: Final = re.compile(r"@[0-9a-f]{40}(/|$)")
_PREFIXES: Final = {"dataset": "datasets/", "space": "spaces/"}
"""Of the names of repositories that are no models."""


class HfStore(FsspecStore):
    """Repositories of the Hugging Face Hub (`HF_TOKEN` for private and gated ones, `HF_ENDPOINT` for another hub)."""

    client_errors: ClassVar = (("httpx2", "HTTPError"), ("httpx", "HTTPError"))
    is_writable: ClassVar = False

    def __init__(self) -> None:
        super().__init__("hf", ("HF_", "HUGGING_FACE_"), extra="hf")

    def connect(self, environment: Mapping[str, str]) -> Any:
        """Return a new fsspec file system. Raises ImportError: huggingface_hub is not installed."""
        from huggingface_hub import HfFileSystem  # noqa: PLC0415

        raised_and_not_logged("huggingface_hub", "huggingface_hub.utils._http")
        return HfFileSystem(endpoint=environment.get(_ENDPOINT), skip_instance_cache=True)

    def pinned(self, url: Url) -> Url:
        """Return the URL with the commit that its revision stands for now, in place of it.

        `hf://datasets/NAME/data` becomes `hf://datasets/NAME@COMMIT/data`, whose files never change.
        """
        client = self.client()
        from huggingface_hub import HfApi  # noqa: PLC0415 (it is installed: there is a client)

        place = client.resolve_path(url.path)
        if not hasattr(place, "repo_id"):  # a bucket, which has no commits
            return url
        api = HfApi(endpoint=client.endpoint, token=client.token)
        commit = api.repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
        slash = "/" if url.key.endswith("/") else ""
        path = f"/{place.path_in_repo}" if place.path_in_repo else ""
        name = f"{_PREFIXES.get(place.repo_type, '')}{place.repo_id}@{commit}{path}"
        return Url.parse(f"{self.scheme}://{name}{slash}")

    def stat(self, url: Url) -> ObjectStat:
        """Return size and the id of the content. Raises FileNotFoundError where there is no file."""
        info = self._current(url).info(url.path)
        if info["type"] != "file":
            raise FileNotFoundError(url.text)
        return _stat_of(info)

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:  # noqa: ARG002
        """Return a range of a file's bytes; the etag is not compared, because files of a commit never change."""
        client = self._current(url)
        size = client.info(url.path)["size"]
        stop = size if stop is None else min(stop, size)
        if start >= stop:
            return b""
        count_request("GET")
        return cast(bytes, client.cat_file(url.path, start=start, end=stop, cache_type="none"))

    def scan(self, url: Url, stem: str = "") -> Iterator[Page]:  # noqa: ARG002
        """Yield all files below a folder, as one page."""
        root = url.path.strip("/") + "/"
        found = self._current(url).find(url.path.rstrip("/"), detail=True)
        below = {path: info for path, info in found.items() if path.startswith(root)}
        yield [path[len(root) :] for path in below], [_stat_of(info) for info in below.values()]

    def _current(self, url: Url) -> Any:
        """Return the client, which knows a commit's files from earlier requests, but nothing else's."""
        client = self.client()
        if not _COMMIT.search(url.key):
            client.invalidate_cache(url.path)
        return client

    def put(self, url: Url, data: bytes, *, only_new: bool = False) -> None:  # noqa: ARG002
        """Refuse to write. Raises NotSetUpError."""
        what = "the Hugging Face Hub is read, not written"
        raise NotSetUpError(Fault.of(Refusal.SETTING, what=what, advice="name another place"))

    def put_file(self, url: Url, local: Path) -> None:  # noqa: ARG002
        """Refuse to write. Raises NotSetUpError."""
        self.put(url, b"")

    def remove(self, url: Url) -> None:
        """Refuse to remove. Raises NotSetUpError."""
        self.put(url, b"")

    def explain(self, error: BaseException, url: Url) -> Fault:
        """Describe what huggingface_hub raised."""
        return _fault(error) or super().explain(error, url)


def _stat_of(info: Mapping[str, Any]) -> ObjectStat:
    content = info.get("blob_id") or info.get("xet_hash") or info["size"]
    return ObjectStat(int(info["size"]), str(content))


def _fault(error: BaseException) -> Fault | None:
    """Describe an answer of the hub; None if it is another failure."""
    from huggingface_hub import errors  # noqa: PLC0415 (its client raised the error: it is loaded)

    if isinstance(error, NotSetUpError):
        return None
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    for kind, what, advice in (
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set", "unset it, or read a copy of the data set"),
        (errors.GatedRepoError, _FORBIDDEN, _CONDITIONS),
        (
            errors.RepositoryNotFoundError,
            "no such repository, or it is private",
            f"{_CHECK}, or set HF_TOKEN",
        ),
        (errors.RevisionNotFoundError, "no such revision", _CHECK),
        (
            (errors.HFValidationError, errors.HfUriError, NotImplementedError),
            "no name of a repository",
            _CHECK,
        ),
    ):
        if isinstance(cause, kind):
            return Fault.of(Refusal.SETTING, what=what, advice=advice)
    if status in (401, 403):
        return Fault.of(Refusal.SETTING, what=_FORBIDDEN, advice=_CONDITIONS)
    refusal = None
    if isinstance(cause, FileNotFoundError | errors.EntryNotFoundError):
        refusal = Refusal.MISSING
    elif isinstance(status, int):
        refusal = Refusal.STORE_FAILING if status >= 500 else Refusal.STORE_REFUSED
        refusal = Refusal.STORE_BUSY if status == 429 else refusal
    elif type(cause).__module__.startswith("httpx"):
        refusal = Refusal.UNREACHABLE
    if refusal is None:
        return None
    return Fault.of(
        refusal,
        answer=f"HTTP status {status}",
        endpoint="the Hugging Face Hub",
        setting=_ENDPOINT,
        tried="several attempts",
    )
