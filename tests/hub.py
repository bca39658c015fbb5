"""The Hub's protocol over a folder of this machine, for tests of loading and pushing by name.

`HF_ENDPOINT` names the server to a process that has not imported huggingface_hub yet. Model repositories lie at
`root/org/name` and have one branch, `main`, with one commit: the hash of what they hold now. Served are the info of a
repository, its tree and its files; taken are new repositories and commits of plain files.
"""

import base64
import hashlib
import json
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


@cache
def content_hash(path: Path, mtime_ns: int, num_bytes: int) -> str:
    """The hash of a file as it was at that time: every answer needs those of its whole repository."""
    return hashlib.sha1(path.read_bytes()).hexdigest()


class Repository:
    """One model repository: a folder with files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> dict[str, Path]:
        """The files by their path in the repository."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in files}

    def blob_id(self, name: str) -> str:
        state = (self.folder / name).stat()
        return content_hash(self.folder / name, state.st_mtime_ns, state.st_size)

    def commit(self) -> str:
        """The hash of all names and contents."""
        return hashlib.sha1("".join(f"{name} {self.blob_id(name)}\n" for name in self.files()).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers one client; `do_GET` and `do_POST` choose the method for a request."""

    protocol_version = "HTTP/1.1"  # the client keeps its connection
    wbufsize = -1  # head and body of an answer leave together; else every answer waits for a delayed acknowledgement

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.parts():
            case ["api", "models", owner, name, *rest]:
                if (repository := self.repository(owner, name, *rest[1:2])) is not None:
                    self.send_tree(repository) if rest[:1] == ["tree"] else self.send_info(repository)
            case [owner, name, "resolve", revision, *path]:
                if (repository := self.repository(owner, name, revision)) is not None:
                    self.send_file(repository, "/".join(path))
            case _:
                self.send_error_code(f"not served: {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match self.parts():
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                self.send_json({"errors": [], "warnings": []})
            case ["api", "models", owner, name, "preupload", revision]:
                if self.repository(owner, name, revision) is not None:
                    plain = {"uploadMode": "regular", "shouldIgnore": False}
                    self.send_json({"files": [{"path": f["path"], **plain} for f in json.loads(body)["files"]]})
            case ["api", "models", owner, name, "commit", revision]:
                if (repository := self.repository(owner, name, revision)) is not None:
                    self.write(repository, [json.loads(line) for line in body.splitlines()])
            case _:
                self.send_error_code(f"not served: {self.path}")

    def parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def repository(self, owner: str, name: str, revision: str = "main") -> Repository | None:
        """Returns the repository; None after answering that it is not there."""
        repository = Repository(self.server.root / owner / name)
        if not repository.folder.is_dir():
            self.send_error_code("RepoNotFound")
        elif revision not in ("main", repository.commit()):
            self.send_error_code("RevisionNotFound")
        else:
            return repository
        return None

    def send_info(self, repository: Repository) -> None:
        name = repository.folder.relative_to(self.server.root).as_posix()
        siblings = [{"rfilename": name} for name in repository.files()]
        state = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        self.send_json({"_id": name, "id": name, "sha": repository.commit(), "siblings": siblings, **state})

    def send_tree(self, repository: Repository) -> None:
        entries = [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": repository.blob_id(name)}
            for name, path in repository.files().items()
        ]
        self.send_json(entries)

    def send_file(self, repository: Repository, name: str) -> None:
        if name not in repository.files():
            return self.send_error_code("EntryNotFound", {"X-Repo-Commit": repository.commit()})
        headers = {"ETag": f'"{repository.blob_id(name)}"', "X-Repo-Commit": repository.commit()}
        self.send((repository.folder / name).read_bytes(), headers)

    def create(self, request: dict[str, str]) -> None:
        name = f"{request['organization']}/{request['name']}"
        status = 409 if (self.server.root / name).is_dir() else 200
        (self.server.root / name).mkdir(parents=True, exist_ok=True)
        self.send_json({"url": f"{self.server.url}/{name}"}, status)

    def write(self, repository: Repository, lines: list[dict]) -> None:
        for change in (line["value"] for line in lines if line["key"] == "file"):
            path = repository.folder / change["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(change["content"]))
        name, commit = repository.folder.relative_to(self.server.root).as_posix(), repository.commit()
        self.send_json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def send_error_code(self, code: str, headers: dict[str, str] | None = None) -> None:
        self.send(b"", {"X-Error-Code": code, **(headers or {})}, 404)

    def send_json(self, value: object, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing on standard error."""


class Hub(ThreadingHTTPServer):
    """The server, in a thread of its own while the `with` block lasts."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)  # port 0: one that is free
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Hub":
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
