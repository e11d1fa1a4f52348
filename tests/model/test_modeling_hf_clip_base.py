import pytest
import torch
from transformers import PreTrainedConfig

from hf_clip import HFCLIPModel
from hf_clip.model.modeling_hf_clip_base import HFCLIPProjection, check_image_size, interpolate_positions


def test_projection_has_the_bits_of_the_original_product():
    torch.manual_seed(0)
    projection = HFCLIPProjection(768, 512)
    x = torch.randn(3, 768)
    assert torch.equal(projection(x), x @ projection.weight.detach().T.contiguous())


def test_loaded_weights_are_aligned(repositories, family, tmp_path):
    """An fp32 file is mapped, and its tensors begin anywhere: BLAS would give other bits."""
    model = HFCLIPModel.from_pretrained(repositories[family])
    model.save_pretrained(tmp_path)
    (again, report) = HFCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for loaded in (model, again):
        tensors = dict([*loaded.named_parameters(), *loaded.named_buffers()])
        assert [name for name, tensor in tensors.items() if tensor.data_ptr() % 64] == []


def test_interpolation_to_the_same_grid_is_the_identity():
    positions = torch.randn(1 + 7 * 7, 16)
    assert torch.allclose(interpolate_positions(positions, (7, 7)), positions, atol=1e-6)


def test_interpolation_keeps_the_class_position_and_the_axes():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    positions = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, columns], -1).flatten(0, 1)]).half()
    resized = interpolate_positions(positions, (16, 4))
    assert resized.dtype == torch.float16
    assert resized[0].tolist() == [9, 9]
    grid = resized[1:].unflatten(0, (16, 4))
    assert (grid[:, :, 0].diff(dim=0) > 0).all()
    assert (grid[:, :, 1].diff(dim=1) > 0).all()
    assert grid[5, :, 0].unique().numel() == 1


def test_image_size_is_checked():
    config = PreTrainedConfig(image_size=224)
    check_image_size(224, 224, config)
    with pytest.raises(ValueError, match="images are 224x288, the model reads 224x224"):
        check_image_size(224, 288, config)
