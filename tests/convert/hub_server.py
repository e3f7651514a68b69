"""A local stand-in for the Hugging Face hub: the few addresses that huggingface_hub calls, and a count of the bytes."""

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves `repositories`: id -> folder.

    Attributes:
      gated: id -> status for its files, which need an accepted licence (401 without a login, 403 with one).
      hidden: ids that get 401 instead of 404, as all unknown ones do without a login.
      busy: answers 503 to this many requests for files first.
      served: bytes sent per file name.
      requests: file name and the Range asked for, in order.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.gated: dict[str, int] = {}
        self.hidden: set[str] = set()
        self.busy = 0
        self.served: dict[str, int] = {}
        self.requests: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[HubServer]:
    server = HubServer(repositories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._repository(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        elif match := re.fullmatch(r"/store/([^/]+/[^/]+)/(.+)", path):
            self._contents(*match.groups())
        else:
            self._answer(404, b"")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = urllib.parse.unquote(self.path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", path)
        if match and (folder := self._folder(match[1], match[2])):
            names = urllib.parse.parse_qs(body)["paths"]
            self._json([self._entry(folder / name) for name in names if (folder / name).is_file()])

    def log_message(self, *_) -> None:
        pass

    def _folder(self, repository: str, revision: str | None) -> Path | None:
        if repository not in self.server.repositories:
            self._error(401 if repository in self.server.hidden else 404, "RepoNotFound", "Repository not found")
        elif revision not in (None, "main", COMMIT):
            self._error(404, "RevisionNotFound", "Invalid rev id")
        else:
            return self.server.repositories[repository]
        return None

    def _repository(self, repository: str, kind: str | None, revision: str | None) -> None:
        folder = self._folder(repository, revision)
        if folder is None:
            return
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if kind == "tree":
            self._json([self._entry(path) for path in files])
        else:
            siblings = [{"rfilename": path.name} for path in files]
            self._json({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings})

    def _file(self, repository: str, revision: str, name: str) -> None:
        folder = self._folder(repository, revision)
        if folder is None:
            return
        if self.server.busy:
            self.server.busy -= 1
            self._answer(503, b"")
        elif repository in self.server.gated:
            self._error(self.server.gated[repository], "GatedRepo", "Access to this model is restricted")
        elif not (folder / name).is_file():
            self._error(404, "EntryNotFound", "Entry not found")
        elif name.endswith(".json"):
            self._contents(repository, name)
        else:
            # Like the hub, which keeps large files in another place.
            self._answer(302, b"", {"Location": f"{self.server.address}/store/{repository}/{name}"})

    def _contents(self, repository: str, name: str) -> None:
        contents = (self.server.repositories[repository] / name).read_bytes()
        wanted = self.headers.get("Range")
        self.server.requests.append((name, wanted))
        headers, status = {"ETag": f'"{hashlib.sha256(contents).hexdigest()}"', "Accept-Ranges": "bytes"}, 200
        if wanted:
            first, last = (int(number) for number in re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
            headers["Content-Range"] = f"bytes {first}-{min(last, len(contents) - 1)}/{len(contents)}"
            contents, status = contents[first : last + 1], 206
        self.server.served[name] = self.server.served.get(name, 0) + len(contents)
        self._answer(status, contents, headers)

    def _entry(self, path: Path) -> dict:
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
