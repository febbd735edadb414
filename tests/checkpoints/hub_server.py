"""A server that speaks as much of the Hub's protocol as fetching needs, on loopback."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40


class HubServer:
    """Serves repositories out of a dict.

    Args:
        repositories: files by repository, bytes by name.

    Attributes:
        requests: what came, as ``"GET /repo/resolve/commit/file"`` and the Range header.
        breaks: names of files whose next download is cut in the middle; each once.
        statuses: a status instead of an answer, by repository or ``repository/file``.
        get_statuses: the same, for the content of files alone (their headers are still told).
        codes: the Hub's X-Error-Code, by the same keys.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.requests: list[tuple[str, str | None]] = []
        self.breaks: set[str] = set()
        self.statuses: dict[str, int] = {}
        self.get_statuses: dict[str, int] = {}
        self.codes: dict[str, str] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the test's output is the test's."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> list[str]:
        """Names of files whose content was asked for, in alphabetical order."""
        return sorted(
            line.split("/", 5)[5] for line, _ in self.requests if line.startswith("GET") and "/resolve/" in line
        )

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append((f"{request.command} {path}", request.headers.get("Range")))
        words = path.strip("/").split("/")
        if len(words) < 4:
            request.send_error(404)
        elif words[:2] == ["api", "models"]:
            self._listing(request, "/".join(words[2:4]), words[4:])
        else:
            self._file(request, "/".join(words[:2]), words[3], "/".join(words[4:]))

    def _listing(self, request: BaseHTTPRequestHandler, repository: str, asked: list[str]) -> None:
        if self._refused(request, repository, self.statuses):
            return
        files = self.repositories.get(repository)
        if files is None:
            _send(request, 404, {"X-Error-Code": "RepoNotFound"}, b"")
            return
        if asked[0] == "revision":
            commit = {"main": COMMIT, "tuned": OTHER_COMMIT, COMMIT: COMMIT, OTHER_COMMIT: OTHER_COMMIT}.get(asked[1])
            if commit is None:
                _send(request, 404, {"X-Error-Code": "RevisionNotFound"}, b"")
                return
            siblings = [{"rfilename": name} for name in files]
            content: object = {"id": repository, "sha": commit, "siblings": siblings}
        else:
            content = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        _send(request, 200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _file(self, request: BaseHTTPRequestHandler, repository: str, revision: str, name: str) -> None:
        place = f"{repository}/{name}"
        if any(self._refused(request, key, self.statuses) for key in (repository, place)):
            return
        if request.command == "GET" and self._refused(request, place, self.get_statuses):
            return
        if repository not in self.repositories:
            _send(request, 404, {"X-Error-Code": "RepoNotFound"}, b"")
            return
        if revision not in ("main", "tuned", COMMIT, OTHER_COMMIT):
            _send(request, 404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        commit = OTHER_COMMIT if revision in ("tuned", OTHER_COMMIT) else COMMIT
        data = self.repositories[repository].get(name)
        if data is None:
            _send(request, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"")
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        if request.command == "HEAD":
            _send(request, 200, headers, data)
            return
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = name in self.breaks
        self.breaks.discard(name)
        _send(request, 206 if asked else 200, headers, data[start:], cut=cut)

    def _refused(self, request: BaseHTTPRequestHandler, key: str, statuses: dict[str, int]) -> bool:
        if key not in statuses:
            return False
        code = {"X-Error-Code": self.codes[key]} if key in self.codes else {}
        _send(request, statuses[key], {**code, "X-Repo-Commit": COMMIT}, b"")
        return True


def _send(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False
) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    if cut:
        request.wfile.write(body[: len(body) // 2])
        request.close_connection = True
    else:
        request.wfile.write(body)
