"""Grad-CAM beside captum's and pytorch-grad-cam's on the same model: the same map."""

import pytest
import torch
from support.originals import inputs, original_model
from support.plain import load, plain_text_embeds
from torch import nn

from hf_clip.localization.relevance import METHODS

pytestmark = pytest.mark.integration
TEXTS = ["a cat", "two dogs", "a diagram"]


class Scorer(nn.Module):
    """Score images (B, 3, H, W) against directions: what those packages explain."""

    def __init__(self, model: nn.Module, directions: torch.Tensor):
        super().__init__()
        self.model, self.directions = model, directions

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.model.encode_image(pixel_values), dim=-1) @ self.directions.T


@pytest.fixture(scope="module")
def case(repositories):
    clip = load(repositories["tiny ResNet"])
    directions = plain_text_embeds(clip, TEXTS)
    pixels = inputs(original_model("tiny ResNet"))[0][:1]
    return Scorer(clip.model, directions).eval(), pixels, METHODS["gradient"](clip.model, pixels, directions)


def test_captum_gives_the_same_map(case):
    captum = pytest.importorskip("captum.attr")
    scorer, pixels, maps = case
    explain = captum.LayerGradCam(scorer, scorer.model.vision_model.stages[-1])
    for place, map in enumerate(maps):
        theirs = explain.attribute(pixels, target=place, relu_attributions=True)[0, 0].detach()
        torch.testing.assert_close(map, theirs, rtol=1e-3, atol=1e-6)


def test_pytorch_grad_cam_gives_the_same_map_up_to_its_own_scale(case):
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    scorer, pixels, maps = case
    with grad_cam.GradCAM(scorer, [scorer.model.vision_model.stages[-1]]) as explain:
        for place, map in enumerate(maps):
            theirs = torch.from_numpy(explain(pixels, [targets.ClassifierOutputTarget(place)])[0])
            ours = nn.functional.interpolate(map[None, None], theirs.shape, mode="bilinear")[0, 0]
            correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
            assert correlation > 0.99 or map.max() == 0
