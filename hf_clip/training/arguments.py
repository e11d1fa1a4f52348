"""The settings of `CLIPTrainer`."""

from dataclasses import dataclass, field
from typing import Any, get_args

from transformers import TrainingArguments

from ..data.images import Exif
from .parameters import PARTS

DUPLICATES = ("positive", "negative")
LOSS_NAMES = ("contrastive", "classes", "siglip")
BALANCES = ("none", "weights", "sampler")
EXIF_USES = get_args(Exif)


@dataclass
class CLIPTrainingArguments(TrainingArguments):
    """Configure `CLIPTrainer`: `TrainingArguments` with CLIP's own settings and defaults for OpenAI's weights.

    Args:
        learning_rate: 1e-5; for LoRA 2e-4 is usual.
        weight_decay: For weight matrices; gains, biases, scales, class and position embeddings have none.
        adam_beta2: As in the paper's appendix F, for both families.
        adam_epsilon: As in the paper's appendix F, for both families.
        lr_scheduler_type: A cosine down to zero.
        warmup_steps: A number of steps, or a fraction of all steps.
        dataloader_drop_last: Leave out a smaller last batch, whose loss has fewer negatives.
        remove_unused_columns: False, as `Trainer` would remove the columns of images and texts.
        ddp_find_unused_parameters: False, as every trained parameter is used in each step.
        metric_for_best_model: With `load_best_model_at_end`, the mean recall at 1 by default.
        greater_is_better: True if a larger metric is better.
        label_names: Empty, as none of the inputs is a label to `Trainer`.
        loss: "contrastive" is CLIP's own; "classes" is the cross-entropy over the prompts of all classes, for data with
            labels; "siglip" compares each image with each text on its own.
        balance: "weights" weighs the images of each class alike in the loss over classes, "sampler" draws each class
            equally often, "none" takes the data as it is.
        label_smoothing_factor: For the loss over classes.
        mini_batch_size: Encode this many pairs at a time; the loss still covers the whole batch (GradCache).
        global_negatives: Use the pairs of all processes as negatives.
        duplicates: "positive" makes equal captions or images positives of each other, "negative" treats them as
            different.
        train: "all", "image", "text" or "projections"; an adapter needs "all".
        train_last_layers: Train only this many last layers (stages of a ResNet) of a tower, and its projection.
        freeze_batch_norm: Freeze the running statistics of BatchNorms; their gains and biases are still trained.
        train_logit_scale: Train the logit scale.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original. Choose what the images
            will be read with once the model is trained.
        max_logit_scale: Upper bound of the logit scale, as in the paper's section 2.5.
        image_layer_decay: Factor of the learning rate from each image layer to the one before it.
        text_layer_decay: Factor of the learning rate from each text layer to the one before it.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> args = CLIPTrainingArguments("tuned", per_device_train_batch_size=256, mini_batch_size=32, bf16=True)
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of weights."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of AdamW."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "The schedule of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up, or as a fraction of all."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out an incomplete last batch."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Keep all columns."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Search unused parameters."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "The metric that chooses the best checkpoint."}
    )
    greater_is_better: bool | None = field(default=None, metadata={"help": "True if a larger metric is better."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Empty: no input is a label."})
    loss: str = field(default="contrastive", metadata={"help": "The loss.", "choices": LOSS_NAMES})
    balance: str = field(default="none", metadata={"help": "How classes are balanced.", "choices": BALANCES})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Pairs to encode at a time (GradCache)."})
    global_negatives: bool = field(default=True, metadata={"help": "Use the pairs of all processes as negatives."})
    duplicates: str = field(
        default="positive", metadata={"help": "How equal captions and images count.", "choices": DUPLICATES}
    )
    train: str = field(default="all", metadata={"help": "The parts to train.", "choices": PARTS})
    train_last_layers: int | None = field(default=None, metadata={"help": "Last layers of a tower to train."})
    freeze_batch_norm: bool = field(default=True, metadata={"help": "Freeze the statistics of BatchNorms."})
    train_logit_scale: bool = field(default=True, metadata={"help": "Train the logit scale."})
    exif: Exif = field(default="ignore", metadata={"help": "Use of the EXIF orientation.", "choices": EXIF_USES})
    max_logit_scale: float = field(default=100.0, metadata={"help": "Upper bound of the logit scale."})
    image_layer_decay: float | None = field(default=None, metadata={"help": "Factor of the learning rate per layer."})
    text_layer_decay: float | None = field(default=None, metadata={"help": "Factor of the learning rate per layer."})

    def __post_init__(self) -> None:
        """Check the settings, and choose the best checkpoint by the mean recall at 1 unless told otherwise."""
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "mean_recall@1", True
        names = (("duplicates", DUPLICATES), ("train", PARTS), ("loss", LOSS_NAMES), ("balance", BALANCES))
        for name, choices in (*names, ("exif", EXIF_USES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name in ("mini_batch_size", "train_last_layers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more, or None")
        for name in ("image_layer_decay", "text_layer_decay"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}: give a factor above 0 and up to 1, or None")
        if self.loss != "classes" and self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}, but the loss {self.loss} has no labels: "
                'set loss="classes", or leave it 0'
            )
        if self.loss != "classes" and self.balance == "weights":
            raise ValueError(f'balance is "weights", the loss {self.loss} has no classes: take "sampler"')
        if self.loss == "classes" and self.mini_batch_size is not None:
            raise ValueError(
                "mini_batch_size is for losses that compare pairs: with the loss over classes set "
                "gradient_accumulation_steps, which has the same gradients"
            )
        if self.max_logit_scale <= 0:
            raise ValueError(f"max_logit_scale is {self.max_logit_scale}: give a positive scale, such as 100")
        super().__post_init__()


__all__ = ["CLIPTrainingArguments"]
