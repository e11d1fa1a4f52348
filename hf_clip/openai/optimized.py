"""The drop-in's fast form: the calls of the original's model, computed by an optimized `HFCLIPModel`."""

from torch import Tensor, nn

from ..model.modeling_hf_clip_base import is_recorded
from .model import CLIP, to_hf_model


class OptimizedCLIP(nn.Module):
    """Encode images and texts as a CLIP does, faster and equal up to rounding.

    It has none of the original's parts: texts are computed no further than they reach, and several layers in one step,
    so nothing inside can be hooked, trained or saved.

    Args:
        model: A CLIP in evaluation mode; its weights are copied.

    Raises:
        CheckpointError: `model` has other parts than the original's.

    Example:
        >>> model, preprocess = clip.load("ViT-B/32", optimize=True)
        >>> text_features = model.encode_text(clip.tokenize(["a dog", "a cat"]))
    """

    def __init__(self, model: CLIP):
        super().__init__()
        self.dtype = model.dtype
        self.context_length = model.context_length
        self.vocab_size = model.vocab_size
        self.hf_model = to_hf_model(model).optimize_for_inference()
        self.eval().requires_grad_(False)

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the scale of cosines."""
        return self.hf_model.logit_scale

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed pixels (B, 3, R, R) as (B, D), not normalized."""
        return self.hf_model.encode_image(image)

    def encode_text(self, text: Tensor) -> Tensor:
        """Embed token ids (B, L) as (B, D), not normalized."""
        return self.hf_model.encode_text(_trim(text))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Score pixels and token ids: logits (images, texts) and their transpose."""
        output = self.hf_model(input_ids=_trim(text), pixel_values=image)
        return output.logits_per_image, output.logits_per_text


def _trim(text: Tensor) -> Tensor:
    """Leave out the columns behind the last EOT; all stay in a recorded graph, whose shapes cannot depend on values."""
    if is_recorded(text) or len(text) == 0:
        return text
    return text[:, : int(text.argmax(-1).max()) + 1]


__all__ = ["OptimizedCLIP"]
