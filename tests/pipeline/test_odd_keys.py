"""Names as people give them: each object is processed once, as itself and under its own name, in every store."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from maskrcnn_jobs.driver.planning import Request, prepare
from s3_servers import BUCKET, S3Server

import maskrcnn
from maskrcnn.config import InferenceConfig
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PlantedInstance, PlantedSegmenter, plant, png
from maskrcnn.visualization.run_report import write_report

LIMITS: Final = Limits(10**6, 10**6, 1333.0)

KEYS: Final = [
    # What urls, shells, globs and tables read as something else.
    *("plain", "two words", " before", "after ", "two  blanks", "plus+", "per%cent", "%2F", "a%2Fb", "100%25"),
    *("hash#1", "what?", "v.png?versionId=1", "x?y=1&z=2", "equals=", "semi;colon:", "comma,", "at@home", "~", "$HOME"),
    *("it's", 'so "called"', "`date`", "back\\slash", "back\\\\slash", "tab\there", "pipe|", "<b>bold</b>", "^", "!"),
    *("star*", "any[a-z]", "{a,b}", "(1)", "-dash", "--output", ".hidden", "..two", "...", "s3:", "C:\\a", "a:b::c"),
    # What one of them would become if it were decoded, escaped, folded or trimmed once too often.
    *("plus ", "v", "A", "%41", "two+words", "two%20words", "hash", "what", "x", "before", "after", "sub/plus+"),
    *("case", "CASE", "Case", "sub/case", "SUB/case", "a/b", "a_b", "&amp;", "&", "None", "null", "NaN", "0", "00"),
    # Letters. The first two look the same and are two names.
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    *("größe", "名前", "имя", "שם", "\u202egnp.txt", "😀", "👩‍👩‍👧", "\ufeffmark",
      "zero\u200bwidth", "ﬁ", "fi", "\u00a0", "ﷺ" * 20),
    # Control characters.
    *("new\nline", "carriage\rreturn", "both\r\nof them", "\x1b[31mred", "bell\x07", "del\x7f", "\x01"),
    # As long as it goes: 255 bytes are what a file may have for a name.
    "n" * 251,
    "ü" * 125,
    "/".join(["d" * 220] * 4),
    *("deep/" * 60 + "x", "a/b/c/..d/e", "a/.."),
]  # fmt: skip
ONLY_IN_S3: Final = [
    "a//b",
    "/leading",
    "//",
    "k" * 900,
    "ä" * 450,
    "./x",
    "a/./b",
    "a/../b",
    "../up",
]
"""What no folder can hold, or what paths would be changed by."""

REFUSED: Final = {
    # An object is a file there: these are refused, or become another key.
    "weed": {*ONLY_IN_S3, "back\\slash", "back\\\\slash", "C:\\a"},
    # Its routes end at a line's end.
    "moto": {"new\nline", "both\r\nof them"},
}
"""What a server does not take, whoever asks it."""


def suffixed(key: str) -> str:
    return f"{key}.png"


def instance(number: int) -> PlantedInstance:
    """Return what is planted in the nth object, and in no other."""
    return PlantedInstance("rectangle", 1, round(0.1 + number * 0.005, 4), 20, 20, 10, 10)


Put = Callable[[str, bytes], None]


def into_folder(folder: Path) -> Put:
    def put(key: str, data: bytes) -> None:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return put


def into_bucket(server: S3Server, prefix: str) -> Put:
    client = server.client()
    below = prefix.removeprefix(f"s3://{BUCKET}/")

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{below}/{key}", Body=data)

    return put


@pytest.fixture(
    params=["local", pytest.param("moto", marks=pytest.mark.s3), pytest.param("weed", marks=pytest.mark.s3)]
)
def collection(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[str]]:
    """All keys that the store takes, below one url, each an image of its own."""
    if request.param == "local":
        url, keys = str(tmp_path / "images"), KEYS
        put = into_folder(tmp_path / "images")
    else:
        server: S3Server = request.getfixturevalue(f"{request.param}_server")
        url = f"{server.prefix()}/images"
        put = into_bucket(server, url)
        keys = [key for key in KEYS + ONLY_IN_S3 if key not in REFUSED[request.param]]
    for number, key in enumerate(keys):
        put(suffixed(key), png(plant((40, 40), [instance(number)])))
    return url, keys


def run(source: str, output: str, images_root: str | None = None) -> list[dict[str, Any]]:
    """Process a source, and return its rows of `images`, each with the scores that were found."""
    storage = Storage(output)
    plan = prepare(
        Request(source, output, InferenceConfig("planted"), shard_images=50, images_root=images_root)
    )
    worker = ShardWorker(storage, PlantedSegmenter(), LIMITS, {"node": "here"})
    for shard in plan:
        worker.run_shard(shard)
    reduce_run(output, write_report=write_report)
    done = maskrcnn.open_run(output)
    scores: dict[int, list[float]] = {}
    for row in done.instances().select(["image_id", "score"]).to_pylist():
        scores.setdefault(row["image_id"], []).append(round(row["score"], 4))
    return [row | {"scores": scores.get(row["image_id"], [])} for row in done.images().to_pylist()]


def expected(keys: list[str], prefix: str = "") -> dict[str, list[float]]:
    return {prefix + suffixed(key): [instance(number).score] for number, key in enumerate(keys)}


def test_listed_keys_are_processed_once_each_under_their_own_name(
    collection: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, keys = collection
    rows = run(url, str(tmp_path / "run"))
    assert [row["name"] for row in rows] == sorted(map(suffixed, keys), key=str.encode)
    assert {row["name"]: row["scores"] for row in rows} == expected(keys)
    assert {row["uri"] for row in rows} == set(expected(keys, f"{url}/"))


def test_keys_of_a_manifest_are_processed_once_each_under_their_own_name(
    collection: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, keys = collection
    uris = [f"{url}/{suffixed(key)}" for key in keys]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet")
    rows = run(str(tmp_path / "list.parquet"), str(tmp_path / "run"))
    assert {row["name"]: row["scores"] for row in rows} == expected(keys, f"{url}/")


def test_relative_keys_of_a_manifest_are_found_below_the_root(
    collection: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, keys = collection
    # `./` before a path is removed, and a path that begins with `/` is not below a root.
    found = {name: scores for name, scores in expected(keys).items() if not name.startswith(("./", "/"))}
    pq.write_table(pa.table({"uri": list(found)}), tmp_path / "list.parquet")
    rows = run(str(tmp_path / "list.parquet"), str(tmp_path / "run"), images_root=url)
    assert {row["name"]: row["scores"] for row in rows} == found


def test_a_bucket_of_odd_keys_may_be_the_output_too(collection: tuple[str, list[str]]) -> None:
    url, keys = collection
    rows = run(url, f"{url.rpartition('/')[0]}/out put #1?&%2F")
    assert {row["name"]: row["scores"] for row in rows} == expected(keys)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, keys in REFUSED.items() for key in sorted(keys)]
)
def test_what_a_server_does_not_take_it_refuses_by_itself(
    name: str, key: str, request: pytest.FixtureRequest
) -> None:
    """When one accepts it, the tests above can use it too."""
    server: S3Server = request.getfixturevalue(f"{name}_server")
    below = server.prefix().removeprefix(f"s3://{BUCKET}/")
    client = server.client()
    try:
        client.put_object(Bucket=BUCKET, Key=f"{below}/{suffixed(key)}", Body=b"x")
    except ClientError:
        return
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{below}/").get("Contents", [])
    assert f"{below}/{suffixed(key)}" not in [entry["Key"] for entry in listed]
