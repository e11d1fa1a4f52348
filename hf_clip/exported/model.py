"""An exported CLIP behind the methods of HFCLIPModel."""

import os
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from ..model.configuration_hf_clip import HFCLIPConfig
from ..model.image_processing_hf_clip import HFCLIPImageProcessor
from ..model.modeling_hf_clip_base import contrastive_logits, normalize
from ..model.processing_hf_clip import HFCLIPProcessor
from ..model.tokenization_hf_clip import HFCLIPTokenizer
from .manifest import Manifest, read_manifest
from .sessions import CHECK_DEVICE, OPEN, Session

PRECISIONS = ("fp32", "fp16", "q8")
DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "q8": "int8"}
FEATURE_METHODS = {"vision": "get_image_features", "text": "get_text_features"}


class HFCLIPExportedModel:
    """Run an exported CLIP on ONNX Runtime or OpenVINO with the methods of HFCLIPModel.

    Embeddings are unnormalized float32 tensors on the CPU. The model cannot be trained or saved.

    Args:
        directory: A folder that `export_clip` wrote, with the parts vision and text.
        precision: "fp32", "fp16" or "q8" (default: the first of these in the folder).
        device: "cpu", or a device of the installed runtime, such as "cuda".

    Raises:
        ValueError: The folder lacks the precision or a file, or the runtime cannot use the device.
        MissingPackageError: The runtime is not installed.

    Example:
        >>> model = HFCLIPExportedModel("clip-rn50-onnx")
        >>> embeds = model.encode_text(input_ids)  # (B, projection_dim)
    """

    training = False
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(
        self, directory: str | os.PathLike, precision: str | None = None, device: str | torch.device | None = None
    ):
        manifest = read_manifest(directory)
        self.config = HFCLIPConfig.from_dict(manifest.config)
        self.config.name_or_path = os.fspath(directory)
        self.logit_scale = torch.tensor(manifest.logit_scale)
        self.precision = _choose(manifest, precision, self.config.name_or_path)
        self._files = {
            part: _graph_file(Path(directory), manifest, part, self.precision)
            for part in FEATURE_METHODS
            if self.precision in manifest.graphs.get(part, {})
        }
        chosen = torch.device(device or "cpu")
        CHECK_DEVICE[manifest.runtime](self.config.name_or_path, chosen)
        # opened at first use: a search by text needs no image tower
        self._open = partial(OPEN[manifest.runtime], device=chosen)
        self._sessions: dict[str, Session] = {}
        self._lock = Lock()

    def eval(self) -> "HFCLIPExportedModel":
        """Return the model: an exported graph is in evaluation mode."""
        return self

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute image embeddings (B, projection_dim) of `pixel_values` (B, 3, H, W), float32."""
        return self._run("vision", pixel_values=pixel_values.float())

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute text embeddings (B, projection_dim) of `input_ids` (B, L)."""
        if attention_mask is not None:
            raise ValueError(
                "attention_mask is not an input of exported graphs, which read up to EOT: pass input_ids alone"
            )
        return self._run("text", input_ids=input_ids.long())

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Compute image embeddings as the `pooler_output` of an output, as HFCLIPModel does."""
        return BaseModelOutputWithPooling(pooler_output=self.encode_image(pixel_values))

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Compute text embeddings as the `pooler_output` of an output, as HFCLIPModel does."""
        return BaseModelOutputWithPooling(pooler_output=self.encode_text(input_ids, attention_mask))

    def __call__(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> CLIPOutput:
        """Compute logits and normalized embeddings as HFCLIPModel's forward does."""
        image_embeds, text_embeds = normalize(self.encode_image(pixel_values)), normalize(self.encode_text(input_ids))
        logits = contrastive_logits(image_embeds, text_embeds, self.logit_scale)
        return CLIPOutput(
            logits_per_image=logits, logits_per_text=logits.t(), text_embeds=text_embeds, image_embeds=image_embeds
        )

    def _run(self, part: str, **inputs: torch.Tensor) -> torch.Tensor:
        if part not in self._files:
            raise ValueError(
                f"{self.config.name_or_path} has no {part} graph in {self.precision}: export it again with --parts "
                "vision,text"
            )
        session = self._session(part)
        return torch.from_numpy(session({name: x.contiguous().numpy() for name, x in inputs.items()}))

    def _session(self, part: str) -> Session:
        with self._lock:
            if part not in self._sessions:
                self._sessions[part] = self._open(self._files[part])
            return self._sessions[part]


def load_exported(
    directory: str | os.PathLike,
    precision: str | None = None,
    device: str | torch.device | None = None,
) -> tuple[HFCLIPExportedModel, HFCLIPProcessor]:
    """Load the model and the processor of an exported folder."""
    return HFCLIPExportedModel(directory, precision, device), load_exported_processor(directory)


def load_exported_processor(directory: str | os.PathLike) -> HFCLIPProcessor:
    """Make the processor of an exported folder; its pixels and token ids equal the original's."""
    manifest = read_manifest(directory)
    return HFCLIPProcessor(
        HFCLIPImageProcessor.from_pretrained(Path(directory, manifest.image_processor)),
        HFCLIPTokenizer.from_pretrained(Path(directory, manifest.tokenizer)),
    )


def _choose(manifest: Manifest, precision: str | None, name: str) -> str:
    held = [known for known in PRECISIONS if any(known in manifest.graphs.get(part, {}) for part in FEATURE_METHODS)]
    if manifest.target == "immich":
        raise ValueError(f"{name} has the graphs of Immich, which take one row: export again without --target immich")
    if not held:
        raise ValueError(f"{name} has neither a vision nor a text graph: export again with --parts vision,text")
    if precision is not None and precision not in held:
        raise ValueError(
            f"{name} has no {precision}, only {', '.join(held)}: pass dtype {DTYPE_NAMES[held[0]]}, or export it again"
        )
    return precision or held[0]


def _graph_file(directory: Path, manifest: Manifest, part: str, precision: str) -> Path:
    file = directory / manifest.graphs[part][precision]
    if not file.is_file():
        raise ValueError(f"{file} is missing, the manifest of {directory} names it: copy the whole folder")
    return file


__all__ = ["PRECISIONS", "HFCLIPExportedModel", "load_exported", "load_exported_processor"]
