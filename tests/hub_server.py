"""A model hub on the loopback that speaks the Hub's API as far as its client library uses it, and misbehaves as a test says.

Repositories are commits with files. Files in large file storage are served from another origin (`localhost` instead of
`127.0.0.1`) by a redirect, as the Hub does. Uploads follow its protocol too: preupload, LFS batch, commit.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pth", ".model")
PIECE_BYTES = 16 * 1024


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: branches and tags, and the files of each commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds a commit with exactly these files at the head of a branch, and returns its id."""
        number = (
            f"{branch}{len(self.commits)}{sorted((name, sha256(content)) for name, content in files.items())}"
        )
        commit = hashlib.sha1(number.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit's id."""
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class HubServer:
    """State of the server, its faults, and the requests that it received.

    Args:
        token: the only one that opens gated and private repositories, and writes.
        breaks: connections of downloads that end after this number of bytes of the body, in order.
        stalls: downloads that send nothing more after this number of bytes, until `released`.
        ranges: without them every download is answered whole.
        altered: contents served in place of the listed ones, by path.
        failing: status that every request is answered with.
        silent: requests are not answered until `released`.
    """

    token: str = "hf_secretToken"
    repos: dict[str, Repo] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    ranges: bool = True
    altered: dict[str, bytes] = field(default_factory=dict)
    failing: int | None = None
    silent: bool = False
    released: threading.Event = field(default_factory=threading.Event)
    stored: dict[str, bytes] = field(default_factory=dict)
    heard: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    storage: str = ""

    def downloads(self) -> list[str]:
        """The ranges of all downloads from storage, in order."""
        return [
            headers.get("range", "")
            for method, path, headers in self.heard
            if method == "GET" and "/storage/" in path
        ]


class Handler(BaseHTTPRequestHandler):
    """Answers of the Hub."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.heard.append((self.command, self.path, headers))
        if hub.silent:
            hub.released.wait()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.failing is not None:
            return self._send(hub.failing, {"error": "the Hub is ill"})
        path = unquote(urlsplit(self.path).path)
        with suppress(BrokenPipeError, ConnectionResetError):
            for pattern, method in ROUTES:
                if (match := re.fullmatch(pattern, path)) is not None:
                    return method(self, body, **match.groupdict())
            self._send(404, {"error": "not found"})
        return None

    # ---- reading ----

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        repo = self._open(name)
        if repo is None:
            return None
        commit = repo.resolve(revision)
        if commit is None:
            return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        siblings = [_sibling(path, content) for path, content in repo.commits[commit].items()]
        self._send(
            200,
            {
                "id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": repo.private,
                "gated": "manual" if repo.gated else False, "downloads": 7, "likes": 1, "tags": [],
            },
        )  # fmt: skip
        return None

    def search(self, body: bytes) -> None:
        query = parse_qs(urlsplit(self.path).query)
        text = query.get("search", [""])[0].lower()
        found = [
            {
                "id": name,
                "modelId": name,
                "private": repo.private,
                "downloads": 7,
                "likes": 1,
                "tags": ["llama"],
            }
            for name, repo in self.hub.repos.items()
            if text in name.lower() and not repo.private
        ]
        self._send(200, found[: int(query.get("limit", ["1000"])[0])])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repo = self._open(name, for_files=True)
        if repo is None:
            return None
        commit = repo.resolve(revision)
        if commit is None or path not in repo.commits[commit]:
            code = "RevisionNotFound" if commit is None else "EntryNotFound"
            return self._send(404, {"error": "not found"}, {"X-Error-Code": code})
        content = self.hub.altered.get(path, repo.commits[commit][path])
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(LFS_SUFFIXES):
            return self._content(content, headers | {"ETag": f'"{blob_id(content)}"'})
        self.hub.stored[sha256(content)] = content
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content)}"'}
        headers |= {"Location": f"{self.hub.storage}/storage/{sha256(content)}?signature=secretSignature"}
        self._send(302, {}, headers)
        return None

    def storage(self, body: bytes, digest: str) -> None:
        content = self.hub.stored[digest]
        self._content(content, {"ETag": f'"{digest}"'})

    # ---- writing ----

    def create(self, body: bytes) -> None:
        if not self._may_write():
            return None
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if name in self.hub.repos:
            return self._send(
                409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            )
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name})
        return None

    def accept_card(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if not self._may_write():
            return
        files = json.loads(body)["files"]
        modes = [
            {
                "path": file["path"], "shouldIgnore": False, "oid": None,
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
            }
            for file in files
        ]  # fmt: skip
        self._send(200, {"files": modes})

    def batch(self, body: bytes, name: str) -> None:
        if not self._may_write():
            return
        objects = [
            {
                "oid": item["oid"], "size": item["size"],
                "actions": {"upload": {"href": f"{self.hub.storage}/storage/{item['oid']}", "header": {}}},
            }
            for item in json.loads(body)["objects"]
        ]  # fmt: skip
        self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, digest: str) -> None:
        if sha256(body) != digest:
            return self._send(400, {"error": "digest"})
        self.hub.stored[digest] = body
        self._send(200, {})
        return None

    def write(self, body: bytes, name: str, revision: str) -> None:
        if not self._may_write():
            return
        repo = self.hub.repos[name]
        files = dict(repo.commits[repo.branches[revision]])
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = repo.commit(files, revision)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})

    # ---- parts ----

    @property
    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _may_write(self) -> bool:
        if not self._has_token:
            self._send(401, {"error": "Invalid username or password."})
        return self._has_token

    def _open(self, name: str, *, for_files: bool = False) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._has_token):
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.gated and for_files and not self._has_token:
            self._send(403, {"error": "Access to this model is restricted"}, {"X-Error-Code": "GatedRepo"})
            return None
        return repo

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        start = 0
        if self.hub.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(asked.group(1))
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        self.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = self.hub.breaks.pop(0) if self.hub.breaks and "/storage/" in self.path else None
        stalled = self.hub.stalls.pop(0) if self.hub.stalls and "/storage/" in self.path else None
        end = next((count for count in (broken, stalled) if count is not None), len(body))
        for first in range(0, end, PIECE_BYTES):
            self.wfile.write(body[first : min(first + PIECE_BYTES, end)])
        if stalled is not None:
            self.hub.released.wait()
        if end < len(body):
            self.close_connection = True

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"/api/models", Handler.search),
    (rf"/api/models/{NAME}", Handler.info),
    (rf"/api/models/{NAME}/revision/(?P<revision>.+)", Handler.info),
    (rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.accept_card),
    (rf"/api/models/{NAME}/preupload/(?P<revision>.+)", Handler.preupload),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (rf"/api/models/{NAME}/commit/(?P<revision>.+)", Handler.write),
]


def _storage(handler: Handler, body: bytes, digest: str) -> None:
    (handler.store if handler.command == "PUT" else handler.storage)(body, digest)


ROUTES.append((r"/storage/(?P<digest>\w+)", _storage))


def _sibling(path: str, content: bytes) -> Json:
    found: Json = {"rfilename": path, "size": len(content), "blobId": blob_id(content)}
    if path.endswith(LFS_SUFFIXES):
        found["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
    return found


class QuietServer(ThreadingHTTPServer):
    """Server whose clients may vanish, as killed workers do."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing about a connection that was reset; a test that needs its answer fails."""


@contextmanager
def hub_server(**state: Any) -> Iterator[HubServer]:
    """A running server with this state; every waiting answer is released at its end."""
    hub = HubServer(**state)
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = QuietServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    port = server.server_address[1]
    hub.url, hub.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
