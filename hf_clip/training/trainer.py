"""`CLIPTrainer`: transformers' Trainer with CLIP's loss, parameter groups and metrics."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.utils import logging

from ..data.images import surprises
from ..data.rows import DataError
from ..evaluation.tasks import Evaluator, ZeroShotSet
from ..metrics.pairs import contrastive_loss_of_all, first_places
from ..metrics.retrieval import retrieval_metrics
from ..model.modeling_hf_clip_base import normalize
from ..model.modeling_hf_clip_resnet import freeze_batch_norm
from ..utils.text import listing
from .arguments import CLIPTrainingArguments
from .checkpoints import DataIdentity, check_same_run, checked_writing, last_checkpoint, whole_files
from .datasets import BalancedSampler, CLIPCollator, PairDataset, class_weights, own_words
from .grad_cache import Embeds, Inputs, cached_step, check_no_live_batch_norm
from .losses import class_loss, clip_loss, loss_floor, multilabel_loss, siglip_loss
from .parameters import check_precision, clamp_logit_scale, param_groups, trainable, trained, undecayed

logger = logging.get_logger(__name__)

MODEL_INPUTS = ("input_ids", "pixel_values", "attention_mask")


class NonFiniteLossError(ValueError):
    """The loss or a gradient is NaN or infinite."""


class CLIPTrainer(Trainer):
    """Train a CLIP with its contrastive loss over the pairs of all processes.

    Checkpoints, logging, several GPUs and the Hub work as with `Trainer`. An evaluation measures the loss and the
    recall over the whole evaluation set (the accuracy over its classes, where it has labels), and each watched set, by
    the evaluators of `hf_clip.evaluation`.

    Args:
        model: An HFCLIPModel, a transformers CLIPModel, or a PEFT adapter around one; None with a `model_init`.
        processor: The model's processor; checkpoints get it too.
        args: A CLIPTrainingArguments.
        train_dataset: A PairDataset; a `datasets.Dataset`, a DataFrame or a list of mappings, which becomes one; or any
            data set of mappings with `image` and `text`.
        eval_dataset: The same.
        watch: Evaluators by name, called at every evaluation with the model and its processor: a `ZeroShotSet`, or any
            function that returns a `Result`.
        strict: Stop at the first unreadable image instead of leaving it out.
        **kwargs: Further arguments of `Trainer`, such as `callbacks`; the metrics of a `compute_metrics` are added to
            those of CLIP.

    Raises:
        TypeError: The model is not a CLIP with both towers, or `args` is another class.

    Example:
        >>> trainer = CLIPTrainer(model, processor, CLIPTrainingArguments("tuned"), train_dataset=train)
        >>> trainer.train()
    """

    args: CLIPTrainingArguments
    optimizer: Any

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None,
        processor: Any,
        args: CLIPTrainingArguments,
        *,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict | None = None,
        watch: Mapping[str, Evaluator] | None = None,
        strict: bool = False,
        **kwargs: Any,
    ):
        if not isinstance(args, CLIPTrainingArguments):
            raise TypeError(
                f"args is a {type(args).__name__}: make a CLIPTrainingArguments, it takes the same settings"
            )
        train_dataset = as_pairs(train_dataset, args.seed)
        if model is not None:
            self._choose_parameters(model, args)
        elif kwargs.get("model_init") is None:
            raise TypeError("model is None: give a CLIP, or a model_init that returns one")
        self._own_metrics = kwargs.pop("compute_metrics", None)
        self.watch = dict(watch or {})
        self._floors: list[Tensor] = []  # of the losses since the last log
        # ids of the images so far that the model sees in another way than people: rotated ones, those of 16 bits
        self._surprising: tuple[set[int], set[int]] = (set(), set())
        self._class_weights = self._checked_classes(train_dataset, args)
        self._labeled = False  # whether the data set that is being evaluated has labels in place of captions
        streams = any(isinstance(data, IterableDataset) for data in (train_dataset, eval_dataset))
        kwargs.setdefault("data_collator", CLIPCollator(processor, strict, streams and args.world_size > 1, args.exif))
        callbacks = [_Steps(self), DataIdentity(train_dataset, args), *(kwargs.pop("callbacks", None) or [])]
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            # watched sets alone are an evaluation too
            eval_dataset={} if eval_dataset is None and self.watch else all_captions(eval_dataset),
            processing_class=processor,
            compute_metrics=self._metrics,
            callbacks=callbacks,
            **kwargs,
        )
        self._check_sharding()
        self.can_return_loss = True
        self.model_accepts_loss_kwargs = False

    def _check_sharding(self) -> None:
        """Raise ValueError where accelerate would train several processes without FSDP, as it does on CPUs."""
        wanted = self.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        found = self.accelerator.distributed_type.value
        if wanted and found not in ("FSDP", "NO"):
            raise ValueError(
                f"fsdp is asked for, but accelerate would train without it, as {found}: it shards over several GPUs "
                "alone; leave fsdp out, or shard with prepare_fsdp and fully_shard, which work on CPUs too"
            )

    @staticmethod
    def _choose_parameters(model: nn.Module, args: CLIPTrainingArguments) -> None:
        if not all(hasattr(model, name) for name in ("get_image_features", "get_text_features", "logit_scale")):
            raise TypeError(f"{type(model).__name__} is not a CLIP with both towers: load an HFCLIPModel")
        freeze_batch_norm(model, args.freeze_batch_norm)
        if not hasattr(model, "peft_config"):
            trainable(model, args.train, args.train_last_layers, args.train_logit_scale)
        elif args.train != "all" or args.train_last_layers is not None:
            raise ValueError("an adapter chooses what is trained: leave train and train_last_layers as they are")

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a model by `model_init`, as hyperparameter search does for each trial, and freeze the rest."""
        model = super().call_model_init(trial)
        self._choose_parameters(model, self.args)
        self._check_model(model)
        return model

    def _check_model(self, model: nn.Module) -> None:
        check_precision(model)
        if self.args.mini_batch_size is not None:
            check_no_live_batch_norm(model.train())

    @staticmethod
    def _checked_classes(data: Any, args: CLIPTrainingArguments) -> Tensor | None:
        """Return the weights of classes, if wanted; raise DataError if the data has no labels but needs them."""
        several = isinstance(data, PairDataset) and data.rows.is_multilabel
        if several and (args.loss != "classes" or args.balance != "none" or args.label_smoothing_factor):
            raise DataError(
                f'an image of {data.rows.name} may show several classes: set loss="classes", and leave out balance and '
                "label_smoothing_factor"
            )
        if data is None or several or (args.loss != "classes" and args.balance == "none"):
            return None
        if not isinstance(data, PairDataset) or any(row.label is None for row in data.rows):
            setting = 'loss="classes"' if args.loss == "classes" else f'balance="{args.balance}"'
            raise DataError(f"{setting} needs a PairDataset with a label for each image: give labels, or another")
        return class_weights(data.rows) if args.balance == "weights" else None

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; True resumes from the last complete checkpoint of the output folder."""
        if self.model is not None:  # a search drops the model of each trial, and model_init makes the next one
            self._check_model(self.model)
            self._undo_evaluation()
        if self.train_dataset is None or len_of(self.train_dataset) == 0:
            raise DataError("the training set is empty: give at least two pairs")
        self._check_batches()
        if self.args.mini_batch_size is not None and self.compute_loss_func is not None:
            raise ValueError("mini_batch_size computes the loss of embeddings: leave out compute_loss_func")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            check_same_run(resume_from_checkpoint, self.train_dataset, self.args)
        with own_words(), self._closed_bars():
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        self._tell_surprises()
        return output

    def _tell_surprises(self) -> None:
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        data, parts = self.train_dataset, gather_object([self._surprising])
        rotated, sixteen_bits = (len(set().union(*found)) for found in zip(*parts, strict=True))
        images = len(data.rows.grouped()) if isinstance(data, PairDataset) else len_of(data)
        for sentence in surprises(images or max(rotated, sixteen_bits), rotated, sixteen_bits, self.args.exif):
            if self.is_world_process_zero():
                logger.warning(sentence)

    def _undo_evaluation(self) -> None:
        """Return the model to its state before an evaluation or prediction that ran before the first training.

        For them accelerate prepares the model without DistributedDataParallel, and marks it as prepared. A training
        would take the mark at its word, and each process would train a model of its own.
        """
        if self.model.__dict__.pop("_is_accelerate_prepared", False):
            self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    @contextlib.contextmanager
    def _closed_bars(self) -> Iterator[None]:
        """End the line of a progress bar before the sentence of an error."""
        try:
            yield
        except BaseException:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressCallback):
                    for bar in (callback.prediction_bar, callback.training_bar):
                        if bar is not None:
                            bar.close()
            raise

    def _check_batches(self) -> None:
        """Raise DataError unless there is a batch of two pairs or more: one alone has nothing to learn from."""
        count = len_of(self.train_dataset)
        wanted = self.args.train_batch_size * self.args.world_size
        if count is None:
            return
        if min(count, wanted) < 2:
            raise DataError(
                f"a batch has {min(count, wanted)} pair, but the loss compares pairs: give more data, or a larger "
                "per_device_train_batch_size"
            )
        if self.args.dataloader_drop_last and count < wanted:
            raise DataError(
                f"the training set has {count} pairs, a batch takes {wanted}: choose a smaller "
                "per_device_train_batch_size, or set dataloader_drop_last=False"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data = self.train_dataset if train_dataset is None else train_dataset
        return BalancedSampler(data) if self.args.balance == "sampler" else super()._get_train_sampler(train_dataset)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log metrics; where pairs have duplicates, also the loss above the floor that they give it."""
        if "loss" in logs and self._floors:
            floor = torch.stack(self._floors).mean().item()
            self._floors.clear()
            if floor > 0:
                logs["loss_above_floor"] = logs["loss"] - floor
        super().log(logs, start_time)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Accumulate the gradients of a batch, in mini-batches if `mini_batch_size` is set, and return its loss."""
        index = inputs.get("index")
        if "surprising" in inputs:
            for found, those in zip(self._surprising, inputs["surprising"].unbind(1), strict=True):
                found.update(inputs["image_ids"][those].tolist())
        size = self.args.mini_batch_size
        if size is None or size >= len(inputs["pixel_values"]) or self._all_unreadable(inputs):
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._cached_step(model, inputs, size)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}: lower the learning rate, or check "
                f"{self._names(index)}; earlier checkpoints are intact"
            )
        return loss

    def _cached_step(self, model: nn.Module, inputs: dict[str, Any], size: int) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        steps = self.current_gradient_accumulation_steps
        return cached_step(
            partial(self._encode, model),
            self._encoded_together(model, forward_inputs(inputs)),
            lambda images, texts: self._loss(images, texts, inputs) / steps,
            self._logit_scale,
            mini_batch_size=size,
            backward=self.accelerator.backward,
            no_sync=partial(self.accelerator.no_sync, model),
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss over the pairs of all processes."""
        if self.args.loss == "classes":
            return self._class_loss(model, inputs, return_outputs)
        outputs = model(**forward_inputs(inputs))
        if self._all_unreadable(inputs):
            loss = _no_loss(outputs)
        elif self.compute_loss_func is not None:
            ids = {name: inputs.get(name) for name in ("image_ids", "text_ids", "valid", "classes")}
            loss = self.compute_loss_func(outputs, ids, num_items_in_batch=num_items_in_batch)
        else:
            loss = self._loss(outputs.image_embeds, outputs.text_embeds, inputs)
        return (loss, outputs) if return_outputs else loss

    def _class_loss(self, model: nn.Module, inputs: Mapping[str, Tensor], return_outputs: bool) -> Any:
        """Compute the loss over the prompts of all classes, with one template that is drawn for each step."""
        prompts = self._class_prompts(int(self.state.global_step))
        outputs = model(input_ids=prompts.to(inputs["pixel_values"].device), pixel_values=inputs["pixel_values"])
        labels = {name: inputs[name] for name in ("classes", "valid") if name in inputs}
        if self._all_unreadable(inputs):
            loss = _no_loss(outputs)
        elif self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=None)
        elif labels["classes"].ndim == 2:
            loss = multilabel_loss(outputs.logits_per_image, labels["classes"], valid=labels.get("valid"), gather=True)
        else:
            loss = class_loss(
                outputs.logits_per_image,
                labels["classes"],
                weights=None if self._class_weights is None else self._class_weights.to(prompts.device),
                smoothing=self.args.label_smoothing_factor,
                valid=labels.get("valid"),
                gather=True,
            )
        return (loss, outputs) if return_outputs else loss

    def _all_unreadable(self, inputs: Mapping[str, Tensor]) -> bool:
        """Return True if no process has a readable image in its batch, which then trains nothing."""
        valid = inputs.get("valid")
        if valid is None:
            return False
        count = valid.sum()
        if self.args.world_size > 1:
            count = self.accelerator.reduce(count, "sum")
        return not bool(count)

    def _class_prompts(self, step: int) -> Tensor:
        data = self.train_dataset
        template = data.templates[random.Random(hash((data.seed, step))).randrange(len(data.templates))]
        texts = [template.format(label) for label in data.rows.labels]
        return self.processing_class.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]

    def _encoded_together(self, model: nn.Module, inputs: Inputs) -> list[Inputs]:
        """Return the inputs of each tower on their own, or of both together for wrappers that only hook `forward`."""
        if model is not self.accelerator.unwrap_model(model, keep_torch_compile=False):
            return [inputs]
        images = {"pixel_values": inputs["pixel_values"]}
        return [images, {name: tensor for name, tensor in inputs.items() if name not in images}]

    def _encode(self, model: nn.Module, inputs: Inputs) -> Embeds:
        if "input_ids" in inputs and "pixel_values" in inputs:
            return self._encode_pairs(model, inputs)
        # accelerate puts mixed precision around forward, which these calls bypass
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            if "input_ids" in inputs:
                return None, _normalized(model.get_text_features(**inputs).pooler_output)
            return _normalized(model.get_image_features(**inputs).pooler_output), None

    def _encode_pairs(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        with self.compute_loss_context_manager():
            outputs = model(**inputs)
        return outputs.image_embeds, outputs.text_embeds

    def _loss(self, image_embeds: Tensor, text_embeds: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        joined = self.args.duplicates == "positive"
        if joined and self.args.loss == "contrastive" and "image_ids" in inputs and self.model.training:
            names = ("image_ids", "text_ids", "valid")
            self._floors.append(loss_floor(*(inputs[name] for name in names), gather=self.args.global_negatives))
        compute = siglip_loss if self.args.loss == "siglip" else clip_loss
        return compute(
            image_embeds,
            text_embeds,
            self._logit_scale,
            image_ids=inputs.get("image_ids") if joined else None,
            text_ids=inputs.get("text_ids") if joined else None,
            valid=inputs.get("valid"),
            gather=self.args.global_negatives and self.model.training,
        )

    @property
    def _logit_scale(self) -> nn.Parameter:
        return self.accelerator.unwrap_model(self.model).logit_scale

    def _names(self, index: Tensor | None) -> str:
        rows = getattr(self.train_dataset, "rows", None)
        if rows is None or index is None:
            return "the data"
        return listing([rows[int(place)].name for place in index if place >= 0], 8)

    # --- optimizer ----------------------------------------------------------------------------------------------------

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of parameters with weight decay: no gains, biases, scales, class or position embeddings."""
        spared = undecayed(model)
        return [name for name, _ in model.named_parameters() if name not in spared]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with learning rates by layer if a layer decay is set."""
        args = self.args
        if self.optimizer is None and (args.image_layer_decay or args.text_layer_decay):
            model = self.model if model is None else model
            cls, options = self.get_optimizer_cls_and_kwargs(args, model)
            groups = param_groups(
                model, args.learning_rate, args.weight_decay, args.image_layer_decay, args.text_layer_decay
            )
            self.optimizer = cls(groups, **options)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create the learning rate schedule, without its ends of rate zero.

        Schedules of transformers start at 0 and reach 0 after the last step: a run of one step would train nothing.
        Here step n of N has the rate that a schedule of N + 1 steps has after n steps.
        """
        new = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps + 1, optimizer)
        if new and isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [_one_ahead(rate) for rate in scheduler.lr_lambdas]
            scheduler._last_lr = [
                base * rate(0) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate
        return scheduler

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return a loader of the whole evaluation set with all captions: `dataloader_drop_last` is for training."""
        with self._keeping_last():
            return super().get_eval_dataloader(all_captions(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return a loader of the whole data set."""
        with self._keeping_last():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def _keeping_last(self) -> Iterator[None]:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the loss over the whole evaluation set, its recall or accuracy, and the watched sets.

        Recall is that of `hf_clip.evaluation.retrieval`: each caption of an image is right for it. A set of labels has
        the accuracy of `hf_clip.evaluation.zero_shot` instead.
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        self._labeled = isinstance(data, PairDataset) and data.is_labeled
        with own_words():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        evaluators: dict[str, Evaluator] = {}
        if self._labeled:
            evaluators[metric_key_prefix] = ZeroShotSet(data.rows, data.templates, exif=self.args.exif)
        if metric_key_prefix == "eval":
            evaluators |= {f"{metric_key_prefix}_{name}": evaluator for name, evaluator in self.watch.items()}
        if evaluators:
            measured = self._measured(evaluators)
            self.log(measured)
            metrics |= measured
        return metrics

    def _measured(self, evaluators: Mapping[str, Evaluator]) -> dict[str, float]:
        """Return the main metric of each evaluator."""
        model = self.accelerator.unwrap_model(self.model).eval()
        results = {name: evaluate(model, self.processing_class).main for name, evaluate in evaluators.items()}
        return {f"{name}_{metric}": value for name, (metric, value) in results.items()}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, tuple[Tensor, Tensor], Tensor]:
        """Return the embeddings of a batch and the ids of its pairs; the loss follows once all pairs are gathered."""
        inputs = self._prepare_inputs(inputs)
        ids, image_of = inputs["image_ids"].unique(return_inverse=True)
        first = first_places(image_of, len(ids))  # an image with several captions is encoded once
        with torch.no_grad():
            images, texts = self._encode_pairs(
                model, forward_inputs({**inputs, "pixel_values": inputs["pixel_values"][first]})
            )
        images = images[image_of]
        numbers = torch.stack([inputs["image_ids"], inputs["text_ids"], inputs["valid"].long()], 1)
        return None, (images.float(), texts.float()), numbers

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions, label_ids = prediction.predictions, prediction.label_ids
        if isinstance(predictions, list):  # of batches, with eval_do_concat_batches=False
            predictions = tuple(map(np.concatenate, zip(*predictions, strict=True)))
            label_ids = np.concatenate(label_ids)
        metrics = {} if self._own_metrics is None else dict(self._own_metrics(prediction))
        images, texts = (torch.from_numpy(np.asarray(rows)) for rows in predictions)
        numbers = torch.from_numpy(np.asarray(label_ids))
        keep = numbers[:, 2].bool()
        images, texts, (image_ids, text_ids) = images[keep], texts[keep], numbers[keep, :2].T
        if isinstance(self.eval_dataset, PairDataset) and self.eval_dataset.rows.is_multilabel:
            return metrics  # there are no captions to compare
        scale = self._logit_scale.detach().float().cpu()
        loss = {"loss": contrastive_loss_of_all(images, texts, scale, image_ids, text_ids)}
        if self._labeled:  # captions of a class are not right for one of its images alone
            return metrics | loss
        ids, image_of_text = image_ids.unique(return_inverse=True)
        return metrics | loss | retrieval_metrics(images[first_places(image_of_text, len(ids))], texts, image_of_text)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with checked_writing(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"), self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its processor; if a write fails, the earlier files stay."""
        output = output_dir or self.args.output_dir
        with contextlib.nullcontext() if _internal_call else checked_writing(output, output):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        output = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return super()._save(str(output), state_dict)
        output.mkdir(parents=True, exist_ok=True)
        with whole_files(output) as work:
            super()._save(str(work), state_dict)


class _Steps(TrainerCallback):
    """Clamp the logit scale, stop at NaN gradients, and tell the data set the epoch."""

    def __init__(self, trainer: CLIPTrainer):
        self.trainer = trainer

    def on_epoch_begin(
        self, args: CLIPTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(
        self, args: CLIPTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.accelerator.scaler is not None:
            return  # the gradient scaler checks itself, and skips such a step
        gradients = [parameter.grad for _, parameter in trained(self.trainer.model) if parameter.grad is not None]
        if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum()):
            raise NonFiniteLossError(
                f"the gradient of step {state.global_step + 1} is not finite: lower the learning rate; earlier "
                "checkpoints are intact"
            )

    def on_optimizer_step(
        self, args: CLIPTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        clamp_logit_scale(self.trainer.accelerator.unwrap_model(self.trainer.model), args.max_logit_scale)


def _no_loss(outputs: Any) -> Tensor:
    """Return a loss of zero with gradients of zero, as every process has to take part in a backward pass."""
    return 0.0 * outputs.logits_per_image.sum()


def _one_ahead(rate: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: rate(step + 1)


def forward_inputs(inputs: Mapping[str, Any]) -> Inputs:
    """Select the arguments of a model's forward."""
    return {name: inputs[name] for name in MODEL_INPUTS if name in inputs}


def _normalized(embeds: Tensor) -> Tensor:
    """Normalize in float32 or wider: under autocast accelerate converts the outputs of forward, but not these."""
    return normalize(embeds.to(torch.promote_types(embeds.dtype, torch.float32)))


def as_pairs(data: Any, seed: int = 0) -> Any:
    """Return a table in memory as a PairDataset; other data sets, and tables that are transformed, as they are."""
    is_table = isinstance(data, list) or hasattr(data, "iterrows") or hasattr(data, "cast_column")
    is_transformed = (getattr(data, "format", None) or {}).get("type") == "custom"
    if not is_table or is_transformed or isinstance(data, IterableDataset):
        return data
    return PairDataset(data, seed=seed)


def all_captions(data: Any) -> Any:
    """Return evaluation data with a pair for each caption, where training draws one at random."""
    if isinstance(data, dict):
        return {name: all_captions(part) for name, part in data.items()}
    data = as_pairs(data)
    return data.every_caption() if isinstance(data, PairDataset) else data


def len_of(data: Any) -> int | None:
    """Return the number of rows, or None for a stream."""
    return len(data) if hasattr(data, "__len__") else None


__all__ = ["CLIPTrainer", "NonFiniteLossError"]
