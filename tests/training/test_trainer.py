"""`CLIPTrainer` on tiny models of both families."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from support.pairs import encode
from support.training import arguments, changed, drawn, make_trainer, processor, tensors
from torch.utils.data import IterableDataset
from transformers import CLIPModel

from hf_clip import HFCLIPModel
from hf_clip.data.rows import DataError
from hf_clip.evaluation import retrieval, zero_shot
from hf_clip.evaluation.tasks import ZeroShotSet
from hf_clip.training.datasets import BalancedSampler, PairDataset, class_weights
from hf_clip.training.losses import clip_loss
from hf_clip.training.trainer import CLIPTrainer, NonFiniteLossError

pytestmark = pytest.mark.training


@pytest.fixture
def repository(repositories: dict[str, Path]) -> Path:
    """One family, where both take the same way."""
    return repositories["tiny ViT"]


@pytest.fixture
def either(family: str, repositories: dict[str, Path]) -> Path:
    """Both families, where they differ."""
    return repositories[family]


@pytest.mark.slow
def test_it_learns(repository: Path, tmp_path: Path):
    trainer = make_trainer(repository, tmp_path, learning_rate=3e-4, max_steps=30, eval_dataset=PairDataset(drawn()))
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"] / 2


def test_statistics_stay_and_gains_learn(repositories: dict[str, Path], tmp_path: Path):
    trainer = make_trainer(repositories["tiny ResNet"], tmp_path, learning_rate=1e-3, max_steps=4)
    before = tensors(trainer.model)
    trainer.train()
    moved = changed(before, trainer.model)
    assert not any("running" in name or "num_batches" in name for name in moved)
    assert {name for name in before if name.endswith("bn1.weight")} <= moved


@pytest.mark.slow
def test_live_statistics_move(repositories: dict[str, Path], tmp_path: Path):
    trainer = make_trainer(repositories["tiny ResNet"], tmp_path, freeze_batch_norm=False)
    before = tensors(trainer.model)
    trainer.train()
    assert {name for name in before if "running" in name} <= changed(before, trainer.model)


def test_the_first_loss_is_that_of_evaluation_mode(either: Path, tmp_path: Path):
    trainer = make_trainer(either, tmp_path, max_steps=1)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(8)])
    with torch.no_grad():
        model = HFCLIPModel.from_pretrained(either).eval()
        expected = clip_loss(*encode(model, batch), model.logit_scale)
        trainer.model.train()
        assert torch.equal(trainer.compute_loss(trainer.model, batch), expected)


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.slow
def test_mini_batches_train_as_the_batch_does(either: Path, tmp_path: Path, size: int):
    whole, parts = (
        make_trainer(either, tmp_path, max_steps=1, optim="sgd", learning_rate=1e-2, mini_batch_size=chosen)
        for chosen in (None, size)
    )
    assert whole.train().training_loss == pytest.approx(parts.train().training_loss, abs=1e-6)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_mini_batches_need_fixed_statistics(repositories: dict[str, Path], tmp_path: Path):
    trainer = make_trainer(repositories["tiny ResNet"], tmp_path, mini_batch_size=2, freeze_batch_norm=False)
    with pytest.raises(ValueError, match="freeze_batch_norm"):
        trainer.train()


def gradients_of_training(trainer: CLIPTrainer) -> dict[str, torch.Tensor]:
    """Train a step of SGD at a rate of 1 without decay: what the weights lose is the gradient."""
    before = tensors(trainer.model)
    trainer.train()
    return {name: before[name] - after for name, after in trainer.model.named_parameters()}


@pytest.mark.slow
def test_accumulation_takes_the_mean_of_the_batches(either: Path, tmp_path: Path):
    settings = {"optim": "sgd", "learning_rate": 1e-2, "weight_decay": 0, "warmup_steps": 0, "max_grad_norm": 0}
    settings |= {"max_steps": 1, "lr_scheduler_type": "constant", "train_logit_scale": False}
    rows = PairDataset(drawn(16))
    trainer = make_trainer(
        either,
        tmp_path,
        **settings,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        train_dataset=rows,
    )
    batches = []
    collate = trainer.data_collator
    trainer.data_collator = lambda drawn_rows: batches.append(collate(drawn_rows)) or batches[-1]
    found = gradients_of_training(trainer)
    model = HFCLIPModel.from_pretrained(either).eval()
    losses = [clip_loss(*encode(model, batch), model.logit_scale) for batch in batches]
    (sum(losses) / 4).backward()
    assert len(batches) == 4
    weight = "text_projection.weight"
    torch.testing.assert_close(found[weight], 1e-2 * model.text_projection.weight.grad, rtol=1e-3, atol=1e-6)


def test_the_scale_stays_in_its_bounds(repository: Path, tmp_path: Path):
    model = HFCLIPModel.from_pretrained(repository)
    model.logit_scale.data.fill_(math.log(100))
    seen = []
    trainer = make_trainer(repository, tmp_path, model, max_steps=3, learning_rate=0.1, warmup_steps=0)
    loss = trainer._loss
    trainer._loss = lambda *arguments: loss(*arguments) * 0 - model.logit_scale  # pushes the scale up
    step = trainer.training_step
    trainer.training_step = lambda *arguments: seen.append(model.logit_scale.item()) or step(*arguments)
    trainer.train()
    assert max([*seen, model.logit_scale.item()]) <= math.log(100) + 1e-6
    assert model.logit_scale.item() == pytest.approx(math.log(100))


def test_the_scale_may_be_left_as_it_is(repository: Path, tmp_path: Path):
    trainer = make_trainer(repository, tmp_path, train_logit_scale=False, max_logit_scale=2.0, learning_rate=0.01)
    before = tensors(trainer.model)
    trainer.train()
    moved = changed(before, trainer.model)
    assert moved
    assert "logit_scale" not in moved


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_in_half_precision_are_refused(repository: Path, tmp_path: Path, dtype: torch.dtype):
    trainer = make_trainer(repository, tmp_path, HFCLIPModel.from_pretrained(repository, dtype=dtype))
    with pytest.raises(ValueError, match=r"half precision .* load the model with dtype=torch.float32"):
        trainer.train()


@pytest.mark.slow
def test_autocast_keeps_the_weights_in_float32(repository: Path, tmp_path: Path):
    trainer = make_trainer(repository, tmp_path, bf16=True, learning_rate=1e-3, max_steps=8)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def labels(count: int = 16, classes: str = "ab") -> PairDataset:
    """Draw noise with a label each; that of "b" is brighter."""
    rows = []
    for place, row in enumerate(drawn(count)):
        label = classes[place % len(classes)]
        shift = 127 * (label == "b")
        rows.append({"image": row["image"].point([shift + value // 2 for value in range(256)] * 3), "label": label})
    return PairDataset(rows, templates=["a {}", "the {}"])


def test_the_loss_over_classes_is_cross_entropy_over_their_prompts(either: Path, tmp_path: Path):
    trainer = make_trainer(either, tmp_path, train_dataset=labels(8), loss="classes", label_smoothing_factor=0.1)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(8)])
    with torch.no_grad():
        model = HFCLIPModel.from_pretrained(either).eval()
        images, processor = model.encode_image(batch["pixel_values"]), trainer.processing_class
        found = trainer.compute_loss(trainer.model.train(), batch)
        losses = []
        for template in ("a {}", "the {}"):  # one of them is drawn for a step
            prompts = [template.format(name) for name in "ab"]
            texts = model.encode_text(processor.tokenizer(prompts, return_tensors="pt")["input_ids"])
            texts, images = (torch.nn.functional.normalize(rows) for rows in (texts, images))
            logits = model.logit_scale.exp() * images @ texts.T
            losses.append(torch.nn.functional.cross_entropy(logits, batch["classes"], label_smoothing=0.1))
    assert any(torch.isclose(found, loss, rtol=1e-5) for loss in losses)


@pytest.mark.parametrize("loss", ["classes", "siglip"])
@pytest.mark.slow
def test_other_losses_learn(repository: Path, tmp_path: Path, loss: str):
    settings = {"train_dataset": labels(16), "learning_rate": 3e-4, "max_steps": 20, "loss": loss}
    trainer = make_trainer(repository, tmp_path, watch={"same": ZeroShotSet(labels(16).rows, ["a {}"])}, **settings)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] * 0.75
    assert loss == "siglip" or trainer.evaluate()["eval_same_acc1"] >= 0.75


def test_a_list_of_rows_is_a_data_set_of_pairs(repository: Path, tmp_path: Path):
    rows = [{"image": row["image"], "label": "ab"[place % 2]} for place, row in enumerate(drawn(8))]
    trainer = make_trainer(repository, tmp_path, train_dataset=rows, eval_dataset=rows, loss="classes")
    assert trainer.train().global_step == 2
    assert "eval_acc1" in trainer.evaluate()


def test_rare_classes_weigh_or_come_as_much_as_others(repository: Path, tmp_path: Path):
    rows = labels(16, "aaaaaaab")
    assert class_weights(rows.rows).tolist() == pytest.approx([16 / 28, 4])
    sampler = BalancedSampler(rows)
    first = list(sampler)
    assert first == list(BalancedSampler(rows))
    rows.set_epoch(1)
    assert list(sampler) != first
    drawn_labels = []
    for epoch in range(60):
        rows.set_epoch(epoch)
        drawn_labels += [rows.rows[place].label for place in sampler]
    assert sum(drawn_labels) / len(drawn_labels) == pytest.approx(0.5, abs=0.06)
    trainer = make_trainer(repository, tmp_path, train_dataset=rows, balance="sampler", max_steps=2)
    assert trainer.train().global_step == 2
    with pytest.raises(DataError, match=r'balance="sampler" needs a PairDataset with a label for each image'):
        make_trainer(repository, tmp_path, balance="sampler")
    with pytest.raises(DataError, match=r'loss="classes" needs a PairDataset'):
        make_trainer(repository, tmp_path, loss="classes")


def test_a_loss_of_ones_own_is_the_one_that_is_trained(repository: Path, tmp_path: Path):
    """It was accepted and ignored."""
    seen = []

    def own(outputs, ids, num_items_in_batch=None):
        seen.append((outputs.image_embeds.shape[0], set(ids)))
        return outputs.image_embeds.sum() * 0 + 7

    trainer = make_trainer(repository, tmp_path, max_steps=1, compute_loss_func=own)
    assert trainer.train().training_loss == 7
    assert seen == [(8, {"image_ids", "text_ids", "valid", "classes"})]
    with pytest.raises(ValueError, match="leave out compute_loss_func"):
        make_trainer(repository, tmp_path, mini_batch_size=2, compute_loss_func=own).train()
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0.1, but the loss contrastive has no labels"):
        make_trainer(repository, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"mini_batch_size is for losses that compare pairs"):
        make_trainer(repository, tmp_path, loss="classes", mini_batch_size=2)


def test_the_loss_is_logged_above_the_floor_of_duplicates(repository: Path, tmp_path: Path):
    trainer = make_trainer(repository, tmp_path, train_dataset=labels(8), max_steps=1)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss_above_floor" in entry]
    assert entry["loss"] - entry["loss_above_floor"] == pytest.approx(math.log(4), abs=1e-4)
    trainer = make_trainer(repository, tmp_path, max_steps=1)
    trainer.train()
    assert not any("loss_above_floor" in entry for entry in trainer.state.log_history)


def test_a_labeled_evaluation_set_has_the_accuracy_of_zero_shot(either: Path, tmp_path: Path):
    """Its recall would be low for any model: captions of a class are not right for one of its images alone."""
    trainer = make_trainer(either, tmp_path, eval_dataset=labels(9, "abc"))
    found = trainer.evaluate()
    model, rows = trainer.model.eval(), labels(9, "abc").rows
    expected = zero_shot(model, trainer.processing_class, rows, templates=["a {}", "the {}"])
    assert found["eval_acc1"] == expected.metrics["acc1"]
    assert not any("recall" in name for name in found)
    assert "eval_loss" in found


@pytest.mark.parametrize("size", [None, 2])
def test_a_batch_of_unreadable_images_alone_is_passed_over(repository: Path, tmp_path: Path, rows_on_disk, size):
    """It ended a training that leaves unreadable images out."""
    trainer = make_trainer(repository, tmp_path, train_dataset=PairDataset(rows_on_disk), mini_batch_size=size)
    rows = [trainer.train_dataset[place] for place in range(16)]
    trainer.data_collator(rows[:8])
    for row in rows_on_disk[8:12]:
        Path(row["image"]).unlink()
    batch = trainer.data_collator(rows[8:12])
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert not batch["valid"].any()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer.training_step(trainer.model, batch) == 0
    gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    assert all((gradient == 0).all() for gradient in gradients)


def test_arguments_of_the_stock_trainer_are_honored(repository: Path, tmp_path: Path):
    """compute_metrics, model_init and eval_do_concat_batches ended in a TypeError."""
    settings = {"eval_dataset": PairDataset(drawn(6)), "per_device_eval_batch_size": 2}
    expected = make_trainer(repository, tmp_path, **settings).evaluate()
    trainer = make_trainer(
        repository,
        tmp_path,
        **settings,
        eval_do_concat_batches=False,
        compute_metrics=lambda prediction: {"batches": len(prediction.predictions)},
    )
    found = trainer.evaluate()
    assert found["eval_batches"] == 3
    assert found["eval_mean_recall@1"] == expected["eval_mean_recall@1"]
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"])
    trainer = CLIPTrainer(
        None,
        processor(repository),
        arguments(tmp_path, train="text"),
        train_dataset=PairDataset(drawn()),
        model_init=lambda: HFCLIPModel.from_pretrained(repository),
    )
    assert trainer.train().global_step == 2
    assert not any(parameter.requires_grad for parameter in trainer.model.vision_model.parameters())
    with pytest.raises(TypeError, match="model is None: give a CLIP, or a model_init"):
        CLIPTrainer(None, processor(repository), arguments(tmp_path))


def rates(trainer: CLIPTrainer) -> list[float]:
    """Train, and return the learning rate of each step."""
    seen = []
    step = trainer.training_step
    trainer.training_step = lambda *given: seen.append(trainer.optimizer.param_groups[0]["lr"]) or step(*given)
    trainer.train()
    return seen


def test_every_step_of_a_short_training_learns(repository: Path, tmp_path: Path):
    """Schedules of transformers have rate 0 at the first step: of three steps the rates were 0, 1e-5 and 5e-6."""
    trainer = make_trainer(repository, tmp_path, max_steps=1)
    before = tensors(trainer.model)
    assert rates(trainer) == [1e-5]
    assert changed(before, trainer.model)
    found = rates(make_trainer(repository, tmp_path, max_steps=3))
    assert found[0] == 1e-5
    assert found[0] > found[1] > found[2] > 1e-6
    found = rates(make_trainer(repository, tmp_path, max_steps=4, warmup_steps=2, lr_scheduler_type="linear"))
    assert found == pytest.approx([0.5e-5, 1e-5, 1e-5 * 2 / 3, 1e-5 / 3])


def dtypes_of_both_towers(trainer: CLIPTrainer) -> set[torch.dtype]:
    """Train, and return the dtypes in which layers of both towers compute."""
    found = set()
    for layer in (
        trainer.model.text_model.encoder.layers[0].mlp.fc1,
        trainer.model.vision_model.encoder.layers[0].mlp.fc1,
    ):
        layer.register_forward_hook(lambda module, given, output: found.add(output.dtype))
    trainer.train()
    return found


@pytest.mark.parametrize("size", [None, 3])
def test_bf16_is_the_dtype_of_every_layer(repository: Path, tmp_path: Path, size: int | None):
    """With mini-batches too, which encode each tower without forward, where accelerate puts mixed precision."""
    trainer = make_trainer(repository, tmp_path, max_steps=1, bf16=True, mini_batch_size=size)
    assert dtypes_of_both_towers(trainer) == {torch.bfloat16}
    trainer = make_trainer(repository, tmp_path, max_steps=1, mini_batch_size=size)
    assert dtypes_of_both_towers(trainer) == {torch.float32}


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.slow
def test_a_compiled_model_is_the_one_that_is_trained(repository: Path, tmp_path: Path, size: int | None):
    from torch._dynamo.utils import counters

    counters.clear()
    settings = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1, "mini_batch_size": size}
    make_trainer(repository, tmp_path, **settings).train()
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("size", [4, 21])
def test_evaluation_does_not_depend_on_the_batch(either: Path, tmp_path: Path, size: int):
    rows = PairDataset(drawn(21))
    trainer = make_trainer(either, tmp_path, eval_dataset=rows, per_device_eval_batch_size=size)
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    with torch.no_grad():
        embeds = encode(model, trainer.data_collator([rows[place] for place in range(21)]))
    assert metrics["eval_loss"] == pytest.approx(clip_loss(*embeds, model.logit_scale).item(), abs=1e-5)
    ranks = (embeds[0] @ embeds[1].T).argsort(-1, descending=True)
    found = (ranks[:, :5] == torch.arange(21)[:, None]).any(-1).float().mean().item()
    assert metrics["eval_text_retrieval_recall@5"] == pytest.approx(found)


@pytest.mark.parametrize("size", [4, 64])
def test_any_caption_of_an_image_counts(either: Path, tmp_path: Path, size: int):
    """As `retrieval` has it; an image is encoded once in a batch."""
    rows = [row | {"text": [f"{row['text']} {n}" for n in range(1 + place % 3)]} for place, row in enumerate(drawn(12))]
    trainer = make_trainer(either, tmp_path, eval_dataset=PairDataset(rows), per_device_eval_batch_size=size)
    encoded = []
    hook = trainer.model.vision_model.register_forward_pre_hook(lambda _, given: encoded.append(len(given[0])))
    found = trainer.evaluate()
    hook.remove()
    assert sum(encoded) == 12 if size > 24 else sum(encoded) < 24
    expected = retrieval(trainer.model.eval(), trainer.processing_class, rows).metrics
    for name in ("text_retrieval_recall@1", "image_retrieval_recall@5", "mean_recall@1"):
        assert found[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-9)


def test_watched_sets_are_in_every_evaluation_and_in_the_state(repository: Path, tmp_path: Path):
    rows = [{"image": row["image"], "label": name} for row, name in zip(drawn(4), "abab", strict=True)]
    watch = {"letters": ZeroShotSet(rows)}
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(repository, tmp_path, watch=watch, eval_dataset=PairDataset(drawn(4)), **settings)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    found = [entry["eval_letters_acc1"] for entry in state["log_history"] if "eval_letters_acc1" in entry]
    assert len(found) == 2
    assert 0 <= found[0] <= 1


def test_a_stream_is_trained_on(repository: Path, tmp_path: Path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(drawn(16))

    before = make_trainer(repository, tmp_path, train_dataset=Stream(), max_steps=2)
    assert before.train().global_step == 2


class Stop(Exception):
    pass


@pytest.mark.parametrize(("family", "stopped_at"), [("tiny ViT", 3), ("tiny ResNet", 6)])
@pytest.mark.slow
def test_a_resumed_training_ends_in_the_same_bits(either: Path, tmp_path: Path, stopped_at: int):
    """Four steps an epoch; captions are drawn anew in each."""
    rows = [row | {"text": [row["text"], f"another {number}"]} for number, row in enumerate(drawn(16))]
    settings = {"per_device_train_batch_size": 4, "max_steps": 8, "save_strategy": "steps", "save_steps": stopped_at}
    settings |= {"learning_rate": 1e-3}
    whole = make_trainer(either, tmp_path / "whole", train_dataset=PairDataset(rows), **settings)
    whole.train()
    stopped = make_trainer(either, tmp_path / "stopped", train_dataset=PairDataset(rows), **settings)
    step = stopped.training_step

    def stopping(*arguments):
        if stopped.state.global_step == stopped_at + 1:
            raise Stop
        return step(*arguments)

    stopped.training_step = stopping
    with pytest.raises(Stop):
        stopped.train()
    resumed = make_trainer(either, tmp_path / "stopped", train_dataset=PairDataset(rows), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert changed(tensors(whole.model), resumed.model) == set()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_that_is_not_complete_is_passed_over(repository: Path, tmp_path: Path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(repository, tmp_path, max_steps=2, **settings).train()
    os.truncate(tmp_path / "checkpoint-2" / "trainer_state.json", 20)
    resumed = make_trainer(repository, tmp_path, max_steps=3, **settings)
    steps = []
    step = resumed.training_step
    resumed.training_step = lambda *arguments: steps.append(resumed.state.global_step) or step(*arguments)
    resumed.train(resume_from_checkpoint=True)
    assert steps == [1, 2]


@pytest.mark.slow
def test_a_full_disk_names_the_checkpoint_to_resume_from(repository: Path, tmp_path: Path, monkeypatch):
    trainer = make_trainer(repository, tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    save = trainer._save_optimizer_and_scheduler

    def full(folder: str) -> None:
        if "checkpoint-2" in folder:
            raise OSError(28, "No space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match=r"checkpoint-2 cannot be written .*No space.*resume from .*checkpoint-1$"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.slow
def test_other_data_are_not_resumed_with(repository: Path, tmp_path: Path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(repository, tmp_path, max_steps=1, **settings).train()
    other = make_trainer(repository, tmp_path, train_dataset=PairDataset(drawn(16, seed=1)), **settings)
    with pytest.raises(DataError, match="was trained on other data"):
        other.train(resume_from_checkpoint=True)


def test_a_training_is_not_resumed_with_other_settings(repository: Path, tmp_path: Path):
    """The optimizer's state in a checkpoint would override them without a word."""
    settings = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(repository, tmp_path, max_steps=1, **settings).train()
    for name, value in {"learning_rate": 1e-4, "weight_decay": 0.0, "seed": 1}.items():
        with pytest.raises(ValueError, match=rf"was trained with {name} .*, not {value}: give the same"):
            make_trainer(repository, tmp_path, max_steps=2, **settings, **{name: value}).train(True)
    assert make_trainer(repository, tmp_path, max_steps=2, **settings).train(True).global_step == 2


@pytest.mark.parametrize(
    ("count", "message"), [(0, "no rows"), (1, "a batch has 1 pair"), (5, "5 pairs, a batch takes 8")]
)
def test_too_few_pairs_are_refused(repository: Path, tmp_path: Path, count: int, message: str):
    with pytest.raises(DataError, match=message):
        make_trainer(repository, tmp_path, train_dataset=PairDataset(drawn(count))).train()


def test_a_loss_that_is_no_number_stops_before_the_weights_move(repository: Path, tmp_path: Path, rows_on_disk):
    model = HFCLIPModel.from_pretrained(repository)
    model.text_projection.weight.data[0, 0] = torch.nan
    trainer = make_trainer(repository, tmp_path, model, train_dataset=PairDataset(rows_on_disk))
    with pytest.raises(NonFiniteLossError, match=r"the loss of step 1 is nan: .*\d\.png.*checkpoints are intact"):
        trainer.train()


def test_a_gradient_that_is_no_number_stops_before_the_weights_move(repository: Path, tmp_path: Path):
    trainer = make_trainer(repository, tmp_path)
    before = tensors(trainer.model)
    trainer.model.text_projection.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteLossError, match="the gradient of step 1"):
        trainer.train()
    assert changed(before, trainer.model) == set()


@pytest.fixture
def rows_on_disk(tmp_path: Path) -> list[dict]:
    rows = drawn(16)
    for number, row in enumerate(rows):
        row["image"].save(tmp_path / f"{number}.png")
        row["image"] = str(tmp_path / f"{number}.png")
    return rows


@pytest.mark.slow
def test_unreadable_images_are_left_out_unless_strict(repository: Path, tmp_path: Path, rows_on_disk, caplog):
    Path(rows_on_disk[3]["image"]).write_bytes(b"no image")
    trainer = make_trainer(repository, tmp_path, train_dataset=PairDataset(rows_on_disk))
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(8)])
    assert batch["valid"].tolist() == [True, True, True, False, True, True, True, True]
    assert trainer.train().global_step == 2
    strict = make_trainer(repository, tmp_path, train_dataset=PairDataset(rows_on_disk), strict=True, max_steps=4)
    with pytest.raises(ValueError, match=r"cannot read .*3\.png"):
        strict.train()


@pytest.mark.slow
def test_an_unreadable_majority_stops(repository: Path, tmp_path: Path, rows_on_disk):
    for row in rows_on_disk[:12]:
        Path(row["image"]).unlink()
    trainer = make_trainer(repository, tmp_path, train_dataset=PairDataset(rows_on_disk), max_steps=9)
    with pytest.raises(DataError, match=r"\d+ of \d+ images cannot be read"):
        trainer.train()


@pytest.mark.slow
def test_a_stock_model_trains_as_ours_does(repository: Path, tmp_path: Path):
    stock = CLIPModel.from_pretrained(repository)
    settings = {"mini_batch_size": 4, "eval_dataset": PairDataset(drawn(8)), "learning_rate": 1e-4}
    trainers = [make_trainer(repository, tmp_path, model, **settings) for model in (None, stock)]
    ours, theirs = (trainer.train().training_loss for trainer in trainers)
    assert theirs == pytest.approx(ours, rel=1e-4)
    ours, theirs = (trainer.evaluate()["eval_loss"] for trainer in trainers)
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_another_model_is_refused(repositories: dict[str, Path], tmp_path: Path):
    model = HFCLIPModel.from_pretrained(repositories["tiny ViT"])
    with pytest.raises(TypeError, match="HFCLIPVisionModel is not a CLIP with both towers"):
        make_trainer(repositories["tiny ViT"], tmp_path, model.vision_model)
