"""Files of every kind that holds, or does not hold, a checkpoint."""

import hashlib
import io
import os
import pickle
import struct
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from support.originals import FAMILIES, clip, inputs, original_model, save_archive

from hf_clip.openai.checkpoints import read_checkpoint, write_state_dict
from hf_clip.openai.errors import CheckpointError

BODY = bytes(range(256)) * 12_000
WEB_PAGE = b"\n<!DOCTYPE html><title>Please log in</title>"

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


WRAPPERS = ["model.", "clip_model.", "model.clip_model.", "net.", "backbone.", "_forward_module.", "module.", "a.b.c."]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_the_one_clip_inside_is_found(state_dict, prefix, tmp_path, caplog):
    """Beside it: a head, metrics, what averaging counts."""
    beside = {"head.weight": torch.ones(1), "val_acc.tp": torch.ones(1), "n_averaged": torch.tensor(3)}
    torch.save({f"{prefix}{name}": tensor for name, tensor in state_dict.items()} | beside, tmp_path / "x")
    assert_same(read_checkpoint(tmp_path / "x"), state_dict)
    assert "ignored beside the CLIP: head.weight, val_acc.tp, n_averaged" in caplog.text


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model", "module", "ema", "model_ema", "params"])
def test_nested_state_dicts_are_found(state_dict, nest, tmp_path):
    torch.save({"epoch": 3, nest: {"module": state_dict}, "optimizer": {"lr": 0.1}}, tmp_path / "x")
    assert_same(read_checkpoint(tmp_path / "x"), state_dict)


def test_of_several_one_has_to_be_chosen(state_dict, tmp_path):
    ema = {name: tensor + 1 for name, tensor in state_dict.items()}
    torch.save({"model": state_dict, "ema": ema}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"several CLIPs, under 'ema\.', 'model\.': choose a prefix"):
        read_checkpoint(tmp_path / "x")
    assert_same(read_checkpoint(tmp_path / "x", prefix="ema."), ema)
    with pytest.raises(CheckpointError, match=r"no CLIP under the prefix 'student\.'; those with one are 'ema\.'"):
        read_checkpoint(tmp_path / "x", prefix="student.")


OTHER_KINDS = {
    "half a Long-CLIP": (
        {"positional_embedding_res": 1, "visual.proj": 1, "token_embedding.weight": 1},
        "a Long-CLIP whose two tables of positions do not fit",
    ),
    "SigLIP": ({"logit_bias": 1, "visual.proj": 1, "token_embedding.weight": 1}, "a SigLIP"),
    "Stable Diffusion": ({"cond_stage_model.transformer.text_model.encoder.layers.0.x": 1}, "a Stable Diffusion"),
    "transformers": (
        {"text_model.encoder.layers.0.x": 1, "vision_model.encoder.layers.0.x": 1},
        "names of transformers: load its folder with HFCLIPModel.from_pretrained",
    ),
    "clip_l": ({"text_model.encoder.layers.0.x": 1}, "a text tower alone under the names of transformers"),
    "vision of transformers": ({"vision_model.encoder.layers.0.x": 1}, "a vision tower alone under the names"),
    "CoOp": ({"prompt_learner.ctx": 1}, "learned prompts"),
    "custom text": ({"text.transformer.resblocks.0.x": 1, "visual.conv1.weight": 1}, "load it with open_clip"),
    "text only": ({"token_embedding.weight": 1, "transformer.x": 1}, "a text tower alone"),
    "vision only": ({"visual.conv1.weight": 1}, "a vision tower alone"),
}


@pytest.mark.parametrize(("keys", "message"), OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_other_kinds_of_files_are_named(keys, message, tmp_path):
    torch.save({key: torch.ones(1) for key in keys}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.ones(2, 2).to_sparse(), "sparse"), (torch.empty(2, device="meta"), "meta")],
    ids=["sparse", "meta"],
)
def test_tensors_without_plain_numbers_are_named(tensor, kind, tmp_path):
    torch.save({"token_embedding.weight": tensor}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=f"holds a {kind} tensor, token_embedding.weight"):
        read_checkpoint(tmp_path / "x")


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
    "cycle": (b"(X\x01\x00\x00\x00mh\x01u", "nests them over 32 levels deep"),
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
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
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
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    assert_same(read_checkpoint(tmp_path / "x.pt"), {"a": torch.ones(1)})
