"""A small Hugging Face hub on 127.0.0.1: what uploading and downloading a model need.

    with serving() as hub:
        …                                    # a process with HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET=1
        hub.files["user/name"]["README.md"]  # the bytes that were committed

It keeps everything in memory, takes all files within the commit (no git-lfs), and refuses every other token.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_the_tests"


class Hub(ThreadingHTTPServer):
    """The hub's state: the files of each repository, and branch and paths of each commit; all branches are one.

    With `accepts_commits = False` every commit fails, as on a hub that is down.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[tuple[str, list[str]]]] = {}
        self.accepts_commits = True

    def revision(self, repository: str) -> str:
        """Hash of the newest commit."""
        return hashlib.sha1(json.dumps(self.commits[repository]).encode()).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Runs a hub in a thread."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _RequestError(Exception):
    """Status, message and the hub's code of an answer that is an error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        try:
            if self.headers.get("Authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
                raise _RequestError(401, "Invalid credentials in Authorization header", "")
            content, headers = self._post(path, body) if self.command == "POST" else self._get(path)
            content, status = content if isinstance(content, bytes) else json.dumps(content).encode(), 200
        except _RequestError as error:
            status, message, code = error.args
            content, headers = b"{}", {"X-Error-Code": code, "X-Error-Message": message}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _files(self, repository: str) -> dict[str, bytes]:
        if repository not in self.server.files:
            raise _RequestError(404, f"no repository {repository}", "RepoNotFound")
        return self.server.files[repository]

    def _get(self, path: str) -> tuple[Any, dict[str, str]]:
        if match := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
            files = self._files(match[1])
            if match[2] not in files:
                raise _RequestError(404, f"no {match[2]} in {match[1]}", "EntryNotFound")
            etag = hashlib.sha256(files[match[2]]).hexdigest()
            return files[match[2]], {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.revision(match[1])}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/[^/]+/?|/revision/[^/]+)?", path)
        if not match:
            raise _RequestError(404, f"nothing at {path}", "")
        files = self._files(match[1])
        if (match[2] or "").startswith("/tree"):
            return [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files], {}
        siblings = [{"rfilename": name} for name in files]
        return {"id": match[1], "sha": self.server.revision(match[1]), "siblings": siblings, "tags": []}, {}

    def _post(self, path: str, body: bytes) -> tuple[Any, dict[str, str]]:
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, {}
        if "Authorization" not in self.headers:
            raise _RequestError(401, "Invalid credentials in Authorization header", "")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            self.server.files.setdefault(name, {})
            self.server.commits.setdefault(name, [])
            return {"url": f"{self.server.url}/{name}", "name": name, "id": name}, {}
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/[^/]+", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}, {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()]), {}
        return {}, {}

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.server.accepts_commits:
            raise _RequestError(403, "out of order", "")
        values = [line["value"] for line in lines if line["key"] == "file"]
        new = {value["path"]: base64.b64decode(value["content"]) for value in values}
        self._files(name).update(new)
        self.server.commits[name].append((branch, sorted(new)))
        oid = self.server.revision(name)
        return {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}
