"""A run as events of OpenLineage (https://openlineage.io), by which a catalog knows what was made of which inputs.

The events are those of version 2-0-2 of its specification. The variables of the environment are those of its clients.
"""

import contextlib
import datetime
import importlib.metadata
import os
import uuid
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import pyarrow as pa

from maskrcnn.errors import RunError
from maskrcnn.io.parquet import IMAGES, INSTANCES, read_schema
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url, redact, redact_all
from maskrcnn.pipeline.plan import Plan, read_run
from maskrcnn.pipeline.success import read_success

from ..driver.metrics import output_tag
from .plain_text import plain
from .posting import Poster, check_server

OPTION: Final = "--openlineage"
URL: Final = "OPENLINEAGE_URL"
"""The environment variable of `--openlineage`."""
ENDPOINT: Final = "api/v1/lineage"
"""What follows the server's URL, unless `OPENLINEAGE_ENDPOINT` says otherwise."""
SPECIFICATION: Final = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACETS: Final = {
    "processing_engine": ("ProcessingEngineRunFacet", "1-1-1"),
    "errorMessage": ("ErrorMessageRunFacet", "1-0-1"),
    "jobType": ("JobTypeJobFacet", "2-0-4"),
    "version": ("DatasetVersionDatasetFacet", "1-0-1"),
    "schema": ("SchemaDatasetFacet", "1-2-0"),
    "inputStatistics": ("InputStatisticsInputDatasetFacet", "1-0-0"),
    "outputStatistics": ("OutputStatisticsOutputDatasetFacet", "1-0-2"),
}
"""Name and version of the definition of each facet."""
Event = Literal["START", "COMPLETE", "ABORT", "FAIL"]
_SPELLED: Final = {"s3a": "s3", "gcs": "gs", "az": "abfss", "abfs": "abfss"}
"""Schemes as OpenLineage spells them."""


def check_lineage_server(url: str) -> str | None:
    """Return where events are posted; None if `OPENLINEAGE_DISABLED` says that none are.

    Args:
        url: of the server, with or without the endpoint.

    Raises:
        UsageError: it is not such a URL.
    """
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return None
    check_server(url, OPTION, "a server of OpenLineage")
    endpoint = (os.environ.get("OPENLINEAGE_ENDPOINT") or ENDPOINT).strip("/")
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(f"/{endpoint}") else f"{path}/{endpoint}").geturl()


def dataset_name(url: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return namespace and name of a file or folder, by OpenLineage's rules.

    Args:
        url: a URL or a local path; a glob stands for the folder before its first wildcard.
        environment: names the account of Azure where the URL does not.

    >>> dataset_name("s3a://bucket/photos/2026/*.jpg"), dataset_name("/data/photos/")
    ({'namespace': 's3://bucket', 'name': 'photos/2026'}, {'namespace': 'file', 'name': '/data/photos'})
    >>> dataset_name("az://photos/a", {"AZURE_STORAGE_ACCOUNT_NAME": "acme"})["namespace"]
    'abfss://photos@acme.dfs.core.windows.net'
    """
    parsed = Url.parse(redact(url))
    key = parsed.key
    while any(character in key for character in "*?["):
        key = key.rpartition("/")[0]
    if parsed.is_local:
        return {"namespace": "file", "name": os.path.abspath(key)}  # noqa: PTH100 (`..` is another name)
    scheme = _SPELLED.get(parsed.scheme, parsed.scheme)
    bucket = parsed.bucket
    if scheme == "abfss":
        bucket = _in_account(bucket, environment)
    return {"namespace": f"{scheme}://{bucket}", "name": key.strip("/") or "/"}


def _in_account(container: str, environment: Mapping[str, str]) -> str:
    """Return a container of Azure with its account, `CONTAINER@ACCOUNT.dfs.core.windows.net`, if that is known."""
    if "@" in container:
        return container.replace(".blob.", ".dfs.")
    connection = environment.get("AZURE_STORAGE_CONNECTION_STRING", "")
    named = dict(part.partition("=")[::2] for part in connection.split(";"))
    account = environment.get("AZURE_STORAGE_ACCOUNT_NAME") or named.get("AccountName")
    return f"{container}@{account}.dfs.core.windows.net" if account else container


class Lineage:
    """Posts events of one run to a server.

    Args:
        url: as `check_lineage_server` returned it.
        output: the run's directory, as the user named it.
    """

    def __init__(self, url: str, output: str) -> None:
        key = os.environ.get("OPENLINEAGE_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.poster: Final = Poster(url, OPTION, "server", headers)
        self._output = output
        self._version = importlib.metadata.version("maskrcnn-ray")
        self._producer = f"pkg:generic/maskrcnn-ray@{self._version}"
        self._common: dict[str, Any] | None = None

    def start(self, plan: Plan) -> None:
        """Post that a run, or what is left of it, begins; and that one before it in this command is complete.

        Args:
            plan: of the latest generation; with the run's directory it gives the run's id.
        """
        storage = Storage(self._output)
        if self._common is not None:
            self.end("COMPLETE", "", read_success(storage))
        run = read_run(storage)
        source: dict[str, Any] = dataset_name(run["inputs"]["source"]) | {
            "facets": self._facet("version", datasetVersion=plan.manifest_sha256)
        }
        if plan.generation == 1 or plan.grid_sha256 is None:
            rows = run["inputs"]["rows"] if plan.generation == 1 else plan.rows
            source["inputFacets"] = self._facet("inputStatistics", rowCount=rows)
        weights = [] if run["model"].get("uri") is None else [self._weights(run["model"])]
        namespace = os.environ.get("OPENLINEAGE_NAMESPACE") or "default"
        job_type = {"processingType": "BATCH", "integration": "MASKRCNN_RAY", "jobType": "JOB"}
        identity = f"{storage.url}#{plan.created}#{plan.digest}#{plan.generation}"
        self._common = {
            "run": {
                "runId": str(uuid.uuid5(uuid.NAMESPACE_URL, identity)),
                "facets": self._facet("processing_engine", name="maskrcnn-ray", version=self._version),
            },
            "job": {
                "namespace": namespace,
                "name": f"maskrcnn.{output_tag(storage.url)}",
                "facets": self._facet("jobType", **job_type),
            },
            "inputs": [source, *weights],
        }
        self._post("START", [dataset_name(f"{storage.url}/{name}") for name in (IMAGES, INSTANCES)])

    def end(self, event: Event, message: str, success: dict[str, Any] | None) -> None:
        """Post how the command ended; nothing if it had not begun.

        Args:
            event: how it ended.
            message: one line for people, of what stopped it.
            success: the content of `_SUCCESS` of a complete run.
        """
        if self._common is None:
            return
        if event != "COMPLETE":
            error = {"message": plain(redact_all(message)), "programmingLanguage": "python"}
            self._common["run"]["facets"] |= self._facet("errorMessage", **error)
        storage = Storage(self._output)
        outputs = [dataset_name(f"{storage.url}/{name}") for name in (IMAGES, INSTANCES)]
        if success is not None:
            outputs = [self._written(storage, name, success["parts"][name]) for name in (IMAGES, INSTANCES)]
        self._post(event, outputs)

    def _post(self, event: Event, outputs: list[dict[str, Any]]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        head = {"eventType": event, "eventTime": now, "producer": self._producer, "schemaURL": SPECIFICATION}
        self.poster.post(head | (self._common or {}) | {"outputs": outputs})

    def _weights(self, model: dict[str, Any]) -> dict[str, Any]:
        return dataset_name(model["uri"]) | {"facets": self._facet("version", datasetVersion=model["sha256"])}

    def _written(self, storage: Storage, name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a table that was written, with its schema and size."""
        sums = {field: sum(part[field] for part in parts) for field in ("rows", "bytes")}
        sizes = {"rowCount": sums["rows"], "size": sums["bytes"], "fileCount": len(parts)}
        facets: dict[str, Any] = {}
        # If the store fails now, the run is complete nevertheless, and that is what counts.
        with contextlib.suppress(RunError):
            fields = [_field(field) for field in read_schema(storage, parts[0]["path"])]
            facets = self._facet("schema", fields=fields)
        written = {"facets": facets, "outputFacets": self._facet("outputStatistics", **sizes)}
        return dataset_name(f"{storage.url}/{name}") | written

    def _facet(self, facet: str, /, **values: Any) -> dict[str, Any]:
        definition, version = FACETS[facet]
        url = f"https://openlineage.io/spec/facets/{version}/{definition}.json#/$defs/{definition}"
        return {facet: {"_producer": self._producer, "_schemaURL": url, **values}}


def _field(field: pa.Field) -> dict[str, Any]:
    """Return a column by OpenLineage's rules, with what it consists of."""
    inner = list(field.type) if pa.types.is_struct(field.type) else []
    nested = {"fields": [_field(part) for part in inner]} if inner else {}
    return {"name": field.name, "type": "struct" if inner else str(field.type)} | nested
