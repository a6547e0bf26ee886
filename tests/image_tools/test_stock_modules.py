"""Averages of weights and folders of modules, as trainers use them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from image_tools.diffusion.stock_modules import (
    WeightAverage,
    gradient_checkpointing,
    write_module,
)
from tests.image_tools.tiny_unets import tiny_unet


def test_an_average_follows_its_weights_at_the_decay_of_the_step():
    """Step n mixes with min(decay, (1 + n) / (10 + n))."""
    weight = nn.Parameter(torch.zeros(3))
    average = WeightAverage({"w": weight}, decay=0.5)
    expected = 0.0
    for step, value in enumerate((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0), start=1):
        with torch.no_grad():
            weight.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.parameters["w"].tolist() == pytest.approx([expected] * 3)
    average.apply()
    assert weight.tolist() == pytest.approx([expected] * 3)


def test_an_average_gets_no_gradient_and_no_optimizer_step():
    weight = nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": weight}, decay=0.9)
    own = average.parameters["w"]
    optimizer = torch.optim.AdamW([weight, own], lr=0.1, weight_decay=0.5)
    weight.square().sum().backward()
    optimizer.step()
    assert own.tolist() == [1.0, 1.0]
    assert weight.max() < 1.0


def test_a_module_is_written_whole_in_the_place_of_an_older_one(tmp_path):
    from diffusers import UNet2DConditionModel

    unet, folder = tiny_unet(), tmp_path / "unet"
    folder.mkdir()
    (folder / "stale.txt").write_text("of an older training")
    write_module(unet, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unet"]
    assert not (folder / "stale.txt").exists()
    read = UNet2DConditionModel.from_pretrained(folder, local_files_only=True)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)


def test_checkpointing_lasts_as_long_as_its_block_even_if_that_fails():
    unet = tiny_unet()
    with gradient_checkpointing([unet], wanted=False):
        assert not unet.is_gradient_checkpointing

    def fail() -> None:
        with gradient_checkpointing([unet], wanted=True):
            assert unet.is_gradient_checkpointing
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not unet.is_gradient_checkpointing
