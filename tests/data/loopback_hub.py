"""A small server on loopback that speaks the hub's protocol: repositories are folders; some are gated, private, or cut off."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class LoopbackHub:
    """`folders` by repository id, with "datasets/" before those of data sets; `refused` gives status and code instead.

    The first download of each file in `cut`, named with its repository, ends in the middle. `asked` holds method, path and range.
    """

    def __init__(self, folders: dict[str, Path], refused: dict[str, tuple[int, str]], cut: tuple[str, ...] = ()) -> None:
        self.folders, self.refused, self.cut = folders, refused, list(cut)
        self.asked: list[tuple[str, str, str]] = []
        self.url = ""

    @contextmanager
    def running(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, is_head=True)

            def do_GET(self):
                hub.answer(self)

            def do_POST(self):
                hub.answer(self, asked=self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, is_head: bool = False, asked: bytes = b"") -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path, request.headers.get("Range") or ""))
        if api := _API.fullmatch(path):
            kind, name, what, _, below = api.groups()
            repository = name if kind == "models" else f"datasets/{name}"
            if not self._refuses(request, repository):
                self._send_about(request, repository, what, below or "", asked)
        elif found := _FILE.fullmatch(path):
            repository = f"datasets/{found[2]}" if found[1] else found[2]
            if not self._refuses(request, repository):
                self._send_file(request, repository, found[4], is_head=is_head)
        else:
            self._send(request, b"{}", {}, 404)

    def _send_about(self, request: BaseHTTPRequestHandler, repository: str, what: str | None, below: str, asked: bytes) -> None:
        query = parse_qs(urlsplit(request.path).query)
        if what == "tree":
            about = self._tree(repository, below, is_recursive=query.get("recursive", [""])[0].lower() in ("true", "1"))
        elif what == "paths-info":
            values = parse_qs(asked.decode()) if not asked.startswith(b"{") else json.loads(asked)
            paths = values["paths"] if isinstance(values["paths"], list) else [values["paths"]]
            folder = self.folders[repository]
            about = [self._entry(folder, folder / path) for path in paths if (folder / path).exists()]
        else:
            about = self._about(repository)
        if about is None:
            self._send(request, b"{}", {"X-Error-Code": "EntryNotFound"}, 404)
        else:
            self._send(request, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _refuses(self, request: BaseHTTPRequestHandler, repository: str) -> bool:
        if repository in self.folders:
            return False
        status, code = self.refused.get(repository, (404, "RepoNotFound"))
        self._send(request, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{repository}: {code}"}, status)
        return True

    def _about(self, repository: str) -> object:
        folder = self.folders[repository]
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        about = {"id": repository.removeprefix("datasets/"), "sha": COMMIT, "private": False, "gated": False, "disabled": False}
        return {**about, "downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in names]}

    def _tree(self, repository: str, below: str, *, is_recursive: bool) -> object | None:
        """Entries of a folder; None where there is none."""
        folder = self.folders[repository]
        if not (folder / below).is_dir():
            return None
        paths = sorted((folder / below).rglob("*") if is_recursive else (folder / below).iterdir())
        return [self._entry(folder, path) for path in paths]

    def _entry(self, folder: Path, path: Path) -> dict[str, object]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": name, "oid": _etag(path), "size": path.stat().st_size}

    def _send_file(self, request: BaseHTTPRequestHandler, repository: str, name: str, *, is_head: bool) -> None:
        path = self.folders[repository] / name
        if not path.is_file():
            self._send(request, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, 404)
            return
        data, headers = path.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        size, status = len(data), 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
            first, last = int(wanted[1]), int(wanted[2] or size - 1)
            data, status = data[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if not is_head and f"{repository}/{name}" in self.cut:
            self.cut.remove(f"{repository}/{name}")
            self._head(request, status, {**headers, "Content-Length": str(len(data))})
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(2)
            return
        self._send(request, b"" if is_head else data, {**headers, "Content-Length": str(len(data))}, status)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self._head(request, status, {"Content-Length": str(len(body)), **headers})
        if request.command != "HEAD":
            request.wfile.write(body)

    def _head(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
