"""Downloads from servers that misbehave, and files of every kind that holds, or does not hold, a checkpoint."""

import hashlib
import io
import os
import pickle
import shutil
import struct
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from helpers import FAMILIES, clip, inputs, original_model, save_archive
from safetensors.torch import save_file

from hf_clip.openai import checkpoints
from hf_clip.openai.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    download,
    read_checkpoint,
    resolve_checkpoint,
    write_state_dict,
)
from hf_clip.openai.errors import CheckpointError, DownloadError

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
    monkeypatch.setattr(checkpoints, "BACKOFF_SECONDS", 0)
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
    server.statuses = [status] * checkpoints.RETRIES
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
    with pytest.warns(UserWarning, match="downloading it again"), pytest.raises(DownloadError, match="404"):
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
        CHECKPOINTS, "tiny", Checkpoint("tiny", f"{checkpoints.SOURCE_URL}/a/tiny.pt", CHECKPOINTS["tiny"].sha256, "")
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


# --- reading ----------------------------------------------------------------------------------------------------------


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
        assert not tensor.requires_grad, name


@pytest.fixture(scope="module", params=FAMILIES)
def archive(request, tmp_path_factory):
    """An archive like the published ones."""
    return save_archive(original_model(request.param), tmp_path_factory.mktemp("archive") / "some name.pt")


def jit_state_dict(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load is deprecated; it is what the published files were made for
        return torch.jit.load(path).state_dict()


def test_published_kind_of_archive(archive):
    tensors = read_checkpoint(archive)
    assert_same(tensors, jit_state_dict(archive))
    assert {tensor.dtype for tensor in tensors.values()} >= {torch.float16, torch.float32, torch.int64}
    assert tensors["input_resolution"].item() in (32, 64)
    assert {"context_length", "vocab_size"} < tensors.keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half", [True, False])
def test_archive_without_sizes(family, half, tmp_path):
    model = original_model(family)
    if half:
        clip.model.convert_weights(model)
    images, texts = inputs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (images, texts), check_trace=False).save(str(tmp_path / "traced.pt"))
    tensors = read_checkpoint(tmp_path / "traced.pt")
    assert_same(tensors, jit_state_dict(tmp_path / "traced.pt"))
    assert tensors.keys() == model.state_dict().keys()


def repack(archive, path, compression=zipfile.ZIP_STORED):
    """The same archive as another zip tool writes it: another top folder, no alignment, perhaps compressed."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w", compression) as new:
        for info in old.infolist():
            new.writestr(f"another/{info.filename.split('/', 1)[1]}", old.read(info))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_repacked_archive(archive, compression, tmp_path):
    tensors = read_checkpoint(repack(archive, tmp_path / "x.zip", compression))
    assert_same(tensors, jit_state_dict(archive))
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in tensors.values())


class Leaf(torch.nn.Module):
    """Attributes of many types, of which a state dict holds the parameters and buffers only."""

    def __init__(self):
        super().__init__()
        self.number, self.ratio, self.name, self.device = 5, 1.5, "x", torch.device("cpu")
        self.numbers, self.tensors, self.pair, self.table = [1, 2], [torch.ones(1)], (1, "a"), {"a": 1}
        self.undeclared = torch.zeros(3)
        self.weight = torch.nn.Parameter(torch.rand(2, 2))
        self.frozen = torch.nn.Parameter(torch.rand(2), requires_grad=False)
        self.register_parameter("bias", None)

    def forward(self, x):
        x = x + self.undeclared.sum() + self.weight + self.frozen + self.number + self.ratio + self.tensors[0]
        return x + self.numbers[0] + len(self.name) + self.pair[0] + self.table["a"]


class Tree(torch.nn.Module):
    """Views, expanded, empty, transposed and shared tensors, and a module under two names."""

    def __init__(self):
        super().__init__()
        base = torch.arange(10.0)
        buffers = {
            "slice": base[2:5],
            "strided": base[::3],
            "expanded": torch.ones(1).expand(7),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(3.5, dtype=torch.float64),
            "transposed": torch.arange(6, dtype=torch.int32).view(2, 3).T,
            "brain": torch.rand(3).bfloat16(),
            "flags": torch.tensor([True, False]),
            "bytes": torch.tensor([-1, 2], dtype=torch.int8),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.leaf = self.again = Leaf()

    def forward(self, x):
        return self.leaf(x) + self.again(x)


def test_archive_of_unusual_tensors(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Tree()).save(str(tmp_path / "tree.pt"))
    expected = jit_state_dict(tmp_path / "tree.pt")
    tensors = read_checkpoint(tmp_path / "tree.pt")
    assert_same(tensors, expected)
    assert [tensor.stride() for tensor in tensors.values()] == [tensor.stride() for tensor in expected.values()]
    assert_same(read_checkpoint(repack(tmp_path / "tree.pt", tmp_path / "x.zip", zipfile.ZIP_DEFLATED)), expected)
    # two names of one tensor stay one tensor
    assert tensors["leaf.weight"].data_ptr() == tensors["again.weight"].data_ptr()
    assert tensors["slice"].data_ptr() == tensors["strided"].data_ptr() + 8


def test_writing_to_a_tensor_leaves_the_file_alone(archive):
    before = archive.read_bytes()
    tensors = read_checkpoint(archive)
    tensors["positional_embedding"].zero_()
    assert archive.read_bytes() == before


@pytest.fixture(scope="module", params=FAMILIES)
def state_dict(request):
    return clip.model.convert_weights(model := original_model(request.param)) or model.state_dict()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda state: {"model": state, "name": "ft", "step": torch.tensor(7)},
        lambda state: {"model": {"model_state_dict": state}},
        lambda state: state | {"epoch": 3, "args": ["--lr", 1e-5], 4: torch.ones(1)},
        lambda state: {name: torch.nn.Parameter(tensor, tensor.is_floating_point()) for name, tensor in state.items()},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.clip.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_files_of_torch_save(state_dict, wrap, zipped, tmp_path):
    torch.save(wrap(dict(state_dict)), tmp_path / "x", _use_new_zipfile_serialization=zipped)
    assert_same(read_checkpoint(tmp_path / "x"), state_dict)


def test_compressed_file_of_torch_save(state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "x.pt")
    assert_same(read_checkpoint(repack(tmp_path / "x.pt", tmp_path / "x", zipfile.ZIP_DEFLATED)), state_dict)


def test_safetensors(state_dict, tmp_path):
    save_file(state_dict, tmp_path / "x.bin")
    tensors = read_checkpoint(tmp_path / "x.bin")
    assert_same(dict(sorted(tensors.items())), dict(sorted(state_dict.items())))


def test_keys_beside_the_prefix_stay(state_dict, tmp_path):
    head = {"head.weight": torch.ones(1)}
    torch.save({f"clip.{name}": tensor for name, tensor in state_dict.items()} | head, tmp_path / "x")
    assert_same(read_checkpoint(tmp_path / "x"), state_dict | head)


def test_only_the_common_prefix_goes(tmp_path):
    other = {"model.visual.weight": torch.ones(1), "module.bias": torch.ones(1)}
    torch.save(other, tmp_path / "x")
    assert_same(read_checkpoint(tmp_path / "x"), other)


# --- bad files --------------------------------------------------------------------------------------------------------


class Payload:
    """What a pickle may contain: unpickled carelessly, it creates a file."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def saved(content, zipped=True):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def zipped(**entries):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


BAD_FILES = {
    "empty": (b"", "is empty"),
    "web page": (WEB_PAGE, "is a web page"),
    "XML page": (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>', "is a web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "random bytes": (hashlib.shake_128(b"").digest(4096), "is neither a TorchScript archive, nor"),
    "text": (b"hello", "is neither a TorchScript archive, nor"),
    "cut zip": (saved({"a": torch.ones(99)})[:-30], "is cut short or damaged"),
    "zip header only": (b"PK\x03\x04", "is cut short or damaged"),
    "cut legacy file": (saved({"a": torch.ones(99)}, False)[:-30], "is damaged"),
    "cut safetensors": (struct.pack("<Q", 80) + b'{"a":{"dtype":"F16"', "is damaged"),
    "other zip": (zipped(**{"readme.txt": "hello", "data.pkl": ""}), "a zip archive without a checkpoint"),
    "zip with noise": (zipped(**{"x/data.pkl": b"\x80\x02noise", "x/version": "3\n"}), "damaged"),
    "archive with noise": (zipped(**{"x/data.pkl": b"\x80\x02noise", "x/constants.pkl": ""}), "is damaged"),
    "plain pickle": (pickle.dumps({"a": 1}, protocol=2), "is damaged"),
    "list": (saved([torch.ones(1)]), "holds a list: expected a state dict"),
    "tensor": (saved(torch.ones(1), False), "holds a Tensor: expected a state dict"),
    "no tensors": (saved({"epoch": 1, "state_dict": {}}), "holds no tensors"),
    "no tensors, safetensors": (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
    "two models": (
        saved({f"{prefix}token_embedding.weight": torch.ones(1) for prefix in ("", "module.")}),
        "holds keys both with and without ''",
    ),
    "key twice": (
        saved({"module.token_embedding.weight": torch.ones(1), "module.a": torch.ones(1), "a": torch.ones(1)}),
        "holds keys both with and without 'module.'",
    ),
    "module": (
        saved(torch.nn.Linear(1, 1)),
        r"Python objects \(torch.nn.modules.linear.Linear\).*state_dict\(\)",
    ),
    "module, legacy": (saved(torch.nn.Linear(1, 1), False), r"Python objects \(torch.nn.modules.linear.Linear\)"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(content, message, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)
    assert "CheckpointError" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*none\.pt"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_checkpoint("/dev/null")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "archive"])
def test_no_code_is_run(kind, tmp_path):
    content = {"weight": torch.ones(1), "payload": Payload(tmp_path / "ran")}
    payload = pickle.dumps(Payload(tmp_path / "ran"), protocol=2)
    path = tmp_path / "x.pt"
    path.write_bytes(
        {
            "zip": lambda: saved(content),
            "legacy": lambda: saved(content, False),
            "pickle": lambda: payload,
            "archive": lambda: zipped(**{"x/data.pkl": payload, "x/constants.pkl": b""}),
        }[kind]()
    )
    with pytest.raises(CheckpointError, match=r"mkdir"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)
    assert (tmp_path / "ran").exists()


def script_module(attributes):
    """The pickle of a module (memo 1) as TorchScript writes it, its attributes given as pickle opcodes."""
    return b"\x80\x02c__torch__\nM\n)\x81q\x01}" + attributes + b"b."


def storage(length, offset=0, size=1, stride=1):
    """Opcodes for an attribute `w`, a view of storage 0."""
    numbers = {"length": length, "offset": offset, "size": size, "stride": stride}
    length, offset, size, stride = (b"J" + struct.pack("<i", number) for number in numbers.values())
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + length + b"tQ"
    view = offset + b"(" + size + b"t(" + stride + b"t\x89ccollections\nOrderedDict\n)R"
    return b"(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + pid + view + b"tRu"


HOSTILE_ARCHIVES = {
    "storage longer than its record": (storage(5), "storage 0 is too short"),
    "negative length": (storage(-1), "storage 0 is too short"),
    "view past the end": (storage(4, offset=1, size=4), "is damaged"),
    "view before the start": (storage(4, offset=-1), "is damaged"),
    "negative stride": (storage(4, offset=3, size=2, stride=-1), "is damaged"),
    "cycle": (b"(X\x01\x00\x00\x00mh\x01u", "is damaged"),
    "huge memo": (b"r" + struct.pack("<I", 10_000_000), "memo index out of range"),
    "other callable": (b"(X\x01\x00\x00\x00wctorch\nload\nu", r"asks for torch\.load"),
}


def hand_made(path, attributes, byteorder="little"):
    entries = {"x/data.pkl": script_module(attributes), "x/constants.pkl": b"", "x/data/0": bytes(16)}
    path.write_bytes(zipped(**entries, **{"x/byteorder": byteorder}))
    return path


@pytest.mark.parametrize(("attributes", "message"), HOSTILE_ARCHIVES.values(), ids=HOSTILE_ARCHIVES)
def test_hostile_archives(attributes, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(hand_made(tmp_path / "x.pt", attributes))


def test_other_byte_order(tmp_path):
    with pytest.raises(CheckpointError, match="byte order"):
        read_checkpoint(hand_made(tmp_path / "x.pt", storage(4), "big"))


def test_the_hand_made_archive_is_good_otherwise(tmp_path):
    assert_same(read_checkpoint(hand_made(tmp_path / "x.pt", storage(4, 1, 3))), {"w": torch.zeros(3)})


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_written_file_loads_in_the_original(family, tmp_path):
    model = original_model(family)
    clip.model.convert_weights(model)
    sizes = {"input_resolution": torch.tensor(model.visual.input_resolution), "vocab_size": torch.tensor(49408)}
    write_state_dict(model.state_dict() | sizes, tmp_path / "x.pt")
    assert_same(read_checkpoint(tmp_path / "x.pt"), model.state_dict() | sizes)
    assert leftovers(tmp_path) == ["x.pt"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded, _ = clip.load(str(tmp_path / "x.pt"), device="cpu")
    assert_same(loaded.state_dict(), model.float().state_dict())


def test_views_are_written_without_their_storage(tmp_path):
    base = torch.rand(1_000_000)
    write_state_dict({"a": base[:3], "b": base[5:6]}, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    assert_same(read_checkpoint(tmp_path / "x.pt"), {"a": base[:3], "b": base[5:6]})


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_state_dict({"a": torch.ones(1)}, tmp_path / "x.pt")

    def fail(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_state_dict({"a": torch.zeros(1)}, tmp_path / "x.pt")
    assert leftovers(tmp_path) == ["x.pt"]
    assert_same(read_checkpoint(tmp_path / "x.pt"), {"a": torch.ones(1)})
