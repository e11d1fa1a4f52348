"""Embeddings of many images and texts, and zero-shot classification (paper section 3.1) that encodes each label once.

Models and processors are those of this package or transformers' own CLIP.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from .files import replacing
from .image_processing_hf_clip import is_address, open_image
from .modeling_hf_clip_base import contrastive_logits
from .modeling_hf_clip_base import normalize as unit_length

TEMPLATE = "a photo of a {}."
# texts of up to SHORT tokens, or lengths within a factor of LIKE, share a batch: padding costs less than one more batch
SHORT, LIKE = 16, 1.5
FORMAT = "hf_clip class embeddings 1"
PROBE = "a photograph of seven small boats in the harbour, seen from the old lighthouse"
# how far the embedding of PROBE may move, of length 1: by rounding, or from one precision to another
SAME_PRECISION, OTHER_PRECISION = 1e-3, 5e-2

OnError = Callable[[Any, Exception], None]
T = TypeVar("T")


class UnreadableImageError(ValueError):
    """A file that can't be opened or decoded, or a thing that is no image."""


class OtherModelError(ValueError):
    """Class embeddings that were made by another model than the one they should serve."""


# --- models -----------------------------------------------------------------------------------------------------------


def check_model(model: PreTrainedModel) -> None:
    """Raise TypeError unless images and texts are compared as CLIP does it."""
    missing = [name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)]
    if missing or hasattr(model, "logit_bias"):
        why = f"has no {missing[0]}" if missing else "scores with a bias"
        raise TypeError(f"{type(model).__name__} {why}: zero-shot classification here wants a CLIP with both towers.")


def load_clip(
    model_id: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    optimize: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Model, in evaluation mode, and processor of a folder or a Hub id.

    Raises ValueError where `optimize` is asked of a model that has no `optimize_for_inference`.
    """
    options = {} if dtype is None else {"dtype": dtype}
    model = AutoModel.from_pretrained(model_id, trust_remote_code=trust_remote_code, **options).eval()
    processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=trust_remote_code)
    if device is not None:
        model = model.to(device)
    if optimize:
        if not hasattr(model, "optimize_for_inference"):
            raise ValueError(
                f"{type(model).__name__} has no optimize_for_inference(): leave optimize off, or convert the "
                "checkpoint to HFCLIPModel."
            )
        model.optimize_for_inference()
    return model, processor


def features(
    model: PreTrainedModel, modality: str, inputs: Mapping[str, torch.Tensor], normalize: bool = True
) -> torch.Tensor:
    """Embeddings (B, projection_dim) of `modality`, "image" or "text", float32 on the model's device."""
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first.")
    with torch.inference_mode():
        inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in inputs.items()}
        if hasattr(model, f"get_{modality}_features"):
            embeds = getattr(model, f"get_{modality}_features")(**inputs).pooler_output
        else:
            embeds = getattr(model(**inputs), f"{modality}_embeds", None)
            if embeds is None:
                raise TypeError(f"{type(model).__name__} gives no {modality} embeddings.")
        embeds = unit_length(embeds.float()) if normalize else embeds.float()
    return embeds.clone()  # an ordinary tensor: one of inference mode can't be trained on


def _collect(batches: Iterable[torch.Tensor], unit: str, total: int | None) -> torch.Tensor:
    """All rows of `batches`, with a progress bar if they take longer than two seconds."""
    rows = []
    with tqdm(desc=f"{unit}s", total=total, unit=unit, delay=2) as bar:
        for batch in batches:
            rows.append(batch)
            bar.update(len(batch))
    if not rows:
        raise ValueError(f"{unit}s is empty: give at least one.")
    return torch.cat(rows)


# --- images -----------------------------------------------------------------------------------------------------------


def embed_images(
    model: PreTrainedModel,
    processor: Any,
    images: Any,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    normalize: bool = True,
) -> torch.Tensor:
    """Embeddings (N, projection_dim) of `images`, float32 on the CPU, of length 1 unless `normalize=False`.

    `images` is one or an iterable of: paths, URLs, PIL images, arrays and tensors as the processor takes them, or ready
    batches, that is floating-point (B, 3, H, W) or mappings with `pixel_values`, such as a DataLoader gives. They are
    read as they are needed. Files are opened by `PIL.Image.open`, as with the original: the EXIF orientation is not
    applied, whereas the pipelines of transformers turn images upright. `model` may be a vision tower with projection,
    `processor` an image processor.

    Raises UnreadableImageError, which names the image, and ValueError for no images or a wrong image size.
    """
    batches = iter_image_embeds(model, processor, images, batch_size=batch_size, workers=workers, normalize=normalize)
    return _collect((embeds for _, embeds in batches), "image", _count(images))


def iter_image_embeds(
    model: PreTrainedModel,
    processor: Any,
    images: Any,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    normalize: bool = True,
    on_error: OnError | None = None,
) -> Iterator[tuple[list[Any], torch.Tensor]]:
    """`embed_images` batch by batch, in order: the items of `images` and their embeddings (B, projection_dim).

    `workers` threads, as many as PyTorch's own unless given, prepare images: while a GPU computes, two batches ahead of
    it; for a model on the CPU, which wants all cores itself, between its batches, and only addresses are fetched one
    batch ahead. With `on_error` an unreadable image does not end the iteration: `on_error(item, error)` is called, in
    order and on the caller's thread, and the item is left out. The items of a ready batch are its rows.
    """
    for items, embeds in _image_features(model, processor, images, batch_size, workers, normalize, on_error):
        yield items, embeds.cpu()


def _image_features(
    model: PreTrainedModel,
    processor: Any,
    images: Any,
    batch_size: int,
    workers: int | None,
    normalize: bool = True,
    on_error: OnError | None = None,
) -> Iterator[tuple[list[Any], torch.Tensor]]:
    image_size = getattr(model.config, "vision_config", model.config).image_size
    pool = ThreadPoolExecutor(workers or torch.get_num_threads(), thread_name_prefix="hf_clip")
    fetch = partial(_fetch, pool)
    decode = partial(_decode, pool, getattr(processor, "image_processor", processor), Lock())
    fetched = map(fetch, _batches(images, batch_size))
    # a model on the CPU wants all cores: whatever else needs one in the meantime makes the others wait
    decoded = map(decode, _ahead(fetched, 1)) if model.device.type == "cpu" else _ahead(map(decode, fetched), 2)
    try:
        for batch in decoded:
            items, pixel_values = _finished(batch, image_size, on_error)
            if items:
                yield items, features(model, "image", {"pixel_values": pixel_values}, normalize)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(values: Iterable[T], count: int) -> Iterator[T]:
    """`values`, of which `count` more than asked for are taken."""
    taken = deque()
    for value in values:
        taken.append(value)
        if len(taken) > count:
            yield taken.popleft()
    yield from taken


def _batches(images: Any, batch_size: int) -> Iterator[torch.Tensor | list[tuple[int, Any]]]:
    """Ready batches as they are; what else comes, numbered, `batch_size` at a time."""
    count, batch = 0, []
    for image in _one_by_one(images):
        ready = _ready_pixels(image)
        if ready is None:
            batch.append((count, image))
        if batch and (ready is not None or len(batch) == batch_size):
            yield batch
            batch = []
        if ready is not None:
            yield ready
        count += 1 if ready is None else len(ready)
    if batch:
        yield batch


def _one_by_one(images: Any) -> Iterator[Any]:
    """One image or ready batch at a time, from any nesting of iterables."""
    if (
        isinstance(images, str | os.PathLike | Image.Image)
        or getattr(images, "ndim", 4) < 4
        or _ready_pixels(images) is not None
    ):
        yield images
    elif not (isinstance(images, Iterable) or hasattr(images, "__getitem__")):
        raise TypeError(f"an image is a path, a URL, a PIL image, an array or a tensor, not {type(images).__name__}.")
    else:
        for image in images:
            yield from _one_by_one(image)


def _ready_pixels(batch: Any) -> torch.Tensor | None:
    """The tensor (B, 3, H, W) of a batch that went through a processor already, None for anything else."""
    if isinstance(batch, Mapping):
        if "pixel_values" not in batch:
            raise ValueError(f"a batch needs pixel_values, this one has {', '.join(map(str, batch))}.")
        return torch.as_tensor(batch["pixel_values"])
    if getattr(batch, "ndim", 0) == 4 and torch.as_tensor(batch).is_floating_point():
        return torch.as_tensor(batch)
    return None


def _fetch(pool: Executor, batch: torch.Tensor | list[tuple[int, Any]]) -> torch.Tensor | list[tuple[int, Any, Future]]:
    """Submits what takes time but no core: downloads."""
    if isinstance(batch, torch.Tensor):
        return batch
    return [(index, item, pool.submit(_downloaded, item)) for index, item in batch]


def _downloaded(item: Any) -> Any:
    return open_image(item) if isinstance(item, str) and is_address(item) else item


def _decode(
    pool: Executor, image_processor: Any, lock: Lock, batch: torch.Tensor | list[tuple[int, Any, Future]]
) -> torch.Tensor | list[tuple[Any, Future]]:
    if isinstance(batch, torch.Tensor):
        return batch
    return [
        (item, pool.submit(_pixel_values, image_processor, lock, index, item, fetched))
        for index, item, fetched in batch
    ]


def _pixel_values(image_processor: Any, lock: Lock, index: int, item: Any, fetched: Future) -> torch.Tensor:
    is_path = isinstance(item, str | os.PathLike)
    try:
        source = fetched.result()
        with Image.open(source) if isinstance(source, str | os.PathLike) else nullcontext(source) as image:
            if not is_path and isinstance(image, Image.Image):
                with lock:  # the same object may come twice, and two threads must not decode one file
                    image.load()
            return image_processor(images=[image], return_tensors="pt")["pixel_values"]
    except Exception as error:  # the plugins of Pillow raise what they like
        name = str(item)[:200] if is_path else f"images[{index}]"
        raise UnreadableImageError(f"can't read {name}: {str(error) or type(error).__name__}") from error


def _finished(
    batch: torch.Tensor | list[tuple[Any, Future]], image_size: int, on_error: OnError | None
) -> tuple[list[Any], torch.Tensor | None]:
    """The items of a batch and their pixels; those that can't be read go to `on_error`."""
    if isinstance(batch, torch.Tensor):
        return list(batch), _checked(batch, image_size)
    items, pixel_values = [], []
    for item, future in batch:
        try:
            pixel_values.append(_checked(future.result(), image_size))
        except UnreadableImageError as error:
            if on_error is None:
                raise
            on_error(item, error)
        else:
            items.append(item)
    return items, torch.cat(pixel_values) if items else None


def _checked(pixel_values: torch.Tensor, image_size: int) -> torch.Tensor:
    if pixel_values.shape[-2:] != (image_size, image_size):
        height, width = pixel_values.shape[-2:]
        raise ValueError(
            f"the images come {height}x{width} from the processor, the model reads {image_size}x{image_size}: use the "
            "processor of the same repository."
        )
    return pixel_values


def _count(images: Any) -> int | None:
    """How many images there are, where that is known beforehand."""
    return len(images) if isinstance(images, list | tuple) else None


# --- texts ------------------------------------------------------------------------------------------------------------


def embed_texts(
    model: PreTrainedModel,
    processor: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    normalize: bool = True,
    **tokenizer_kwargs,
) -> torch.Tensor:
    """Embeddings (N, projection_dim) of `texts`, float32 on the CPU, of length 1 unless `normalize=False`.

    Equal texts are encoded once, and texts of like length together, without padding to the whole context. `model` may
    be a text tower with projection, `processor` a tokenizer; it is called with `tokenizer_kwargs`.

    Raises ValueError for no texts, and for one that is too long unless `truncation` is given.
    """
    check_list("texts", texts)
    tokenizer = getattr(processor, "tokenizer", processor)
    unique = list(dict.fromkeys(texts))
    lengths = {text: len(ids) for text, ids in zip(unique, tokenizer(unique, verbose=False)["input_ids"], strict=True)}
    unique.sort(key=lengths.get)
    limit = tokenizer.model_max_length
    if lengths[unique[-1]] > limit and "truncation" not in tokenizer_kwargs:
        raise ValueError(
            f"the text {unique[-1][:100]!r} has {lengths[unique[-1]]} tokens, the model reads {limit}: shorten it, or "
            "pass truncation=True."
        )
    tokenizer_kwargs = {"padding": True, "return_tensors": "pt", **tokenizer_kwargs}

    batches = _of_like_length(unique, lengths, batch_size)
    embeds = _collect(
        (features(model, "text", tokenizer(batch, **tokenizer_kwargs), normalize).cpu() for batch in batches),
        "text",
        len(unique),
    )
    rows = {text: row for row, text in enumerate(unique)}
    return embeds[[rows[text] for text in texts]]


def _of_like_length(texts: list[str], lengths: Mapping[str, int], batch_size: int) -> Iterator[list[str]]:
    """Batches of `texts`, which come sorted by length; the longest of a batch is at most LIKE times its shortest."""
    batch = []
    for text in texts:
        if len(batch) == batch_size or (batch and lengths[text] > max(SHORT, LIKE * lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(text)
    yield batch


def embed_labels(
    model: PreTrainedModel,
    processor: Any,
    labels: Sequence[Any],
    templates: str | Sequence[str],
    **tokenizer_kwargs,
) -> torch.Tensor:
    """Class embeddings (labels, projection_dim) of length 1, float32 on the CPU.

    Of several templates the mean of a label's normalised prompts, normalised again (paper section 3.1.4).
    Raises ValueError for no labels, no templates, and a template without a place for the label.
    """
    templates = as_templates(templates)
    check_list("labels", labels)
    prompts = [template.format(label) for label in labels for template in templates]
    embeds = embed_texts(model, processor, prompts, **tokenizer_kwargs).unflatten(0, (-1, len(templates)))
    # one prompt has length 1 already: to normalise it again would round it
    return unit_length(embeds.mean(1)) if len(templates) > 1 else embeds[:, 0]


def as_templates(templates: str | Sequence[str]) -> list[str]:
    """One or several templates as a list. Raises ValueError unless each has `{}` for the label."""
    templates = [templates] if isinstance(templates, str) else templates
    check_list("templates", templates)
    for template in templates:
        try:
            has_place = template.format("one") != template.format("other")
        except (LookupError, ValueError):  # named fields, or a single brace
            has_place = False
        if not has_place:
            raise ValueError(f"the template {template!r} needs {{}}, and no other braces, where the label goes.")
    return list(templates)


def check_list(name: str, values: Sequence[Any]) -> None:
    if isinstance(values, str):
        raise ValueError(f"{name} is a list of texts, not the one text {values!r}.")
    if not len(values):
        raise ValueError(f"{name} is empty: give at least one.")


# --- classification ---------------------------------------------------------------------------------------------------


class ZeroShotClassifier:
    """Scores images against `labels`, whose embeddings `class_embeds` (labels, projection_dim) are made once.

    `templates` is one or several texts with `{}` for the label; several are averaged as in the paper's section 3.1.4.
    Images are what `embed_images` takes. Embeddings and logits are float32 whatever the model computes in.

    Raises ValueError for no labels, a label given twice, and a template without `{}`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        labels: Sequence[str],
        templates: str | Sequence[str] = TEMPLATE,
        *,
        class_embeds: torch.Tensor | None = None,
    ):
        check_model(model)
        check_list("labels", labels)
        if twice := [label for label, count in Counter(labels).items() if count > 1]:
            raise ValueError(f"labels are given twice: {', '.join(twice[:10])}.")
        self.model, self.processor = model, processor
        self.labels, self.templates = list(labels), as_templates(templates)
        if class_embeds is None:
            class_embeds = embed_labels(model, processor, self.labels, self.templates)
        self.class_embeds = class_embeds.to(model.device)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike,
        labels: Sequence[str],
        templates: str | Sequence[str] = TEMPLATE,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        optimize: bool = False,
        trust_remote_code: bool = False,
    ) -> "ZeroShotClassifier":
        """The same from a folder or a Hub id; `optimize` calls the model's `optimize_for_inference()`."""
        model, processor = load_clip(
            model_id, device=device, dtype=dtype, optimize=optimize, trust_remote_code=trust_remote_code
        )
        return cls(model, processor, labels, templates)

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel, processor: Any) -> "ZeroShotClassifier":
        """What `save` wrote. Raises OtherModelError where another model made the embeddings, ValueError for any other
        file."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path} holds no class embeddings: write it with ZeroShotClassifier.save.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
        probe = embed_texts(model, processor, [PROBE])
        same_precision = metadata["dtype"] == str(model.dtype)
        tolerance = SAME_PRECISION if same_precision else OTHER_PRECISION
        if probe.shape != tensors["probe"].shape or (probe - tensors["probe"]).norm() > tolerance:
            raise OtherModelError(
                f"the class embeddings in {path} were made by another model, {metadata['model']!r}, than "
                f"{name_of(model)!r}: make them again."
            )
        labels, templates = json.loads(metadata["labels"]), json.loads(metadata["templates"])
        return cls(model, processor, labels, templates, class_embeds=tensors["class_embeds"])

    def save(self, path: str | os.PathLike) -> None:
        """Write class embeddings, labels and templates as safetensors, with the embedding of a fixed text, by which
        `load` knows the model."""
        path = Path(path)
        tensors = {
            "class_embeds": self.class_embeds.cpu().contiguous(),
            "probe": embed_texts(self.model, self.processor, [PROBE]),
        }
        metadata = {
            "format": FORMAT,
            "labels": json.dumps(self.labels),
            "templates": json.dumps(self.templates),
            "model": name_of(self.model),
            "dtype": str(self.model.dtype),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as work:
            save_file(tensors, work, metadata)

    def __call__(
        self, images: Any, top_k: int | None = 5, *, batch_size: int = 16, workers: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """For each image the `top_k` labels, or all, as `{"label", "score"}` with the highest probability first."""
        return [self._answer(logits, top_k) for logits in self.logits(images, batch_size=batch_size, workers=workers)]

    def logits(self, images: Any, *, batch_size: int = 16, workers: int = 1) -> torch.Tensor:
        """Scores (images, labels), float32 on the CPU; their softmax over the labels are probabilities."""
        batches = self._logits(images, batch_size, workers)
        return _collect((logits for _, logits in batches), "image", _count(images))

    def stream(
        self,
        images: Any,
        top_k: int | None = 5,
        *,
        batch_size: int = 16,
        workers: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """Each image, as it was given, and its labels, in order, as `images` arrive; see `iter_image_embeds`."""
        for items, logits in self._logits(images, batch_size, workers, on_error):
            for item, row in zip(items, logits, strict=True):
                yield item, self._answer(row, top_k)

    def _logits(self, images: Any, batch_size: int, workers: int, on_error: OnError | None = None) -> Iterator:
        batches = _image_features(self.model, self.processor, images, batch_size, workers, on_error=on_error)
        for items, embeds in batches:
            yield items, similarities(self.model, embeds, self.class_embeds).cpu()

    def _answer(self, logits: torch.Tensor, top_k: int | None) -> list[dict[str, Any]]:
        scores, places = logits.softmax(-1).sort(descending=True, stable=True)
        return [
            {"label": self.labels[place], "score": score}
            for score, place in zip(scores[:top_k].tolist(), places[:top_k].tolist(), strict=True)
        ]


@torch.no_grad()
def similarities(model: PreTrainedModel, image_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
    """Logits (images, labels) of embeddings of length 1."""
    class_embeds, logit_scale = class_embeds.to(image_embeds.device), model.logit_scale.to(image_embeds.device)
    return contrastive_logits(image_embeds, class_embeds, logit_scale.float())


def name_of(model: PreTrainedModel) -> str:
    return model.config.name_or_path or type(model).__name__


__all__ = [
    "OtherModelError",
    "UnreadableImageError",
    "ZeroShotClassifier",
    "embed_images",
    "embed_labels",
    "embed_texts",
    "iter_image_embeds",
    "load_clip",
]
