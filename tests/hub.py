"""A stand-in for the Hugging Face hub: what its client asks to create, fill and read repositories of models."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants
from huggingface_hub.utils import close_session

WRITER, READER = "hf_writer", "hf_reader"
_HOST = "127.0.0.1"


class RefusalError(Exception):
    """Status, name of the error, and content of an answer."""

    def __init__(self, status: int, name: str, content: str = "") -> None:
        super().__init__(status, name, content)


class Hub:
    """Repositories of models, and who asked for what

    Those who write have to be `WRITER`, those who read private repositories `WRITER` or `READER`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.private: dict[str, bool] = {}
        self.branches: dict[str, dict[str, str]] = {}  # commits by name
        self.commits: dict[str, dict[str, bytes]] = {}  # files by path
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, token

    def create(self, repository: str, private: bool = False) -> None:
        """Create a repository, as the hub does: with a first commit."""
        self.private[repository] = private
        self.branches[repository] = {}
        self.commit(repository, "main", {".gitattributes": b""})

    def commit(self, repository: str, branch: str, files: dict[str, bytes], deleted: Set[str] = frozenset()) -> str:
        """Add files to those of a branch, and delete others."""
        branches = self.branches[repository]
        before = self.commits.get(branches.get(branch, ""), {})
        files = {**{path: before[path] for path in before.keys() - deleted}, **files}
        sha = hashlib.sha1(f"{repository} {len(self.commits)}".encode()).hexdigest()
        branches[branch], self.commits[sha] = sha, files
        return sha

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self._find(repository, revision)]

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[dict[str, str], bytes]:
        """Headers and content of an answer; `RefusalError` is raised instead of bad ones."""
        self.requests.append((method, path, token))
        if path == "/api/validate-yaml":
            return {}, self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return {}, self._create(json.loads(body), token)

        download = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if download:
            repository, revision, name = download.groups()
            self._check_reader(repository, token)
            sha = self._find(repository, revision)
            if name not in self.commits[sha]:
                raise RefusalError(404, "EntryNotFound")
            content = self.commits[sha][name]
            return {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content

        call = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|branch|preupload|commit)/(.+))?", path)
        if call is None:
            raise RefusalError(404, "NotHere")
        repository, action, name = call.groups()
        self._check_reader(repository, token)
        if method == "POST" and token != WRITER:
            raise RefusalError(403, "Forbidden")
        if action == "branch":
            if name in self.branches[repository]:
                raise RefusalError(409, "Conflict")
            self.branches[repository][name] = self.branches[repository]["main"]
            return {}, b"{}"
        sha = self._find(repository, name or "main")
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return {}, json.dumps({"files": modes}).encode()
        if action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            added = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
            contents = {path: base64.b64decode(value["content"]) for path, value in added.items()}
            deleted = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
            sha = self.commit(repository, name, contents, deleted)
            return {}, json.dumps({"commitUrl": f"{self.url}/{repository}/commit/{sha}", "commitOid": sha}).encode()
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in self.commits[sha].items()
        ]
        about = {"id": repository, "sha": sha, "private": self.private[repository], "siblings": []}
        return {}, json.dumps(files if action == "tree" else about).encode()

    def _create(self, request: dict, token: str | None) -> bytes:
        if token not in (WRITER, READER):
            raise RefusalError(401, "Unauthorized")
        if token != WRITER:
            raise RefusalError(403, "Forbidden")
        repository = f"{request['organization']}/{request['name']}"
        url = json.dumps({"url": f"{self.url}/{repository}"})
        if repository in self.private:
            raise RefusalError(409, "Conflict", url)
        self.create(repository, request.get("visibility") == "private" or request.get("private", False))
        return url.encode()

    def _validate(self, card: str) -> bytes:
        """As far as the hub's rules are known: the names of licenses and of data sets."""
        metadata = yaml.safe_load(card.split("---\n")[1])
        if metadata["license"] not in ("mit", "cc-by-nc-4.0"):
            raise RefusalError(
                400, "Invalid", f'"license" must be one of [mit, cc-by-nc-4.0], got {metadata["license"]}'
            )
        for model in metadata.get("model-index", []):
            for result in model["results"]:
                assert re.fullmatch(r"([\w-]+/)?[\w.-]+", result["dataset"]["type"])
                assert {"name", "type"} <= result["dataset"].keys()
                assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
        return b'{"errors": [], "warnings": []}'

    def _check_reader(self, repository: str, token: str | None) -> None:
        if self.private.get(repository, True) and token not in (WRITER, READER):
            raise RefusalError(401, "RepoNotFound")
        if repository not in self.private:
            raise RefusalError(404, "RepoNotFound")

    def _find(self, repository: str, revision: str) -> str:
        branches = self.branches[repository]
        sha = revision if revision in self.commits else branches.get(revision)
        if sha is None:
            raise RefusalError(404, "RevisionNotFound")
        return sha


@contextmanager
def stand_in(monkeypatch, cache: Path) -> Iterator[Hub]:
    """Run the stand-in, with the hub's client connected to it, to an empty cache and to nobody's token."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            try:
                headers, content = hub.answer(self.command, unquote(urlsplit(self.path).path), token, body)
                status = 200
            except RefusalError as refusal:
                status, error, text = refusal.args
                headers, content = {"X-Error-Code": error}, text.encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_POST = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((_HOST, 0), Handler)
    hub = Hub(f"http://{_HOST}:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", _HOST)
    close_session()  # it may know of other proxies
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        server.server_close()
