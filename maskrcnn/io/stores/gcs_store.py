"""Google Cloud Storage: its credentials, and what its answers mean."""

import errno
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from fsspec import config, filesystem

from ..refusals import Refusal
from ..url import Url
from .fsspec_store import FsspecStore
from .store import Fault, NotSetUpError, one_line, raised_and_not_logged

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
        # Read when google.auth is imported: elsewhere than on Google's machines nobody answers.
        os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
        os.environ.setdefault("GCE_METADATA_TIMEOUT", "2")
        import gcsfs.retry  # noqa: PLC0415
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

        raised_and_not_logged("gcsfs", "google.auth", "google.auth._default")
        chosen = any("token" in config.conf.get(name, {}) for name in ("gs", "gcs"))  # FSSPEC_GS_TOKEN
        token = {} if chosen or environment.get(_EMULATOR) else {"token": "google_default"}
        try:
            found = filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False, **token)
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

    def explain(self, error: BaseException, url: Url) -> Fault:
        """Describe what gcsfs raised."""
        return _fault(error, url) or super().explain(error, url)


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
