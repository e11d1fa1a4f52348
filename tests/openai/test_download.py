"""The table of the nine, and their files from a server that goes wrong."""

import hashlib
import os
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.originals import clip

from hf_clip.openai import download as module
from hf_clip.openai.download import download, resolve_checkpoint
from hf_clip.openai.errors import CheckpointError, DownloadError
from hf_clip.openai.published import CHECKPOINTS, Checkpoint

BODY = bytes(range(256)) * 12_000
WEB_PAGE = b"\n<!DOCTYPE html><title>Please log in</title>"

# --- the table --------------------------------------------------------------------------------------------------------


def test_table_is_the_originals():
    assert {name: row.url for name, row in CHECKPOINTS.items()} == clip.clip._MODELS
    assert list(CHECKPOINTS) == clip.available_models()
    for name, row in CHECKPOINTS.items():
        assert row.name == name
        assert row.url.split("/")[-2:] == [row.sha256, row.filename]


def test_repo_names():
    assert [row.repo_name for row in CHECKPOINTS.values()] == [
        *("clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64", "clip-vit-base-patch32"),
        *("clip-vit-base-patch16", "clip-vit-large-patch14", "clip-vit-large-patch14-336"),
    ]


# --- downloading ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body`; for as many requests as they are long, `statuses` and `drops` (bytes to send) spoil it."""

    def do_GET(self):
        server, body = self.server, self.server.body
        server.ranges.append(self.headers["Range"])
        server.paths.append(self.path)
        time.sleep(server.delay)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if server.honours_range else 0
        status = server.statuses.pop(0) if server.statuses else 206 if start else 200
        if start >= len(body):
            status = 416
        self.send_response(status)
        if server.sends_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if status < 300:
            sent = server.drops.pop(0) if server.drops else len(body)
            self.wfile.write(body[start : start + sent])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.ranges, server.paths, server.statuses, server.drops = BODY, [], [], [], []
    server.honours_range, server.sends_length, server.delay = True, True, 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for variable in ("http_proxy", "HTTP_PROXY", "HF_CLIP_MIRROR", "HF_CLIP_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0)
    sha256 = hashlib.sha256(BODY).hexdigest()
    monkeypatch.setitem(CHECKPOINTS, "tiny", Checkpoint("tiny", f"{server.url}/{sha256}/tiny.pt", sha256, "clip-tiny"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_download_once(server, tmp_path):
    path = download("tiny", tmp_path / "new" / "cache")
    assert path == tmp_path / "new" / "cache" / "tiny.pt"
    assert path.read_bytes() == BODY
    assert download("tiny", tmp_path / "new" / "cache") == path
    assert server.ranges == [None]
    assert leftovers(path.parent) == ["tiny.pt"]


def test_cache_from_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download("tiny") == tmp_path / ".cache" / "clip" / "tiny.pt"
    monkeypatch.setenv("HF_CLIP_CACHE", "~/mine")
    assert download("tiny") == tmp_path / "mine" / "tiny.pt"
    assert download("tiny", tmp_path / "given") == tmp_path / "given" / "tiny.pt"


@pytest.mark.parametrize("sends_length", [True, False])
def test_resume(server, tmp_path, sends_length):
    server.sends_length = sends_length
    (tmp_path / "tiny.pt.incomplete").write_bytes(BODY[:1000])
    assert download("tiny", tmp_path).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-"]
    assert leftovers(tmp_path) == ["tiny.pt"]


@pytest.mark.parametrize("honours_range", [True, False])
def test_dropped_connections(server, tmp_path, honours_range):
    # more drops than retries: any progress starts the count again
    server.drops = [1000 * n for n in range(1, 8)]
    server.honours_range = honours_range
    assert download("tiny", tmp_path).read_bytes() == BODY
    assert len(server.ranges) == 8
    assert server.ranges[2] == f"bytes={3000 if honours_range else 2000}-"


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_passing_server_errors(server, tmp_path, status):
    server.statuses = [status] * module.RETRIES
    assert download("tiny", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    "found",
    [BODY, BODY + b"more", b"x" * 5000, b"x" * len(BODY), BODY[:5000]],
    ids=["complete", "too long", "another's start", "another", "range ignored"],
)
def test_partial_file_of_any_origin(server, tmp_path, found):
    server.honours_range = found != BODY[:5000]
    (tmp_path / "tiny.pt.incomplete").write_bytes(found)
    assert download("tiny", tmp_path).read_bytes() == BODY
    assert leftovers(tmp_path) == ["tiny.pt"]


def test_range_ignored_and_connection_lost(server, tmp_path):
    server.honours_range, server.drops = False, [0]
    (tmp_path / "tiny.pt.incomplete").write_bytes(BODY[:1000])
    assert download("tiny", tmp_path).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_a_file_that_is_there_needs_no_lock(server, tmp_path):
    (tmp_path / "tiny.pt.lock").mkdir()  # as in a cache that is read-only
    (tmp_path / "tiny.pt").write_bytes(BODY)
    assert download("tiny", tmp_path) == tmp_path / "tiny.pt"
    assert server.ranges == []


def test_wrong_file_is_replaced_with_a_warning(server, tmp_path):
    (tmp_path / "tiny.pt").write_bytes(b"old")
    with pytest.warns(UserWarning, match=r"tiny\.pt does not have the SHA-256 of tiny"):
        download("tiny", tmp_path)
    assert (tmp_path / "tiny.pt").read_bytes() == BODY


def test_wrong_file_stays_until_its_replacement_is_there(server, tmp_path):
    (tmp_path / "tiny.pt").write_bytes(b"old")
    server.statuses = [404]
    with pytest.warns(UserWarning, match="downloading it again"), pytest.raises(DownloadError, match=r"404.*hf-hub:"):
        download("tiny", tmp_path)
    assert (tmp_path / "tiny.pt").read_bytes() == b"old"


def test_concurrent_downloads_fetch_once(server, tmp_path):
    server.delay = 0.3
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(download("tiny", tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [BODY] * 3
    assert server.ranges == [None]


def test_mirror(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CLIP_MIRROR", f"{server.url}/mirror/")
    monkeypatch.setitem(
        CHECKPOINTS, "tiny", Checkpoint("tiny", f"{module.SOURCE_URL}/a/tiny.pt", CHECKPOINTS["tiny"].sha256, "")
    )
    download("tiny", tmp_path)
    assert server.paths == ["/mirror/a/tiny.pt"]


def test_proxy_is_read_at_each_download(server, tmp_path, monkeypatch):
    download("tiny", tmp_path / "direct")
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    url = "http://models.invalid/a/tiny.pt"
    monkeypatch.setitem(CHECKPOINTS, "tiny", Checkpoint("tiny", url, CHECKPOINTS["tiny"].sha256, ""))
    download("tiny", tmp_path / "by proxy")
    assert server.paths[1:] == [url]


def wrong_bytes(server, monkeypatch, tmp_path):
    server.body = BODY[:-1] + b"x"


def web_page(server, monkeypatch, tmp_path):
    server.body = WEB_PAGE


def not_found(server, monkeypatch, tmp_path):
    server.statuses = [404]


def server_down(server, monkeypatch, tmp_path):
    server.statuses = [500] * 9


def drops_without_progress(server, monkeypatch, tmp_path):
    server.drops = [500] + [0] * 9


def refused(server, monkeypatch, tmp_path):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


def no_such_host(server, monkeypatch, tmp_path):
    sha256 = CHECKPOINTS["tiny"].sha256
    monkeypatch.setitem(CHECKPOINTS, "tiny", Checkpoint("tiny", "http://models.invalid/tiny.pt", sha256, ""))


def too_little_space(server, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=len(BODY) - 1))


def disk_full(server, monkeypatch, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / "tiny.pt.incomplete").symlink_to("/dev/full")


def folder_in_the_way(server, monkeypatch, tmp_path):
    (tmp_path / "tiny.pt").mkdir()


def file_as_cache(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file"


def mirror_without_scheme(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_CLIP_MIRROR", "example.org/clip")


@pytest.mark.parametrize(
    ("spoil", "message", "requests", "kept"),
    [
        (wrong_bytes, r"tiny\.pt gave a file with SHA-256 \w{64} where \w{64} was expected; .*was deleted", 1, []),
        (web_page, "gave a web page instead of a checkpoint", 1, []),
        (not_found, r"could not download http.*tiny\.pt \(HTTP status 404 Not Found\)", 1, ["tiny.pt.incomplete"]),
        (server_down, "HTTP status 500", 4, ["tiny.pt.incomplete"]),
        (
            drops_without_progress,
            "after 500 of 3,072,000 bytes.*the 500 bytes received",
            4,
            ["tiny.pt.incomplete"],
        ),
        (refused, "refused.*check the network", 0, ["tiny.pt.incomplete"]),
        (no_such_host, "check the network", 0, ["tiny.pt.incomplete"]),
        (too_little_space, "needs 3,072,000 more bytes, its disk has 3,071,999: free", 1, ["tiny.pt.incomplete"]),
        (disk_full, r"cannot write .*No space left on device\): free", 1, ["tiny.pt.incomplete"]),
        (folder_in_the_way, r"tiny\.pt is not a regular file", 0, ["tiny.pt"]),
        (file_as_cache, r"cannot store tiny as .*exists\): .*HF_CLIP_CACHE", 0, ["file"]),
        (mirror_without_scheme, "HF_CLIP_MIRROR is 'example.org/clip'", 0, []),
    ],
)
def test_failed_downloads(server, tmp_path, monkeypatch, spoil, message, requests, kept):
    cache = spoil(server, monkeypatch, tmp_path) or tmp_path
    with pytest.raises(DownloadError, match=message):
        download("tiny", cache)
    assert len(server.ranges) == requests
    assert leftovers(tmp_path) == kept


def test_resolve(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CLIP_CACHE", str(tmp_path))
    assert resolve_checkpoint("tiny") == tmp_path / "tiny.pt"
    assert resolve_checkpoint("tiny", tmp_path / "other") == tmp_path / "other" / "tiny.pt"
    assert resolve_checkpoint(str(tmp_path / "tiny.pt")) == tmp_path / "tiny.pt"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_checkpoint("~/tiny.pt") == tmp_path / "tiny.pt"


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("ViT-B-32", "ViT-B/32"),
        ("vit_l_14_336px", "ViT-L/14@336px"),
        ("openai/clip-vit-base-patch16", "ViT-B/16"),
        ("rn50", "RN50"),
        ("RN50*64", "RN50x64"),
        ("somewhere/weights.pt", None),
    ],
)
@pytest.mark.parametrize("function", [resolve_checkpoint, download])
def test_unknown_names(function, source, meant):
    with pytest.raises(CheckpointError) as error:
        function(source)
    assert all(name in str(error.value) for name in CHECKPOINTS)
    assert str(error.value).endswith(f"did you mean {meant!r}?" if meant else "ViT-L/14@336px")


def test_without_a_home_folder_another_is_asked_for(monkeypatch):
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("HOME", "HF_CLIP_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(DownloadError, match="no home folder to keep RN50 in: choose a folder with download_root="):
        download("RN50")


def test_the_other_source_is_open_clip_s():
    """Where the original's server fails, its error names these repositories."""
    from open_clip.pretrained import get_pretrained_cfg

    for name, checkpoint in CHECKPOINTS.items():
        known = get_pretrained_cfg(re.sub("[/@]", "-", name).removesuffix("px"), "openai")["hf_hub"]
        assert checkpoint.mirror == f"hf-hub:{known.rstrip('/')}"
