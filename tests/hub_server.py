"""A server that answers as the Hugging Face Hub does where `huggingface_hub` lists and reads a data set."""

import hashlib
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import unquote

from webserver import answer

NAME = "owner/photos"


class Hub:
    """One data set, `owner/photos`, whose commits are kept.

    Attributes:
        revisions: the commit that each name stands for.
        ranges: the paths that were read, each with its range.
    """

    def __init__(self) -> None:
        self.revisions: dict[str, str] = {}
        self.ranges: list[tuple[str, str | None]] = []
        self._commits: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self) -> None:
                hub._get(self)

            def do_HEAD(self) -> None:
                hub._get(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        """Store files as the new commit of a revision; return it."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        self._commits[commit] = dict(files)
        self.revisions[revision] = commit
        return commit

    def _get(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        if match := re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/(.+))?", path):
            commit = self._commit_of(unquote(match[1] or "main"))
            self._json(request, commit and {"id": NAME, "sha": commit, "siblings": []}, "RevisionNotFound")
        elif match := re.fullmatch(rf"/api/datasets/{NAME}/tree/([^/]+)(?:/(.*))?", path):
            tree = self._tree(unquote(match[1]), unquote(match[2] or ""), "recursive=true" in query.lower())
            self._json(request, tree, "EntryNotFound")
        elif match := re.fullmatch(rf"/datasets/{NAME}/resolve/([^/]+)/(.*)", path):
            self._file(request, unquote(match[1]), unquote(match[2]))
        else:
            self._json(request, None, "RepoNotFound")

    def _commit_of(self, revision: str) -> str | None:
        return self.revisions.get(revision, revision if revision in self._commits else None)

    def _tree(self, revision: str, below: str, recursive: bool) -> list[dict[str, Any]] | None:
        files = self._commits.get(self._commit_of(revision) or "", {})
        prefix = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for path, data in files.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = prefix + "/".join(parts[:depth])
                found[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            if recursive or len(parts) == 1:
                oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
                found[path] = {"type": "file", "oid": oid, "size": len(data), "path": path}
        return list(found.values()) if found or not below else None

    def _json(self, request: http.server.BaseHTTPRequestHandler, found: Any, code: str) -> None:
        if found is None:
            answer(request, 404, b"{}", X_Error_Code=code)
        else:
            answer(request, 200, json.dumps(found).encode(), Content_Type="application/json")

    def _file(self, request: http.server.BaseHTTPRequestHandler, revision: str, path: str) -> None:
        data = self._commits.get(self._commit_of(revision) or "", {}).get(path)
        if data is None:
            answer(request, 404, b"{}", X_Error_Code="EntryNotFound")
            return
        asked = request.headers.get("Range")
        self.ranges.append((path, asked))
        if asked is None:
            answer(request, 200, data)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        stop = min(int(last) + 1 if last else len(data), len(data))
        part = data[int(first) : stop]
        answer(request, 206, part, Content_Range=f"bytes {first}-{stop - 1}/{len(data)}")
