"""`push_to_hub` through the trainer."""

from pathlib import Path

import pytest
from support.local_hub import LocalHub
from support.training import changed, make_trainer, tensors
from transformers import AutoModel, AutoProcessor

from hf_clip import HFCLIPModel, HFCLIPProcessor
from hf_clip.training.checkpoints import complete_checkpoints

pytestmark = pytest.mark.training
CHECKPOINT = "last-checkpoint/"


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint"])
@pytest.mark.slow
def test_a_model_is_pushed_and_loads_by_name(repositories, tmp_path: Path, monkeypatch, strategy: str):
    settings = {"save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_strategy": strategy}
    settings |= {"hub_model_id": "somebody/tuned", "hub_always_push": True}
    with LocalHub("hf_token") as hub:
        hub.use_in_process(monkeypatch)
        trainer = make_trainer(repositories["tiny ViT"], tmp_path / "tuned", **settings)
        trainer.train()
        trainer.push_to_hub()
        files = hub.files("somebody/tuned")
        model = AutoModel.from_pretrained("somebody/tuned", cache_dir=tmp_path / "cache")
        processor = AutoProcessor.from_pretrained("somebody/tuned", cache_dir=tmp_path / "cache")
    assert (type(model), type(processor)) == (HFCLIPModel, HFCLIPProcessor)
    assert changed(tensors(trainer.model), model) == set()
    kept = {name.removeprefix(CHECKPOINT): content for name, content in files.items() if name.startswith(CHECKPOINT)}
    if strategy != "checkpoint":
        assert not kept
        return
    for name, content in kept.items():
        (tmp_path / "fetched" / "checkpoint-2").mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / "checkpoint-2" / name).write_bytes(content)
    assert len(complete_checkpoints(tmp_path / "fetched")) == 1
    resumed = make_trainer(repositories["tiny ViT"], tmp_path / "fetched", max_steps=3)
    assert resumed.train(resume_from_checkpoint=True).global_step == 3
