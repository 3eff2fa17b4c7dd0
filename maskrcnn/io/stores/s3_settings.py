"""What the user set up for S3: variables, the files in `~/.aws`, and credentials, and what is wrong with them.

The client reports all of it by exceptions that can also be an object's: a file of credentials that is missing raises
FileNotFoundError. So it is asked for its credentials before each request (`s3_client`), and what fails then is here.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from ..refusals import Refusal
from ..url import redact, redact_all
from .store import Fault, NotSetUpError, one_line

RETRY_MODES: Final = ("legacy", "standard", "adaptive")
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_FILES: Final = "the variables AWS_… (profile, region, endpoint) and the files in ~/.aws"
KEYS_ADVICE: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role"


def endpoint_of(environment: Mapping[str, str]) -> str:
    """Return the endpoint that the environment names, for messages: without a password."""
    return next((redact(environment[name]) for name in _ENDPOINTS if environment.get(name)), "AWS")


def max_attempts(environment: Mapping[str, str], default: int) -> int:
    """Return how often a request is sent at most (`AWS_MAX_ATTEMPTS`). Raises NotSetUpError."""
    text = environment.get("AWS_MAX_ATTEMPTS") or str(default)
    if not re.fullmatch("0*[1-9][0-9]{0,5}", text):
        raise _invalid(f"AWS_MAX_ATTEMPTS is {text!r}", "set it to a number from 1 on")
    return int(text)


def retry_mode(environment: Mapping[str, str], default: str) -> str:
    """Return botocore's mode of repeating (`AWS_RETRY_MODE`). Raises NotSetUpError."""
    mode = environment.get("AWS_RETRY_MODE") or default
    if mode not in RETRY_MODES:
        raise _invalid(f"AWS_RETRY_MODE is {mode!r}", f"set it to one of {', '.join(RETRY_MODES)}")
    return mode


def check_endpoint(environment: Mapping[str, str]) -> None:
    """Raise NotSetUpError if a variable does not name an endpoint, such as `http://HOST:PORT`, or has a password."""
    for name in _ENDPOINTS:
        text = environment.get(name)
        if not text:
            continue
        try:
            parts = urlsplit(text)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if "@" in text:
            raise _invalid(
                f"{name} has a user or a password in it", "set AWS_ACCESS_KEY_ID and leave them out"
            )
        if not valid:
            raise _invalid(f"{name} is {redact(text)!r}", "set it to an address such as https://HOST:PORT")


def _invalid(what: str, advice: str) -> NotSetUpError:
    return NotSetUpError(Fault.of(Refusal.SETTING, what=what, advice=advice))


@contextlib.contextmanager
def setup_faults() -> Iterator[None]:
    """Convert what the client raises of its settings and credentials to NotSetUpError."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        yield
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise NotSetUpError(_fault(error)) from error


def _fault(error: Exception) -> Fault:
    from botocore import exceptions as boto  # noqa: PLC0415

    if (cause := _credential_cause(error)) is not None:
        return Fault.of(Refusal.CREDENTIALS_UNREADABLE, cause=cause)
    values = getattr(error, "kwargs", {})
    what, advice = redact_all(one_line(error)).rstrip("."), f"check {_FILES}"
    if isinstance(error, boto.ConfigParseError):
        what, advice = f"the file {values['path']} cannot be parsed", "correct it"
    elif isinstance(error, boto.ProfileNotFound):
        what = f"there is no profile {values['profile']!r}"
        advice = "check AWS_PROFILE, and the profiles in ~/.aws/config and ~/.aws/credentials"
    elif isinstance(error, boto.InvalidRegionError):
        what = f"{values['region_name']!r} is not the name of a region"
        advice = "check AWS_REGION, AWS_DEFAULT_REGION and ~/.aws/config"
    return Fault.of(Refusal.SETTING, what=what, advice=advice)


def _credential_cause(error: Exception) -> str | None:
    """Return why credentials cannot be had, and what to do; None if something else is wrong."""
    from botocore import exceptions as boto  # noqa: PLC0415

    values = getattr(error, "kwargs", {})
    cause = None
    if isinstance(error, OSError) and error.filename:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be opened"
        cause = f"{error.filename} {why}; check the variables AWS_… and ~/.aws/config, which name it"
    elif isinstance(error, json.JSONDecodeError):
        cause = "what credential_process printed, or a cached token, is not JSON; check ~/.aws"
    elif isinstance(error, boto.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        cause = f"AWS refused {error.operation_name} ({code}); check the role, its trust policy and the token"
    elif isinstance(error, boto.ConnectionError):
        cause = f"cannot reach {redact(str(values.get('endpoint_url', 'AWS')))}; check the network"
    elif isinstance(error, boto.SSOError | boto.TokenRetrievalError):
        cause = "there is no valid session of single sign-on; run `aws sso login`"
    elif isinstance(error, boto.PartialCredentialsError):
        cause = f"{values['cred_var']} is missing; set it too"
    elif isinstance(error, boto.CredentialRetrievalError | boto.MetadataRetrievalError):
        provider = values.get("provider") or "the metadata service"
        said = " ".join(str(values.get("error_msg", "")).split())[:150]
        cause = f"{provider} failed ({said or 'without a reason'}); check it"
    elif isinstance(error, boto.InvalidConfigError) and "profile" in str(error):
        cause = f"{str(values.get('error_msg', error)).rstrip('.')}; correct ~/.aws/config"
    return cause
