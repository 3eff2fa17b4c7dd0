"""A reader of S3 by obstore, to measure against the one by s3fs; whatever else a store does remains s3fs's."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

from maskrcnn.errors import UsageError
from maskrcnn.io import schemes
from maskrcnn.io.refusals import Refusal
from maskrcnn.io.stores.s3_store import _ETAG, S3Store
from maskrcnn.io.stores.store import Fault
from maskrcnn.io.url import Url

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store as Bucket
except ImportError as error:
    raise UsageError("this needs a package that is not installed: uv pip install obstore") from error


class ObstoreReader(S3Store):
    """S3, whose objects are read by obstore: its threads, its connections and its own repeating of requests."""

    client_errors: ClassVar = (*S3Store.client_errors, ("obstore.exceptions", "BaseError"))

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Return a range of an object's bytes. Raises ItemError: `changed`."""
        etag = etag if etag and _ETAG.fullmatch(etag) else None
        options: dict[str, Any] = {}
        if start or stop is not None:
            options["range"] = {"offset": start} if stop is None else (start, stop)
        if etag is not None:
            options["if_match"] = f'"{etag}"'
        environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        try:
            answer = obstore.get(_bucket(url.bucket, environment), url.key, options=options)
            body = bytes(answer.bytes())
        except exceptions.PreconditionError as error:
            raise Refusal.CHANGED_ETAG_UNKNOWN.error(planned=etag) from error
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise FileNotFoundError(url.text) from error
        except exceptions.BaseError as error:
            if start == 0 and "416" in str(error):  # no range of an empty object is satisfiable
                return b""
            raise
        if etag is not None and (now := str(answer.meta["e_tag"]).strip('"')) != etag:
            raise Refusal.CHANGED_ETAG.error(etag=now, planned=etag)
        return body

    def explain(self, error: BaseException, url: Url) -> Fault:
        """Describe what obstore raised by its class; of the answer it gives only the text."""
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            return Fault.of(Refusal.ACCESS_DENIED, answer="403", payer="", bucket=url.bucket)
        return super().explain(error, url)


@functools.cache
def _bucket(name: str, environment: tuple[tuple[str, str], ...]) -> Bucket:
    attempts = int(dict(environment).get("AWS_MAX_ATTEMPTS", 6))
    return Bucket(name, client_options={"allow_http": True}, retry_config={"max_retries": attempts - 1})


@contextmanager
def reading_by_obstore() -> Iterator[None]:
    """Read what is in S3 by obstore."""
    reader = ObstoreReader()
    with mock.patch.dict(schemes._REMOTE, {"s3": reader, "s3a": reader}):
        yield
