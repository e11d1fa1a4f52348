"""What programs do with the original's package and models, one function for each idiom.

A function takes a `Program`, does the idiom with the package and the model in it, and returns what can be seen of it.
"""

import copy
import gzip
import io
import pickle
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

VIT, RESNET = "tiny ViT", "tiny ResNet"


@dataclass
class Program:
    """One of the two packages, a fresh model of it in float32 and evaluation mode, and inputs."""

    clip: types.ModuleType
    model: nn.Module
    images: Tensor
    texts: Tensor
    archive: Path
    folder: Path
    patch: pytest.MonkeyPatch

    def load(self) -> nn.Module:
        """Load another model of the same file."""
        return self.clip.load(str(self.archive), device="cpu")[0]

    @property
    def blocks(self) -> nn.Sequential:
        return self.model.transformer.resblocks


@dataclass(frozen=True)
class Idiom:
    group: str
    name: str
    families: tuple[str, ...]
    slow: bool
    run: Callable[[Program], Any]


IDIOMS: list[Idiom] = []


def idiom(group: str, *families: str, slow: bool = False) -> Callable:
    """Enter a function into the table, for both families unless some are given."""

    def enter(function: Callable[[Program], Any]) -> Callable[[Program], Any]:
        name = function.__name__.replace("_", " ").strip()
        IDIOMS.append(Idiom(group, name, families or (VIT, RESNET), slow, function))
        return function

    return enter


def losses(model: nn.Module, p: Program) -> Tensor:
    logits, _ = model(p.images, p.texts)
    return F.cross_entropy(logits, torch.arange(len(p.images)))


def trained(model: nn.Module, p: Program, parameters=None, steps: int = 2, loss: Callable | None = None) -> dict:
    """Names, gradients and state after steps of SGD."""
    parameters = [q for q in model.parameters() if q.requires_grad] if parameters is None else list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (losses(model, p) if loss is None else loss(model)).backward()
        optimizer.step()
    grads = {n: q.grad for n, q in model.named_parameters()}
    return {"grads": grads, "state": model.state_dict(), "names": [n for n, _ in model.named_parameters()]}


def outputs(model: nn.Module, p: Program) -> tuple:
    with torch.no_grad():
        return model.encode_image(p.images), model.encode_text(p.texts), *model(p.images, p.texts)


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict]:
    """Outputs of modules, by forward hooks."""
    seen: dict[str, Any] = {}

    def hook(name: str) -> Callable:
        return lambda module, args, output: seen.setdefault(name, []).append((args, output))

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()


def encoded(model: nn.Module, x: Tensor, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """The text encoder as prompt learners rebuild it from its parts."""
    x = x + (model.positional_embedding if positions is None else positions).type(model.dtype)
    x = model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
    x = model.ln_final(x).type(model.dtype)
    return x[torch.arange(x.shape[0]), ids.argmax(dim=-1)] @ model.text_projection


# --- calls ------------------------------------------------------------------------------------------------------------


@idiom("calls")
def encode_and_score(p):
    return outputs(p.model, p)


@idiom("calls")
def zero_shot_weights_of_templates(p):
    weights = []
    for name in ("dog", "cat"):
        ids = p.clip.tokenize([t.format(name) for t in ("a photo of a {}.", "a drawing of a {}.", "a {}")])
        embedding = p.model.encode_text(ids)
        embedding = (embedding / embedding.norm(dim=-1, keepdim=True)).mean(dim=0)
        weights.append(embedding / embedding.norm())
    return 100.0 * p.model.encode_image(p.images) @ torch.stack(weights, dim=1)


@idiom("calls")
def inference_mode(p):
    with torch.inference_mode():
        return [x.clone() for x in p.model(p.images, p.texts)]


@idiom("calls")
def autocast_to_bfloat16(p):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return p.model(p.images, p.texts)


@idiom("calls")
def one_of_a_batch(p):
    return p.model.encode_image(p.images[:1]), p.model.encode_text(p.texts[:1])


@idiom("calls")
def no_texts(p):
    return p.model.encode_text(p.texts[:0])


@idiom("calls")
def fewer_columns(p):
    return p.model.encode_text(p.texts[:, :20])


@idiom("calls")
def int32_and_int64_ids(p):
    return p.model.encode_text(p.texts.int()), p.model.encode_text(p.texts.long())


@idiom("calls")
def half_images_to_a_float_model(p):
    return p.model.encode_image(p.images.half()), p.model.encode_image(p.images.double())


@idiom("calls")
def attributes_of_sizes(p):
    m = p.model
    return m.context_length, m.vocab_size, m.dtype, m.visual.input_resolution, m.visual.output_dim, m.transformer.width


@idiom("calls")
def exact_scale(p):
    return p.model.logit_scale.exp(), p.model.logit_scale.exp().item()


@idiom("calls")
def preprocess_images(p):
    _, preprocess = p.clip.load(str(p.archive), device="cpu")
    image = Image.fromarray(np.arange(90 * 70 * 3, dtype=np.uint8).reshape(90, 70, 3))
    mean = preprocess.transforms[-1].mean
    return preprocess(image), preprocess(image.convert("P")), len(preprocess.transforms), mean


@idiom("calls")
def preprocess_with_parts_of_the_transform(p):
    _, preprocess = p.clip.load(str(p.archive), device="cpu")
    preprocess.transforms.insert(0, lambda image: image.rotate(90))
    size = preprocess.transforms[2].size
    return preprocess(Image.radial_gradient("L")), size, preprocess.transforms[1].size


@idiom("calls")
def captions_scored_as_clipscore(p):
    images, texts = p.model.encode_image(p.images), p.model.encode_text(p.texts[: len(p.images)])
    images, texts = (x.detach().numpy() for x in (images, texts))
    images, texts = (x / np.sqrt(np.sum(x**2, axis=1, keepdims=True)) for x in (images, texts))
    return torch.from_numpy(2.5 * np.clip(np.sum(images * texts, axis=1), 0, None))


@idiom("calls")
def gradient_to_the_pixels(p):
    """Guided synthesis: StyleGAN-nada, CLIPasso, VQGAN-CLIP."""
    pixels = p.images.clone().requires_grad_()
    loss = 1 - torch.cosine_similarity(p.model.encode_image(pixels), p.model.encode_text(p.texts[:1])).mean()
    return loss, torch.autograd.grad(loss, pixels)


@idiom("calls")
def directional_loss(p):
    """StyleGAN-nada."""
    a, b = p.model.encode_text(p.texts[:1]), p.model.encode_text(p.texts[1:2])
    direction = F.normalize(b - a)
    edit = F.normalize(p.model.encode_image(p.images[1:]) - p.model.encode_image(p.images[:1]))
    loss = 1 - (edit @ direction.T).mean()
    loss.backward()
    return loss, {n: q.grad for n, q in p.model.named_parameters()}


# --- added parts ------------------------------------------------------------------------------------------------------


def kept(p: Program, add: Callable[[nn.Module], Any], parameters=None, loss: Callable | None = None) -> tuple:
    """Add a part, train, and carry the state into a second model with the part."""
    torch.manual_seed(3)
    add(p.model)
    first = trained(p.model.train(), p, parameters and parameters(p.model), loss=loss)
    p.model.eval()
    torch.manual_seed(4)
    other = p.load()
    add(other)
    report = str(other.load_state_dict(p.model.state_dict()))
    return first, report, other.state_dict(), len(list(p.model.parameters()))


@idiom("added parts")
def a_head(p):
    def add(m):
        m.head = nn.Linear(64, 2)

    return kept(p, add, loss=lambda m: F.cross_entropy(m.head(m.encode_image(p.images)), torch.tensor([0, 1])))


@idiom("added parts")
def a_context_parameter(p):
    def add(m):
        m.ctx = nn.Parameter(torch.randn(64))

    return kept(p, add, loss=lambda m: (m.encode_text(p.texts) * m.ctx).sum())


@idiom("added parts")
def a_buffer(p):
    return kept(p, lambda m: m.register_buffer("seen", torch.ones(3)))


@idiom("added parts")
def an_adapter_on_visual(p):
    def add(m):
        m.visual.adapter = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64))

    return kept(p, add, loss=lambda m: m.visual.adapter(m.encode_image(p.images)).square().sum())


@idiom("added parts")
def an_adapter_in_a_block(p):
    def add(m):
        block = m.transformer.resblocks[0]
        block.adapter = nn.Linear(64, 64)
        block.register_forward_hook(lambda module, args, output: output + module.adapter(output))

    return kept(p, add)


@idiom("added parts")
def a_replaced_c_fc(p):
    def add(m):
        mlp = m.transformer.resblocks[1].mlp
        mlp.c_fc = nn.Sequential(mlp.c_fc, nn.Linear(256, 256))

    return kept(p, add)


@idiom("added parts")
def lora_parameters_on_a_layer(p):
    """Registered on the layer itself, trained by name."""

    def add(m):
        for block in m.transformer.resblocks:
            layer = block.mlp.c_proj
            layer.lora_A = nn.Parameter(torch.randn(4, 256) * 0.01)
            layer.lora_B = nn.Parameter(torch.randn(64, 4) * 0.01)
            layer.register_forward_hook(lambda m, args, out: out + args[0] @ m.lora_A.T @ m.lora_B.T)

    return kept(p, add, lambda m: [q for n, q in m.named_parameters() if "lora_" in n])


@idiom("added parts")
def lora_linear_wrapped_around(p):
    class Low(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.down, self.up = nn.Linear(layer.in_features, 2, bias=False), nn.Linear(2, layer.out_features)

        def forward(self, x):
            return self.layer(x) + self.up(self.down(x))

    def add(m):
        for block in m.transformer.resblocks:
            block.mlp.c_fc = Low(block.mlp.c_fc)

    return kept(p, add)


@idiom("added parts")
def attention_replaced_by_lora_of_its_projections(p):
    """CLIP-LoRA: a MultiheadAttention taken apart into four linear layers."""

    class Plain(nn.Module):
        def __init__(self, attention):
            super().__init__()
            width, self.heads = attention.embed_dim, attention.num_heads
            self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
            self.proj = nn.Linear(width, width)
            weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
            with torch.no_grad():
                for layer, weight, bias in zip(self.qkv, weights, biases, strict=True):
                    layer.weight.copy_(weight)
                    layer.bias.copy_(bias)
                self.proj.weight.copy_(attention.out_proj.weight)
                self.proj.bias.copy_(attention.out_proj.bias)
            self.lora = nn.Parameter(0.01 * torch.randn(width, width))

        def forward(self, query, key, value, need_weights=False, attn_mask=None, **kwargs):
            length, batch, width = query.shape
            q, k, v = (
                layer(x).view(length, batch * self.heads, -1).transpose(0, 1)
                for layer, x in zip(self.qkv, (query, key, value), strict=True)
            )
            x = F.scaled_dot_product_attention(q, k, v, attn_mask)
            x = x.transpose(0, 1).reshape(length, batch, width)
            return self.proj(x) + x @ self.lora, None

    def add(m):
        for block in m.transformer.resblocks:
            for name, module in block.named_children():
                if isinstance(module, nn.MultiheadAttention):
                    setattr(block, name, Plain(module))

    return kept(p, add, lambda m: [q for n, q in m.named_parameters() if "lora" in n])


@idiom("added parts", RESNET)
def a_block_appended_to_a_stage(p):
    return kept(p, lambda m: m.visual.layer4.append(p.clip.model.Bottleneck(512, 128)))


@idiom("added parts", VIT)
def a_block_appended_to_a_transformer(p):
    return kept(p, lambda m: m.visual.transformer.resblocks.append(p.clip.model.ResidualAttentionBlock(64, 1)))


@idiom("added parts")
def a_parameter_list(p):
    def add(m):
        m.prompts = nn.ParameterList(nn.Parameter(torch.randn(64)) for _ in range(2))

    return kept(p, add, loss=lambda m: sum((m.encode_text(p.texts) * q).sum() for q in m.prompts))


@idiom("added parts")
def a_bias_beside_the_scale(p):
    """SigLIP's loss on a CLIP."""

    def add(m):
        m.register_parameter("logit_bias", nn.Parameter(torch.full([], -10.0)))

    def loss(m):
        images, texts = F.normalize(m.encode_image(p.images)), F.normalize(m.encode_text(p.texts))
        logits = m.logit_scale.exp() * images @ texts.T + m.logit_bias
        return -F.logsigmoid(logits * (2 * torch.eye(*logits.shape) - 1)).sum()

    return kept(p, add, loss=loss)


@idiom("added parts")
def a_module_that_holds_the_model(p):
    class Classifier(nn.Module):
        def __init__(self, clip_model):
            super().__init__()
            self.clip, self.head = clip_model, nn.Linear(64, 2)

        def forward(self, images):
            return self.head(self.clip.encode_image(images))

    torch.manual_seed(0)
    model = Classifier(p.model)
    result = trained(model, p, loss=lambda m: F.cross_entropy(m(p.images), torch.tensor([0, 1])))
    return result, str(Classifier(p.load()).load_state_dict(model.state_dict()))


# --- writes -----------------------------------------------------------------------------------------------------------


def written(p: Program, write: Callable[[nn.Module], Any]) -> tuple:
    result = write(p.model)
    return result, outputs(p.model, p), p.model.state_dict()


@idiom("writes")
def data_of_the_text_projection(p):
    def write(m):
        m.text_projection.data = m.text_projection.data * 2

    return written(p, write)


@idiom("writes")
def data_in_place(p):
    return written(p, lambda m: (m.text_projection.data.mul_(1.5), m.positional_embedding.data[3].zero_())[0])


@idiom("writes", VIT)
def copy_into_the_visual_projection(p):
    def write(m):
        with torch.no_grad():
            m.visual.proj.copy_(torch.eye(64))

    return written(p, write)


@idiom("writes")
def copy_into_in_proj_weight(p):
    def write(m):
        with torch.no_grad():
            m.transformer.resblocks[0].attn.in_proj_weight[:64].copy_(torch.eye(64))
            m.transformer.resblocks[0].attn.in_proj_bias.add_(0.1)

    return written(p, write)


@idiom("writes")
def initialized_again(p):
    def write(m):
        torch.manual_seed(0)
        nn.init.xavier_uniform_(m.text_projection)
        nn.init.normal_(m.token_embedding.weight, std=0.01)
        for module in m.transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    return written(p, write)


@idiom("writes")
def the_model_s_own_initialization(p):
    def write(m):
        torch.manual_seed(0)
        m.initialize_parameters()

    return written(p, write)


@idiom("writes")
def a_clamped_scale(p):
    return written(p, lambda m: m.logit_scale.data.clamp_(0, 3))


@idiom("writes")
def ema_over_the_state_dict(p):
    other = p.load()
    trained(other, p)

    def write(m):
        with torch.no_grad():
            for key, value in m.state_dict().items():
                value.copy_(0.9 * value + 0.1 * other.state_dict()[key])

    return written(p, write)


@idiom("writes")
def ema_over_parameters(p):
    ema, model = copy.deepcopy(p.model), p.model
    trained(model, p)
    for a, b in zip(ema.parameters(), model.parameters(), strict=True):
        a.data.mul_(0.99).add_(b.data, alpha=0.01)
    for a, b in zip(ema.buffers(), model.buffers(), strict=True):
        a.copy_(b)
    return ema.state_dict()


@idiom("writes")
def ema_of_a_state_dict_module(p):
    """timm's ModelEmaV2 and V3."""
    ema = copy.deepcopy(p.model).eval()
    trained(p.model, p)
    with torch.no_grad():
        values = zip(ema.state_dict().values(), p.model.state_dict().values(), strict=True)
        for mine, theirs in values:
            mine.copy_(0.9 * mine + 0.1 * theirs)
        floats = [v for v in ema.state_dict().values() if v.is_floating_point()]
        torch._foreach_lerp_(floats, [v for v in p.model.state_dict().values() if v.is_floating_point()], weight=0.1)
    return ema.state_dict(), outputs(ema, p)


@idiom("writes")
def frozen_by_name(p):
    for name, parameter in p.model.named_parameters():
        parameter.requires_grad_("resblocks.1." in name or "text_projection" in name or "attnpool" in name)
    return trained(p.model.train(), p), sum(q.numel() for q in p.model.parameters() if q.requires_grad)


@idiom("writes")
def only_biases(p):
    for name, parameter in p.model.named_parameters():
        parameter.requires_grad = name.endswith("bias")
    return trained(p.model, p)


@idiom("writes")
def only_norms(p):
    p.model.requires_grad_(False)
    for module in p.model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.requires_grad_(True)
    return trained(p.model, p)


@idiom("writes")
def one_tensor_optimized(p):
    return trained(p.model, p, [p.model.text_projection]), p.model.text_projection.grad


@idiom("writes", VIT)
def visual_projection_optimized(p):
    return trained(p.model, p, [p.model.visual.proj, p.model.logit_scale])


@idiom("writes")
def groups_with_and_without_decay(p):
    named = list(p.model.named_parameters())
    plain = [q for n, q in named if q.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    ids = {id(q) for q in plain}
    rest = [q for _, q in named if id(q) not in ids]
    optimizer = torch.optim.AdamW([{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}])
    losses(p.model, p).backward()
    torch.nn.utils.clip_grad_norm_(p.model.parameters(), 1.0)
    optimizer.step()
    return p.model.state_dict(), len(plain), len(rest)


@idiom("writes")
def rates_by_layer(p):
    groups = []
    for name, parameter in p.model.named_parameters():
        depth = next((int(x) for x in name.split(".") if x.isdigit()), 0)
        groups.append({"params": [parameter], "lr": 1e-3 * 0.5**depth})
    optimizer = torch.optim.SGD(groups)
    losses(p.model, p).backward()
    optimizer.step()
    return p.model.state_dict()


@idiom("writes")
def dropout_in_attention(p):
    for block in p.blocks:
        block.attn.dropout = 0.3
    p.model.train()
    torch.manual_seed(0)
    return losses(p.model, p), p.model.eval()(p.images, p.texts)


@idiom("writes")
def parameters_as_a_vector(p):
    vector = nn.utils.parameters_to_vector(p.model.parameters())
    nn.utils.vector_to_parameters(vector * 0.99, p.model.parameters())
    return vector, outputs(p.model, p)


@idiom("writes", RESNET)
def statistics_frozen_while_training(p):
    p.model.train()
    for module in p.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.track_running_stats = False
    return trained(p.model, p)


@idiom("writes", RESNET)
def momentum_and_reset_statistics(p):
    for module in p.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
            module.reset_running_stats()
    return trained(p.model.train(), p)


@idiom("writes")
def accumulated_gradients(p):
    for image, text in zip(p.images, p.texts, strict=False):
        (p.model.encode_image(image[None]) * p.model.encode_text(text[None])).sum().backward()
    return {n: q.grad for n, q in p.model.named_parameters()}


@idiom("writes")
def fp32_steps_of_an_fp16_mix(p):
    """The original's advice for training on a GPU: float, step, convert back."""
    p.clip.model.convert_weights(p.model)
    optimizer = torch.optim.Adam(p.model.parameters(), lr=1e-5, eps=1e-6)
    sum(x.float().mean() for x in p.model(p.images, p.texts)).backward()
    for parameter in p.model.parameters():
        parameter.data = parameter.data.float()
        if parameter.grad is not None:
            parameter.grad.data = parameter.grad.data.float()
    optimizer.step()
    p.clip.model.convert_weights(p.model)
    return p.model.state_dict()


# --- names ------------------------------------------------------------------------------------------------------------


@idiom("names")
def all_names_in_order(p):
    m = p.model
    types_ = [(n, type(c).__name__) for n, c in m.named_modules()]
    return list(m.state_dict()), [n for n, _ in m.named_parameters()], [n for n, _ in m.named_buffers()], types_


@idiom("names")
def parameters_are_in_the_state_dict(p):
    state = p.model.state_dict()
    return [n in state and state[n].data_ptr() == q.data_ptr() for n, q in p.model.named_parameters()]


@idiom("names")
def names_by_pattern(p):
    patterns = ("visual.transformer.resblocks.1.", "ln_", "attnpool", "in_proj", "proj", "positional_embedding", "bn")
    return {x: [n for n, _ in p.model.named_parameters() if x in n] for x in patterns}


@idiom("names")
def children_and_modules(p):
    visual = p.model.visual
    return (
        [n for n, _ in visual.named_children()],
        list(visual._modules),
        list(visual._parameters),
        len(visual._buffers),
    )


@idiom("names")
def parts_by_path(p):
    m = p.model
    path = "transformer.resblocks.0.mlp.c_fc"
    return m.get_parameter(f"{path}.weight"), m.get_submodule(path).out_features, dict(m.named_modules())[path].bias


@idiom("names")
def layers_found_by_class(p):
    classes = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.MultiheadAttention, nn.Embedding, nn.BatchNorm2d)
    return [[n for n, m in p.model.named_modules() if isinstance(m, c)] for c in classes]


@idiom("names")
def layers_found_by_class_of_the_package(p):
    c = p.clip.model
    classes = (c.LayerNorm, c.QuickGELU, c.ResidualAttentionBlock, c.Transformer, c.VisionTransformer, c.ModifiedResNet)
    classes += (c.AttentionPool2d, c.Bottleneck, c.CLIP)
    return [[n for n, m in p.model.named_modules() if isinstance(m, k)] for k in classes]


@idiom("names")
def state_of_a_part_with_a_head(p):
    net = nn.Sequential(OrderedDict(visual=p.model.visual, head=nn.Linear(64, 3)))
    state = net.state_dict()
    other = nn.Sequential(OrderedDict(visual=p.load().visual, head=nn.Linear(64, 3)))
    return list(state), str(other.load_state_dict(state))


@idiom("names")
def visual_alone_saved_and_loaded(p):
    torch.save(p.model.visual.state_dict(), p.folder / "visual.pt")
    other = p.load()
    return str(other.visual.load_state_dict(torch.load(p.folder / "visual.pt"))), other.visual(p.images)


@idiom("names")
def apply_with_names(p):
    seen = []
    p.model.apply(lambda m: seen.append(type(m).__name__))
    return seen


@idiom("names")
def printed(p):
    return repr(p.model), str(p.model.visual)


@idiom("names")
def sizes_from_the_state_dict(p):
    """How programs rebuild a model from a file."""
    state = p.model.state_dict()
    vit = "visual.proj" in state
    layers = len([k for k in state if k.startswith("visual.") and k.endswith(".attn.in_proj_weight")])
    counts = [len({k.split(".")[2] for k in state if k.startswith(f"visual.layer{b}")}) for b in (1, 2, 3, 4)]
    return vit, layers, counts, {k: tuple(v.shape) for k, v in state.items()}, {k: v.dtype for k, v in state.items()}


@idiom("names")
def parameters_shared_with_another_module(p):
    """CoOp's TextEncoder holds the model's own modules and parameters."""

    class TextEncoder(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.transformer, self.ln_final = m.transformer, m.ln_final
            self.positional_embedding, self.text_projection = m.positional_embedding, m.text_projection

    encoder = TextEncoder(p.model)
    names = [n for n, _ in encoder.named_parameters()]
    trained(encoder, p, loss=lambda e: encoded(p.model, p.model.token_embedding(p.texts), p.texts).sum())
    same = encoder.text_projection is p.model.text_projection
    encoder.to("meta")
    devices = {str(q.device) for q in encoder.parameters()}
    return names, same, devices, p.model.ln_final.weight.device.type, p.model.token_embedding.weight.device.type


# --- replacing --------------------------------------------------------------------------------------------------------


def replaced(p: Program, change: Callable[[nn.Module], Any], image: bool = True, text: bool = True) -> tuple:
    """Outputs, gradients and names after a part was replaced."""
    torch.manual_seed(5)
    change(p.model)
    out = [p.model.encode_image(p.images)] if image else []
    out += [p.model.encode_text(p.texts)] if text else []
    sum(x.square().mean() for x in out).backward()
    return out, {n: q.grad for n, q in p.model.named_parameters()}, p.model.state_dict()


@idiom("replacing", VIT)
def no_visual_projection(p):
    def change(m):
        m.visual.proj = None

    return replaced(p, change)


@idiom("replacing", RESNET)
def identity_for_attnpool(p):
    def change(m):
        m.visual.attnpool = nn.Identity()

    return replaced(p, change)


@idiom("replacing", RESNET)
def average_for_attnpool(p):
    def change(m):
        m.visual.attnpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 64))

    return replaced(p, change)


@idiom("replacing", VIT)
def resized_positions_of_a_vit(p):
    """ReCLIP, CLIP-ViL: other image sizes."""
    old = p.model.visual.positional_embedding
    grid = old[1:].permute(1, 0).view(1, -1, 4, 4)
    grid = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).squeeze(0).flatten(1).permute(1, 0)
    p.model.visual.positional_embedding = nn.Parameter(torch.cat([old[:1], grid]))
    p.model.visual.input_resolution = 48
    out = p.model.encode_image(F.interpolate(p.images, size=48))
    out.sum().backward()
    return out, p.model.visual.positional_embedding.grad, p.model.state_dict()


@idiom("replacing", RESNET)
def resized_positions_of_attnpool(p):
    pool = p.model.visual.attnpool
    old = pool.positional_embedding.clone()
    grid = F.interpolate(old[1:].permute(1, 0).view(1, -1, 2, 2), size=(3, 4), mode="bicubic")
    pool.positional_embedding = nn.Parameter(torch.cat([old[:1], grid.flatten(2)[0].permute(1, 0)]))
    out = p.model.encode_image(F.interpolate(p.images, size=(96, 128)))
    pool.positional_embedding = nn.Parameter(old)
    return out, p.model.encode_image(p.images)


@idiom("replacing")
def longer_texts(p):
    """Long-CLIP: stretched positions and a mask to match."""
    m = p.model
    m.positional_embedding = nn.Parameter(F.interpolate(m.positional_embedding.T[None], size=100)[0].T)
    m.context_length = 100
    for block in m.transformer.resblocks:
        block.attn_mask = m.build_attention_mask()
    ids = p.clip.tokenize(["a " * 90, "b"], context_length=100)
    return m.encode_text(ids), m.build_attention_mask()


@idiom("replacing")
def a_new_scale(p):
    def change(m):
        m.logit_scale = nn.Parameter(torch.tensor(2.0))

    change(p.model)
    return trained(p.model, p)


@idiom("replacing")
def a_scale_without_gradient(p):
    p.model.logit_scale.requires_grad_(False)
    p.model.logit_scale = nn.Parameter(p.model.logit_scale.detach(), requires_grad=False)
    return trained(p.model, p)


@idiom("replacing")
def a_larger_vocabulary(p):
    """Textual inversion: a token of its own."""
    m = p.model
    table = nn.Embedding(49_410, 64)
    with torch.no_grad():
        table.weight.fill_(0.01)
        table.weight[:49_408] = m.token_embedding.weight
    m.token_embedding = table
    ids = p.texts.clone().long()
    features = encoded(m, m.token_embedding(ids.masked_fill(ids == 320, 49_409)), ids)
    features.sum().backward()
    return features, m.token_embedding.weight.grad[49_409], m.state_dict()["token_embedding.weight"].shape


@idiom("replacing")
def a_block_of_the_transformer(p):
    def change(m):
        m.transformer.resblocks[1] = p.clip.model.ResidualAttentionBlock(64, 1, m.build_attention_mask())

    return replaced(p, change)


@idiom("replacing")
def truncated_blocks(p):
    def change(m):
        m.transformer.resblocks = m.transformer.resblocks[:1]
        m.transformer.layers = 1

    return replaced(p, change)


@idiom("replacing")
def blocks_as_a_list(p):
    """point-e's and karlo's own loops."""

    def change(m):
        m.transformer.resblocks = nn.ModuleList(m.transformer.resblocks)
        x = torch.ones(5, 2, 64)
        for block in m.transformer.resblocks:
            x = block(x)

        m.transformer.forward = lambda x: [x := block(x) for block in m.transformer.resblocks][-1]

    return replaced(p, change)


@idiom("replacing", VIT)
def four_channels(p):
    conv = p.model.visual.conv1
    wide = nn.Conv2d(4, conv.out_channels, conv.kernel_size, conv.stride, bias=False)
    with torch.no_grad():
        wide.weight[:, :3], wide.weight[:, 3:] = conv.weight, conv.weight.mean(1, keepdim=True)
    p.model.visual.conv1 = wide
    out = p.model.encode_image(torch.cat([p.images, p.images[:, :1]], 1))
    out.sum().backward()
    return out, wide.weight.grad, p.model.state_dict()


@idiom("replacing", RESNET)
def a_stem_convolution(p):
    def change(m):
        m.visual.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)

    return replaced(p, change)


@idiom("replacing")
def no_causal_mask(p):
    def change(m):
        for block in m.transformer.resblocks:
            block.attn_mask = None

    return replaced(p, change)


@idiom("replacing")
def masks_of_other_kinds(p):
    def change(m):
        m.transformer.resblocks[0].attn_mask = torch.zeros(77, 77).masked_fill(torch.rand(77, 77) > 0.7, -100.0)
        m.transformer.resblocks[1].attn_mask = m.build_attention_mask().double()

    return replaced(p, change)


@idiom("replacing", VIT)
def a_mask_in_the_image_tower(p):
    def change(m):
        m.visual.transformer.resblocks[0].attn_mask = torch.full((17, 17), -1.0).fill_diagonal_(0)

    return replaced(p, change)


@idiom("replacing")
def text_tower_deleted(p):
    """model-soups, wise-ft, patching: an image classifier."""
    del p.model.transformer
    del p.model.token_embedding, p.model.positional_embedding, p.model.ln_final, p.model.text_projection
    return p.model.encode_image(p.images), p.model.state_dict(), hasattr(p.model, "transformer")


@idiom("replacing")
def text_tower_set_to_none(p):
    p.model.transformer = None
    keys = list(p.model.state_dict())
    delattr(p.model, "transformer")
    return p.model.encode_image(p.images), keys, [n for n, _ in p.model.named_children()]


@idiom("replacing")
def image_tower_set_to_none(p):
    ids, model = p.texts, p.model
    model.visual = None
    x = model.token_embedding(ids) + model.positional_embedding
    return model.transformer(x.permute(1, 0, 2)), list(model.state_dict())


@idiom("replacing")
def children_in_a_sequence(p):
    visual = p.model.visual
    layers = list(visual.children())
    if len(layers) > 10:  # a ResNet without its pooling
        return nn.Sequential(*layers[:-1])(p.images), len(layers), nn.Sequential(*layers[:10])(p.images)
    return nn.Sequential(*layers[:1])(p.images), len(layers), [type(x).__name__ for x in layers]


@idiom("replacing")
def every_layer_norm(p):
    def change(m):
        for module in list(m.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.LayerNorm):
                    new = nn.LayerNorm(child.normalized_shape, child.eps)
                    new.load_state_dict(child.state_dict())
                    setattr(module, name, new)

    return replaced(p, change)


@idiom("replacing")
def gelu_for_quick_gelu(p):
    def change(m):
        for block in m.transformer.resblocks:
            block.mlp.gelu = nn.GELU()

    return replaced(p, change)


@idiom("replacing")
def dropout_in_every_mlp(p):
    def change(m):
        for block in m.transformer.resblocks:
            block.mlp = nn.Sequential(OrderedDict([*block.mlp.named_children(), ("drop", nn.Dropout(0.5))]))
        m.train()

    return replaced(p, change)


@idiom("replacing")
def final_norm_by_identity(p):
    def change(m):
        m.ln_final = nn.Identity()

    return replaced(p, change)


@idiom("replacing", RESNET)
def frozen_batch_norms(p):
    from torchvision.ops import FrozenBatchNorm2d

    def change(m):
        for module in list(m.visual.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    frozen = FrozenBatchNorm2d(child.num_features)
                    frozen.load_state_dict(child.state_dict(), strict=False)
                    setattr(module, name, frozen)

    return replaced(p, change)


@idiom("replacing", RESNET)
def synchronized_batch_norms(p):
    p.model = nn.SyncBatchNorm.convert_sync_batchnorm(p.model)
    return list(p.model.state_dict()), [type(m).__name__ for m in p.model.modules()], p.model.encode_text(p.texts)


@idiom("replacing", RESNET)
def dilated_last_stage(p):
    """Dense prediction: no stride in the last stage."""

    def change(m):
        block = m.visual.layer4[0]
        block.avgpool = nn.Identity()
        block.downsample[0] = nn.Identity()
        m.visual.attnpool = nn.Identity()

    return replaced(p, change)


@idiom("replacing", RESNET)
def relu_not_in_place(p):
    def change(m):
        for module in m.visual.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False

    return replaced(p, change)


@idiom("replacing")
def forward_of_a_block(p):
    def forward(self, x):
        return x + 0.5 * self.attention(self.ln_1(x)) + self.mlp(self.ln_2(x))

    def change(m):
        m.transformer.resblocks[0].forward = types.MethodType(forward, m.transformer.resblocks[0])

    return replaced(p, change)


@idiom("replacing")
def attention_method_of_the_class(p):
    """CLIP-ONNX: products in place of `multi_head_attention_forward`."""

    def attention(self, x):
        self.attn_mask = self.attn_mask.to(dtype=x.dtype, device=x.device) if self.attn_mask is not None else None
        q, k, v = (torch.einsum("tbh,oh->tbo", x, self.attn.in_proj_weight) + self.attn.in_proj_bias).chunk(3, dim=-1)
        length, batch, width = q.shape
        heads = self.attn.num_heads
        q, k, v = (y.reshape(length, batch * heads, width // heads).transpose(0, 1) for y in (q, k, v))
        scores = q @ k.transpose(-2, -1) / (width // heads) ** 0.5
        scores = scores if self.attn_mask is None else scores + self.attn_mask[None]
        out = (scores.softmax(-1) @ v).transpose(0, 1).contiguous().view(length, batch, width)
        return F.linear(out, self.attn.out_proj.weight, self.attn.out_proj.bias)

    p.patch.setattr(p.clip.model.ResidualAttentionBlock, "attention", attention)
    return replaced(p, lambda m: None)


@idiom("replacing")
def classes_of_the_module_before_loading(p):
    """karlo: a norm of its own in place of the package's, forward deleted."""

    class Norm(nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).type(x.dtype)

    p.patch.setattr(p.clip.model, "LayerNorm", Norm)
    model = p.load()
    return outputs(model, p), {type(m).__name__ for m in model.modules()}, isinstance(model.ln_final, Norm)


@idiom("replacing")
def blocks_of_the_module_before_loading(p):
    class Block(p.clip.model.ResidualAttentionBlock):
        def forward(self, x):
            return x + self.attention(self.ln_1(x)) + self.mlp(self.ln_2(x))

    p.patch.setattr(p.clip.model, "ResidualAttentionBlock", Block)
    model = p.load()
    return outputs(model, p), sum(isinstance(m, Block) for m in model.modules())


@idiom("replacing", VIT)
def a_vision_transformer_of_its_own(p):
    class Dense(p.clip.model.VisionTransformer):
        def forward(self, x, dense=False):
            x = self.conv1(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_embedding + torch.zeros(len(x), 1, x.shape[-1]), x], 1)
            x = self.ln_pre(x + self.positional_embedding).permute(1, 0, 2)
            x = self.ln_post(self.transformer(x).permute(1, 0, 2)) @ self.proj
            return x if dense else x[:, 0]

    visual = Dense(32, 8, 64, 2, 1, 64)
    visual.load_state_dict(p.model.visual.state_dict())
    p.model.visual = visual
    return outputs(p.model, p), visual(p.images, dense=True)


@idiom("replacing", RESNET)
def a_resnet_of_its_own(p):
    class Maps(p.clip.model.ModifiedResNet):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.layer5 = self._make_layer(128, 1, stride=2)

        def forward(self, x):
            x = self.relu3(self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))))))
            maps = [self.avgpool(x)]
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
                maps.append(stage(maps[-1]))
            return maps

    torch.manual_seed(0)
    visual = Maps([1, 2, 1, 1], 64, 8, 64, 16)
    report = visual.load_state_dict(p.model.visual.state_dict(), strict=False)
    return visual.eval()(p.images), report.missing_keys, report.unexpected_keys, visual._inplanes


@idiom("replacing")
def a_clip_of_its_own(p):
    class Custom(p.clip.model.CLIP):
        def __init__(self, *args):
            self.calls = []
            super().__init__(*args)
            self.extra = nn.Linear(64, 4)

        def build_attention_mask(self):
            return super().build_attention_mask() * 2

        def initialize_parameters(self):
            super().initialize_parameters()
            nn.init.ones_(self.text_projection)

        def encode_text(self, text):
            return self.extra(super().encode_text(text))

    torch.manual_seed(0)
    vit = "proj" in p.model.visual._parameters
    sizes = (64, 32, 2, 64, 8) if vit else (64, 64, (1, 2, 1, 1), 16, None)
    model = Custom(*sizes, 77, 49_408, 64, 1, 2)
    return model.state_dict(), model.encode_text(p.texts), model.transformer.resblocks[0].attn_mask


@idiom("replacing")
def unpooled_texts(p):
    class Sequence(p.clip.model.CLIP):
        def encode_text(self, text):
            x = self.token_embedding(text).type(self.dtype) + self.positional_embedding.type(self.dtype)
            x = self.ln_final(self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)).type(self.dtype)
            return x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection, x

    p.model.__class__ = Sequence
    return p.model.encode_text(p.texts)


# --- hooks ------------------------------------------------------------------------------------------------------------


@idiom("hooks")
def every_module(p):
    """Order of calls, inputs and outputs of all of them."""
    with recorded(dict(p.model.named_modules())) as seen:
        p.model(p.images, p.texts)
    return list(seen), [output if isinstance(output, Tensor) else None for [(_, output), *_] in seen.values()]


@idiom("hooks")
def encodings_of_all_columns(p):
    """DALLE2-pytorch: what `ln_final` gives."""
    with recorded(
        {"ln_final": p.model.ln_final, "transformer": p.model.transformer, "t": p.model.token_embedding}
    ) as x:
        p.model.encode_text(p.texts)
    return [(args, output, output.shape) for [(args, output)] in x.values()]


@idiom("hooks", VIT)
def feature_maps_of_vit_blocks(p):
    """CLIPasso."""
    with recorded({str(i): b for i, b in enumerate(p.model.visual.transformer.resblocks)}) as seen:
        p.model.encode_image(p.images)
    return [output.permute(1, 0, 2) for [(_, output)] in seen.values()]


@idiom("hooks", RESNET)
def feature_maps_of_stages(p):
    visual = p.model.visual
    with recorded({n: getattr(visual, n) for n in ("layer1", "layer2", "layer3", "layer4", "attnpool", "bn1")}) as seen:
        p.model.encode_image(p.images)
    return seen


@idiom("hooks")
def mlp_and_its_layers(p):
    mlp = p.blocks[0].mlp
    with recorded({"mlp": mlp, "c_fc": mlp.c_fc, "gelu": mlp.gelu, "c_proj": mlp.c_proj}) as seen:
        p.model.encode_text(p.texts)
    return seen


@idiom("hooks")
def attention_calls(p):
    seen = []
    attn = p.blocks[0].attn
    attn.register_forward_hook(lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True)
    p.model.encode_text(p.texts)
    return seen


@idiom("hooks")
def attention_weights_asked_for_in_a_hook(p):
    seen = []

    def ask(module, args, kwargs):
        return args, kwargs | {"need_weights": True, "average_attn_weights": False}

    for block in p.blocks:
        block.attn.register_forward_pre_hook(ask, with_kwargs=True)
        block.attn.register_forward_hook(lambda m, args, out: seen.append(out[1]))
    return p.model.encode_text(p.texts), seen


@idiom("hooks")
def changed_output(p):
    """Steering: a direction is added to a layer's output."""
    p.blocks[0].register_forward_hook(lambda m, args, out: out + 0.1)
    return p.model.encode_text(p.texts)


@idiom("hooks")
def changed_input(p):
    p.blocks[1].register_forward_pre_hook(lambda m, args: (args[0] * 1.1,))
    return p.model.encode_text(p.texts)


@idiom("hooks", VIT)
def gradients_of_a_vit_block(p):
    """Grad-CAM."""
    seen = {}
    block = p.model.visual.transformer.resblocks[-1].ln_1
    block.register_forward_hook(lambda m, args, out: seen.update(value=out))
    block.register_full_backward_hook(lambda m, given, out: seen.update(inputs=given, outputs=out))
    p.model(p.images, p.texts)[0][:, 0].sum().backward()
    return seen


@idiom("hooks", RESNET)
def gradients_of_the_last_stage(p):
    seen = {}

    def keep(module, args, output):
        seen["value"] = output
        output.register_hook(lambda grad: seen.update(grad=grad))

    p.model.visual.layer4.register_forward_hook(keep)
    p.model(p.images, p.texts)[0][:, 0].sum().backward()
    weights = seen["grad"].mean((2, 3), keepdim=True)
    return seen, F.relu((weights * seen["value"]).sum(1))


@idiom("hooks", RESNET)
def retained_gradients(p):
    seen = {}

    def keep(module, args, output):
        output.requires_grad_(True)
        output.retain_grad()
        seen["data"] = output

    p.model.requires_grad_(False)
    handle = p.model.visual.layer4.register_forward_hook(keep)
    p.model.encode_image(p.images.requires_grad_()).sum().backward()
    handle.remove()
    return seen["data"].grad, len(p.model.visual.layer4._forward_hooks)


@idiom("hooks")
def on_parameters(p):
    seen = []
    p.model.text_projection.register_hook(lambda grad: seen.append(grad) or grad * 0)
    losses(p.model, p).backward()
    return seen, p.model.text_projection.grad


@idiom("hooks")
def global_hooks(p):
    names = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: names.append(type(m).__name__))
    p.model(p.images, p.texts)
    handle.remove()
    return names


@idiom("hooks")
def on_state_dicts(p):
    p.model.register_state_dict_post_hook(lambda m, state, prefix, meta: state.update(extra=torch.ones(1)))
    p.model.register_load_state_dict_pre_hook(lambda m, state, *args: state.pop("extra", None))
    state = p.model.state_dict()
    return list(state), str(p.model.load_state_dict(state))


# --- prompts and adapters ---------------------------------------------------------------------------------------------


def contexts(p: Program, seed: int = 0, length: int = 4) -> nn.Parameter:
    torch.manual_seed(seed)
    return nn.Parameter(0.02 * torch.randn(length, 64))


@idiom("prompts and adapters")
def coop(p):
    m, ctx = p.model.requires_grad_(False), contexts(p)
    ids = p.clip.tokenize(["X X X X dog.", "X X X X traffic light."])
    optimizer = torch.optim.SGD([ctx], lr=0.1)
    for _ in range(3):
        embedding = m.token_embedding(ids).type(m.dtype)
        prompts = torch.cat([embedding[:, :1], ctx.expand(2, -1, -1), embedding[:, 5:]], dim=1)
        texts = F.normalize(encoded(m, prompts, ids))
        logits = m.logit_scale.exp() * F.normalize(m.encode_image(p.images)) @ texts.t()
        optimizer.zero_grad()
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
        optimizer.step()
    return ctx, ctx.grad, logits


@idiom("prompts and adapters")
def coop_with_class_positions(p):
    m, ctx = p.model, contexts(p)
    ids = p.clip.tokenize(["X X X X dog.", "X X X X cat."])
    lengths = [len(p.clip.simple_tokenizer.SimpleTokenizer().encode(n)) for n in ("dog", "cat")]
    embedding = m.token_embedding(ids)
    rows = []
    for row, n in zip(embedding, lengths, strict=True):
        rows.append(torch.cat([row[:1], ctx[:2], row[5 : 5 + n], ctx[2:], row[5 + n :]]))
    return encoded(m, torch.stack(rows), ids), lengths, m.ln_final.weight.shape[0], m.visual.output_dim


@idiom("prompts and adapters")
def cocoop(p):
    m, ctx = p.model.requires_grad_(False), contexts(p)
    meta = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 64))
    ids = p.clip.tokenize(["X X X X dog.", "X X X X cat."])
    embedding, features = m.token_embedding(ids), F.normalize(m.encode_image(p.images))
    logits = []
    for shift, feature in zip(meta(features), features, strict=True):
        prompts = torch.cat([embedding[:, :1], (ctx + shift).expand(2, -1, -1), embedding[:, 5:]], dim=1)
        logits.append(m.logit_scale.exp() * feature @ F.normalize(encoded(m, prompts, ids)).t())
    F.cross_entropy(torch.stack(logits), torch.tensor([0, 1])).backward()
    return logits, ctx.grad, [q.grad for q in meta.parameters()]


@idiom("prompts and adapters")
def tpt(p):
    """One step of entropy on views, then back to the start."""
    m, ctx = p.model.requires_grad_(False), contexts(p)
    start, ids = ctx.detach().clone(), p.clip.tokenize(["X X X X dog.", "X X X X cat."])
    views = torch.cat([p.images, p.images.flip(-1)])
    optimizer = torch.optim.AdamW([ctx], 5e-3)
    results = []
    for image in p.images:
        with torch.no_grad():
            ctx.copy_(start)
        embedding = m.token_embedding(ids)
        prompts = torch.cat([embedding[:, :1], ctx.expand(2, -1, -1), embedding[:, 5:]], dim=1)
        logits = m.logit_scale.exp() * F.normalize(m.encode_image(views)) @ F.normalize(encoded(m, prompts, ids)).t()
        optimizer.zero_grad()
        (-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()).backward()
        optimizer.step()
        results.append((ctx.detach().clone(), m.encode_image(image[None])))
    return results


@idiom("prompts and adapters")
def deep_text_prompts(p):
    """MaPLe, IVLP: tokens replaced before each block."""
    m, ctx = p.model.requires_grad_(False), contexts(p)
    x = (m.token_embedding(p.texts) + m.positional_embedding).permute(1, 0, 2)
    for block in m.transformer.resblocks:
        x = torch.cat([x[:1], ctx[:, None].expand(-1, x.shape[1], -1), x[5:]])
        x = block(x)
    x = m.ln_final(x.permute(1, 0, 2))
    features = x[torch.arange(len(x)), p.texts.argmax(-1)] @ m.text_projection
    features.sum().backward()
    return features, ctx.grad


@idiom("prompts and adapters", VIT)
def visual_prompt_tokens(p):
    """VPT: learned tokens behind the class token."""
    v, ctx = p.model.visual.requires_grad_(False), contexts(p)
    x = v.conv1(p.images).flatten(2).permute(0, 2, 1)
    x = torch.cat([v.class_embedding + torch.zeros(len(x), 1, 64), x], dim=1) + v.positional_embedding
    x = v.ln_pre(torch.cat([x[:, :1], ctx.expand(len(x), -1, -1), x[:, 1:]], dim=1)).permute(1, 0, 2)
    out = v.ln_post(v.transformer(x).permute(1, 0, 2)[:, 0, :]) @ v.proj
    out.sum().backward()
    return out, ctx.grad


@idiom("prompts and adapters")
def pixel_prompts(p):
    frame = nn.Parameter(torch.zeros_like(p.images[0]))
    p.model.requires_grad_(False).encode_image(p.images + frame).sum().backward()
    return frame.grad


@idiom("prompts and adapters")
def clip_adapter(p):
    torch.manual_seed(0)
    adapter = nn.Sequential(nn.Linear(64, 16, bias=False), nn.ReLU(), nn.Linear(16, 64, bias=False), nn.ReLU())
    for name, parameter in p.model.named_parameters():
        parameter.requires_grad_("adapter" in name)
    features = p.model.encode_image(p.images.type(p.model.dtype))
    features = 0.2 * adapter(features) + 0.8 * features
    logits = p.model.logit_scale.exp() * F.normalize(features) @ F.normalize(p.model.encode_text(p.texts)).t()
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    return logits, [q.grad for q in adapter.parameters()], [q.grad for q in p.model.parameters()]


@idiom("prompts and adapters")
def tip_adapter(p):
    with torch.no_grad():
        features = F.normalize(p.model.encode_image(p.images))
    adapter = nn.Linear(64, len(features), bias=False).to(p.model.dtype)
    adapter.weight = nn.Parameter(features)
    logits = ((-1) * (5.5 - 5.5 * adapter(features))).exp() @ torch.eye(2) + 100.0 * features @ features.T
    logits.sum().backward()
    return logits, adapter.weight.grad


@idiom("prompts and adapters")
def taskres(p):
    with torch.no_grad():
        base = F.normalize(p.model.encode_text(p.texts))
    residual = nn.Parameter(torch.zeros_like(base))
    logits = p.model.logit_scale.exp() * F.normalize(p.model.encode_image(p.images)) @ (base + 0.5 * residual).t()
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    return logits, residual.grad


@idiom("prompts and adapters")
def linear_probe_then_fine_tuning(p):
    """LP-FT: a head on frozen features, then all of it."""
    torch.manual_seed(0)
    net = nn.Sequential(p.model.visual, nn.Linear(64, 2))
    target = torch.tensor([0, 1])
    for parameter in net[0].parameters():
        parameter.requires_grad = False
    first = trained(net, p, loss=lambda n: F.cross_entropy(n(p.images), target))["state"]
    for parameter in net[0].parameters():
        parameter.requires_grad = True
    return {k: v.clone() for k, v in first.items()}, trained(
        net, p, loss=lambda n: F.cross_entropy(n(p.images), target)
    )


@idiom("prompts and adapters")
def residual_masks_on_weights(p):
    """R-AMT: a mask of each weight, by parametrization."""

    class Mask(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.scores = nn.Parameter(torch.full_like(weight, 0.01))

        def forward(self, weight):
            return weight * (1 + self.scores)

    p.model.requires_grad_(False)
    for block in p.blocks:
        parametrize.register_parametrization(block.attn, "in_proj_weight", Mask(block.attn.in_proj_weight))
        parametrize.register_parametrization(block.attn.out_proj, "weight", Mask(block.attn.out_proj.weight))
    return trained(p.model, p), parametrize.is_parametrized(p.blocks[0].attn)


# --- attention and dense features -------------------------------------------------------------------------------------


@idiom("attention and dense features")
def weights_of_a_block(p):
    block = p.blocks[0]
    x = block.ln_1(torch.ones(5, 2, 64) * torch.arange(5.0)[:, None, None])
    average = block.attn(x, x, x, need_weights=True)
    heads = block.attn(x, x, x, need_weights=True, average_attn_weights=False, attn_mask=block.attn_mask[:5, :5])
    return average, heads


@idiom("attention and dense features")
def attention_of_the_library(p):
    block = p.blocks[0]
    x, a = torch.randn(5, 2, 64, generator=torch.Generator().manual_seed(0)), block.attn
    return F.multi_head_attention_forward(
        x, x, x, 64, a.num_heads, a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0, a.out_proj.weight,
        a.out_proj.bias, training=False, need_weights=True
    )  # fmt: skip


@idiom("attention and dense features")
def boolean_and_padding_masks(p):
    attn = p.blocks[0].attn
    x = torch.ones(5, 2, 64)
    causal = torch.ones(5, 5).triu(1).bool()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    return attn(x, x, x, attn_mask=causal), attn(x, x, x, key_padding_mask=padding)


@idiom("attention and dense features")
def settings_of_attention(p):
    a = p.blocks[0].attn
    names = ("embed_dim", "num_heads", "head_dim", "dropout", "batch_first", "kdim", "_qkv_same_embed_dim", "bias_k")
    return [getattr(a, n) for n in names], type(a) is nn.MultiheadAttention, a.in_proj_weight.shape


@idiom("attention and dense features", VIT)
def maskclip_of_a_vit(p):
    v = p.model.visual
    x = v.conv1(p.images).flatten(2).permute(0, 2, 1)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
    x = v.ln_pre(x).permute(1, 0, 2)
    *blocks, last = v.transformer.resblocks
    for block in blocks:
        x = block(x)
    values = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, dim=-1)[2]
    x = x + last.attn.out_proj(values)
    x = x + last.mlp(last.ln_2(x))
    return v.ln_post(x.permute(1, 0, 2))[:, 1:] @ v.proj


@idiom("attention and dense features", RESNET)
def maskclip_of_a_resnet(p):
    v, pool = p.model.visual, p.model.visual.attnpool
    v.attnpool = nn.Identity()
    x = v(p.images)
    values = F.conv2d(x, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
    return F.conv2d(values, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias), pool(x)


@idiom("attention and dense features", VIT)
def relevance_of_patches(p):
    """Transformer-MM-explainability: probabilities kept by a block's own attention, with gradients."""
    probabilities = []

    def attention(self, x):
        length, batch, width = x.shape
        q, k, v = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (y.reshape(length, batch, self.attn.num_heads, -1).permute(1, 2, 0, 3) for y in (q, k, v))
        weights = (q @ k.transpose(-2, -1) / self.attn.head_dim**0.5).softmax(-1)
        weights.retain_grad()
        probabilities.append(weights)
        return self.attn.out_proj((weights @ v).permute(2, 0, 1, 3).reshape(length, batch, width))

    for block in p.model.visual.transformer.resblocks:
        block.attention = types.MethodType(attention, block)
    p.model(p.images, p.texts)[0][:, 0].sum().backward()
    relevance = torch.eye(17).expand(2, -1, -1)
    for weights in probabilities:
        cam = (weights.grad * weights).clamp(min=0).mean(1)
        relevance = relevance + cam @ relevance
    return relevance[:, 0, 1:]


@idiom("attention and dense features", VIT)
def attention_rollout(p):
    with recorded({str(i): b.ln_1 for i, b in enumerate(p.model.visual.transformer.resblocks)}) as seen:
        p.model.encode_image(p.images)
    rollout = torch.eye(17)
    for block, [(_, x)] in zip(p.model.visual.transformer.resblocks, seen.values(), strict=True):
        weights = block.attn(x, x, x)[1]
        rollout = (weights + torch.eye(17)) / 2 @ rollout
    return rollout


@idiom("attention and dense features", VIT)
def keys_of_the_last_block(p):
    with recorded({"x": p.model.visual.transformer.resblocks[-1].ln_1}) as seen:
        p.model.encode_image(p.images)
    attn, x = p.model.visual.transformer.resblocks[-1].attn, seen["x"][0][1]
    width = attn.embed_dim
    return F.linear(x, attn.in_proj_weight[width : 2 * width], attn.in_proj_bias[width : 2 * width])


@idiom("attention and dense features", VIT)
def clipseg_activations(p):
    v, kept_ = p.model.visual, []
    x = F.conv2d(p.images, v.conv1.weight, bias=v.conv1.bias, stride=v.conv1.stride, dilation=v.conv1.dilation)
    x = x.reshape(*x.shape[:2], -1).permute(0, 2, 1)
    x = torch.cat([v.class_embedding.to(x.dtype) + torch.zeros(x.shape[0], 1, x.shape[-1]), x], dim=1)
    x = v.ln_pre(x + v.positional_embedding.to(x.dtype)).permute(1, 0, 2)
    for block in v.transformer.resblocks:
        x_, weights = block.attn(block.ln_1(x), block.ln_1(x), block.ln_1(x))
        x = x + x_
        x = x + block.mlp(block.ln_2(x))
        kept_ += [x, weights]
    return v.ln_post(x.permute(1, 0, 2)[:, 0, :]) @ v.proj, kept_


@idiom("attention and dense features", VIT)
def grid_of_patches(p):
    """point-e."""
    v = p.model.visual
    x = v.conv1(p.images.to(p.model.dtype))
    x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
    start = v.class_embedding.to(x.dtype) + torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
    x = v.ln_pre(torch.cat([start, x], dim=1) + v.positional_embedding.to(x.dtype))
    return v.transformer(x.permute(1, 0, 2)).permute(1, 2, 0)[..., 1:].contiguous()


@idiom("attention and dense features")
def text_states_for_generation(p):
    """Stable diffusion's way: all columns of the layer before the last."""
    x = p.model.token_embedding(p.texts) + p.model.positional_embedding
    x = x.permute(1, 0, 2)
    for block in p.blocks[:-1]:
        x = checkpoint(block, x, use_reentrant=False)
    return p.model.ln_final(x.permute(1, 0, 2))


@idiom("attention and dense features", RESNET)
def spatial_features_of_embodied_clip(p):
    v, seen = p.model.visual, []
    v.attnpool.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    v(p.images)
    pooled = F.adaptive_avg_pool2d(seen[0], 1)
    return seen, pooled.flatten(1), nn.Sequential(v.attnpool, nn.Flatten())(seen[0])


# --- averaging --------------------------------------------------------------------------------------------------------


@idiom("averaging")
def uniform_soup(p):
    members = []
    for seed in range(3):
        model = p.load()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        members.append(model.state_dict())
    soup = {k: sum(m[k].clone() * (1.0 / 3) for m in members) for k in members[0]}
    return str(p.model.load_state_dict(soup)), outputs(p.model, p)


@idiom("averaging")
def wise_ft(p):
    zero, tuned = p.load().state_dict(), p.model
    trained(tuned, p)
    theta = {k: 0.5 * zero[k] + 0.5 * tuned.state_dict()[k] for k in zero}
    return str(tuned.load_state_dict(theta)), outputs(tuned, p)


@idiom("averaging")
def task_vectors(p):
    base = {k: v.clone() for k, v in p.model.state_dict().items()}
    trained(p.model, p)
    vector = {k: v - base[k] for k, v in p.model.state_dict().items() if v.is_floating_point()}
    p.model.load_state_dict({k: base[k] - 0.4 * vector.get(k, 0) for k in base}, strict=False)
    return vector, outputs(p.model, p)


@idiom("averaging")
def stochastic_weight_averaging(p):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

    averages = [AveragedModel(p.model), AveragedModel(p.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))]
    for _ in range(2):
        trained(p.model, p, steps=1)
        for average in averages:
            average.update_parameters(p.model)
    encoder = AveragedModel(p.model.visual)
    update_bn([p.images], encoder)
    return [a.state_dict() for a in averages], averages[0](p.images, p.texts), encoder.state_dict()


@idiom("averaging")
def lookahead_over_parameters(p):
    slow = [q.detach().clone() for q in p.model.parameters()]
    trained(p.model, p)
    with torch.no_grad():
        for q, s in zip(p.model.parameters(), slow, strict=True):
            q.copy_(s + 0.5 * (q - s))
    return p.model.state_dict()


@idiom("averaging")
def distance_of_two_models(p):
    other = p.load()
    trained(other, p)
    pairs = zip(p.model.named_parameters(), other.named_parameters(), strict=True)
    return {n: (a - b).norm() for (n, a), (_, b) in pairs}


# --- saving -----------------------------------------------------------------------------------------------------------


@idiom("saving")
def state_dict_through_load(p):
    trained(p.model, p)
    torch.save(p.model.state_dict(), p.folder / "tuned.pt")
    return p.clip.load(str(p.folder / "tuned.pt"), "cpu")[0].state_dict()


@idiom("saving")
def checkpoint_with_optimizer(p):
    optimizer = torch.optim.AdamW(p.model.parameters(), 1e-3)
    losses(p.model, p).backward()
    optimizer.step()
    torch.save({"model": p.model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, p.folder / "c.pt")
    content = torch.load(p.folder / "c.pt")
    other = p.load()
    other.load_state_dict(content["model"])
    second = torch.optim.AdamW(other.parameters(), 1e-3)
    second.load_state_dict(content["optimizer"])
    losses(other, p).backward()
    second.step()
    return other.state_dict(), content["optimizer"]["state"]


@idiom("saving")
def whole_model(p):
    trained(p.model, p)
    torch.save(p.model, p.folder / "whole.pt")
    return outputs(torch.load(p.folder / "whole.pt", weights_only=False), p)


@idiom("saving")
def image_encoder_alone(p):
    """wise-ft and patching pickle their own wrapper around a model without its text tower."""
    del p.model.transformer
    wrapper = nn.Sequential(p.model.visual, nn.Linear(64, 2))
    with (p.folder / "encoder.pkl").open("wb") as file:
        pickle.dump(wrapper.cpu(), file)
    with (p.folder / "encoder.pkl").open("rb") as file:
        return pickle.load(file)[0](p.images)


@idiom("saving")
def deep_copies(p):
    twin = copy.deepcopy(p.model)
    trained(p.model, p)
    return outputs(twin, p), outputs(p.model, p), copy.deepcopy(p.blocks[0])(torch.ones(5, 1, 64))


@idiom("saving")
def shallow_copy(p):
    twin = copy.copy(p.model)
    return twin.visual is p.model.visual, outputs(twin, p)


@idiom("saving")
def partial_load(p):
    state = {k: v * 2 for k, v in p.model.state_dict().items() if k.startswith("visual.") or "ln_final" in k}
    report = p.model.load_state_dict(state, strict=False)
    return report.missing_keys, report.unexpected_keys, outputs(p.model, p)


@idiom("saving")
def strict_load_refuses(p):
    state = dict(p.model.state_dict())
    del state["ln_final.weight"]
    state["extra"] = torch.zeros(2)
    state["text_projection"] = torch.zeros(3, 3)
    try:
        p.model.load_state_dict(state)
    except RuntimeError as error:
        return str(error)


@idiom("saving", RESNET)
def without_counts(p):
    state = {k: v for k, v in p.model.state_dict().items() if "num_batches_tracked" not in k}
    return str(p.model.load_state_dict(state)), p.model.state_dict()


@idiom("saving")
def prefix_of_a_wrapper(p):
    wrapped = nn.DataParallel(p.model)
    state = {k.removeprefix("module."): v for k, v in wrapped.state_dict().items()}
    return list(wrapped.state_dict()), str(p.load().load_state_dict(state)), wrapped(p.images, p.texts)


@idiom("saving")
def bytes_of_a_state_dict(p):
    buffer = io.BytesIO()
    torch.save(OrderedDict((k, v.half()) for k, v in p.model.state_dict().items()), buffer)
    buffer.seek(0)
    return str(p.model.load_state_dict(torch.load(buffer))), p.model.state_dict()


@idiom("saving")
def safetensors(p):
    from safetensors.torch import load_file, load_model, save_file, save_model

    save_file(p.model.state_dict(), p.folder / "m.safetensors")
    save_model(p.model, p.folder / "n.safetensors")
    other = p.load()
    missing, unexpected = load_model(other, p.folder / "n.safetensors")
    return load_file(p.folder / "m.safetensors"), sorted(missing), unexpected, other.state_dict()


@idiom("saving")
def built_from_a_state_dict(p):
    """CoOp's way to load: the archive's state dict into build_model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.load(str(p.archive), map_location="cpu").eval()
    model = p.clip.clip.build_model(script.state_dict())
    return model.state_dict(), model.training, model.float().encode_text(p.texts)


@idiom("saving")
def assigned_load(p):
    state = {k: v.double() if v.is_floating_point() else v for k, v in p.model.state_dict().items()}
    return str(p.model.load_state_dict(state, assign=True)), p.model.state_dict()


@idiom("saving")
def shared_memory(p):
    p.model.share_memory()
    return [q.is_shared() for q in p.model.parameters()], outputs(p.model, p)


@idiom("saving")
def distributed_checkpoint_names(p):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    state = get_model_state_dict(p.model)
    return list(state), str(set_model_state_dict(p.model, state))


# --- tracing and compiling --------------------------------------------------------------------------------------------


def quietly(function: Callable, *args, **kwargs) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@idiom("tracing and compiling")
def traced_images(p):
    traced = quietly(torch.jit.trace, p.model.visual, p.images[:1])
    return traced(p.images)


@idiom("tracing and compiling")
def traced_with_one_text_run_on_three(p):
    traced = quietly(torch.jit.trace_module, p.model, {"encode_text": p.texts[:1]})
    return traced.encode_text(p.texts), traced.encode_text(p.texts[1:])


@idiom("tracing and compiling")
def traced_model_saved_and_loaded(p):
    with torch.no_grad():
        traced = quietly(torch.jit.trace_module, p.model, {"forward": (p.images, p.texts), "encode_image": p.images})
    quietly(torch.jit.save, traced, str(p.folder / "traced.pt"))
    again = quietly(torch.jit.load, str(p.folder / "traced.pt"))
    return again(p.images, p.texts), again.encode_image(p.images), again.state_dict()


@idiom("tracing and compiling")
def scripted_parts(p):
    """karlo, after it has put a norm that can be scripted in place."""

    class Norm(nn.LayerNorm):
        def forward(self, x: torch.Tensor):
            y = F.layer_norm(x.type(torch.float32), self.normalized_shape, self.weight, self.bias, self.eps)
            return y.type(x.dtype)

    p.patch.setattr(p.clip.model, "LayerNorm", Norm)
    model = p.load()
    text = quietly(torch.jit.script, model.transformer)
    return text(torch.ones(5, 2, 64)), quietly(torch.jit.script, model.ln_final)(torch.ones(2, 64))


@idiom("tracing and compiling", slow=True)
def exported(p):
    program = torch.export.export(p.model, (p.images, p.texts))
    return program.module()(p.images, p.texts)


@idiom("tracing and compiling", slow=True)
def exported_with_any_batch(p):
    class Texts(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model.encode_text(ids)

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Texts(p.model), (p.texts,), dynamic_shapes=({0: batch},))
    return program.module()(p.texts), program.module()(p.texts.repeat(3, 1))


@idiom("tracing and compiling", slow=True)
def compiled(p):
    torch._dynamo.reset()
    whole = torch.compile(p.model, backend="eager", fullgraph=True)
    part = torch.compile(p.model.visual, backend="aot_eager")
    return whole(p.images, p.texts), part(p.images), list(whole.state_dict())


@idiom("tracing and compiling")
def symbolic_trace(p):
    graph = torch.fx.symbolic_trace(p.model.transformer.resblocks[0].mlp)
    return graph(torch.ones(5, 2, 64)), [str(n.target) for n in graph.graph.nodes]


@idiom("tracing and compiling", RESNET)
def features_by_torchvision(p):
    """fx, with the attention pooling as a leaf."""
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(
        p.model.visual, ["layer2", "layer4"], tracer_kwargs={"leaf_modules": [p.clip.model.AttentionPool2d]}
    )
    return extractor(p.images)


@idiom("tracing and compiling")
def functional_call_and_vmap(p):
    from torch.func import functional_call, grad, vmap

    parameters = {k: v.detach() for k, v in p.model.visual.named_parameters()}
    buffers = dict(p.model.visual.named_buffers())

    def loss(parameters, image):
        return functional_call(p.model.visual, (parameters, buffers), (image[None],)).square().sum()

    return grad(loss)(parameters, p.images[0]), vmap(loss, in_dims=(None, 0))(parameters, p.images)


@idiom("tracing and compiling")
def traced_by_proxies(p):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda images: p.model.encode_image(images))(p.images)(p.images)


@idiom("tracing and compiling")
def counted_operations(p):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        p.model(p.images, p.texts)
    return counter.get_total_flops()


@idiom("tracing and compiling")
def checkpointed_blocks(p):
    x = torch.ones(77, 2, 64, requires_grad=True)
    out = checkpoint_sequential(p.blocks, 2, x, use_reentrant=False)
    out.sum().backward()
    return out, x.grad, {n: q.grad for n, q in p.blocks.named_parameters()}


@idiom("tracing and compiling")
def the_file_s_own_script(p):
    script, _ = quietly(p.clip.load, str(p.archive), device="cpu", jit=True)
    return script.encode_text(p.texts), script.encode_image(p.images), script(p.images, p.texts)


# --- wrappers ---------------------------------------------------------------------------------------------------------


@idiom("wrappers")
def data_parallel(p):
    model = nn.DataParallel(p.model)
    return trained(model, p), model.module is p.model


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@idiom("wrappers")
def distributed_data_parallel(p):
    with one_process(p.folder):
        model = nn.parallel.DistributedDataParallel(p.model)
        return trained(model, p)


@idiom("wrappers")
def fully_sharded(p):
    """FSDP2: blocks, then all."""
    from torch.distributed.fsdp import fully_shard

    with one_process(p.folder):
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        tower = p.model.transformer
        for block in p.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(tower, mesh=mesh)
        optimizer = torch.optim.SGD(tower.parameters(), lr=0.01)
        out = tower(torch.ones(77, 2, 64))
        out.square().sum().backward()
        optimizer.step()
        return out, {n: q.full_tensor() for n, q in tower.named_parameters()}


@idiom("wrappers")
def wrapped_by_policy(p):
    """FSDP1's policies look for classes."""
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    classes = {p.clip.model.ResidualAttentionBlock}
    return [
        n
        for n, m in p.model.named_modules()
        if transformer_auto_wrap_policy(m, recurse=False, nonwrapped_numel=0, transformer_layer_cls=classes)
    ]


@idiom("wrappers", VIT)
def dynamically_quantized(p):
    quantized = quietly(torch.ao.quantization.quantize_dynamic, p.model, {nn.Linear}, dtype=torch.qint8)
    return [type(m).__name__ for m in quantized.modules()], quantized.visual(p.images)


@idiom("wrappers")
def weight_norm(p):
    from torch.nn.utils.parametrizations import weight_norm as norm

    for block in p.blocks:
        norm(block.mlp.c_fc)
        quietly(nn.utils.weight_norm, block.mlp.c_proj)
    return trained(p.model, p)


@idiom("wrappers")
def spectral_norm(p):
    torch.manual_seed(0)
    nn.utils.parametrizations.spectral_norm(p.blocks[0].mlp.c_fc)
    return trained(p.model.train(), p)


@idiom("wrappers")
def pruned(p):
    for module in p.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.3)
    prune.l1_unstructured(p.blocks[0].attn, "in_proj_weight", 0.3)
    result = trained(p.model, p, steps=1)
    for module in p.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.remove(module, "weight")
    return result, p.model.state_dict()


@idiom("wrappers", RESNET)
def fused_convolutions(p):
    v = p.model.visual
    for i in (1, 2, 3):
        fused = nn.utils.fusion.fuse_conv_bn_eval(getattr(v, f"conv{i}"), getattr(v, f"bn{i}"))
        setattr(v, f"conv{i}", fused)
        setattr(v, f"bn{i}", nn.Identity())
    return v(p.images)


@idiom("wrappers")
def trained_under_autocast(p):
    p.model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses(p.model, p)
    loss.backward()
    return loss, {n: q.grad for n, q in p.model.named_parameters()}


@idiom("wrappers")
def deterministic_and_anomalies(p):
    with torch.autograd.detect_anomaly(check_nan=True):
        losses(p.model, p).backward()
    return p.model.text_projection.grad


# --- devices and dtypes -----------------------------------------------------------------------------------------------


@idiom("devices and dtypes")
def everything_moves(p):
    class Holder(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.encoder, self.scale, self.projection = m.visual, m.logit_scale, m.text_projection

    holder = Holder(p.model)
    p.model.to("meta")
    return [str(q.device) for q in p.model.parameters()], [str(q.device) for q in holder.to("meta").parameters()]


@idiom("devices and dtypes")
def shapes_on_the_meta_device(p):
    p.model.to("meta")
    image, text = p.model(p.images.to("meta"), p.texts.to("meta"))
    return image.shape, text.shape, str(image.device)


@idiom("devices and dtypes")
def made_empty_and_filled(p):
    state = {k: v.clone() for k, v in p.model.state_dict().items()}
    model = p.model.to("meta").to_empty(device="cpu")
    return str(model.load_state_dict(state)), outputs(model, p)


@idiom("devices and dtypes")
def built_on_the_meta_device(p):
    with torch.device("meta"):
        block = p.clip.model.ResidualAttentionBlock(64, 1)
    block.load_state_dict(p.blocks[0].state_dict(), assign=True)
    return block(torch.ones(5, 2, 64))


@idiom("devices and dtypes")
def the_mix(p):
    p.clip.model.convert_weights(p.model)
    kinds = {n: q.dtype for n, q in p.model.named_parameters()}
    return kinds, p.model.dtype, outputs(p.model, p), p.model.float().state_dict()


@idiom("devices and dtypes")
def mix_of_a_program_s_module(p):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Parameter(torch.ones(2, 2))
            self.text_projection = None
            self.conv, self.norm = nn.Conv1d(2, 2, 1), nn.LayerNorm(2)
            self.attn = nn.MultiheadAttention(4, 2, kdim=2, vdim=2, add_bias_kv=True)
            self.extra = nn.Linear(2, 2)
            self.extra.lora = nn.Parameter(torch.ones(2))

    torch.manual_seed(0)
    net = Net()
    p.clip.model.convert_weights(net)
    return net.state_dict()


@idiom("devices and dtypes")
def half_and_bfloat16_parameters(p):
    state = copy.deepcopy(p.model).half().state_dict()
    return state, copy.deepcopy(p.model).to(torch.bfloat16).state_dict(), copy.deepcopy(p.model).double().dtype


@idiom("devices and dtypes")
def dtype_follows_conv1(p):
    p.model.visual.conv1.half()
    return p.model.dtype, p.model.encode_image.__name__


@idiom("devices and dtypes")
def channels_last(p):
    model = p.model.to(memory_format=torch.channels_last)
    return model.visual(p.images.to(memory_format=torch.channels_last)).shape, model.visual.conv1.weight.stride()


@idiom("devices and dtypes")
def train_and_eval_reach_every_module(p):
    return [m.training for m in p.model.train().modules()], [m.training for m in p.model.eval().modules()]


# --- the package ------------------------------------------------------------------------------------------------------


@idiom("the package", VIT)
def names_of_clip_clip(p):
    c = p.clip.clip
    image = c._convert_image_to_rgb(Image.radial_gradient("L"))
    return c._MODELS, c.available_models(), c.BICUBIC, image.mode, c._transform(32)(image), callable(c._download)


@idiom("the package", VIT)
def names_of_the_tokenizer(p):
    t = p.clip.simple_tokenizer
    lines = gzip.decompress(Path(t.default_bpe()).read_bytes()).decode().split("\n")
    word = t.get_pairs(("a", "b", "c</w>"))
    return lines[1:48895], t.basic_clean(" a &amp;amp; b "), t.whitespace_clean(" a  b "), word, t.bytes_to_unicode()


@idiom("the package", VIT)
def a_tokenizer_of_its_own(p):
    """karlo: padded ids and masks."""

    class Custom(p.clip.simple_tokenizer.SimpleTokenizer):
        def __init__(self):
            super().__init__(bpe_path=p.clip.simple_tokenizer.default_bpe())
            self.sot, self.eot = self.encoder["<|startoftext|>"], self.encoder["<|endoftext|>"]

        def padded(self, texts, length):
            rows = [[self.sot, *self.encode(text), self.eot][:length] for text in texts]
            return [row + [0] * (length - len(row)) for row in rows]

    return Custom().padded(["a photo of a dog", "cats' “paws” 12"], 10), Custom().decode([320, 1125, 49407])


@idiom("the package", VIT)
def a_word_of_several_tokens_decoded(p):
    t = p.clip.clip._tokenizer
    ids = p.clip.tokenize("a photographer's über-cat")[0]
    ids = ids[1 : ids.argmax()].tolist()
    return [t.decode([i]) for i in ids], t.encode("unbelievable"), t.bpe("unbelievable"), len(t.encoder)


@idiom("the package")
def an_untrained_model_of_a_file_s_sizes(p):
    """clipseg."""
    state = p.model.state_dict()
    torch.manual_seed(0)
    vit = "visual.proj" in state
    sizes = (32, 2, 64, 8) if vit else (64, (1, 2, 1, 1), 16, None)
    model = p.clip.model.CLIP(state["text_projection"].shape[1], *sizes, *state["positional_embedding"].shape[:1],
                              *state["token_embedding.weight"].shape, 1, 2)  # fmt: skip
    p.clip.model.convert_weights(model)
    return model.eval().state_dict()


@idiom("the package")
def seeds_after_loading(p):
    torch.manual_seed(0)
    head = nn.Linear(64, 3)
    return head(p.model.encode_image(p.images))


@idiom("the package")
def seeds_before_loading(p):
    torch.manual_seed(0)
    p.load()
    head = nn.Linear(64, 3)
    p.clip.clip.build_model(dict(p.model.state_dict()))
    return head.weight, torch.randn(20), torch.get_rng_state()


@idiom("the package")
def images_of_another_size_are_refused(p):
    side = p.model.visual.input_resolution + 32
    with pytest.raises(RuntimeError) as caught:
        p.model.encode_image(torch.zeros(1, 3, side, side))
    return isinstance(caught.value, RuntimeError)


@idiom("the package")
def texts_that_are_too_long_are_refused(p):
    with pytest.raises(RuntimeError):
        p.clip.tokenize("word " * 90)
    return p.clip.tokenize("word " * 90, truncate=True).long()
