"""Run by test_hub.py: loads published models from the Hub that HF_ENDPOINT names, in a process of its own.

Arguments, by threes: "absent" or "installed", which is hf_clip; a repository; the file of outputs expected of it. What
is absent comes first.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor


def check_installed(repo: str, expected: Path) -> None:
    import hf_clip

    wanted = load_file(expected)
    model, processor = AutoModel.from_pretrained(repo).eval(), AutoProcessor.from_pretrained(repo)
    assert type(model) is hf_clip.HFCLIPModel
    assert type(processor) is hf_clip.HFCLIPProcessor
    pixels = processor(images=wanted["image"].numpy(), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, wanted["pixel_values"])
    with torch.no_grad():
        outputs = model(input_ids=wanted["input_ids"], pixel_values=pixels)
    assert torch.equal(outputs.logits_per_image, wanted["logits_per_image"])


_, *arguments = sys.argv
del sys.argv[1:]  # remote_code_client would take them for its own
for mode, repo, expected in zip(arguments[::3], arguments[1::3], map(Path, arguments[2::3]), strict=True):
    if mode == "absent":
        from remote_code_client import check  # hides hf_clip

        check(Path(repo), expected, trust=True)
    else:
        sys.modules.pop("hf_clip", None)
        check_installed(repo, expected)
