"""Published models as anybody gets them: from a Hub, by name."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from support.local_hub import LocalHub, Repository
from support.originals import FAMILIES
from support.outputs import expected_outputs
from transformers import AutoModel, AutoProcessor

from conversion.publish import prepare, publish
from hf_clip import HFCLIPModel, HFCLIPProcessor
from hf_clip.parity.verify import check_verified, verify

pytestmark = pytest.mark.slow
TOKEN = "hf_NobodyMaySeeThis"
WEIGHTS = "model.safetensors"


def name(family: str) -> str:
    return f"org/{family.replace(' ', '-')}"


@pytest.fixture(scope="module")
def verified(archives, repositories, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for family, repository in repositories.items():
        folders[family] = shutil.copytree(repository, tmp_path_factory.mktemp("verified") / "clip")
        verify(folders[family], str(archives[family]), trust_original=True, report=lambda _: None)
    return folders


@pytest.fixture(scope="module")
def published(verified) -> dict[str, Repository]:
    with pytest.MonkeyPatch.context() as patch, LocalHub(TOKEN) as hub:
        hub.use_in_process(patch)
        publish([prepare(folder, name(family)) for family, folder in verified.items()], report=lambda _: None)
        return hub.repositories


@pytest.fixture
def hub(published, monkeypatch):
    with LocalHub(TOKEN) as hub:
        hub.use_in_process(monkeypatch)
        hub.repositories = copy.deepcopy(published)
        yield hub


def in_fresh_process(*arguments: str | Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("support") / "hub_client.py", *arguments]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # another number can give other bits
    environment = os.environ | threads | environment
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def load(family: str, cache: Path, **options: str) -> HFCLIPModel:
    return AutoModel.from_pretrained(name(family), cache_dir=cache, **options)


def assert_same(model: HFCLIPModel, weights: Path) -> None:
    state = model.state_dict()
    for key, tensor in load_file(weights).items():
        assert torch.equal(state[key], tensor.to(state[key].dtype)), key


def test_fresh_processes_give_the_package_s_outputs(hub, verified, tmp_path):
    """Without the package and with trust; then from that cache when there is no Hub, also with it and without trust."""
    expected = [expected_outputs(verified[family], tmp_path / f"{family}.safetensors") for family in FAMILIES]
    vit, resnet = zip(map(name, FAMILIES), expected, strict=True)
    environment = hub.environment(tmp_path / "home")
    in_fresh_process("absent", *vit, "absent", *resnet, environment=environment)
    hub.stop()
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    in_fresh_process("absent", *resnet, "installed", *vit, environment=offline)


def test_loads_by_name(hub, verified, family, tmp_path):
    model = load(family, tmp_path)
    assert type(model) is HFCLIPModel
    assert_same(model, verified[family] / WEIGHTS)
    assert type(AutoProcessor.from_pretrained(name(family), cache_dir=tmp_path)) is HFCLIPProcessor


def test_a_revision(hub, verified, family, tmp_path):
    """The other family on a branch, beside the one on main."""
    other = FAMILIES[family == FAMILIES[0]]
    publish([prepare(verified[other], name(family))], revision="other", report=lambda _: None)
    assert_same(load(family, tmp_path, revision="other"), verified[other] / WEIGHTS)
    assert_same(load(family, tmp_path), verified[family] / WEIGHTS)


def test_who_may_not_read_is_told_so(hub, family, tmp_path, monkeypatch):
    hub.gated.add(name(family))
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(OSError, match=f"gated repo(?s:.*){name(family)}") as error:
        load(family, tmp_path)
    assert "hf_another" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load(family, tmp_path)


def test_a_download_that_broke_off_goes_on(hub, verified, family, tmp_path):
    hub.drop_download = 11 << 20  # more than one of the client's chunks of 10 MiB: it keeps that one
    assert_same(load(family, tmp_path), verified[family] / WEIGHTS)
    assert sum(request.endswith(WEIGHTS) for request in hub.requests if request.startswith("GET")) == 2


def test_a_short_file_is_not_taken_for_whole(hub, verified, family, tmp_path):
    whole = hub.files(name(family))[WEIGHTS]
    hub.corrupt(name(family), WEIGHTS, whole[:-1000])
    with pytest.raises(OSError, match="should be of size"):
        load(family, tmp_path)
    assert not [*tmp_path.rglob(WEIGHTS), *tmp_path.rglob("*.incomplete")]
    hub.corrupt(name(family), WEIGHTS, whole)
    assert_same(load(family, tmp_path), verified[family] / WEIGHTS)


def test_a_flipped_bit_is_found_by_verify(hub, family, tmp_path):
    """No client compares hashes of what it downloads: the model loads, and is another."""
    content = bytearray(hub.files(name(family))[WEIGHTS])
    content[-1] ^= 1
    hub.corrupt(name(family), WEIGHTS, bytes(content))
    folder = Path(snapshot_download(name(family), cache_dir=tmp_path))
    with pytest.raises(ValueError, match=WEIGHTS):
        check_verified(folder)
