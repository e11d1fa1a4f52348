"""An exported CLIP behind the methods of HFCLIPModel, on tensors."""

import os
from pathlib import Path

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from ..model.configuration_hf_clip import HFCLIPConfig
from ..model.image_processing_hf_clip import HFCLIPImageProcessor
from ..model.modeling_hf_clip_base import contrastive_logits, normalize
from ..model.processing_hf_clip import HFCLIPProcessor
from ..model.tokenization_hf_clip import HFCLIPTokenizer
from .manifest import read_manifest
from .model import ExportedCLIP


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
        self._clip = ExportedCLIP(directory, precision, str(device or "cpu"))
        self.config = HFCLIPConfig.from_dict(read_manifest(directory).config)
        self.config.name_or_path = os.fspath(directory)
        self.logit_scale = torch.tensor(self._clip.logit_scale)
        self.precision = self._clip.precision

    def eval(self) -> "HFCLIPExportedModel":
        """Return the model: an exported graph is in evaluation mode."""
        return self

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute image embeddings (B, projection_dim) of `pixel_values` (B, 3, H, W), float32."""
        return torch.from_numpy(self._clip.encode_image(pixel_values.float().numpy()))

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute text embeddings (B, projection_dim) of `input_ids` (B, L)."""
        if attention_mask is not None:
            raise ValueError(
                "attention_mask is not an input of exported graphs, which read up to EOT: pass input_ids alone"
            )
        return torch.from_numpy(self._clip.encode_text(input_ids.long().numpy()))

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


def load_exported_processor(directory: str | os.PathLike) -> HFCLIPProcessor:
    """Make the processor of an exported folder; its pixels and token ids equal the original's."""
    manifest = read_manifest(directory)
    return HFCLIPProcessor(
        HFCLIPImageProcessor.from_pretrained(Path(directory, manifest.image_processor)),
        HFCLIPTokenizer.from_pretrained(Path(directory, manifest.tokenizer)),
    )


__all__ = ["HFCLIPExportedModel", "load_exported_processor"]
