"""Kinds of files and folders that verbs take, and the verb meant where one is given to another."""

import json
from pathlib import Path
from typing import Any

from ..openai.published import CHECKPOINT_SUFFIXES
from .errors import CommandError

TOWER_TYPES = ("hf_clip_text_model", "hf_clip_vision_model", "hf_clip_resnet", "clip_text_model", "clip_vision_model")
EMBED = "hf-clip embed IMAGES --output EMBEDDINGS --model {source} embeds images with it"
# of each kind: its name, and what to do with it instead
KINDS = {
    "model": ("a CLIP", EMBED),
    "checkpoint": ("a checkpoint file", "hf-clip convert {source} --output FOLDER makes a folder of it"),
    "timm": ("an image tower of timm", "hf-clip convert {source} --output FOLDER makes a folder of it"),
    "exported": ("an exported model, which computes and no more", "give {origin}, the model that it was exported from"),
    "tower": ("one tower of a CLIP", "give the folder of the whole model"),
    "classifier": ("an image classifier without a text tower", "give the CLIP that it was made from"),
    "adapter": ("an adapter without its model", "hf-clip merge MODEL {source} --alpha 1 --output FOLDER joins the two"),
    "embeddings": ("embeddings", "hf-clip index {source} --output INDEX makes them searchable"),
    "index": ("an index of images", "hf-clip search {source} TEXT searches it"),
}
MODEL_KINDS = ("model", "checkpoint", "exported")
# advice that depends on the verb
OTHERWISE = {
    ("convert", "model"): "pass it as --model as it is; hf-clip to-openai {source} --output FILE.pt converts back",
    ("to-openai", "checkpoint"): "it is in the original's format as it is",
    ("verify", "checkpoint"): "hf-clip convert {source} --output FOLDER makes a folder, and that is verified",
    ("index", "checkpoint"): EMBED,
    ("search", "checkpoint"): EMBED,
    ("index", "exported"): EMBED,
    ("search", "exported"): EMBED,
}


def kind_of(source: str | Path) -> str | None:
    """Return the kind of a file or folder, one of KINDS; None for a Hub id, a name, and anything unknown."""
    from ..embedding.parts import SETTINGS
    from ..exported.manifest import is_exported

    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix in (".npy", ".parquet") or path.with_name(f"{path.name}.index.jsonl").is_file():
            return "embeddings"
        return "checkpoint" if path.suffix in CHECKPOINT_SUFFIXES else None
    if not path.is_dir():
        return None
    if is_exported(path):
        return "exported"
    if (path / SETTINGS).is_file():
        return "embeddings"
    config = _read_config(path)
    if config is None:
        if (path / "settings.json").is_file():
            return "index"
        return "adapter" if (path / "adapter_config.json").is_file() else None
    if "architecture" in config:
        return "timm"
    if config.get("model_type") in TOWER_TYPES:
        return "tower"
    is_classifier = any(name.endswith("ForImageClassification") for name in config.get("architectures") or ())
    return "classifier" if is_classifier else "model"


def check_source(source: str | Path, verb: str, *accepted: str) -> None:
    """Raise CommandError, with the verb that takes it, if `source` is of a known kind that `verb` does not take."""
    kind = kind_of(source)
    if kind is None or kind in accepted:
        return
    name, advice = KINDS[kind]
    advice = OTHERWISE.get((verb, kind), advice)
    raise CommandError(f"{source} is {name}: {advice.format(source=source, origin=_origin(source, kind))}")


def _read_config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _origin(source: str | Path, kind: str) -> str:
    from ..exported.manifest import read_manifest

    return read_manifest(source).source if kind == "exported" else ""
