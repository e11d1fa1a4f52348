"""A Hugging Face Hub on loopback, in memory: models, commits, branches, LFS, and faults to try clients against.

    with LocalHub() as hub:
        subprocess.run(command, env=os.environ | hub.environment(home))

`huggingface_hub` 1.x and 2.x can create, upload, list and download models, list and download data sets, and make Spaces
and collections.
Not here: Xet, pull requests, nested folders.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api


@dataclass(frozen=True)
class File:
    """What is stored, and what the Hub says of it; the two differ only after `LocalHub.corrupt`."""

    content: bytes
    size: int
    oid: str
    sha256: str | None  # of an LFS file

    @classmethod
    def of(cls, content: bytes, lfs: bool = False) -> "File":
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return cls(content, len(content), oid, hashlib.sha256(content).hexdigest() if lfs else None)

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: dict[str, File]


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, message: str, files: dict[str, File]) -> Commit:
        commits = self.branches.setdefault(branch, [])
        state = [branch, len(commits), message, {path: file.etag for path, file in files.items()}]
        sha = hashlib.sha1(json.dumps(state).encode()).hexdigest()
        commits.append(Commit(sha, message, files))
        return commits[-1]

    def at(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        if revision in self.tags:
            return self.tags[revision]
        for commits in self.branches.values():
            for commit in commits:
                if commit.sha == revision:
                    return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class LocalHub(ThreadingHTTPServer):
    """The server. Its class attributes are faults, off until set on an instance."""

    daemon_threads = True
    request_queue_size = 32  # clients download in several threads

    read_only = False  # the token may not write
    captive = False  # a page of HTML is the answer to everything
    # these happen once
    drop_download: int | None = None  # hang up after so many bytes of an LFS file
    drop_upload: int | None = None  # the same
    drop_commit: int | None = None
    fail_upload = False  # refuse an LFS file

    def __init__(self, token: str | None = None, lfs: tuple[str, ...] = (".safetensors",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lfs = lfs
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []  # "METHOD /path" of every one, in order
        self.token = token  # needed to write, and to read what is private or gated
        self.gated: set[str] = set()
        self.variables: dict[str, dict[str, str]] = {}  # of Spaces
        self.collections: dict[str, dict] = {}  # by slug, as the Hub answers

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """What makes a process use this Hub, with its cache and tokens in `home`."""
        variables = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return variables | ({"HF_TOKEN": self.token} if self.token else {})

    def use_in_process(self, patch: pytest.MonkeyPatch) -> None:
        """The same for a process that has imported huggingface_hub already; loading wants a `cache_dir` of its own."""
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}")
        # clients that were made once know the address of that time
        patch.setattr(hf_api.api, "endpoint", self.url)
        patch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
        patch.setenv("HF_TOKEN", self.token or "")

    def corrupt(self, repo: str, path: str, content: bytes, branch: str = "main") -> None:
        """Change a stored file behind the Hub's back: hashes and size stay as they were announced."""
        commit = self.repositories[repo].branches[branch][-1]
        commit.files[path] = replace(commit.files[path], content=content)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return {path: file.content for path, file in self.repositories[repo].at(revision).files.items()}

    def take(self, fault: str) -> int | bool | None:
        """A fault that happens once: its value, and off."""
        return vars(self).pop(fault, None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LocalHub

    def serve(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {unquote(path)}")
        length = int(self.headers.get("Content-Length", 0))
        if self.server.captive:
            self.rfile.read(length)
            return self.reply(b"<html>Accept our terms</html>", {})
        for method, pattern, fault, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                drop = self.server.take(fault) if fault else None
                if drop is not None:
                    self.rfile.read(min(drop, length))
                    return self.hang_up()
                names = {name: unquote(value) for name, value in match.groupdict("").items()}
                try:
                    return answer(self, self.rfile.read(length), **names)
                except Refusal as refusal:
                    return self.refuse(refusal)
        self.rfile.read(length)
        self.refuse(Refusal(404, f"no such endpoint: {self.command} {path}"))

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def reply(self, content: bytes, headers: dict[str, object], status: int = 200) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, value: object, status: int = 200, **headers: object) -> None:
        self.reply(json.dumps(value).encode(), {"Content-Type": "application/json"} | headers, status)

    def refuse(self, refusal: Refusal) -> None:
        codes = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        self.reply_json({"error": refusal.message}, refusal.status, **codes)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def authorize(self, write: bool = False) -> None:
        """Refuse as the Hub does. Like a careless server's, the message repeats the credentials."""
        credentials = self.headers.get("Authorization", "")
        if self.server.token and credentials != f"Bearer {self.server.token}":
            raise Refusal(401, f"Invalid username or password ({credentials})")
        if write and self.server.read_only:
            raise Refusal(403, f"You don't have the rights to write here ({credentials})")

    def readable(self, repo: str) -> Repository:
        if repo not in self.server.repositories:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if repo in self.server.gated:
            try:
                self.authorize()
            except Refusal as refusal:
                raise Refusal(refusal.status, f"Access to model {repo} is restricted", "GatedRepo") from None
        if self.server.repositories[repo].private:
            self.authorize()
        return self.server.repositories[repo]

    def writable(self, repo: str) -> Repository:
        self.authorize(write=True)
        return self.readable(repo)

    # --- the endpoints --------------------------------------------------------------------------------------------

    def whoami(self, body: bytes) -> None:
        self.authorize()
        self.reply_json({"type": "user", "name": "somebody", "orgs": []})

    def create(self, body: bytes) -> None:
        self.authorize(write=True)
        asked = json.loads(body)
        folder = "spaces/" if asked.get("type") == "space" else ""
        repo = f"{folder}{asked['organization'] or 'somebody'}/{asked['name']}"
        url = f"{self.server.url}/{repo}"
        if repo in self.server.repositories:
            return self.reply_json({"error": "You already created this model repo", "url": url}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[repo] = Repository(private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in self.server.lfs)
        self.server.repositories[repo].add("main", "initial commit", {".gitattributes": File.of(attributes.encode())})
        self.reply_json({"url": url, "name": repo})

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        repository = self.writable(repo)
        if revision in repository.branches:
            raise Refusal(409, f"Reference {revision} already exists")
        start = repository.at(json.loads(body).get("startingPoint", "main"))
        repository.add(revision, start.message, dict(start.files))
        self.reply_json({})

    def tag(self, body: bytes, repo: str, revision: str) -> None:
        repository, name = self.writable(repo), json.loads(body)["tag"]
        if name in repository.tags:
            raise Refusal(409, f"Tag reference {name} already exists")
        repository.tags[name] = repository.at(revision)
        self.reply_json({})

    def validate_yaml(self, body: bytes) -> None:
        self.reply_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        stored = self.writable(repo).at(revision).files
        answers = []
        for path in (file["path"] for file in json.loads(body)["files"]):
            mode = "lfs" if path.endswith(self.server.lfs) else "regular"
            known = {"oid": stored[path].etag} if path in stored else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
        self.reply_json({"files": answers})

    def batch(self, body: bytes, repo: str) -> None:
        self.writable(repo)
        objects = []
        for asked in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.server.url}/objects/{asked['oid']}"}}
            objects.append(asked | ({} if asked["oid"] in self.server.objects else {"actions": action}))
        self.reply_json({"transfer": "basic", "objects": objects})

    def put_object(self, body: bytes, oid: str) -> None:
        if self.server.take("fail_upload"):
            raise Refusal(400, "The storage is out of order")
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "The content does not have this hash")
        self.server.objects[oid] = body
        self.reply(b"", {})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        repository = self.writable(repo)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        files = dict(repository.at(revision).files)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = File.of(base64.b64decode(value["content"]))
            elif kind == "lfsFile" and value["oid"] in self.server.objects:
                files[value["path"]] = File.of(self.server.objects[value["oid"]], lfs=True)
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, f"cannot commit {kind} {value['path']}")
        made = repository.add(revision, header["value"]["summary"], files)
        url = f"{self.server.url}/{repo}/commit/{made.sha}"
        self.reply_json({"success": True, "commitOid": made.sha, "commitUrl": url})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        repository = self.readable(repo)
        commit = repository.at(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        tags = {"tags": [], "private": repository.private, "siblings": siblings}
        self.reply_json({"id": repo, "modelId": repo, "sha": commit.sha} | tags)

    def tree(self, body: bytes, repo: str, revision: str, folder: str) -> None:
        entries = []
        for path, file in self.readable(repo).at(revision).files.items():
            if path.startswith(f"{folder}/" if folder else ""):
                entry = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
                lfs = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 135}} if file.sha256 else {}
                entries.append(entry | lfs)
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        self.reply_json(entries)

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        files = self.readable(repo).at(revision).files
        asked = {path: files[path] for path in parse_qs(body.decode())["paths"] if path in files}
        self.reply_json(
            [{"type": "file", "path": path, "size": file.size, "oid": file.oid} for path, file in asked.items()]
        )

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        commit = self.readable(repo).at(revision)
        file = commit.files.get(path)
        if file is None:
            message = {"error": "Entry not found"}
            return self.reply_json(message, 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha})
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": file.size}
        content, status = file.content, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        drop = self.server.take("drop_download") if file.sha256 and self.command == "GET" else None
        if drop is None:
            return self.reply(content, headers, status)
        self.reply(content[:drop], headers | {"Content-Length": len(content)}, status)
        self.hang_up()

    def variable(self, body: bytes, repo: str) -> None:
        self.writable(repo)
        asked = json.loads(body)
        self.server.variables.setdefault(repo, {})[asked["key"]] = asked["value"]
        self.reply_json({asked["key"]: {"value": asked["value"]}})

    def create_collection(self, body: bytes) -> None:
        self.authorize(write=True)
        asked = json.loads(body)
        slug = f"{asked['namespace']}/{re.sub('[^a-z]+', '-', asked['title'].lower())}-64f9a55bb3115b4f513ec026"
        if slug in self.server.collections:
            return self.reply_json({"error": "This collection exists", "slug": slug}, 409)
        given = {key: asked[key] for key in ("title", "private", "description")}
        rest = {"owner": {}, "items": [], "lastUpdated": "2026-11-01T00:00:00.000Z", "position": 0}
        self.server.collections[slug] = {"slug": slug, "theme": "blue", "upvotes": 0, **given, **rest}
        self.reply_json(self.server.collections[slug])

    def collection(self, body: bytes, slug: str) -> None:
        self.reply_json(self.server.collections[slug])

    def add_item(self, body: bytes, slug: str) -> None:
        self.authorize(write=True)
        asked = json.loads(body)
        item, items = asked["item"], self.server.collections[slug]["items"]
        if item["type"] != "paper":
            self.readable(f"spaces/{item['id']}" if item["type"] == "space" else item["id"])
        if any((known["type"], known["id"]) == (item["type"], item["id"]) for known in items):
            raise Refusal(409, "This item is in the collection")
        items.append({"_id": str(len(items)), "position": len(items), "note": {"text": asked["note"]}, **item})
        self.reply_json(self.server.collections[slug])

    def log_message(self, *_: object) -> None:
        """Silence: `LocalHub.requests` is the log."""


REPO, REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
# a Space is stored under its name with spaces/ ahead
API = r"/api/(?:models/|datasets/|(?=spaces/))(?P<repo>(?:spaces/)?[^/]+/[^/]+)"
# method, path, the fault that drops the request, and who answers
ROUTES = [
    ("GET", "/api/whoami-v2", None, Handler.whoami),
    ("POST", "/api/repos/create", None, Handler.create),
    ("POST", "/api/validate-yaml", None, Handler.validate_yaml),
    ("POST", f"{API}/branch/{REVISION}", None, Handler.branch),
    ("POST", f"{API}/tag/{REVISION}", None, Handler.tag),
    ("POST", f"{API}/preupload/{REVISION}", None, Handler.preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", None, Handler.batch),
    ("PUT", r"/objects/(?P<oid>\w+)", "drop_upload", Handler.put_object),
    ("POST", f"{API}/commit/{REVISION}", "drop_commit", Handler.commit),
    ("GET", f"{API}", None, Handler.info),
    ("GET", f"{API}/revision/{REVISION}", None, Handler.info),
    ("GET", f"{API}/tree/{REVISION}(/(?P<folder>.+))?", None, Handler.tree),
    ("POST", f"{API}/variables", None, Handler.variable),
    ("POST", "/api/collections", None, Handler.create_collection),
    ("GET", "/api/collections/(?P<slug>.+)", None, Handler.collection),
    ("POST", "/api/collections/(?P<slug>.+)/items", None, Handler.add_item),
    ("POST", f"/api/(models|datasets)/{REPO}/paths-info/{REVISION}", None, Handler.paths_info),
    ("GET", f"(/datasets)?/{REPO}/resolve/{REVISION}/(?P<path>.+)", None, Handler.resolve),
]
