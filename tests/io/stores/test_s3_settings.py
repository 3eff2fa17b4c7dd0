"""Wrong settings and credentials for S3 stop everything, in one line, and are no object's fault."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from s3_servers import BUCKET, S3Server

from maskrcnn.errors import RunError, StoreSetupError
from maskrcnn.io.inputs import list_inputs, open_input, read_input, stat_input
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.s3_settings import max_attempts
from maskrcnn.io.stores.store import NotSetUpError

LIMIT = 10**6
URL = f"s3://{BUCKET}/a.png"
ACTS = (
    lambda: read_input(URL, LIMIT),
    lambda: stat_input(URL),
    lambda: open_input(URL, None),
    lambda: list_inputs(f"s3://{BUCKET}/"),
    lambda: Storage(f"s3://{BUCKET}/out").exists("plan.json"),
    lambda: Storage(f"s3://{BUCKET}/out").write("x", b"1"),
)
"""Everything that asks S3: none of it may take a fault of the settings for an object that is missing."""
ROLE = "role_arn = arn:aws:iam::123456789012:role/x\n"
PROFILES = {
    "a token file that is missing": (
        f"{ROLE}web_identity_token_file = /missing/token\n",
        "/missing/token does not exist",
    ),
    "a source profile that is missing": (f"{ROLE}source_profile = nobody\n", '"nobody"'),
    "a credential process that is missing": (
        "credential_process = /missing/it\n",
        "/missing/it does not exist",
    ),
    "a credential process that fails": ("credential_process = false\n", "custom-process failed"),
    "a credential process that prints no JSON": ("credential_process = echo hello\n", "not JSON"),
    "a session that was never begun": (
        "sso_start_url = https://x\nsso_region = us-east-1\nsso_account_id = 1\nsso_role_name = r\n",
        "aws sso login",
    ),
}  # fmt: skip


@pytest.fixture
def keyless(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set up a profile as the only source of credentials."""
    del moto_server

    def use(config: Path) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_PROFILE", "ours")

    return use  # type: ignore[return-value]


@pytest.mark.s3
@pytest.mark.parametrize("profile", PROFILES)
def test_credentials_that_cannot_be_read_are_no_missing_object(
    profile: str, keyless: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, cause = PROFILES[profile]
    (tmp_path / "config").write_text(f"[profile ours]\n{text}")
    keyless(tmp_path / "config")
    for act in ACTS:
        with pytest.raises(StoreSetupError, match=rf"credentials cannot be read: .*{cause}"):
            act()
    assert caplog.records == [], "the library's traceback says nothing more"


@pytest.mark.s3
def test_a_token_of_a_node_that_is_missing_ends_each_command_with_2(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del moto_server
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
    for command in (
        ["plan", f"s3://{BUCKET}/in/", str(tmp_path / "out"), "--model", "planted"],
        ["status", f"s3://{BUCKET}/out"],
        ["verify", f"s3://{BUCKET}/out"],
        ["show", URL, "--output", str(tmp_path / "x.png")],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, result.output
        [line] = [line for line in result.output.splitlines() if line.startswith("error:")]
        assert f"credentials cannot be read: {tmp_path}/token does not exist; check" in line


@pytest.mark.s3
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_PROFILE", "nobody", "there is no profile 'nobody'; check AWS_PROFILE"),
        ("AWS_REGION", "not a region", "'not a region' is not the name of a region; check AWS_REGION"),
        ("AWS_ENDPOINT_URL", "nowhere", "AWS_ENDPOINT_URL is 'nowhere'; set it to an address such as"),
        ("AWS_ENDPOINT_URL", "http://host:99999", "AWS_ENDPOINT_URL is 'http://host:99999'; set it to"),
        ("AWS_ENDPOINT_URL_S3", "ftp://host", "AWS_ENDPOINT_URL_S3 is 'ftp://host'; set it to"),
        ("AWS_RETRY_MODE", "often", "AWS_RETRY_MODE is 'often'; set it to one of legacy, standard"),
        ("AWS_MAX_ATTEMPTS", "many", "AWS_MAX_ATTEMPTS is 'many'; set it to a number"),
        ("AWS_CA_BUNDLE", "/missing.pem", "the file of certificates cannot be read; check AWS_CA_BUNDLE"),
        ("AWS_DEFAULTS_MODE", "odd", "odd.*; check the variables AWS_"),
    ],
)
def test_a_setting_that_is_wrong_is_named(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, moto_server: S3Server
) -> None:
    del moto_server
    monkeypatch.setenv(variable, value)
    for act in ACTS:
        with pytest.raises(StoreSetupError, match=said):
            act()


@pytest.mark.s3
@pytest.mark.parametrize("variable", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_a_file_that_cannot_be_parsed_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch, moto_server: S3Server, tmp_path: Path
) -> None:
    del moto_server
    (tmp_path / "settings").write_text("no section\n[")
    monkeypatch.setenv(variable, str(tmp_path / "settings"))
    with pytest.raises(StoreSetupError, match=rf"the file {tmp_path}/settings cannot be parsed; correct it"):
        read_input(URL, LIMIT)


@pytest.mark.s3
def test_an_endpoint_in_a_file_that_is_no_address_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, moto_server: S3Server, tmp_path: Path
) -> None:
    del moto_server
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://user:secret@not an address\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(
        StoreSetupError, match=r"Invalid endpoint: http://.*; check the variables AWS_"
    ) as caught:
        read_input(URL, LIMIT)
    assert "secret" not in str(caught.value)


@pytest.mark.s3
def test_a_password_in_an_endpoint_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, moto_server: S3Server
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.endpoint.replace("//", "//user:secret@"))
    with pytest.raises(RunError, match="AWS_ENDPOINT_URL has a user or a password in it; ") as caught:
        read_input(URL, LIMIT)
    assert "secret" not in str(caught.value)


@given(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=6) | st.integers(-5, 50).map(str)
)
def test_a_number_of_attempts_is_positive_or_refused(text: str) -> None:
    try:
        assert max_attempts({"AWS_MAX_ATTEMPTS": text}, 6) == (int(text) if text else 6) > 0
    except NotSetUpError:
        assert not text.isascii() or not text.isdigit() or int(text) == 0
