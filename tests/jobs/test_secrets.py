"""No command repeats the password or the query of a URL, wherever it stands, in what it says or writes."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.where_to_run import cluster_of
from PIL import Image

from maskrcnn.errors import UsageError

URLS = {
    "a password": "s3://user:hush@bucket/x",
    "a password with slashes": "s3://KEY:hu/sh+hush@bucket/x",
    "a password on the web": "https://user:hush@host.invalid/x.json",
    "a signature": "https://host.invalid/x.json?X-Amz-Signature=hush",
}
COMMANDS = {
    "status": ["status", "URL"],
    "verify": ["verify", "URL"],
    "gc": ["gc", "URL"],
    "reduce": ["reduce", "URL"],
    "retry": ["retry", "URL"],
    "export from": ["export", "URL", "out"],
    "diff": ["diff", "URL", "URL"],
    "diff to": ["diff", "photos", "photos", "--output", "URL"],
    "plan an input": ["plan", "URL", "out", "--model", "planted"],
    "plan to": ["plan", "photos", "URL", "--model", "planted"],
    "plan with a root": ["plan", "list.csv", "out", "--model", "planted", "--images-root", "URL"],
    "plan a manifest": ["plan", "urls.csv", "out", "--model", "planted"],
    "demo": ["demo", "URL"],
    "show": ["show", "URL"],
    "show to": ["show", "photos/a.png", "--output", "URL"],
    "evaluate": ["evaluate", "URL", "--truth", "URL"],
    "submit": ["submit", "--address", "URL", "--", "segment", "a", "b"],
    "submit a command": ["submit", "--address", "http://127.0.0.1:1", "--", "segment", "URL", "b"],
    "segment": ["segment", "photos", "out", "--model", "planted", "--device", "cpu", "--address", "URL"],
    "too many arguments": ["status", "out", "URL"],
    "no number": ["segment", "photos", "out", "--shard-size", "URL"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_secret_of_a_url_is_said_or_written(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "list.csv").write_text("uri\na.png\n")
    for url in URLS.values():
        (tmp_path / "urls.csv").write_text(f"uri\n{url}\n")
        result = CliRunner().invoke(main, [url if word == "URL" else word for word in COMMANDS[command]])
        assert result.exit_code == 2, result.output
        assert "hush" not in result.output
        (tmp_path / "urls.csv").unlink()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"hush" in content for content in written)


@pytest.mark.parametrize("url", URLS)
def test_the_address_of_a_cluster_has_no_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^--address: the address of a cluster has no user") as caught:
        cluster_of(URLS[url])
    assert "hush" not in str(caught.value)
    monkeypatch.setenv("RAY_ADDRESS", URLS[url])
    with pytest.raises(UsageError, match=r"^RAY_ADDRESS: "):
        cluster_of(None)
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    assert cluster_of(None) == "ray://host:10001"
