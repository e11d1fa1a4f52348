"""`load_clip` and `load_text_tower`: every kind of source, and none that asks the Hub without being one of its ids."""

import hashlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from support.commands import run
from support.local_hub import File, LocalHub, Repository
from support.originals import load_original
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
)

from hf_clip import HFCLIPModel, HFCLIPProcessor, HFCLIPTextModelWithProjection, ZeroShotClassifier, load_clip
from hf_clip.export.engine import load_source
from hf_clip.loading import is_checkpoint, load_text_tower
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.published import CHECKPOINTS, Checkpoint


@pytest.fixture
def mirror(archives, family, monkeypatch, tmp_path):
    """Serve the family's tiny archive as RN50 or ViT-B/32; give the name, the paths asked for, and the archive."""
    name, archive = ("ViT-B/32" if "ViT" in family else "RN50"), archives[family]
    body, asked = archive.read_bytes(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    row, sha256 = CHECKPOINTS[name], hashlib.sha256(body).hexdigest()
    url = row.url.replace(row.sha256, sha256)
    monkeypatch.setitem(CHECKPOINTS, name, Checkpoint(name, url, sha256, row.repo_name))
    monkeypatch.setenv("HF_CLIP_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_CLIP_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield name, asked, archive
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def only_loopback(monkeypatch) -> list:
    """Collect the addresses beyond this machine that anything tries to reach, and refuse them."""
    tried, connect, resolve = [], socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if isinstance(address, tuple) and address[0] != "127.0.0.1":
            tried.append(address)
            raise ConnectionRefusedError(address)
        return connect(self, address)

    def guarded_resolve(host, *arguments, **options):
        if host not in ("127.0.0.1", "localhost", None):
            tried.append(host)
            raise socket.gaierror(host)
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    return tried


def equal(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- one of the nine --------------------------------------------------------------------------------------------------


def test_a_name_is_downloaded_once_and_asks_nobody_else(mirror, repositories, family, only_loopback):
    name, asked, _ = mirror
    for _ in range(2):
        model, processor = load_clip(name)
        assert equal(model, HFCLIPModel.from_pretrained(repositories[family]))
        assert isinstance(processor, HFCLIPProcessor)
        assert not model.training
        assert model.config.name_or_path == name
    tower, tokenizer = load_text_tower(name)
    assert type(tower) is HFCLIPTextModelWithProjection
    assert tokenizer("a cat").input_ids == processor.tokenizer("a cat").input_ids
    assert len(asked) == 1
    assert CHECKPOINTS[name].sha256 in asked[0]
    assert only_loopback == []


def test_classify_works_from_nothing(mirror, tmp_path, capfd, only_loopback):
    name, asked, archive = mirror
    (tmp_path / "photos").mkdir()
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photos" / "a.png")
    for _ in range(2):
        assert run("classify", tmp_path / "photos", "--labels", "a cat,a dog", "--model", name) == 0
    out, err = capfd.readouterr()
    first, second = out.splitlines()
    assert first == second
    assert "a.png: a " in first
    assert archive.name.removesuffix(".pt") not in err
    assert len(asked) == 1
    assert only_loopback == []


def test_export_takes_a_name(mirror, repositories, family, only_loopback):
    model, processor = load_source(mirror[0])
    assert equal(model, HFCLIPModel.from_pretrained(repositories[family]))
    assert isinstance(processor, HFCLIPProcessor)
    assert only_loopback == []


def test_a_folder_comes_before_a_name(mirror, repositories, family, tmp_path, monkeypatch):
    name, asked, _ = mirror
    folder = tmp_path / "here" / name
    folder.parent.mkdir(parents=True)
    folder.symlink_to(repositories[family])
    monkeypatch.chdir(tmp_path / "here")
    load_clip(name)
    assert asked == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("RN51", "did you mean 'RN50'"),
        ("ViT-B-32", "did you mean 'ViT-B/32'"),
        ("ViT-B/33", "did you mean 'ViT-B/32'"),
        ("vit-b/32", "did you mean 'ViT-B/32'"),
        ("", "source is empty: give a name, a file, a folder or a Hub id"),
        ("a b/c", "neither a file nor one of"),
    ],
)
def test_a_misspelled_name_asks_nobody(source, message, only_loopback):
    with pytest.raises(CheckpointError, match=message):
        load_clip(source)
    assert only_loopback == []


@pytest.mark.parametrize("source", ["./clip", "/no/such/clip", "a/b/c", "~/no-such-clip", "owner/model.pt"])
def test_a_missing_path_is_no_hub_id(source, only_loopback):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load_clip(source)
    assert only_loopback == []


# --- files and folders ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_file_gives_the_originals_features(archives, family):
    model, _ = load_clip(archives[family])
    theirs = load_original(archives[family])
    ids = torch.tensor([[49406, 320, 2368, 49407] + [0] * 73])
    side = model.config.vision_config.image_size
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.encode_image(pixels), theirs.encode_image(pixels))
    assert torch.equal(model.encode_text(ids), theirs.encode_text(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_text_tower_of_a_file_is_that_of_its_folder(archives, repositories, family, dtype):
    (ours, _), (theirs, _) = (load_text_tower(source[family], dtype=dtype) for source in (archives, repositories))
    assert type(ours) is type(theirs)
    assert equal(ours, theirs)
    assert [p.dtype for p in ours.parameters()] == [p.dtype for p in theirs.parameters()]
    assert not ours.training


def test_every_kind_of_source_gives_a_model(archives, folders, family):
    assert type(load_clip(folders[family])[0]) is HFCLIPModel
    assert type(load_clip(str(archives[family]))[0]) is HFCLIPModel
    assert type(load_clip(folders["transformers"])[0]) is CLIPModel


@torch.no_grad()
def test_transformers_own_metaclip_2_labels_images(tmp_path):
    """With its own tokenizer, whose texts end at id 2."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 50, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    vision = tower | {"image_size": 32, "patch_size": 8}
    stock = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=vision)).eval()
    words = Tokenizer(WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "cat": 4, "dog": 5}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77, **special)
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), tokenizer)
    stock.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image, labels = Image.radial_gradient("L").convert("RGB"), ["cat", "dog cat"]
    scores = ZeroShotClassifier(*load_clip(tmp_path), labels, templates=["{}"])(image)[0]
    inputs = processor(images=image, text=labels, return_tensors="pt", padding=True)
    expected = stock(**inputs).logits_per_image.softmax(-1)[0]
    found = {answer["label"]: answer["score"] for answer in scores}
    assert [found[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_subfolder(repositories, family):
    folder = Path(repositories[family])
    model, _ = load_clip(folder.parent, subfolder=folder.name)
    assert equal(model, load_clip(folder)[0])
    tower, _ = load_text_tower(folder.parent, subfolder=folder.name)
    assert equal(tower, load_text_tower(folder)[0])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_clip(folder, subfolder="other")


def test_options_that_do_not_apply_are_refused(archives, repositories, family):
    for load in (load_clip, load_text_tower):
        with pytest.raises(ValueError, match="is one checkpoint file and has no revision: leave revision off"):
            load(archives[family], revision="main")
        with pytest.raises(ValueError, match="has no subfolder"):
            load(archives[family], subfolder="x")
        with pytest.raises(ValueError, match="is a folder and has no revision"):
            load(repositories[family], revision="main")
        with pytest.raises(ValueError, match=r"cannot compute in torch\.int8"):
            load(archives[family], dtype=torch.int8)


def test_kinds_of_sources(archives, repositories, family):
    assert is_checkpoint("RN50")
    assert is_checkpoint(archives[family])
    assert not is_checkpoint(repositories[family])
    assert not is_checkpoint("openai/clip-vit-base-patch32")


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(repositories, family, tmp_path, monkeypatch):
    """A private repository whose first commit is the family's model, and whose second is damaged."""
    files = {path.name: path.read_bytes() for path in Path(repositories[family]).iterdir() if path.is_file()}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with LocalHub("secret") as server:
        server.use_in_process(monkeypatch)
        repository = server.repositories["owner/clip"] = Repository(private=True)
        first = repository.add("main", "first", {name: File.of(content, lfs=True) for name, content in files.items()})
        repository.add("main", "second", {"config.json": File.of(b"{}")})
        yield first.sha


@pytest.mark.parametrize("load", [load_clip, load_text_tower])
def test_a_revision_is_loaded_and_recorded(hub, repositories, family, load, tmp_path):
    expected, _ = load(repositories[family])
    for source, options in ((f"owner/clip@{hub}", {}), ("owner/clip", {"revision": hub})):
        model, _ = load(source, token="secret", **options)
        assert equal(model, expected)
        assert model.config.name_or_path == f"owner/clip@{hub}"
    with pytest.raises(ValueError, match="names a revision, and revision is 'main': give one of the two"):
        load(f"owner/clip@{hub}", revision="main", token="secret")
    with pytest.raises(ValueError, match="Unrecognized model"):
        load("owner/clip", token="secret")
    with pytest.raises(OSError, match="owner/clip"):
        load("owner/clip", token="wrong", cache_dir=tmp_path)


def test_a_classifier_takes_the_options_of_loading(hub):
    classifier = ZeroShotClassifier.from_pretrained("owner/clip", ["a", "b"], revision=hub, token="secret")
    assert classifier.model.config.name_or_path == f"owner/clip@{hub}"


def test_fastest_is_what_the_device_is_fastest_in(repositories, family, monkeypatch):
    for names, dtype in ((("avx512_bf16",), torch.bfloat16), ((), torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda names=names: dict.fromkeys(names, True))
        assert load_clip(repositories[family], dtype="fastest")[0].dtype == dtype
    with pytest.raises(ValueError, match="dtype is 'quick': choose a dtype of torch, or 'fastest'"):
        load_clip(repositories[family], dtype="quick")
