"""How a model's images become pixels, where it differs from OpenAI's: recorded by open_clip, exact in both programs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.image_processing_hf_clip import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from .errors import CheckpointError
from .published import OPEN_CLIP_CONFIG

if TYPE_CHECKING:
    from torchvision.transforms import Compose

RESAMPLING = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}
RESIZE_MODES = {"shortest": "the short side resized, the rest cropped", "squash": "both sides resized"}


@dataclass(frozen=True)
class Pixels:
    """Settings of open_clip's image transform. `squash` resizes both sides, so that nothing is cropped."""

    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{RESIZE_MODES[self.resize_mode]}, {self.interpolation}, mean {mean}, deviation {std}"

    def settings(self, size: int) -> dict[str, Any]:
        """Return the arguments of an image processor that give these pixels at `size`."""
        square, plain = {"height": size, "width": size}, Pixels()
        settings: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": square}
        # OpenAI's values are the defaults of both packages' processors
        if self.resize_mode == "squash":
            settings |= {"size": square, "do_center_crop": False}
        if (self.mean, self.std) != (plain.mean, plain.std):
            settings |= {"image_mean": list(self.mean), "image_std": list(self.std)}
        if self.interpolation != plain.interpolation:
            settings["resample"] = int(RESAMPLING[self.interpolation])
        return settings

    def transform(self, size: int) -> "Compose":
        """Compose the transform that open_clip uses in evaluation: from a PIL image to (3, size, size)."""
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

        squash = self.resize_mode == "squash"
        return Compose(
            [
                Resize((size, size) if squash else size, InterpolationMode(self.interpolation)),
                *([] if squash else [CenterCrop(size)]),
                lambda image: image.convert("RGB"),  # after the resize, as in the original
                ToTensor(),
                Normalize(self.mean, self.std),
            ]
        )


OPENAI_PIXELS = Pixels()


def recorded_pixels(checkpoint: Path) -> Pixels | None:
    """Read preprocess_cfg of the open_clip_config.json beside `checkpoint`; None if it is not recorded.

    Raises:
        CheckpointError: It asks for a transform that hf_clip does not have, or is damaged.
    """
    file = checkpoint.with_name(OPEN_CLIP_CONFIG)
    if not file.is_file():
        return None
    try:
        recorded = json.loads(file.read_text(encoding="utf-8")).get("preprocess_cfg")
        return None if recorded is None else _read(recorded)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} has a preprocess_cfg that hf_clip cannot follow ({error}): use open_clip"
        ) from error


def _read(recorded: Mapping[str, Any]) -> Pixels:
    values = {name: recorded.get(name) for name in ("mean", "std", "interpolation", "resize_mode")}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    for name in ("mean", "std"):
        if name in given:
            numbers = given[name] if isinstance(given[name], list) else [given[name]] * 3
            given[name] = tuple(map(float, numbers))
            if len(given[name]) != 3 or (name == "std" and 0 in given[name]):
                raise ValueError(f"{name} is {numbers}")
    for name, known in (("interpolation", RESAMPLING), ("resize_mode", RESIZE_MODES)):
        if given.get(name, next(iter(known))) not in known:
            raise ValueError(f"{name} is {given[name]!r}")
    if recorded.get("mode", "RGB") != "RGB":
        raise ValueError(f"mode is {recorded['mode']!r}")
    return Pixels(**given)


__all__ = ["OPENAI_PIXELS", "Pixels", "recorded_pixels"]
