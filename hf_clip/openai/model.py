"""`CLIP`: an HFCLIPModel behind the methods, attributes and parameter names of the original's `clip/model.py`."""

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from ..configuration_hf_clip import HFCLIPResNetConfig
from ..modeling_hf_clip import HFCLIPEncoder, HFCLIPModel
from ..modeling_hf_clip_base import contrastive_logits, normalize
from .infer_config import infer_config
from .key_mapping import BOOKKEEPING, to_hf, to_original

# Texts are computed in steps of this many columns: the attention kernels of the CPU go through whole vectors of scores,
# and give other bits for a remainder.
COLUMNS = 16

ELSEWHERE = {
    "resblocks": "hf_model.text_model.encoder.layers or hf_model.vision_model.encoder.layers, whose blocks take "
    "(batch, length, width) and have q_proj, k_proj and v_proj for in_proj",
    "attn_mask": "the causal attention of hf_model.text_model",
    "attnpool": "hf_model.vision_model.attention_pool, which returns the embeddings and the attention weights",
    **{f"relu{i}": "torch.nn.functional.relu, as hf_model.vision_model.stem does" for i in (1, 2, 3)},
    "build_attention_mask": "the causal attention of hf_model.text_model",
    "initialize_parameters": "HFCLIPModel(config), which initialises as the original",
}


class ImageSizeError(ValueError, RuntimeError):
    """Images of another size than the model's; a RuntimeError as in the original."""


def part(path: str) -> property:
    """The live module, parameter or setting at `path`, under a name of the original."""

    def get(module: nn.Module):
        value = module
        for name in path.split("."):
            value = getattr(value, name)
        return value

    return property(get)


class OriginalNames(nn.Module):
    """A module that shares the parts of an HFCLIPModel: they can be trained, changed and hooked, but not replaced."""

    def __getattr__(self, name: str):
        if name in ELSEWHERE:
            raise AttributeError(f"{type(self).__name__} has no {name!r} here: use {ELSEWHERE[name]}")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value) -> None:
        if name in ELSEWHERE or name in self._modules or isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{name!r} cannot be replaced here: change it in place, or change CLIP.hf_model")
        super().__setattr__(name, value)


class Transformer(OriginalNames):
    """Takes and gives (length, batch, width); a text tower's is causal."""

    def __init__(self, encoder: HFCLIPEncoder):
        super().__init__()
        self.add_module("encoder", encoder)

    @property
    def width(self) -> int:
        return self.encoder.layers[0].self_attn.config.hidden_size

    @property
    def layers(self) -> int:
        return len(self.encoder.layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)  # (L, B, C) -> (B, L, C)
        attention, mask = self.encoder.layers[0].self_attn, None
        if attention.is_causal:
            mask = create_causal_mask(attention.config, x, None, None)
        return self.encoder(x, mask).transpose(0, 1)  # (B, L, C) -> (L, B, C)


class Visual(OriginalNames):
    """A vision tower with its projection: pixels (B, 3, H, W) to embeddings (B, output_dim)."""

    input_resolution = part("vision_model.config.image_size")
    output_dim = part("vision_model.config.projection_dim")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__()
        self.add_module("vision_model", hf_model.vision_model)
        self.add_module("visual_projection", hf_model.visual_projection)

    def forward(self, x: Tensor) -> Tensor:
        side = self.input_resolution
        if tuple(x.shape[-2:]) != (side, side):
            raise ImageSizeError(
                f"The images are {x.shape[-2]}x{x.shape[-1]}, the model reads {side}x{side}: use the preprocess that "
                "load returned with it"
            )
        return self.visual_projection(self.vision_model(x, return_dict=True).pooler_output)


class VisionTransformer(Visual):
    conv1 = part("vision_model.embeddings.patch_embedding")
    class_embedding = part("vision_model.embeddings.class_embedding")
    positional_embedding = part("vision_model.embeddings.position_embedding.weight")
    ln_pre = part("vision_model.pre_layrnorm")
    ln_post = part("vision_model.post_layernorm")
    proj = part("visual_projection.weight.T")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__(hf_model)
        self.add_module("transformer", Transformer(hf_model.vision_model.encoder))


class ModifiedResNet(Visual):
    conv1, conv2, conv3 = (part(f"vision_model.stem.conv{i}") for i in (1, 2, 3))
    bn1, bn2, bn3 = (part(f"vision_model.stem.bn{i}") for i in (1, 2, 3))
    avgpool = part("vision_model.stem.pool")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__(hf_model)
        for number, stage in enumerate(hf_model.vision_model.stages, 1):
            self.add_module(f"layer{number}", stage)


class CLIP(OriginalNames):
    """The original's model, computed by `hf_model`.

    The attributes are live: `positional_embedding`, `logit_scale` and the modules are those of `hf_model`;
    `text_projection` and `visual.proj` are transposed views, through which changes and gradients reach the parameter
    (take them anew after `.to()`). What has no counterpart raises an AttributeError that says what to use.
    `state_dict` and `load_state_dict` speak the original's keys; the names of `named_parameters` begin like the
    original's (`visual.`, `transformer.`, `token_embedding.`, `ln_final.`) where a module there has a counterpart.
    """

    positional_embedding = part("hf_model.text_model.embeddings.position_embedding.weight")
    text_projection = part("hf_model.text_projection.weight.T")
    logit_scale = part("hf_model.logit_scale")
    context_length = part("hf_model.config.text_config.max_position_embeddings")
    vocab_size = part("token_embedding.num_embeddings")
    dtype = part("visual.conv1.weight.dtype")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__()
        is_resnet = hf_model.config.vision_config.model_type == HFCLIPResNetConfig.model_type
        # before hf_model: named_parameters gives a shared parameter the first name it meets
        self.add_module("visual", (ModifiedResNet if is_resnet else VisionTransformer)(hf_model))
        self.add_module("transformer", Transformer(hf_model.text_model.encoder))
        self.add_module("token_embedding", hf_model.text_model.embeddings.token_embedding)
        self.add_module("ln_final", hf_model.text_model.final_layer_norm)
        self.add_module("hf_model", hf_model)
        self.training = hf_model.training
        self.register_state_dict_post_hook(_rename_saved)
        self.register_load_state_dict_pre_hook(_rename_loaded)

    def encode_image(self, image: Tensor) -> Tensor:
        """Pixels (B, 3, R, R) to embeddings (B, D), unnormalised."""
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids (B, L) to embeddings (B, D), unnormalised.

        A text is read up to its highest id (EOT), as in the original. Columns that no text reaches are left out, in
        steps of 16, save in compiled, traced or captured graphs, whose shapes must not depend on values.
        """
        if len(text) == 0:
            return self.text_projection[:0]
        end = text.argmax(-1)
        capturing = text.is_cuda and torch.cuda.is_current_stream_capturing()
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing() or capturing):
            length = max(end.tolist()) + 1
            text = text[:, : -(-length // COLUMNS) * COLUMNS]
        hidden = self.hf_model.text_model(text, return_dict=True).last_hidden_state
        return self.hf_model.text_projection(hidden[torch.arange(len(end), device=end.device), end])

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """`logits_per_image` (images, texts) and its transpose."""
        image_features, text_features = normalize(self.encode_image(image)), normalize(self.encode_text(text))
        logits_per_image = contrastive_logits(image_features, text_features, self.logit_scale)
        return logits_per_image, logits_per_image.t()


def _rename_saved(module: CLIP, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict) -> None:
    ours = f"{prefix}hf_model."
    tensors = {key.removeprefix(ours): tensor for key, tensor in state_dict.items() if key.startswith(ours)}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    for key, tensor in to_original(tensors, module.hf_model.config).items():
        state_dict[prefix + key] = tensor


def _rename_loaded(
    module: CLIP,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """What is missing, unexpected or of another shape is reported in the original's names, and stays as it was."""
    given = {key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    own = module.hf_model.state_dict(keep_vars=True)
    expected = to_original({key: tensor.detach() for key, tensor in own.items()}, module.hf_model.config)
    missing_keys += [prefix + key for key in expected if key not in given]
    unexpected_keys += [prefix + key for key in given if key not in expected and key not in BOOKKEEPING]
    for key, tensor in expected.items():
        if key in given and given[key].shape != tensor.shape:
            shapes = f"{tuple(given[key].shape)} in the state dict, {tuple(tensor.shape)} in the model"
            error_msgs.append(f"size mismatch for {prefix}{key}: {shapes}")
            del given[key]
    tensors = to_hf({key: given.get(key, tensor) for key, tensor in expected.items()}, module.hf_model.config)
    names = {id(tensor): key for key, tensor in own.items()}
    for own_tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in own_tensors(remove_duplicate=False):
            state_dict[prefix + name] = tensors[names[id(tensor)]]


def convert_weights(model: nn.Module) -> None:
    """Convert the weights of convolutions, linear layers and attention to fp16, as the original does, in place."""

    def convert(module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.half()

    model.apply(convert)


def build_model(state_dict: dict[str, Tensor]) -> CLIP:
    """A model in the fp16 mix, over the tensors of an original state dict where they have its dtypes.

    Raises CheckpointError unless they are those of a CLIP.
    """
    config = infer_config(state_dict)
    tensors = to_hf(state_dict, config)
    with torch.device("meta"):
        hf_model = HFCLIPModel(config)
    hf_model.load_state_dict(tensors, assign=True)
    convert_weights(hf_model)
    return CLIP(hf_model.eval())


__all__ = ["CLIP", "ImageSizeError", "build_model", "convert_weights"]
