"""Compare with numbers that others have published and that need no data set: `parity/data/golden.json`."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from ..model.image_reading_hf_clip import open_image
from .checks import Check, check, skipped
from .reference import PARITY

# each (images, texts)
MEASURES: dict[str, Callable[..., Tensor]] = {
    "probabilities": lambda outputs: outputs.logits_per_image.softmax(-1),
    "logits": lambda outputs: outputs.logits_per_image,
    "cosines": lambda outputs: outputs.image_embeds @ outputs.text_embeds.T,
}


def check_golden(model: PreTrainedModel, directory: Path, checkpoint: str, images: Path | None) -> list[Check]:
    """Compare the parameter count and published examples of one of the nine; images come from a folder or the web."""
    golden = json.loads((PARITY / "golden.json").read_text())
    examples = [example for example in golden["examples"] if example["checkpoint"] == checkpoint]
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    return [
        _check_parameters(model, **golden["parameters"][checkpoint]),
        *(_check_example(model, processor, example, images) for example in examples),
    ]


def _check_parameters(model: PreTrainedModel, value: float, unit: int, source: str) -> Check:
    """Compare the number of parameters with `value`, which counts units of one or of a million, to two decimals."""
    count = sum(parameter.numel() for parameter in model.parameters())
    equal = round(count / unit, 2) == value
    published = f"{value:,}" if unit == 1 else f"{value} million"
    problem = "" if equal else f"{count:,} parameters, where {published} are published ({source})"
    return check("golden: parameters", problem, f"{count:,} parameters, as published ({source})")


def _check_example(model: PreTrainedModel, processor: ProcessorMixin, example: dict, folder: Path | None) -> Check:
    name = example["name"]
    try:
        images = [
            open_image(folder / file if folder else url).convert(example["mode"])
            for file, url in example["images"].items()
        ]
    except OSError as error:
        reason = " ".join(str(error).split())
        return skipped(name, f"could not fetch its images ({reason}): pass --golden-images DIR")
    inputs = processor(text=example["texts"], images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        values = MEASURES[example["measure"]](model(**inputs))
    expected = torch.tensor(example["expected"])
    difference = (values - expected).abs().max().item()
    close = torch.allclose(values, expected, rtol=example["rtol"], atol=example["atol"])
    measure, source = example["measure"], example["source"]
    problem = "" if close else f"{measure} are off by {difference:.1e} from those published ({source})"
    return check(name, problem, f"{measure} are within {difference:.1e} of those published ({source})", difference)
