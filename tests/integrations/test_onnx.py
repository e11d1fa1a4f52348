"""Graphs of every model by every exporter, run at another batch than they were traced with."""

import pytest
import torch
from support.originals import inputs, original_model

from hf_clip import HFCLIPModel

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning"),
]


class Features(torch.nn.Module):
    def __init__(self, model: HFCLIPModel, modality: str):
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model, f"get_{self.modality}_features")(inputs).pooler_output


@torch.no_grad()
@pytest.mark.parametrize("optimized", [False, True], ids=["exact", "optimized"])
@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_another_batch_than_traced(repositories, family, exporter, modality, optimized, tmp_path):
    from onnx.reference import ReferenceEvaluator

    model = HFCLIPModel.from_pretrained(repositories[family]).eval()
    pixels, ids = inputs(original_model(family), images=5, texts=5)
    values = pixels if modality == "image" else ids
    expected = Features(model, modality)(values)
    if optimized:
        model.optimize_for_inference()
    axes = (
        {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}
        if exporter == "dynamo"
        else {"dynamo": False, "dynamic_axes": {"inputs": {0: "batch"}}, "opset_version": 17}
    )
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(Features(model, modality), (values[:2],), file, input_names=["inputs"], **axes)
    [actual] = ReferenceEvaluator(file).run(None, {"inputs": values.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-5)
