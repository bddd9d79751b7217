"""A small Hugging Face hub on 127.0.0.1, as far as uploading and downloading a model asks for one.

    with serving() as hub:
        …                                    # a process with HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET=1
        hub.files["user/name"]["README.md"]  # the bytes that were committed

It keeps everything in memory, takes files of weights and figures through git-lfs and the others inside the commit, as
the hub does. It refuses every wrong token, writing without one, bytes that are not those of their hash, and a card
whose metadata the hub would not take.
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

import yaml

TOKEN = "hf_a_token_of_the_tests"
NAME = re.compile(r"[\w.-]+/[\w.-]+")
LFS = (".safetensors", ".bin", ".png", ".pt")


class Hub(ThreadingHTTPServer):
    """The hub's state.

    Attributes:
        files: For each repository, the content of each file.
        commits: For each repository, the branch and the paths of each commit; all branches hold the same files.
        accepts_commits: False: every commit is refused, as by a hub out of order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[tuple[str, list[str]]]] = {}
        self.objects: dict[str, bytes] = {}
        self.accepts_commits = True

    @property
    def url(self) -> str:
        """Address of the hub."""
        return f"http://127.0.0.1:{self.server_port}"

    def revision(self, repository: str) -> str:
        """Hash of the newest commit."""
        return hashlib.sha1(json.dumps(self.commits[repository]).encode()).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Runs a hub in a thread, as long as the context lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Refusal(Exception):  # noqa: N818  # an answer, not an error of ours
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def _answer(self, what: Any) -> None:
        body = self._body()
        try:
            content, headers = what(unquote(urlsplit(self.path).path), body)
            status = 200
        except _Refusal as refusal:
            content, status = json.dumps({"error": str(refusal)}).encode(), refusal.status
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        if match := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
            return self._file(*match.groups())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            files = self._repository(match[1])
            siblings = [{"rfilename": name} for name in files]
            facts = {"id": match[1], "sha": self.server.revision(match[1]), "siblings": siblings, "tags": []}
            return _json({**facts, "private": False, "downloads": 0, "likes": 0})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?", path):
            files = self._repository(match[1])
            return _json([{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files])
        raise _Refusal(404, f"nothing at {path}")

    def _file(self, repository: str, name: str) -> tuple[bytes, dict[str, str]]:
        files = self._repository(repository)
        if name not in files:
            raise _Refusal(404, f"no {name} in {repository}", "EntryNotFound")
        etag = hashlib.sha256(files[name]).hexdigest()
        return files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.revision(repository)}

    def _repository(self, repository: str) -> dict[str, bytes]:
        if repository not in self.server.files:
            raise _Refusal(404, f"no repository {repository}", "RepoNotFound")
        return self.server.files[repository]

    # --- writing -----------------------------------------------------------------------------------------------------

    def _post(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if path == "/api/validate-yaml":
            return _json({"errors": _faults(json.loads(body)["content"]), "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refusal(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            self._repository(match[1])
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LFS) else "regular" for name in names}
            return _json({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body)["objects"])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/[^/]+", path):
            return _json({})
        raise _Refusal(404, f"nothing at {path}")

    def _create(self, wish: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        name = f"{wish.get('organization') or 'user'}/{wish['name']}"
        self.server.files.setdefault(name, {})
        self.server.commits.setdefault(name, [])
        return _json({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def _batch(self, objects: list[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
        def upload(oid: str) -> dict[str, Any]:
            if oid in self.server.objects:
                return {}
            return {"actions": {"upload": {"href": f"{self.server.url}/lfs/{oid}"}}}

        return _json({"transfer": "basic", "objects": [{**wanted, **upload(wanted["oid"])} for wanted in objects]})

    def _put(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        oid = path.removeprefix("/lfs/")
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, f"{oid} is not the hash of what was sent")
        self.server.objects[oid] = body
        return b"", {}

    def _commit(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
        if not self.server.accepts_commits:
            raise _Refusal(403, "out of order")
        new: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                new[value["path"]] = self.server.objects[value["oid"]]
        self._repository(repository).update(new)
        self.server.commits[repository].append((branch, sorted(new)))
        revision = self.server.revision(repository)
        url = f"{self.server.url}/{repository}/commit/{revision}"
        return _json({"commitUrl": url, "commitOid": revision, "success": True})


def _json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def _faults(card: str) -> list[dict[str, str]]:
    """What the hub would refuse of a card: metadata that is none, a base model or results of another form."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    metadata = yaml.safe_load(match[1]) if match else None
    if not isinstance(metadata, dict):
        return [{"message": "metadata is missing"}]
    faults = []
    base = metadata.get("base_model")
    if base is not None and not NAME.fullmatch(base):
        faults.append(f"base_model is no name on the hub: {base}")
    for model in metadata.get("model-index", []):
        for result in model["results"]:
            complete = {"type"} <= result["task"].keys() and {"type", "name"} <= result["dataset"].keys()
            if not complete or not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                faults.append(f"model-index: a result is not complete: {result}")
    return [{"message": fault} for fault in faults]
