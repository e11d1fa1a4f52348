"""The model behind the server: batches of images, texts and label sets in, arrays out.

Only maps need torch: an exported model embeds, scores and ranks on NumPy arrays without it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data.images import Exif
from ..data.requests import MAX_MAP_SIDE, RequestError, decode_upload, open_upload
from ..model.pixels_hf_clip import parallel_map
from ..utils.text import first_line
from ..utils.threads import thread_count

# images of more pixels are decoded one at a time: 16 of 40 megapixels would take gigabytes
LARGE = 4_000_000
EMBEDDED_PARTS = ("image", "text")


class Embedding(NamedTuple):
    """An embedding as the model gives it, and of length 1; both (projection_dim,), float32."""

    raw: np.ndarray
    unit: np.ndarray


class ServedModel:
    """Run a CLIP for requests; methods may be called from several threads.

    Args:
        model: What `load_clip` or `load_exported` gives: a CLIP of this package, transformers' own, or an exported one.
        processor: Its processor.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.

    Raises:
        TypeError: The model compares images with texts in another way than CLIP.
    """

    def __init__(self, model: Any, processor: Any, exif: Exif = "ignore"):
        from ..embedding.features import is_on_cpu
        from ..embedding.identity import name_of
        from ..zero_shot.scoring import check_model

        check_model(model)
        self.model, self.processor, self._exif = model, processor, exif
        self.source = name_of(model)
        self.context_length: int = processor.tokenizer.model_max_length
        # a model on the CPU wants all cores itself; one on a GPU computes while the next batch is decoded
        self.threads = 1 if is_on_cpu(model) else 2
        self._one_large = Lock()

    def probe(self) -> tuple[dict[str, str], int]:
        """Embed a fixed image and text; return why a part is missing, by part, and the size of embeddings.

        Raises:
            ValueError: The model can embed neither.
        """
        from ..embedding.identity import image_probe, text_probe

        missing, size = {}, 0
        for part, embed in zip(EMBEDDED_PARTS, (image_probe, text_probe), strict=True):
            try:
                size = embed(self.model, self.processor).shape[-1]
            except ValueError as error:  # an exported folder may have one graph alone
                missing[part] = first_line(error)
        if len(missing) == len(EMBEDDED_PARTS):
            raise ValueError(missing[EMBEDDED_PARTS[0]])
        return missing, size

    def token_ids(self, texts: Sequence[str], truncate: bool) -> list[list[int]]:
        """Return the token ids of each text, start and end included."""
        from ..embedding.texts import token_ids

        return token_ids(self.processor, texts, truncate)

    def start_and_end(self) -> tuple[int, int]:
        """Return the ids that every text begins and ends with."""
        ids = self.token_ids(["a"], False)[0]
        return ids[0], ids[-1]

    def embed_contents(self, contents: list[bytes]) -> list[Embedding | Exception]:
        """Embed encoded images; one that cannot be read gives its RequestError."""
        from ..embedding.features import concatenate, features

        with parallel_map(len(contents), thread_count()) as parallel:
            pixels = list(parallel(self._pixel_values, contents))
        readable = [each for each in pixels if not isinstance(each, Exception)]
        rows: list[Embedding] = []
        if readable:
            rows = _pairs(features(self.model, "image", {"pixel_values": concatenate(readable)}, normalize=False))
        embedded = iter(rows)
        return [each if isinstance(each, Exception) else next(embedded) for each in pixels]

    def embed_ids(self, ids: list[tuple[int, ...]]) -> list[Embedding]:
        """Embed texts of token ids; those of like length share a pass."""
        from ..embedding.texts import embed_token_ids

        return _pairs(embed_token_ids(self.model, self.processor, ids, normalize=False))

    @staticmethod
    def default_templates() -> tuple[str, ...]:
        """Return the template around labels that come without any."""
        from ..zero_shot.prompts import TEMPLATE

        return (TEMPLATE,)

    def embed_labels(self, labels: Sequence[str], templates: Sequence[str]) -> Any:
        """Compute class embeddings (labels, projection_dim) of length 1, outside of any batch."""
        from ..zero_shot.prompts import embed_labels

        return embed_labels(self.model, self.processor, labels, templates)

    def average_prompts(self, prompts: Sequence[np.ndarray], templates: int) -> Any:
        """Average embeddings of length 1 of prompts, the templates of each label together."""
        from ..embedding.features import as_batch
        from ..zero_shot.prompts import average_prompts

        return average_prompts(as_batch(self.model, np.stack(prompts)), templates)

    def map_texts(self, requests: list[tuple[bytes, tuple[str, ...], str, bool]]) -> list[Any]:
        """Map texts in images: for each (image, texts, method, whole) the picture and maps (texts, height, width)."""
        results: list[Any] = []
        for request in requests:
            try:
                results.append(self._map_one(*request))
            except RequestError as error:
                results.append(error)
            except ValueError as error:  # the library's, such as for an image that is too oblong
                results.append(RequestError(first_line(error)))
        return results

    def compare(self, images: Sequence[np.ndarray], texts: Any) -> Any:
        """Compute logits (images, texts) of embeddings of length 1."""
        from ..embedding.features import as_batch
        from ..zero_shot.scoring import zero_shot_logits

        return zero_shot_logits(self.model, as_batch(self.model, np.stack(images)), as_batch(self.model, texts))

    @staticmethod
    def background(labels: Sequence[str], mode: str) -> tuple[str, ...]:
        """Return the texts that labels are compared with in a mode of `ZeroShotClassifier`.

        Raises:
            RequestError: A label is one of them.
        """
        from ..zero_shot.head import CANONICAL_TEXTS, NONE_LABEL

        if mode == "one":
            return ()
        if both := {*CANONICAL_TEXTS, NONE_LABEL} & {*labels}:
            raise RequestError(f"{min(both)!r} has a meaning of its own in the mode {mode}: leave it out")
        return CANONICAL_TEXTS

    @staticmethod
    def make_head(
        labels: Sequence[str],
        templates: Sequence[str],
        mode: Any,
        class_embeds: Any,
        background: Sequence[str],
        background_embeds: Any,
    ) -> Any:
        """Make the head that turns embeddings into scores."""
        from ..zero_shot.head import ClassifierHead

        return ClassifierHead(
            list(labels), list(templates), class_embeds, mode, list(background), background_embeds=background_embeds
        )

    def load_head(self, classifier: str) -> Any:
        """Read the head of a saved classifier.

        Raises:
            OtherModelError: Another model made it.
            ValueError: The file holds no classifier, or is damaged.
        """
        from ..zero_shot.head import load_head

        return load_head(classifier, self.model, self.processor)

    def decide(self, images: Sequence[np.ndarray], head: Any, top_k: int | None) -> list[dict[str, Any]]:
        """Rank the labels of a head for each image, best first, and decide, as `ZeroShotClassifier.decisions` does."""
        from ..embedding.features import as_batch
        from ..zero_shot.decisions import decide

        scores = head.scores(head.evidence(self.model, as_batch(self.model, np.stack(images))))
        least = head.least_scores()
        return [decide(head, row, least, top_k).to_json() for row in scores]

    def has_maps(self) -> bool:
        """Return True if the model can map texts in images."""
        from ..exported.model import ExportedCLIP

        if isinstance(self.model, ExportedCLIP):
            return False
        from transformers import CLIPModel

        return isinstance(self.model, CLIPModel) or hasattr(self.model, "get_dense_image_features")

    def _pixel_values(self, content: bytes) -> Any:
        try:
            from ..embedding.features import tensor_type

            image = self._decode(content)
            image_processor = getattr(self.processor, "image_processor", self.processor)
            return image_processor(images=[image], return_tensors=tensor_type(self.model))["pixel_values"]
        except RequestError as error:
            return error
        except Exception as error:  # the image processor refuses what it cannot resize
            return RequestError(getattr(error, "unnamed", None) or first_line(error))

    def _decode(self, content: bytes) -> Image.Image:
        opened = open_upload(content)
        with self._one_large if opened.width * opened.height > LARGE else nullcontext():
            return decode_upload(opened, self._exif)

    def _map_one(
        self, content: bytes, texts: tuple[str, ...], method: str, whole: bool
    ) -> tuple[Image.Image, np.ndarray]:
        from ..localization.maps import where

        image = self._decode(content)
        image.thumbnail((MAX_MAP_SIDE, MAX_MAP_SIDE))
        return image, where(self.model, self.processor, image, texts, method, whole=whole).numpy()


def _pairs(rows: Any) -> list[Embedding]:
    from ..embedding.features import on_cpu, unit_length

    raw, unit = np.asarray(on_cpu(rows)), np.asarray(on_cpu(unit_length(rows)))
    return [Embedding(*pair) for pair in zip(raw, unit, strict=True)]


__all__ = ["Embedding", "ServedModel"]
