"""Trainers of BootComp: what learns, what stays, and that recomputed activations change nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.tryon.bootcomp_configs import (
    CompositionTrainingConfig,
    DecompositionTrainingConfig,
)
from image_tools.tryon.bootcomp_training import (
    CompositionLoss,
    DecompositionLoss,
    DressedBatch,
    ProductBatch,
    train_composition,
    train_decomposition,
)
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.samples import Garment
from renderers.errors import ShapeError

CPU = torch.device("cpu")
STEPS = TuningConfig(steps=20, learning_rate=3e-3, save_every=20)


def product_batch(batch: int, generator: torch.Generator) -> ProductBatch:
    """Plain garments in front of white, and cut out."""
    colors = torch.rand(2, 1, 1, 3, generator=generator)
    products = torch.ones(2, 16, 16, 3)
    products[:, 4:12, 4:12] = colors
    return ProductBatch(products, colors.expand(2, 16, 16, 3), ("upper", "dress"))


def dressed_batch(batch: int, generator: torch.Generator) -> DressedBatch:
    """People in one or the other colour above and below."""
    colors = torch.rand(2, 2, 1, 1, 3, generator=generator)
    people = torch.full((2, 16, 16, 3), 0.7)
    people[:, :8, 4:12], people[:, 8:, 4:12] = colors[0], colors[1]
    garments = tuple(
        Garment(color.expand(2, 16, 16, 3), (name,) * 2, ("",) * 2)
        for color, name in zip(colors, ("upper", "pants"), strict=True)
    )
    return DressedBatch(people, ("a man", "a woman"), garments)


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    """A stock model, never changed."""
    return load_folder(tiny_pipelines["sd1"], CPU)


def denoiser_of(plain) -> TryOnDenoiser:
    """A decomposition network that starts as the model's denoiser."""
    return TryOnDenoiser(plain, copy.deepcopy(plain.unet), extra_channels=0, image_hw=(16, 16))


def gradients(module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def mean_loss(loss, batches: int = 3) -> float:
    """Over batches that training does not see."""
    with torch.no_grad():
        draws = [loss(k, torch.Generator().manual_seed(1000 + k)) for k in range(batches)]
    return float(torch.stack(draws).mean())


@pytest.mark.slow
def test_decomposition_learns_and_writes_a_stock_folder(plain, tmp_path):
    from diffusers import UNet2DConditionModel

    denoiser, config = denoiser_of(plain), DecompositionTrainingConfig(loop=STEPS)
    loss = DecompositionLoss(denoiser, product_batch, config)
    before = mean_loss(loss)
    result = train_decomposition(denoiser, product_batch, config, tmp_path, identity="colours")
    assert result.finished
    assert mean_loss(loss) < before
    read = UNet2DConditionModel.from_pretrained(result.files[-1])
    for name, value in denoiser.unet.state_dict().items():
        assert torch.equal(value, read.state_dict()[name])


@pytest.mark.slow
def test_composition_trains_the_encoder_alone(plain, tmp_path):
    encoder, config = copy.deepcopy(plain.unet), CompositionTrainingConfig(loop=STEPS)
    frozen = {name: value.clone() for name, value in plain.unet.state_dict().items()}
    loss = CompositionLoss(plain, encoder, dressed_batch, config)
    before = mean_loss(loss)
    result = train_composition(plain, encoder, dressed_batch, config, tmp_path, identity="colours")
    assert result.files == (tmp_path / "comp",)
    assert mean_loss(loss) < before
    assert all(torch.equal(v, frozen[n]) for n, v in plain.unet.state_dict().items())


def test_captions_of_batches_are_not_kept(plain):
    loss = CompositionLoss(
        plain, copy.deepcopy(plain.unet), dressed_batch, CompositionTrainingConfig()
    )
    plain._encoded.clear()
    for batch in range(2):
        loss(batch, torch.Generator().manual_seed(batch))
    assert not plain._encoded


def test_features_of_zeros_stand_for_no_garments(plain):
    """With all garments dropped the encoder gets no gradient, and the loss is the zero bank's."""
    encoder = copy.deepcopy(plain.unet).requires_grad_(True)
    config = CompositionTrainingConfig(dropout=1.0)
    loss = CompositionLoss(plain, encoder, dressed_batch, config)
    loss(0, torch.Generator().manual_seed(0)).backward()
    assert all(value.abs().max() == 0.0 for value in gradients(encoder).values())


@pytest.mark.parametrize("kind", ["decomposition", "composition"])
def test_recomputed_activations_give_the_same_gradients(plain, kind):
    """The pass over references and the one that reads them are each recomputed as they were."""
    found = []
    for recomputes in (False, True):
        trained = copy.deepcopy(plain.unet).requires_grad_(True).train()
        if kind == "decomposition":
            denoiser = TryOnDenoiser(plain, trained, extra_channels=0, image_hw=(16, 16))
            trained.requires_grad_(True).train()
            loss = DecompositionLoss(denoiser, product_batch, DecompositionTrainingConfig())
        else:
            config = CompositionTrainingConfig()
            loss = CompositionLoss(plain, trained, dressed_batch, config)
        with gradient_checkpointing([trained, plain.unet], recomputes):
            loss(0, torch.Generator().manual_seed(0)).backward()
        found.append(gradients(trained))
    assert set(found[0]) == set(found[1])
    for name, value in found[0].items():
        assert torch.allclose(found[1][name], value, atol=1e-6), name


def test_batches_whose_parts_do_not_fit_are_refused():
    images = torch.zeros(2, 16, 16, 3)
    with pytest.raises(ShapeError, match="2 products, 1 references and 2 categories"):
        ProductBatch(images, images[:1], ("upper", "dress"))
    with pytest.raises(ShapeError, match="2 people, 2 captions and 0 times"):
        DressedBatch(images, ("", ""), ())
    with pytest.raises(ValueError, match="dropout is 2"):
        DecompositionTrainingConfig(dropout=2)
