"""The table of the nine published checkpoints. Imports no other package, so that `--help` stays instant."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

OPEN_CLIP_CONFIG = "open_clip_config.json"  # beside weights in open_clip's layout
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HUB_PREFIX = "hf-hub:"  # before the id of such a repository
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
SOURCE_URL = "https://openaipublic.azureedge.net/clip/models"


class Layout(str, Enum):
    """The package whose classes read a converted folder."""

    hf_clip = "hf_clip"
    transformers = "transformers"


class CheckpointLayout(str, Enum):
    """The program whose checkpoint `to-openai` writes."""

    openai = "openai"
    open_clip = "open_clip"
    timm = "timm"
    comfyui = "comfyui"


class DType(str, Enum):
    """The dtype of stored weights. `original` keeps the dtype of each tensor."""

    original = "original"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint. `repo_name` is the name of its converted repository."""

    name: str
    url: str
    sha256: str
    repo_name: str

    @property
    def mirror(self) -> str:
        """Return the source of both towers on the Hub, in open_clip's layout: the same weights from another server."""
        if found := re.fullmatch(r"clip-vit-(\w+)-(patch\d+)(?:-(\d+))?", self.repo_name):
            return f"{HUB_PREFIX}timm/vit_{found[1]}_{found[2]}_clip_{found[3] or 224}.openai"
        return f"{HUB_PREFIX}timm/{self.repo_name.replace('clip-rn', 'resnet')}_clip.openai"

    @property
    def filename(self) -> str:
        """Return the name of the published file, such as ViT-B-32.pt."""
        return self.url.rsplit("/", 1)[-1]


CHECKPOINTS = {
    name: Checkpoint(name, f"{SOURCE_URL}/{sha256}/{re.sub('[/@]', '-', name)}.pt", sha256, f"clip-{variant}")
    for name, variant, sha256 in [
        ("RN50", "rn50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
        ("RN101", "rn101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        ("RN50x4", "rn50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        ("RN50x16", "rn50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        ("RN50x64", "rn50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
        ("ViT-B/32", "vit-base-patch32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        ("ViT-B/16", "vit-base-patch16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        ("ViT-L/14", "vit-large-patch14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        ("ViT-L/14@336px", "vit-large-patch14-336", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    ]
}


# no license is stated for the weights: their model card tells the intended use
LICENSE = {
    "license": "other",
    "license_name": "openai-clip",
    "license_link": "https://github.com/openai/CLIP/blob/main/model-card.md",
}
# the nine names whose weights OpenAI has on the Hub as well
HUB_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def published(sha256: str) -> str | None:
    """Return the name of the published checkpoint with this hash, or None."""
    return next((name for name, checkpoint in CHECKPOINTS.items() if checkpoint.sha256 == sha256), None)


def model_title(model: str) -> str:
    """Return the name of a local folder or file without its path, and a Hub id as it is."""
    return Path(model).absolute().name if Path(model).exists() else model


def hub_relation(models: Sequence[str], relation: str) -> str:
    """Return a card's metadata that relates it to those of `models` that the Hub has; "" if it has none.

    Args:
        models: Published names, paths or Hub ids.
        relation: One of the Hub's: "adapter", "finetune", "merge" or "quantized".
    """
    ids = [HUB_IDS.get(model, model.removeprefix(HUB_PREFIX)) for model in models if not Path(model).exists()]
    known = [hub for hub in ids if "/" in hub and "@" not in hub]
    listed = known[0] if len(known) == 1 else f"[{', '.join(known)}]"
    return f"base_model: {listed}\nbase_model_relation: {relation}\n" if known else ""


def inherited_license(model: str) -> tuple[str, str]:
    """Return the license that a model made from `model` inherits: metadata for its card, and a sentence for the text.

    It is OpenAI's for the nine, and the one that the card in a local folder states. For others nothing is guessed: the
    metadata is "".
    """
    copies = {*HUB_IDS.values(), *(checkpoint.mirror.removeprefix(HUB_PREFIX) for checkpoint in CHECKPOINTS.values())}
    if Path(model).exists():
        stated = _stated_license(Path(model) / "README.md")
    else:
        stated = LICENSE if model in CHECKPOINTS or model.removeprefix(HUB_PREFIX).partition("@")[0] in copies else {}
    metadata = "".join(f"{key}: {json.dumps(value)}\n" for key, value in stated.items())
    if stated == LICENSE:
        return metadata, "OpenAI published the weights of CLIP without a license of their own, and its code under MIT."
    source = "as its card states it" if stated else "which this card does not know: add it to the metadata above"
    return metadata, f"The license is that of {model_title(model)}, {source}."


def _stated_license(card: Path) -> dict[str, str]:
    """Read the license from a card's metadata; a link to a file beside the card would lead nowhere from elsewhere."""
    from huggingface_hub.repocard import metadata_load

    try:
        metadata = metadata_load(card) or {}
    except Exception:  # YAML has exceptions of its own; an unreadable card states nothing
        return {}
    found = {key: value for key in LICENSE if isinstance(value := metadata.get(key), str)}
    if not found.get("license_link", "https://").startswith("https://"):
        del found["license_link"]
    return found if found.get("license", "unknown") != "unknown" else {}


__all__ = [
    "CHECKPOINTS",
    "CHECKPOINT_SUFFIXES",
    "HUB_PREFIX",
    "LICENSE",
    "OPEN_CLIP_CONFIG",
    "OPEN_CLIP_WEIGHTS",
    "SOURCE_URL",
    "Checkpoint",
    "CheckpointLayout",
    "DType",
    "Layout",
    "hub_relation",
    "inherited_license",
    "model_title",
    "published",
]
