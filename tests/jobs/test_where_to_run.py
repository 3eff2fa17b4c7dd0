"""Options that decide where a run is executed: what cannot work is one line, before inputs are listed."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from commandline import maskrcnn_command
from hypothesis import given
from hypothesis import strategies as st
from local import LocalCluster
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver import where_to_run
from maskrcnn_jobs.driver.where_to_run import check_resources, usable_cpus
from planted_images import write_planted

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import UsageError

CPU = ResourceConfig("cpu")


@given(
    host=st.from_regex(r"[a-z0-9.-]{1,20}|\[[0-9a-f:]{2,20}\]", fullmatch=True),
    port=st.integers(1, 65_535),
)
def test_a_host_needs_a_port_to_be_an_address(host: str, port: int) -> None:
    check_resources(f"{host}:{port}", CPU)
    if host not in ("auto", "local"):
        with pytest.raises(UsageError, match="port"):
            check_resources(host, CPU)


@given(st.text(st.characters(codec="utf-8", exclude_characters=":@/?#"), min_size=1))
def test_text_without_a_port_is_refused(text: str) -> None:
    if text not in ("auto", "local"):
        with pytest.raises(UsageError, match="names no port"):
            check_resources(text, CPU)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1", "'127.0.0.1' names no port: HOST:PORT is needed"),
        ("::1", "'::1' names no port"),
        ("head:", "'head:' has no valid port"),
        ("head:http", "'head:http' has no valid port"),
        ("head:0", "has no valid port"),
        ("head:99999999999999999999", "has no valid port"),
        ("http://head:8265", "http://head:8265 is the address of a dashboard, for `maskrcnn submit`"),
        ("https://head", "https://head is the address of a dashboard"),
        ("ray://head:10001", "ray://head:10001 is an address of Ray Client, which is not supported"),
        ("me:secret@head", "has no user, password or query"),
        ("http://me:secret@head:8265", "has no user, password or query"),
    ],
)
def test_what_cannot_be_the_address_of_a_cluster(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError) as caught:
        check_resources(address, CPU)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=r"^RAY_ADDRESS\b"):
        check_resources(None, CPU)
    check_resources(None, ResourceConfig("cpu", ray=False))  # which uses no cluster


def test_submit_takes_the_address_of_a_dashboard_alone() -> None:
    result = CliRunner().invoke(main, ["submit", "--address", "head:8265", "--", "status", "out"])
    assert result.output == "error: --address 'head:8265' is no dashboard's address: it is http://HOST:8265\n"
    assert result.exit_code == 2


def segment(*options: str) -> Result:
    return CliRunner().invoke(main, ["segment", "nowhere", "out", *options])


@pytest.mark.parametrize("way", [[], ["--ray"], ["--no-ray"]])
def test_more_threads_than_cpus_are_refused_before_inputs_are_listed(
    way: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = segment("--threads", str(usable_cpus() + 1), *way)
    assert result.exit_code == 2
    assert result.output.startswith(f"error: --threads {usable_cpus() + 1}, but this machine has ")
    assert "nowhere" in segment("--threads", str(usable_cpus()), *way).output


def test_a_gpu_is_looked_for_before_inputs_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refused = segment("--device", "cuda")
    assert refused.exit_code == 2
    assert refused.output == "error: this machine has no GPU that can be used: add --device cpu\n"
    monkeypatch.setattr(where_to_run, "_may_have_gpu", lambda: True)
    assert "nowhere" in segment("--device", "cuda").output


@pytest.mark.ray
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_cluster_that_asks_for_another_token_is_one_line(
    token: str | None, ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_planted(tmp_path / "images", 1, seed=1)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text(token or "")
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")} if token else {}
    images, out = str(tmp_path / "images"), str(tmp_path / "out")
    done = maskrcnn_command(
        "-q", "segment", images, out, "--model", "scenes", "--device", "cpu", "--address", ray_cluster.address,
        **known,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if "knows only generated" not in line]
    assert lines == [
        f"stopped: cannot connect to Ray at {ray_cluster.address}: RPC error: InvalidAuthToken: Authentication token "
        "is missing or incorrect. What to do: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the "
        "cluster's token"
    ]
    assert done.returncode == 3
