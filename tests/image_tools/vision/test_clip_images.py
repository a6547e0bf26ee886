"""CLIP's view of images: pixels as transformers prepares them, features as its model gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.vision.clip_images import CLIP_STD, ClipImages, load_clip_images
from renderers.errors import ShapeError
from tests.image_tools.vision.tiny_clip import tiny_clip, write_tiny_clip


@pytest.fixture(scope="module")
def clip():
    return ClipImages(tiny_clip())


def picture(height: int, width: int) -> torch.Tensor:
    """A picture of 8-bit colours, smooth with a sharp square."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    colours = torch.stack([rows / height, columns / width, (rows + columns) % 7 / 7], dim=-1)
    colours[height // 4 : height // 2, width // 4 : width // 2] = 1.0
    return (colours[None] * 255).round() / 255


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (50, 81), (77, 40), (20, 28)])
def test_pixels_are_those_of_the_stock_processor_but_for_its_rounding(clip, size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    image = picture(*size)
    bytes_ = (image[0].numpy() * 255).round().astype(np.uint8)
    stock = torch.as_tensor(processor(images=bytes_, return_tensors="pt").pixel_values)
    levels = (clip.preprocess(image) - stock).abs() * torch.tensor(CLIP_STD)[:, None, None] * 255
    assert clip.preprocess(image).shape == stock.shape
    assert float(levels.max()) < 1.5
    assert float(levels.mean()) < 0.5


def test_padding_keeps_what_the_cut_loses(clip):
    wide = torch.zeros(1, 16, 48, 3)
    wide[:, :, :4] = 1.0  # white at the left edge, which the middle square does not hold
    padded = ClipImages(clip.model, fit="pad")
    assert padded.preprocess(wide).shape == (1, 3, 32, 32)
    assert float(clip.preprocess(wide).max()) < 0.0
    assert float(padded.preprocess(wide)[..., 16, :3].min()) > 0.0
    square = picture(32, 32)
    assert torch.equal(padded.preprocess(square), clip.preprocess(square))


def test_features_are_the_model_s(clip):
    images = picture(40, 32)
    seen = clip.model(pixel_values=clip.preprocess(images), output_hidden_states=True)
    assert torch.equal(clip.pooled(images), seen.image_embeds)
    assert torch.equal(clip.hidden(images), seen.hidden_states[-2])
    assert torch.equal(clip.last_hidden(images), seen.last_hidden_state)
    assert clip.pooled(images).shape == (1, clip.pooled_width)
    assert clip.hidden(images).shape == (1, 17, clip.width)


def test_gradients_reach_the_images_and_no_weight(clip):
    images = picture(40, 32).requires_grad_()
    clip.hidden(images).square().sum().backward()
    assert float(images.grad.abs().sum()) > 0.0
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_a_batch_is_its_images_one_by_one(clip):
    images = torch.cat([picture(32, 32), 1.0 - picture(32, 32)])
    both = clip.features(images)
    for row in range(2):
        torch.testing.assert_close(both.hidden[row], clip.hidden(images[row : row + 1])[0])


def test_what_is_no_batch_of_images_is_refused(clip):
    with pytest.raises(ShapeError, match="images"):
        clip.pooled(torch.zeros(3, 32, 32))


def test_a_folder_loads_with_its_weights(clip, tmp_path):
    loaded = load_clip_images(write_tiny_clip(tmp_path), torch.device("cpu"))
    images = picture(32, 32)
    assert torch.equal(loaded.pooled(images), clip.pooled(images))
    assert (loaded.side, loaded.width, loaded.pooled_width) == (32, 32, 24)


def test_folders_that_hold_no_such_model_are_refused(tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(WeightsMissing, match="CLIP vision model"):
        load_clip_images(tmp_path / "absent", cpu)
    folder = write_tiny_clip(tmp_path / "clip")
    (folder / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')
    with pytest.raises(UnsupportedModel, match="holds a CLIPTextModel"):
        load_clip_images(folder, cpu)
    write_tiny_clip(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeWeights, match="pickled"):
        load_clip_images(folder, cpu)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsMissing, match="cannot be read"):
        load_clip_images(folder, cpu)
