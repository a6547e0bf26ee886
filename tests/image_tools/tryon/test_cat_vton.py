"""CatVTON: both halves against the denoiser called by hand, its files, and what is trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.loading import load_folder
from image_tools.errors import UnsupportedModel
from image_tools.personalization.denoising import draw_noisy
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.tryon.cat_vton import CAT_CHANNELS, CatVtonPrior
from image_tools.tryon.cat_vton_configs import CatVtonTrainingConfig
from image_tools.tryon.cat_vton_training import CatVtonLoss, train_cat_vton
from image_tools.tryon.cat_vton_weights import load_attention, self_attention, write_attention
from image_tools.tryon.dream import rectified
from image_tools.tryon.extend import TryOnDenoiser, widen_conv_in
from image_tools.tryon.samples import TryOnSample
from renderers.errors import StudioError
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_idm import SIZE, shaken

CPU = torch.device("cpu")
ROWS = 2
SD15 = {
    "sample_size": 64,
    "in_channels": 9,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}


@pytest.fixture(scope="module")
def tool(tiny_pipelines) -> CatVtonPrior:
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    unet = shaken(widen_conv_in(prior.unet, 9), 1)
    return CatVtonPrior(TryOnDenoiser(prior, unet, extra_channels=CAT_CHANNELS, image_hw=SIZE))


@pytest.fixture(scope="module")
def sample() -> TryOnSample:
    return tiny_sample(rows=ROWS, size=SIZE)


def call(tool) -> tuple:
    """Latents of both halves, timesteps and a text."""
    height, width = tool.denoiser.latent_hw
    latents = torch.randn(ROWS, 4, 2 * height, width, generator=torch.Generator().manual_seed(2))
    return latents, torch.tensor([900, 250]), tool.encode_prompt(["a man"])


@torch.no_grad()
def by_hand(tool, sample, *, is_cond: bool) -> torch.Tensor:
    """The denoiser's output, with cross-attention taken out by hand."""
    latents, t, text = call(tool)
    unet = copy.deepcopy(tool.denoiser.unet)
    for name, attn in unet.named_modules():
        if name.endswith(".attn2"):
            attn.forward = lambda hidden, *_, **__: hidden
    stride = tool.denoiser.latent_stride
    mask = sample.mask[:, ::stride, ::stride, 0][:, None]
    grey = sample.person * (1.0 - sample.mask) + 0.5 * sample.mask
    person, garment = (tool.denoiser.encode_images(x) for x in (grey, sample.garments[0].images))
    garment = garment if is_cond else torch.zeros_like(garment)
    upper = torch.cat([latents.chunk(2, dim=2)[0], mask, person], dim=1)
    lower = torch.cat([latents.chunk(2, dim=2)[1], torch.zeros_like(mask), garment], dim=1)
    whole = torch.cat([upper, lower], dim=2)
    return unet(whole, t, encoder_hidden_states=text.tokens.expand(ROWS, -1, -1)).sample


def test_both_halves_of_guidance_see_what_they_should(tool, sample):
    tool.dress(sample)
    latents, t, text = call(tool)
    shown, hidden = (by_hand(tool, sample, is_cond=is_cond) for is_cond in (True, False))
    guided = tool.guided_noise(latents, t, text, text, 2.5)
    assert torch.allclose(guided, hidden + 2.5 * (shown - hidden), atol=1e-4)
    assert (shown - hidden).abs().max() > 1e-3


def test_masks_are_seen_hard(tool, sample):
    latents, t, text = call(tool)
    seen = []
    for strength in (1.0, 0.75):
        tool.dress(replace(sample, mask=sample.mask * strength))
        seen.append(tool.predict_noise(latents, t, text))
    assert torch.equal(*seen)


def test_words_are_not_read(tool, sample):
    tool.dress(sample)
    latents, t, text = call(tool)
    other = tool.encode_prompt(["a woman"])
    assert torch.equal(tool.predict_noise(latents, t, text), tool.predict_noise(latents, t, other))


def test_pictures_have_the_size_of_one_half(tool, sample):
    tool.dress(sample)
    generators = [torch.Generator().manual_seed(seed) for seed in range(ROWS)]
    images = tool.draw(generators=generators, config=DdimConfig(steps=2, guidance_scale=2.5))
    assert images.shape == sample.person.shape
    fresh = CatVtonPrior(tool.denoiser)
    with pytest.raises(StudioError, match="nobody to dress"):
        fresh.draw(generators=generators, config=DdimConfig(steps=1))
    with pytest.raises(StudioError, match="CatVTON got 2 garments"):
        tool.dress(replace(sample, garments=sample.garments * 2))


def test_the_trained_part_of_the_public_model_has_49_57_million_numbers():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    layers = self_attention(unet)
    assert len(layers) == 16
    total = sum(p.numel() for layer in layers for p in layer.parameters())
    assert round(total / 1e6, 2) == 49.57


def test_files_come_back_in_every_spelling(tool, tmp_path):
    from safetensors.torch import load_file

    unet = tool.denoiser.unet
    tensors = load_file(write_attention(unet, tmp_path))
    other = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        part, _, rest = name.replace("to_out.0", "to_out_0").partition(".")
        offset = {"to_q": 1, "to_k": 2, "to_v": 3, "to_out_0": 5}[part]
        other[f"{int(number) + offset}.{rest}"] = tensor
    for spelling in (tensors, other):
        fresh = shaken(unet, 9)
        load_attention(fresh, spelling)
        for layer, own in zip(self_attention(fresh), self_attention(unet), strict=True):
            assert all(torch.equal(layer.state_dict()[n], t) for n, t in own.state_dict().items())
        assert not torch.equal(fresh.conv_in.weight, unet.conv_in.weight)
    missing = {key: tensor for key, tensor in tensors.items() if key != "8.to_k.weight"}
    with pytest.raises(UnsupportedModel, match=r"8\.to_k\.weight \(absent, expected"):
        load_attention(unet, missing)
    with pytest.raises(UnsupportedModel, match=r"1 tensors do not fit.*conv_in"):
        load_attention(unet, {**tensors, "conv_in.weight": tensors["0.to_q.weight"]})


@pytest.mark.parametrize("parametrisation", ["epsilon", "v_prediction", "sample"])
def test_dream_moves_noise_and_target_and_not_the_clean_latents(
    tool, sample, parametrisation, monkeypatch
):
    tool.dress(sample)
    denoiser = tool.denoiser
    monkeypatch.setattr(denoiser, "prediction_type", parametrisation)
    latents, _, text = call(tool)
    noisy = draw_noisy(denoiser, latents, torch.Generator().manual_seed(4))
    condition = Condition(text.expand(ROWS))
    with torch.no_grad():
        predicted = tool.predict_noise(noisy.z_t, noisy.t, condition)
    alpha_bar = denoiser.alphas_cumprod[noisy.t].reshape(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
    noise = (noisy.z_t - alpha * latents) / sigma
    own = noise + sigma**2.0 * (noise - predicted)
    moved = rectified(tool, denoiser, noisy, condition, power=2.0)
    targets = {"epsilon": own, "v_prediction": alpha * own - sigma * latents, "sample": latents}
    assert torch.allclose(moved.z_t, alpha * latents + sigma * own, atol=1e-3)
    assert torch.allclose(moved.target, targets[parametrisation], atol=1e-3)
    assert torch.equal(moved.t, noisy.t)
    still = rectified(tool, denoiser, noisy, condition, power=1e6)
    assert torch.allclose(still.z_t, noisy.z_t, atol=1e-4)


def test_the_loss_is_taken_of_what_dream_makes(tool, sample):
    losses = [
        float(
            CatVtonLoss(tool, lambda *_: sample, dropout=0.0, dream_power=power)(
                0, torch.Generator().manual_seed(3)
            )
        )
        for power in (None, 1e6, 1.0)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[2] > losses[0]  # what it is wrong about is asked for once more
    with pytest.raises(ValueError, match=r"dream_power is -1\.0"):
        CatVtonTrainingConfig(dream_power=-1.0)


@pytest.mark.slow
def test_training_changes_self_attention_alone(tool, sample, tmp_path):
    mine = CatVtonPrior(
        TryOnDenoiser(
            tool.denoiser,
            copy.deepcopy(tool.denoiser.unet),
            extra_channels=CAT_CHANNELS,
            image_hw=SIZE,
        )
    )
    before = {name: t.clone() for name, t in mine.denoiser.unet.state_dict().items()}
    loss = CatVtonLoss(mine, lambda *_: sample, dropout=0.0)

    def mean_loss() -> float:
        with torch.no_grad():
            draws = [loss(k, torch.Generator().manual_seed(1000 + k)) for k in range(3)]
        return float(torch.stack(draws).mean())

    first = mean_loss()
    loop = TuningConfig(steps=20, learning_rate=1e-2, save_every=20)
    config = CatVtonTrainingConfig(loop=loop)
    result = train_cat_vton(mine, lambda *_: sample, config, tmp_path, identity="one")
    assert result.files == (tmp_path / "attention/model.safetensors",)
    assert mean_loss() < first
    changed = {
        name
        for name, t in mine.denoiser.unet.state_dict().items()
        if not torch.equal(t, before[name])
    }
    assert changed == {name for name in before if ".attn1." in name}
