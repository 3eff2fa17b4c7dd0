"""What the answers of S3, and of what speaks its protocol, mean: codes to the table of refusals.

References: S3's "Error responses"; the codes of Ceph, MinIO and SeaweedFS, which differ in what concerns accounts.
"""

import errno
import os
import ssl
from collections.abc import Mapping
from typing import Any, Final

from ...errors import plural
from ..refusals import Refusal
from ..url import Url
from .deadlines import TooSlowError
from .s3_client import CutOffError, answer_of, error_code, region_of
from .s3_settings import KEYS_ADVICE, endpoint_of
from .store import Fault

REGION_CODES: Final = (
    *("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"),
    *("TemporaryRedirect", "301", "302", "307"),
)
"""The bucket is in another region than the one that the client is set up for."""
_CODES: Final[Mapping[Refusal, str]] = {
    Refusal.CREDENTIALS_EXPIRED: "ExpiredToken ExpiredTokenException TokenRefreshRequired",
    Refusal.CREDENTIALS_REFUSED: (
        "401 CredentialsNotSupported InvalidSecurity MissingSecurityHeader NotSignedUp Unauthorized "
        "UnauthorizedAccess UnauthorizedAccessError UnrecognizedClientException InvalidClientTokenId"
    ),
    Refusal.ACCESS_KEY: "InvalidAccessKeyId InvalidAccessKey",
    Refusal.SECRET_KEY: "SignatureDoesNotMatch",
    Refusal.SESSION_TOKEN: "InvalidToken",
    Refusal.CLOCK: "RequestExpired RequestTimeTooSkewed",
    Refusal.ACCOUNT: (
        "AccountProblem AllAccessDisabled UserSuspended AccountSuspended InvalidPayer UserDisabled "
        "UserDisable Suspended AccountDisabled InArrears 402"
    ),
    Refusal.NO_ACCESS_POINT: (
        "NoSuchAccessPoint NoSuchMultiRegionAccessPoint InvalidAccessPoint NoSuchOutpost"
    ),
    Refusal.STORE_BUSY: (
        "SlowDown SlowDownRead SlowDownWrite RequestLimitExceeded BandwidthLimitExceeded Throttling "
        "ThrottlingException ThrottledException RequestThrottled 429 TooManyRequests "
        "TooManyRequestsException RequestThrottledException 509 EC2ThrottledException "
        "ProvisionedThroughputExceededException TooManyRequestsError"
    ),
    Refusal.STORE_FAILING: (
        "500 502 503 504 InternalError InternalServerError ServiceUnavailable BadGateway GatewayTimeout "
        "RequestTimeout RequestTimeoutException Busy ServerBusy OperationAborted ServerNotInitialized "
        "XMinioServerNotInitialized"
    ),
    Refusal.STORE_FULL: (
        "QuotaExceeded XMinioStorageFull XMinioAdminBucketQuotaExceeded 507 InsufficientStorage"
    ),
    Refusal.OBJECT_NAME: "KeyTooLongError InvalidURI XMinioInvalidObjectName",
    Refusal.BUCKET_NAME: "InvalidBucketName",
    Refusal.ARCHIVED: "InvalidObjectState",
    Refusal.NO_BUCKET: "NoSuchBucket",
}
_REFUSALS: Final = {code: refusal for refusal, codes in _CODES.items() for code in codes.split()}
_PAYER: Final = "; a requester-pays bucket needs FSSPEC_S3_REQUESTER_PAYS=true"


def s3_fault(error: BaseException, url: Url) -> Fault | None:
    """Describe what S3 answered about a URL, or what its client raised; None if that is no failure of S3's."""
    return _answered(error, url) if answer_of(error) else _unanswered(error, url)


def _answered(error: BaseException, url: Url) -> Fault:
    answer, code = answer_of(error), error_code(error)
    if code in REGION_CODES:
        return _other_region(answer, url, code)
    if code in ("", "404"):  # S3 gives a reason
        return Fault.of(Refusal.NOT_S3, lasting=True)
    refusal = _REFUSALS.get(code)
    if refusal is None and code.startswith("KMS."):
        refusal = Refusal.STORE_BUSY if "hrottl" in code else Refusal.KMS_KEY
    if refusal is None and isinstance(error, FileNotFoundError):
        refusal = Refusal.MISSING
    if refusal is None and isinstance(error, PermissionError):
        refusal = Refusal.ACCESS_DENIED
    if refusal is None:
        said = str(answer.get("Error", {}).get("Message", ""))
        return Fault.of(Refusal.STORE_REFUSED, answer=" ".join(f"{code}: {said}".split())[:200].rstrip(": "))
    attempts = int(answer.get("ResponseMetadata", {}).get("RetryAttempts", 0)) + 1
    values: dict[str, Any] = {
        "answer": code,
        "bucket": url.bucket,
        "payer": _PAYER,
        "tier": _tier(answer),
        "tried": plural(attempts, "attempt"),
    }
    return Fault.of(refusal, **values)


def _unanswered(error: BaseException, url: Url) -> Fault | None:
    # Only S3 raised it: botocore is loaded, and `import maskrcnn` need not load it.
    from botocore import exceptions as boto  # noqa: PLC0415

    endpoint, cause = endpoint_of(os.environ), getattr(error, "kwargs", {}).get("error")
    fault = None
    if isinstance(error, boto.SSLError):
        fault = Fault.of(Refusal.UNTRUSTED, endpoint=endpoint)
    elif isinstance(error, boto.ConnectionError):
        server = f"the S3 endpoint ({endpoint})"
        fault = Fault.of(Refusal.UNREACHABLE, endpoint=server, setting="AWS_ENDPOINT_URL")
    elif isinstance(error, boto.NoCredentialsError):
        fault = Fault.of(Refusal.CREDENTIALS_MISSING, advice=KEYS_ADVICE)
    elif isinstance(cause, FileNotFoundError | PermissionError | ssl.SSLError):  # before any connection
        what = "the file of certificates cannot be read"
        advice = "check AWS_CA_BUNDLE, or ca_bundle in ~/.aws/config"
        fault = Fault.of(Refusal.SETTING, what=what, advice=advice)
    elif "Invalid bucket name" in str(error):
        fault = Fault.of(Refusal.BUCKET_NAME, bucket=url.bucket)
    elif isinstance(error, TooSlowError):
        fault = Fault.of(Refusal.TOO_SLOW)
    elif isinstance(error, CutOffError | boto.HTTPClientError):
        name = errno.errorcode.get(getattr(cause, "errno", None) or 0) or type(cause or error).__name__
        fault = Fault.of(Refusal.CONNECTION_LOST, cause=name)
    return fault


def _other_region(answer: Mapping[str, Any], url: Url, code: str) -> Fault:
    region = region_of(answer)
    here = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "not set"
    value = f"={region}" if region else " to the bucket's"
    return Fault.of(
        Refusal.REGION,
        bucket=url.bucket,
        region=region or "another region",
        value=value,
        here=here,
        answer=code,
    )


def _tier(answer: Mapping[str, Any]) -> str:
    """Return the archive of an object: Glacier, Deep Archive, or an archive tier of Intelligent-Tiering."""
    refusal = answer.get("Error", {})
    tier = refusal.get("AccessTier") or refusal.get("StorageClass")
    return f" ({tier})" if tier else ""
