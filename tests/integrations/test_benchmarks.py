"""What is timed on other runtimes is the same computation."""

import pytest
import torch
from support.originals import inputs, original_model

from benchmarks import runtime
from benchmarks.export import relative
from benchmarks.peers import EXACT, OPTIMIZED

pytestmark = pytest.mark.integration


@torch.no_grad()
def test_runtimes_embed_alike(tmp_path):
    clips, _ = runtime.build("tiny ResNet", tmp_path)
    assert list(clips) == [EXACT, OPTIMIZED, *runtime.NAMES.values()]
    pixels, ids = inputs(original_model("tiny ResNet"))
    for peer, clip in clips.items():
        assert relative(clip.encode_image(pixels), clips[EXACT].encode_image(pixels)) < 1e-5, peer
        assert relative(clip.encode_text(ids), clips[EXACT].encode_text(ids)) < 1e-5, peer
