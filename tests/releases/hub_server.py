"""A small server that speaks as much of the Hugging Face hub's interface as pushing a folder takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlparse

from tests.http_server import served


@dataclass
class Hub:
    """What was pushed.

    Attributes:
        url: where it is.
        token: who may write.
        repositories: by name: whether it is private, its files, messages of its commits, its tags.
    """

    url: str = ""
    token: str = "open sesame"
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub."""

    hub: Hub

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if path.startswith("/api/datasets/") and "/tree/" in path:
            name = "/".join(path.split("/")[3:5])
            files = self.hub.repositories[name]["files"]
            self._answer(200, [{"type": "file", "path": file, "size": len(files[file]), "oid": "0"} for file in files])
        elif path.endswith("/refs"):
            tags = self.hub.repositories["/".join(path.split("/")[3:5])]["tags"]
            refs = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": "1" * 40} for tag in tags]
            self._answer(200, {"branches": [], "converts": [], "tags": refs})
        elif path.startswith("/api/datasets/"):
            name = "/".join(path.split("/")[3:5])
            if name not in self.hub.repositories:
                self._answer(404, {"error": "Repository not found"})
                return
            siblings = [{"rfilename": file} for file in self.hub.repositories[name]["files"]]
            self._answer(200, {"id": name, "sha": "0" * 40, "siblings": siblings, "private": True, "tags": []})
        else:
            self._answer(404, {"error": path})

    def do_DELETE(self) -> None:
        _, _, _, *name, _, tag = urlparse(self.path).path.split("/")
        self.hub.repositories["/".join(name)]["tags"].remove(tag)
        self._answer(200, {})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlparse(self.path).path
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            said = json.loads(content)
            name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
            new = {"private": said.get("visibility") == "private", "files": {}, "commits": [], "tags": []}
            self.hub.repositories.setdefault(name, new)
            self._answer(200, {"url": f"{self.hub.url}/datasets/{name}"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        elif "/preupload/" in path:
            files = json.loads(content)["files"]
            self._answer(
                200,
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]},
            )
        elif "/commit/" in path:
            self._commit("/".join(path.split("/")[3:5]), content)
        elif "/tag/" in path:
            self.hub.repositories["/".join(path.split("/")[3:5])]["tags"].append(json.loads(content)["tag"])
            self._answer(200, {})
        else:
            self._answer(404, {"error": path})

    def _commit(self, name: str, content: bytes) -> None:
        repository = self.hub.repositories[name]
        for line in content.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "header":
                repository["commits"].append(value["summary"])
            elif said["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif said["key"] == "deletedFile":
                del repository["files"][value["path"]]
        address = f"{self.hub.url}/datasets/{name}/commit/{'1' * 40}"
        self._answer(200, {"commitUrl": address, "commitOid": "1" * 40, "success": True})

    def _answer(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The server on a free port of this machine."""
    hub = Hub()
    handler = type("Own", (Handler,), {"hub": hub})
    with served(handler) as address:
        hub.url = address
        yield hub
