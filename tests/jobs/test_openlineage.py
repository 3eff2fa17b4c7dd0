"""`--openlineage`: a server of OpenLineage gets the begin and the end of a run, in the form of its specification.

The oracle are the classes that OpenLineage generates from its JSON schemas for its client, and the client's own rules
for names.
"""

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.commands import openlineage, posting
from maskrcnn_jobs.commands.openlineage import check_lineage_server, dataset_name
from openlineage.client import event_v2, facet_v2
from openlineage.client.naming import dataset as datasets
from planted_images import write_planted
from webserver import Site, answer

from maskrcnn.errors import UsageError

ENDPOINT = "/api/v1/lineage"
CLASSES = {
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet,
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
    "inputStatistics": facet_v2.input_statistics_input_dataset.InputStatisticsInputDatasetFacet,
    "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
}
"""OpenLineage's own class of each facet, by the name under which its specification has it."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    site.answers[ENDPOINT] = lambda request: answer(request, 201)
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.posted.clear()
    site.headers.clear()
    for name in ("URL", "ENDPOINT", "API_KEY", "NAMESPACE", "DISABLED"):
        monkeypatch.delenv(f"OPENLINEAGE_{name}", raising=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_planted(tmp_path / "images", 3, seed=1)
    return tmp_path / "images"


def segment(images: Path, *options: str) -> Result:
    out = str(images.parent / "out")
    return CliRunner().invoke(main, ["segment", str(images), out, "--model", "planted", "--no-ray", *options])


def facets(values: dict[str, Any]) -> dict[str, Any]:
    """Build each facet by its class, which refuses fields that its definition lacks, and compare the definition."""
    built = {}
    for name, fields in values.items():
        known = {field: value for field, value in fields.items() if not field.startswith("_")}
        built[name] = CLASSES[name](**known)
        assert fields["_schemaURL"] == CLASSES[name]._get_schema()
        assert fields["_producer"].startswith("pkg:generic/maskrcnn-ray@")
    return built


def columns_of(fields: list[dict[str, Any]]) -> list[Any]:
    column = facet_v2.schema_dataset.SchemaDatasetFacetFields
    return [column(**one | {"fields": columns_of(one.get("fields", []))}) for one in fields]


def built(kind: Callable[..., Any], values: dict[str, Any]) -> Any:
    return kind(
        **{
            name: facets(value) if name.lower().endswith("facets") else value
            for name, value in values.items()
        }
    )


def events(site: Site) -> list[event_v2.RunEvent]:
    """Return what was posted as events of OpenLineage's client."""
    found = []
    for body in site.posted:
        event = json.loads(body)
        assert event.pop("schemaURL") == event_v2.RunEvent._get_schema()
        found.append(
            event_v2.RunEvent(
                **event
                | {
                    "eventType": event_v2.RunState[event["eventType"]],
                    "run": built(event_v2.Run, event["run"]),
                    "job": built(event_v2.Job, event["job"]),
                    "inputs": [built(event_v2.InputDataset, one) for one in event["inputs"]],
                    "outputs": [built(event_v2.OutputDataset, one) for one in event["outputs"]],
                }
            )
        )
    return found


def types(site: Site) -> list[str]:
    return [event.eventType.value for event in events(site) if event.eventType]


def test_a_run_is_two_events_with_its_inputs_and_its_tables(images: Path, site: Site) -> None:
    assert segment(images, "--openlineage", site.url).exit_code == 0
    start, complete = events(site)
    assert types(site) == ["START", "COMPLETE"]
    assert start.run.runId == complete.run.runId
    assert uuid.UUID(start.run.runId).version == 5
    assert start.eventTime <= complete.eventTime
    assert start.job == complete.job
    assert start.job.namespace == "default"
    assert site.headers[-1]["Content-Type"] == "application/json"
    assert "Authorization" not in site.headers[-1]

    [source] = complete.inputs
    planned = json.loads((images.parent / "out" / "run.json").read_text())
    assert (source.namespace, source.name) == ("file", str(images))
    assert source.facets["version"].datasetVersion == planned["inputs"]["manifest_sha256"]
    assert source.inputFacets["inputStatistics"].rowCount == 3

    assert [dataset.outputFacets for dataset in start.outputs] == [{}, {}]
    for table, dataset in zip(("images", "instances"), complete.outputs, strict=True):
        assert (dataset.namespace, dataset.name) == ("file", str(images.parent / "out" / table))
        [part] = (images.parent / "out" / table).iterdir()
        written, schema = dataset.outputFacets["outputStatistics"], pq.read_schema(part)
        assert (written.size, written.fileCount) == (part.stat().st_size, 1)
        assert written.rowCount == pq.read_metadata(part).num_rows
        columns = {field.name: field for field in columns_of(dataset.facets["schema"].fields)}
        assert list(columns) == schema.names
        for name, column in columns.items():
            inner = schema.field(name).type
            assert [field.name for field in column.fields] == (
                [field.name for field in inner] if pa.types.is_struct(inner) else []
            )


def test_the_weights_are_an_input(images: Path, site: Site) -> None:
    lineage = openlineage.Lineage(f"{site.url}{ENDPOINT}", str(images.parent))
    assert lineage._weights({"uri": "s3://models/a.safetensors", "sha256": "0" * 64}) == {
        "namespace": "s3://models",
        "name": "a.safetensors",
        "facets": {"version": lineage._facet("version", datasetVersion="0" * 64)["version"]},
    }


def test_a_run_that_is_continued_is_the_same_run_and_a_retry_is_another(images: Path, site: Site) -> None:
    (images / "broken.png").write_bytes(b"<html>")
    accepted = ("--max-failure-rate", "1", "--openlineage", site.url)
    assert segment(images, *accepted, "--max-hours", "1e-9").exit_code == 3
    assert segment(images, *accepted).exit_code == 0
    assert segment(images, *accepted).exit_code == 0, "which finds it finished"
    assert types(site) == ["START", "ABORT", "START", "COMPLETE"]
    stopped = events(site)[1].run.facets["errorMessage"]
    assert "--max-hours 1e-09 is reached with 4 images left" in stopped.message
    assert stopped.programmingLanguage == "python"
    assert "errorMessage" not in events(site)[3].run.facets

    retried = CliRunner().invoke(main, ["retry", str(images.parent / "out"), *accepted])
    assert retried.exit_code == 0, retried.output
    first, *_, last = events(site)
    assert types(site)[4:] == ["START", "COMPLETE"]
    assert first.job == last.job
    assert len({event.run.runId for event in events(site)}) == 2
    assert last.run.runId != first.run.runId


def test_an_update_is_a_run_after_the_one_that_it_continues(images: Path, site: Site) -> None:
    assert segment(images, "--max-hours", "1e-9").exit_code == 3
    (images / "new.png").write_bytes((images / "planted-000001.png").read_bytes())
    assert segment(images, "--update", "--openlineage", site.url).exit_code == 0
    assert types(site) == ["START", "COMPLETE", "START", "COMPLETE"]
    whole, update = events(site)[1], events(site)[3]
    assert [event.run.runId == whole.run.runId for event in events(site)] == [True, True, False, False]
    for event, added, rows in ((whole, 3, 3), (update, 1, 4)):
        assert event.inputs[0].inputFacets["inputStatistics"].rowCount == added
        assert event.outputs[0].outputFacets["outputStatistics"].rowCount == rows
    versions = [event.inputs[0].facets["version"].datasetVersion for event in (whole, update)]
    assert versions[0] != versions[1], "another manifest"


def test_a_run_that_fails_says_why(images: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert segment(images, "--max-hours", "1e-9").exit_code == 3
    manifest = images.parent / "out" / "manifest.parquet"
    manifest.write_bytes(b"broken")
    assert segment(images, "--openlineage", site.url).exit_code == 3
    assert types(site) == ["START", "FAIL"]
    assert "manifest.parquet" in events(site)[1].run.facets["errorMessage"].message


def test_what_was_never_planned_is_no_run(images: Path, site: Site) -> None:
    assert segment(images.parent / "none", "--openlineage", site.url).exit_code == 2
    assert not site.posted


def test_the_variables_of_the_environment_are_those_of_openlineage(
    images: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", site.url)
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "True")
    assert segment(images, "--max-hours", "1e-9").exit_code == 3
    assert not site.posted
    monkeypatch.delenv("OPENLINEAGE_DISABLED")
    monkeypatch.setenv("OPENLINEAGE_ENDPOINT", "/events")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "hush")
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "photos")
    site.answers["/events"] = lambda request: answer(request, 200)
    result = segment(images, "--max-hours", "1e-9")
    assert result.exit_code == 3
    assert [event.job.namespace for event in events(site)] == ["photos", "photos"]
    assert {headers["Authorization"] for headers in site.headers} == {"Bearer hush"}
    assert "hush" not in result.output
    files = [path.read_bytes() for path in images.parent.rglob("*") if path.is_file()]
    assert not any(b"hush" in content for content in files)


def test_a_server_that_fails_changes_nothing_but_a_warning(
    images: Path, site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "TIMEOUT_S", 0.3)
    caplog.set_level(logging.WARNING)
    site.answers["/hush/api/v1/lineage"] = lambda request: answer(request, 403, b"no")
    assert segment(images, "--openlineage", f"{site.url}/hush", "--max-hours", "1e-9").exit_code == 3
    warnings = [record.getMessage() for record in caplog.records if "--openlineage" in record.getMessage()]
    assert warnings == ["the server at http://127.0.0.1 of --openlineage got no message: it answered 403"]
    assert "hush" not in caplog.text


def test_where_events_are_posted() -> None:
    assert check_lineage_server("http://host:5000") == "http://host:5000/api/v1/lineage"
    assert check_lineage_server("https://host/base/") == "https://host/base/api/v1/lineage"
    assert check_lineage_server("http://host/api/v1/lineage") == "http://host/api/v1/lineage"
    assert check_lineage_server("http://host/?code=1") == "http://host/api/v1/lineage?code=1"


@pytest.mark.parametrize("url", ["host:5000", "ftp://host", "http://user:hush@host", "file:///hush", ""])
def test_what_is_no_server_is_one_line(url: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--openlineage takes the http:// or https:// URL of a server"
    ) as caught:
        check_lineage_server(url)
    assert "hush" not in str(caught.value)


NAMES = st.text("abcxyz019-", min_size=3, max_size=12).filter(lambda name: name.strip("-") == name)
KEYS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@given(NAMES, KEYS, NAMES)
def test_datasets_are_named_as_openlineage_names_them(bucket: str, key: str, account: str) -> None:
    named = {
        f"s3://{bucket}/{key}": datasets.S3(bucket, key),
        f"s3a://{bucket}/{key}/": datasets.S3(bucket, key),
        f"gs://{bucket}/{key}": datasets.GCS(bucket, key),
        f"gcs://{bucket}/{key}/*.jpg": datasets.GCS(bucket, key),
        f"/{key}": datasets.LocalFileSystem(f"/{key}"),
        f"file:///{key}": datasets.LocalFileSystem(f"/{key}"),
        f"az://{bucket}/{key}": datasets.ABFSS(bucket, account, key),
        f"abfss://{bucket}@{account.replace('-', '')}.dfs.core.windows.net/{key}": datasets.ABFSS(
            bucket, account.replace("-", ""), key
        ),
    }
    settings = [
        {"AZURE_STORAGE_ACCOUNT_NAME": account},
        {
            "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=https;AccountName={account};AccountKey=x=="
        },
    ]
    for environment in settings:
        for url, by_client in named.items():
            expected = {"namespace": by_client.get_namespace(), "name": by_client.get_name()}
            assert dataset_name(url, environment) == expected
    assert dataset_name(f"s3://{bucket}") == {"namespace": f"s3://{bucket}", "name": "/"}
    assert dataset_name(f"az://{bucket}/{key}", {})["namespace"] == f"abfss://{bucket}"


def test_no_dataset_is_named_by_a_secret() -> None:
    for url in ("https://host.invalid/a.json?token=hush", "s3://user:hush@bucket/a"):
        assert "hush" not in json.dumps(dataset_name(url))
