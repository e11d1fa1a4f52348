"""How a model's images become pixels, where it differs from OpenAI's: recorded by open_clip, exact in both programs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..model.image_processing_hf_clip import HFCLIPImageProcessor
from ..model.pixels_hf_clip import OPENAI_MEAN, OPENAI_STD
from ..utils.text import first_line
from .errors import CheckpointError
from .published import OPEN_CLIP_CONFIG

if TYPE_CHECKING:
    from torchvision.transforms import Compose

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
PROCESSOR_FIELDS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"),
    *("do_rescale", "rescale_factor", "do_normalize"),
)
RESIZE_MODES = {"shortest": "the short side resized, the rest cropped", "squash": "both sides resized"}


@dataclass(frozen=True)
class Pixels:
    """Settings of open_clip's image transform. `squash` resizes both sides, so that nothing is cropped."""

    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{RESIZE_MODES[self.resize_mode]}, {self.interpolation}, mean {mean}, deviation {std}"

    @classmethod
    def of(cls, processor: HFCLIPImageProcessor, size: int) -> "Pixels":
        """Return the settings of an image processor at `size`, the inverse of `settings`.

        Raises:
            CheckpointError: It makes pixels that these settings cannot.
        """
        names = {int(value): name for name, value in RESAMPLING.items()}
        pixels = cls(
            tuple(processor.image_mean),
            tuple(processor.image_std),
            names.get(int(processor.resample), "bicubic"),
            "shortest" if processor.do_center_crop else "squash",
        )
        expected, found = HFCLIPImageProcessor(**pixels.settings(size)).to_dict(), processor.to_dict()
        if other := [name for name in PROCESSOR_FIELDS if found.get(name) != expected.get(name)]:
            raise CheckpointError(
                f"the image processor has {other[0]} {found.get(other[0])}, which only the hf_clip layout can keep at "
                f"images of {size} pixels: write that one"
            )
        return pixels

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
                _to_rgb,  # after the resize, as in the original
                ToTensor(),
                Normalize(self.mean, self.std),
            ]
        )


OPENAI_PIXELS = Pixels()


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


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
        return None if recorded is None else read_pixels(recorded)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} has a preprocess_cfg that hf_clip cannot follow ({error}): use open_clip"
        ) from error


def folder_pixels(directory: Path, size: int) -> Pixels | None:
    """Return the pixels of a converted folder's image processor; None if it has none.

    Raises:
        CheckpointError: They are not of `size`, or cannot be expressed.
    """
    if not any((directory / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return None
    try:
        processor = HFCLIPImageProcessor.from_pretrained(directory)
    except Exception as error:  # each check of transformers has an exception of its own
        raise CheckpointError(f"{directory} has no image processor that can be read ({first_line(error)})") from error
    return Pixels.of(processor, size)


def read_pixels(recorded: Mapping[str, Any]) -> Pixels:
    """Read settings under open_clip's names, with OpenAI's value for each that is missing or None.

    Raises:
        ValueError: They ask for a transform that hf_clip does not have.
    """
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


__all__ = ["OPENAI_PIXELS", "Pixels", "folder_pixels", "read_pixels", "recorded_pixels"]
