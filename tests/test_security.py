"""What a stranger's files and names cannot do, and where a secret never stands. See SECURITY.md."""

import ast
import base64
import functools
import html.parser
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from commandline import maskrcnn_command
from hypothesis import given, settings
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.commands.plain_text import plain
from maskrcnn_jobs.commands.terminal import PlainFormatter
from maskrcnn_jobs.driver.planning import Request, prepare
from planted_images import write_planted
from s3_servers import S3Server
from webserver import Site, answer

from maskrcnn.config import InferenceConfig
from maskrcnn.errors import MaskrcnnError, UsageError
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores import http_store
from maskrcnn.io.stores.http_store import read_web
from maskrcnn.models.registry import describe_model
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.visualization.run_report import write_report

ROOT: Final = Path(__file__).parent.parent
LIMITS: Final = Limits(10**6, 10**6, 1333.0)


def run_job(source: str, output: str, compute: InferenceConfig | None = None) -> None:
    """Plan, process the shards and reduce in this process."""
    plan = prepare(Request(source, output, compute or InferenceConfig("planted"), shard_images=16))
    worker = ShardWorker(Storage(output), PlantedSegmenter(), LIMITS, {"node": "here"})
    for shard in plan:
        worker.run_shard(shard)
    reduce_run(output, write_report=write_report)


# Canaries: secrets that exist nowhere else

CANARIES: Final = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY7QX2ZJ4M6K",
    "AWS_SECRET_ACCESS_KEY": "canarySECRETq8Wz3vN5tR1xY7uB0pL4mK9sD2f",
    "AWS_SESSION_TOKEN": "canaryTOKEN//9aF3kQ+Zt6Vb1XyPw8Lr4Ns2Mc7Hd0Je5Gu",
}


def spellings(secret: str) -> set[bytes]:
    """Return how a secret may stand somewhere."""
    raw = secret.encode()
    coded = {base64.b64encode(raw[shift:])[2:-6] for shift in range(3)}
    quoted = {urllib.parse.quote(secret, safe="").encode(), json.dumps(secret).encode()[1:-1]}
    return {raw, raw[::-1], raw.hex().encode(), secret.encode("utf-16-le"), *coded, *quoted}


def found_in(data: bytes) -> list[str]:
    """Return the names of the canaries that stand in some bytes, Parquet's pages unpacked."""
    texts = [data]
    if data.startswith(b"PAR1"):
        file = pq.ParquetFile(io.BytesIO(data))
        texts.append(str(file.metadata.metadata).encode() + str(file.schema_arrow.metadata).encode())
        texts.append(json.dumps(file.read().to_pylist(), default=str, ensure_ascii=False).encode())
    return [
        name
        for name, secret in CANARIES.items()
        if any(spelling in text for spelling in spellings(secret) for text in texts)
    ]


@pytest.fixture
def canaries(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that takes any credentials, and canaries for these."""
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)
    return moto_server


@pytest.fixture
def local(tmp_path: Path) -> Path:
    write_planted(tmp_path / "images", 20, seed=4)
    (tmp_path / "images" / "broken.png").write_text("<html>")
    return tmp_path / "images"


def put_all(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            Storage(url).write(str(path.relative_to(folder)), path.read_bytes())


@pytest.mark.parametrize("spell", range(9))
def test_the_search_finds_a_secret_however_it_is_written(spell: int, tmp_path: Path) -> None:
    name, secret = list(CANARIES.items())[spell % 3]
    written = sorted(spellings(secret))[spell % len(spellings(secret))]
    assert found_in(b"before" + written + b"after") == [name]
    text = written.decode("latin-1")
    table = pa.table({"x": ["much ado " * 500, text]}, schema=pa.schema([("x", "string")], {"k": "v"}))
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    assert "\0" in text or found_in((tmp_path / "x.parquet").read_bytes()) == [name]
    pq.write_table(table.replace_schema_metadata({"key": secret}), tmp_path / "y.parquet")
    assert name in found_in((tmp_path / "y.parquet").read_bytes())
    assert found_in(b"nothing of the kind") == []


@pytest.mark.s3
def test_no_credential_stands_in_what_a_run_writes_or_says(
    canaries: S3Server, local: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "maskrcnn")
    prefix = canaries.prefix()
    put_all(local, f"{prefix}/images")
    run_job(f"{prefix}/images", f"{prefix}/run")
    storage = Storage(f"{prefix}/run")
    written = {path: found_in(storage.read(path)) for path in storage.list()}
    assert {"run.json", "manifest.parquet", "_SUCCESS", "report.html", "coco/instances.json"} <= set(written)
    assert {path: names for path, names in written.items() if names} == {}
    said = "".join(capfd.readouterr()) + "".join(
        r.getMessage() for r in caplog.records if r.name == "maskrcnn"
    )
    assert found_in(said.encode()) == []


@pytest.mark.s3
def test_no_credential_stands_in_what_goes_wrong(
    weed_server: S3Server, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = weed_server.prefix()
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)
    for source, output in ((f"{prefix}/images", str(local / "run")), (str(local), f"{prefix}/run")):
        with pytest.raises(MaskrcnnError) as caught:
            run_job(source, output)
        secret_ones = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
        assert not secret_ones & set(found_in(str(caught.value).encode()))
        assert "Traceback" not in str(caught.value)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its session; under a short name, since a socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.s3
def test_no_credential_stands_in_what_ray_keeps(canaries: S3Server, local: Path, ray_folder: Path) -> None:
    prefix = canaries.prefix()
    put_all(local, f"{prefix}/images")
    done = maskrcnn_command(
        "segment", f"{prefix}/images", f"{prefix}/run", "--model", "planted", "--actors", "2",
        "--max-failure-rate", "1", RAY_TMPDIR=str(ray_folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert found_in((done.stdout + done.stderr).encode()) == []
    storage = Storage(f"{prefix}/run")
    assert [path for path in storage.list() if found_in(storage.read(path))] == []
    logs = [path for path in ray_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name.startswith("worker-") for path in logs)
    assert any(path.name == "gcs_server.out" or path.name.startswith("raylet") for path in logs)
    assert {str(path): names for path in logs if (names := found_in(path.read_bytes()))} == {}


# Passwords in urls

WITH_PASSWORD: Final = "s3://somebody:hush-hush@bucket/key"


def refused(source: str, output: str, compute: InferenceConfig | None = None, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        prepare(Request(source, output, compute or InferenceConfig("planted"), **options))
    return str(caught.value)


@pytest.mark.parametrize(
    "url", [WITH_PASSWORD, "gs://hush-hush@bucket/key", "https://a:hush-hush@host/a.jpg"]
)
def test_urls_with_a_password_are_refused_everywhere_and_not_repeated(
    url: str, local: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    rows = tmp_path / "rows.csv"
    rows.write_text(f"uri\n{local}/planted-000000.png\n{url}\n")
    relative = tmp_path / "relative.csv"
    relative.write_text("uri\na.png\n")
    said = [
        refused(url, str(output)),
        refused(f"{url}.csv", str(output)),
        refused(str(rows), str(output)),
        refused(str(rows), str(output), InferenceConfig("planted", allow_http=True)),
        refused(str(relative), str(output), images_root=url),
        refused(str(local), url),
        refused(str(local), str(output), InferenceConfig(f"{url}.safetensors")),
        refused(str(local), str(output), InferenceConfig(f"{url}.pth", labels=url)),
    ]
    assert [line for line in said if "hush" in line or "\n" in line] == []
    assert [line for line in said if "password" not in line and "is not a supported store" not in line] == []
    assert not any("hush" in path.read_text(errors="replace") for path in output.rglob("*") if path.is_file())
    for command in (["status"], ["reduce"], ["verify"], ["gc"]):
        result = CliRunner().invoke(main, [*command, url])
        assert result.exit_code in (2, 3)
        assert "hush" not in result.output


def test_a_command_with_a_password_is_not_submitted() -> None:
    for words in (
        ["segment", WITH_PASSWORD, "out"],
        ["evaluate", "out", "--truth", WITH_PASSWORD],
        ["segment", "in", "out", f"--images-root={WITH_PASSWORD}"],
    ):
        result = CliRunner().invoke(main, ["submit", "--address", "http://127.0.0.1:9", "--", *words])
        assert result.exit_code == 2
        assert "takes no user and password" in result.output
        assert "hush" not in result.output


# Inputs on the web


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.stop()


def listed(folder: Path, *uris: str) -> str:
    (folder / "list.txt").write_text("\n".join(uris))
    return str(folder / "list.txt")


def test_the_web_is_read_on_request_only(tmp_path: Path) -> None:
    uris = ("https://host/a.jpg?X-Amz-Signature=hush", "HTTP://host/b.jpg")
    said = refused(listed(tmp_path, *uris), str(tmp_path / "run"))
    assert "2 uris on the web, without --allow-http: 'https://host/a.jpg" in said
    assert "hush" not in said
    plan = prepare(
        Request(listed(tmp_path, *uris), str(tmp_path / "run"), InferenceConfig("planted", allow_http=True))
    )
    assert plan.rows == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["allow_http"] is True
    Storage(str(tmp_path / "run")).write("probes/0/driver", b"")  # a command has begun to carry it out
    assert "allow-http: planned with it, now without it" in refused(
        listed(tmp_path, *uris), str(tmp_path / "run")
    )
    rows = pq.read_table(tmp_path / "run" / "manifest.parquet").to_pylist()
    assert [(row["name"], row["uri"]) for row in rows] == [
        ("HTTP://host/b.jpg", "HTTP://host/b.jpg"),
        ("https://host/a.jpg", "https://host/a.jpg?X-Amz-Signature=hush"),
    ]
    assert {(row["bytes"], row["etag"]) for row in rows} == {(None, None)}


def test_the_command_line_asks_for_the_web(tmp_path: Path) -> None:
    command = ["plan", listed(tmp_path, "https://host/a.jpg"), str(tmp_path / "run"), "--model", "planted"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "--allow-http" in result.output
    assert CliRunner().invoke(main, [*command, "--allow-http"]).exit_code == 0


def test_a_root_on_the_web_is_read_on_request_only(tmp_path: Path) -> None:
    source, root = listed(tmp_path, "a.jpg"), "https://host/images/"
    said = refused(source, str(tmp_path / "run"), images_root=root)
    assert said == "--images-root has 1 uri on the web, without --allow-http: 'https://host/images/'"
    prepare(
        Request(source, str(tmp_path / "run"), InferenceConfig("planted", allow_http=True), images_root=root)
    )
    [row] = pq.read_table(tmp_path / "run" / "manifest.parquet").to_pylist()
    assert (row["name"], row["uri"]) == ("a.jpg", "https://host/images/a.jpg")


def test_names_that_differ_in_their_query_only_are_refused(tmp_path: Path) -> None:
    source = listed(tmp_path, "https://host/a?id=1&key=hush", "https://host/a?id=2&key=hush")
    said = refused(source, str(tmp_path / "run"), InferenceConfig("planted", allow_http=True))
    assert (
        "1 row with the same uri (of a web address, without its query) as another row: 'https://host/a'"
        in said
    )


def test_a_run_never_reaches_into_the_network_that_it_stands_in(tmp_path: Path, site: Site) -> None:
    site.answers["/a.png"] = lambda request: answer(request, 200, b"x")
    uris = [f"http://{host}:{site.port}/a.png" for host in ("127.0.0.1", "localhost", "2130706433", "[::1]")]
    compute = InferenceConfig("planted", allow_http=True)
    run_job(listed(tmp_path, *uris), str(tmp_path / "run"), compute)
    rows = pq.read_table(tmp_path / "run" / "images").to_pylist()
    assert [(row["status"], row["error"]) for row in rows] == [("failed", "access_denied")] * 4
    assert site.asked == []


def test_a_signature_stands_in_the_column_uri_and_nowhere_else(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_planted(tmp_path / "images", 6, seed=5)
    sound = sorted(path.name for path in (tmp_path / "images").glob("*.png"))
    for name in sound:
        content = (tmp_path / "images" / name).read_bytes()
        site.answers[f"/{name}"] = lambda request, content=content: answer(request, 200, content)
    site.answers["/broken"] = lambda request: answer(request, 200, b"<html>")
    site.answers["/away"] = lambda request: answer(request, 302, Location="http://10.0.0.1/?hush-hush")
    # Only here is there a way to loopback.
    allowed = functools.partial(
        read_web, is_allowed=lambda address: address == "127.0.0.1", pause=lambda _: None
    )
    monkeypatch.setattr(http_store, "read_web", allowed)
    names = [*sound, "broken", "away", "missing"]
    uris = [f"{site.url}/{name}?X-Amz-Signature=hush-hush" for name in names]
    run_job(listed(tmp_path, *uris), str(tmp_path / "run"), InferenceConfig("planted", allow_http=True))

    rows = pq.read_table(tmp_path / "run" / "images").to_pylist()
    assert {row["name"]: row["error"] for row in rows} == {f"{site.url}/{name}": None for name in sound} | {
        f"{site.url}/broken": "not_an_image",
        f"{site.url}/away": "access_denied",
        f"{site.url}/missing": "not_found",
    }
    assert {row["uri"] for row in rows} == set(uris)
    holding = set()
    for path in (tmp_path / "run").rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            columns = [c for c in table.column_names if "hush" in str(table[c].to_pylist())]
            holding |= {(path.relative_to(tmp_path / "run").parts[0], column) for column in columns}
            assert b"hush" not in str(pq.read_metadata(path).metadata).encode()
        elif path.is_file():
            assert b"hush" not in path.read_bytes(), path
    assert holding == {("manifest.parquet", "uri"), ("images", "uri"), ("shards", "uri")}
    assert "hush" not in caplog.text
    assert "data:image/jpeg" in (tmp_path / "run" / "report.html").read_text(), "pictures came from there too"


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://host/a",
        "gopher://host/a",
        "data://a",
        "dbfs://a/b",
        "wasb://c/a",
        "github://a",
        "FILE2://a",
        "zip://a",
        "x://",
    ],
)
@pytest.mark.parametrize("allow_http", [False, True])
def test_schemes_are_allow_listed(uri: str, allow_http: bool, tmp_path: Path) -> None:
    source = listed(tmp_path, f"{uri}?sig=hush")
    said = refused(source, str(tmp_path / "run"), InferenceConfig("planted", allow_http=allow_http))
    assert "1 uri of an unsupported scheme, not s3://, gs:// or az://" in said
    assert "hush" not in said


@pytest.mark.parametrize("uri", ["file://host/a", "local://a", "file://"])
def test_files_of_other_hosts_are_refused(uri: str, tmp_path: Path) -> None:
    said = refused(listed(tmp_path, uri), str(tmp_path / "run"))
    assert "1 uri of files without an absolute path, as in file:///…" in said


@pytest.mark.parametrize("uri", ["simplecache::s3://b/a", "zip::a::file:///b.zip"])
def test_chains_of_stores_are_names_of_files(uri: str, tmp_path: Path) -> None:
    run_job(listed(tmp_path, uri), str(tmp_path / "run"))
    [row] = pq.read_table(tmp_path / "run" / "images").to_pylist()
    assert (row["uri"], row["error"]) == (f"{tmp_path}/{uri}", "not_found")


# Weights


def calls_in(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each function that is called, and its keyword arguments as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg or "**": ast.unparse(k.value) for k in node.keywords}


FORBIDDEN: Final = re.compile(
    r"(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\.(load|loads|open|Unpickler)|yaml\.(unsafe_)?load"
    r"|eval|exec|os\.system|torch\.(jit|hub)\.load.*"
)


@pytest.mark.slow
def test_nothing_is_unpickled_and_no_text_is_run() -> None:
    modules = [path for folder in ("maskrcnn", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]
    calls = [call for path in modules for call in calls_in(path)]
    loads = [keywords for name, keywords in calls if name == "torch.load"]
    assert loads
    assert all(keywords.get("weights_only") == "True" for keywords in loads)
    assert not [keywords for _, keywords in calls if keywords.get("allow_pickle", "False") != "False"]
    assert not [keywords for _, keywords in calls if "shell" in keywords]
    # It reads back what the same process wrote into a file that has no name, and that nobody else can write to.
    spilled = calls_in(ROOT / "maskrcnn" / "io" / "temporary.py")
    assert [name for name, _ in spilled if FORBIDDEN.fullmatch(name)] == ["pickle.load"]
    assert [name for name, _ in calls if FORBIDDEN.fullmatch(name)] == ["pickle.load"]


def test_the_torch_that_is_asked_for_has_no_known_hole_in_weights_only() -> None:
    """CVE-2025-32434 is in those before 2.6, CVE-2026-24747 in those before 2.10."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "torch>=2.10" in asked


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02c__torch__\nEvil\n)\x81.",  # an archive of TorchScript
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
    ],
)
def test_weights_that_name_what_is_no_tensor_are_refused(pickled: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/code/__torch__.py", "raise SystemExit")
    (tmp_path / "labels.txt").write_text("cat")
    with pytest.raises(UsageError, match="not allowed"):
        describe_model(str(tmp_path / "m.pth"), str(tmp_path / "labels.txt"))


# Ray


@pytest.mark.ray
def test_a_ray_that_is_started_here_asks_for_its_token() -> None:
    code = (
        "import os; from maskrcnn.config import ResourceConfig; from maskrcnn_jobs.driver.cluster import connected\n"
        "with connected(None, ResourceConfig(actors=1)): mode = os.environ.get('RAY_AUTH_MODE')\n"
        "print(mode)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["token"]


# Names of outputs

TRAVERSING: Final = [
    *(
        "../up.png",
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        "./.",
        "..",
        "C:\\x",
        "\\\\host\\x",
        "~/x",
        "|sh",
    ),
    "a\0b",
]


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.text(min_size=1) | st.sampled_from(TRAVERSING), min_size=1, max_size=20, unique=True))
def test_no_output_is_named_by_an_input(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Whatever the names are, the files of a run have the names that every run has."""
    names = [name for name in names if name.encode(errors="replace").decode() == name]
    folder = tmp_path_factory.mktemp("names")
    write_planted(folder / "in", 1, seed=1)
    uris = [str(folder / "in" / "planted-000000.png")] * len(names)
    if not names:
        return
    pq.write_table(pa.table({"name": names, "uri": uris}), folder / "list.parquet")
    run_job(str(folder / "list.parquet"), str(folder / "run"))
    known = {
        *(
            "run.json",
            "plan.json",
            "manifest.parquet",
            "stats.json",
            "timings.json",
            "report.html",
            "_SUCCESS",
        ),
        *("images", "instances", "coco", "shards", "receipts"),
    }
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).parts[0] for path in written} == {"in", "run", "list.parquet"}
    below = {path.relative_to(folder / "run").parts for path in written if (folder / "run") in path.parents}
    assert {parts[0] for parts in below} <= known
    assert all(part.isascii() and part.isprintable() for parts in below for part in parts)
    rows = pq.read_table(folder / "run" / "images").to_pylist()
    assert sorted(row["name"] for row in rows) == sorted(names)


# The report


class Page(html.parser.HTMLParser):
    """Which tags and attributes a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, Mapping[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL_NAMES: Final = [
    "<script>alert(1)<!--.png",
    "<img src=x onerror=alert(2)>.png",
    '" onmouseover="alert(3).png',
    "' autofocus onfocus='alert(4).png",
    "{{ 7 * 7 }}{% raw %}.png",
    "<iframe srcdoc=x>.png",
    "javascript:alert(5).png",
]


def test_no_name_becomes_markup_in_the_report(tmp_path: Path) -> None:
    write_planted(tmp_path / "plain", len(EVIL_NAMES), seed=2)
    (tmp_path / "plain" / "broken.png").write_text("<html>")
    shutil.copytree(tmp_path / "plain", tmp_path / "evil")
    for path, name in zip(sorted((tmp_path / "evil").glob("planted-*")), EVIL_NAMES, strict=True):
        path.rename(tmp_path / "evil" / name)
    (tmp_path / "evil" / "broken.png").rename(tmp_path / "evil" / "<b>broken.png")
    for which in ("plain", "evil"):
        run_job(str(tmp_path / which), str(tmp_path / f"run-{which}"))
    plain_page, evil_page = (
        Page((tmp_path / f"run-{which}" / "report.html").read_text()) for which in ("plain", "evil")
    )
    [policy] = [a["content"] for tag, a in evil_page.seen if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'", (
        "no script runs, whatever is there"
    )
    shown = [name for name in EVIL_NAMES if name in evil_page.text]
    assert len(shown) >= 5, "the report shows names, and these as text"
    assert sorted(tag for tag, _ in evil_page.seen) == sorted(tag for tag, _ in plain_page.seen)
    attributes = [pair for _, attributes in evil_page.seen for pair in attributes.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("srcdoc", "autofocus")]
    links = [(value or "").strip().lower() for name, value in attributes if name in ("href", "src")]
    assert not [link for link in links if link.startswith("javascript:")]


# The terminal

OBEYED: Final = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp"


def test_control_characters_are_spelled_out() -> None:
    assert plain("a\x1b[31m\r\n\tb\x9bc\x7f\u202ed\u2028") == r"a\x1b[31m\r\n\tb\x9bc\x7f\u202ed\u2028"
    assert plain("größe 名前 😀 é") == "größe 名前 😀 é"


@given(st.text())
def test_what_is_said_is_one_line_that_no_terminal_obeys(text: str) -> None:
    said = plain(text)
    assert len(said.splitlines()) <= 1
    assert all(ord(character) >= 0x20 and not 0x7F <= ord(character) < 0xA0 for character in said)


def test_tracebacks_keep_their_lines_and_nothing_else() -> None:
    try:
        int(OBEYED)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "said: %s", (OBEYED,), sys.exc_info())
    said = PlainFormatter("%(message)s").format(record)
    assert "said: \\x1b]0;owned" in said
    assert "ValueError: invalid literal" in said
    assert len(said.splitlines()) > 3
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(said)


@pytest.mark.slow
def test_names_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_planted(images, 2, seed=3)
    (images / f"notes.{OBEYED}").write_text("skipped")
    (images / f"{OBEYED}.png").write_text("<html>")
    done = maskrcnn_command("plan", str(images), str(tmp_path / "run"), "--model", "planted")
    assert done.returncode == 0, done.stderr
    assert "\\x1b]0;owned\\x07" in done.stderr
    missing = CliRunner().invoke(
        main, ["plan", str(tmp_path / f"missing{OBEYED}"), "x", "--model", "planted"]
    )
    assert missing.exit_code == 2
    assert "missing\\x1b]0;owned" in missing.output
    for said in (done.stdout, done.stderr, missing.output):
        assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(said)
