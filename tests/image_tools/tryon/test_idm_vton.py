"""IDM-VTON: what TryonNet sees in each half of guidance, against its parts called one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from image_tools.configs import DdimConfig
from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.lora import LoraAdapter
from image_tools.errors import UnsupportedModel
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.idm_vton import IdmVtonPrior, worn_prompts
from image_tools.tryon.refbank import BankReader, ReferenceBank
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.sampling import sample_portraits
from renderers.errors import ShapeError, StudioError
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_idm import SIZE, tiny_idm

CPU = torch.device("cpu")
ROWS = 2


@pytest.fixture(scope="module")
def tool(tiny_pipelines) -> IdmVtonPrior:
    return tiny_idm(load_folder(tiny_pipelines["sdxl"], CPU))


@pytest.fixture(scope="module")
def sample() -> TryOnSample:
    return tiny_sample(rows=ROWS, size=SIZE)


@pytest.fixture(scope="module")
def call(tool, sample) -> tuple:
    """Latents, timesteps and texts."""
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(ROWS, 4, *tool.denoiser.latent_hw, generator=generator)
    t = torch.tensor([900, 250])
    cond = tool.encode_prompt(worn_prompts(sample.garments[0]))
    return latents, t, cond, tool.encode_negative(["lowres"])


def norms_seen(net: nn.Module, *args, **kwargs) -> dict[str, torch.Tensor]:
    """Inputs of self-attention in a plain pass."""
    seen = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].clone())
        )
        for name, module in net.named_modules()
        if name.endswith(".attn1")
    ]
    net(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def by_hand(tool: IdmVtonPrior, sample: TryOnSample, call: tuple, *, is_cond: bool):
    """TryonNet's output for one half of guidance, put together from its parts."""
    latents, t, cond, uncond = call
    denoiser, garment = tool.denoiser, sample.garments[0]
    stride = denoiser.latent_stride
    mask = sample.mask[:, ::stride, ::stride, 0][:, None]
    grey = sample.person * (1.0 - sample.mask) + 0.5 * sample.mask
    pictures = [denoiser.encode_images(each) for each in (grey, sample.densepose)]
    words = denoiser.encode_prompt(["a photo of a red shirt"] * ROWS)
    seen = norms_seen(
        tool.garment_net,
        denoiser.encode_images(garment.images),
        t,
        encoder_hidden_states=words.tokens,
    )
    bank = ReferenceBank(seen if is_cond else {n: torch.zeros_like(v) for n, v in seen.items()})
    pixels = tool.clip.preprocess(garment.images)
    hidden = tool.clip.see(pixels if is_cond else torch.zeros_like(pixels)).hidden
    adapter = tool.prompted.adapter
    tokens = adapter.image_proj.read(adapter.image_proj.latents.expand(ROWS, -1, -1), hidden)
    text = cond if is_cond else uncond.expand(ROWS)

    class ImagePrompt(BankReader):
        """Both ways of seeing the garment in one operation."""

        def applies_to(self, call):
            return True

        def needs_heads(self, call):
            return call.layer.is_cross

        def inputs(self, call, hidden, context):
            return (
                (hidden, context) if call.layer.is_cross else super().inputs(call, hidden, context)
            )

        def added(self, call, attn, query):
            keys = adapter.ip_adapter[tool.prompted._use.numbers[call.layer.name]]
            heads = [
                part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for part in (keys.to_k_ip(tokens), keys.to_v_ip(tokens))
            ]
            weights = (query @ heads[0].mT / query.shape[-1] ** 0.5).softmax(dim=-1)
            return (weights @ heads[1]).transpose(1, 2).flatten(2)

    with AttentionHub(denoiser.unet, [ImagePrompt(bank)]):
        return denoiser.unet(
            torch.cat([latents, mask, *pictures], dim=1),
            t,
            encoder_hidden_states=text.tokens,
            added_cond_kwargs=denoiser.added_conditions(text),
        ).sample


def test_both_halves_of_guidance_see_what_they_should(tool, sample, call):
    tool.dress(sample)
    shown, untold = (by_hand(tool, sample, call, is_cond=is_cond) for is_cond in (True, False))
    assert torch.allclose(tool.predict_output(*call[:3]), shown, atol=2e-5)
    guided = tool.guided_noise(*call, 2.0)
    assert torch.allclose(guided, untold + 2.0 * (shown - untold), atol=1e-4)
    assert (shown - untold).abs().max() > 1e-3


def test_everything_that_is_given_counts(tool, sample, call):
    tool.dress(sample)
    before = tool.guided_noise(*call, 2.0)
    shirt = sample.garments[0]
    changes = {
        "the garment": replace(sample, garments=(replace(shirt, images=1.0 - shirt.images),)),
        "its words": replace(sample, garments=(replace(shirt, captions=("a coat",) * ROWS),)),
        "the body": replace(sample, densepose=sample.densepose.flip(0)),
        "the mask": replace(sample, mask=1.0 - sample.mask),
        "the person": replace(sample, person=1.0 - sample.person),
        "no body": replace(sample, densepose=None),
    }
    for name, changed in changes.items():
        tool.dress(changed)
        assert (tool.guided_noise(*call, 2.0) - before).abs().max() > 1e-4, name


def test_what_lies_below_the_mask_does_not_count(tool, sample, call):
    tool.dress(sample)
    before = tool.guided_noise(*call, 2.0)
    painted = torch.where(sample.mask > 0, torch.rand_like(sample.person), sample.person)
    tool.dress(replace(sample, person=painted))
    assert torch.allclose(tool.guided_noise(*call, 2.0), before, atol=1e-5)


def test_rows_are_independent(tool, sample, call):
    latents, t, cond, uncond = call
    tool.dress(sample)
    both = tool.guided_noise(*call, 2.0)
    tool.dress(sample.select(torch.tensor([1])))
    one = tool.guided_noise(latents[1:], t[1:], cond.select(torch.tensor([1])), uncond, 2.0)
    assert torch.allclose(one, both[1:], atol=1e-4)


def test_a_lora_on_tryonnet_acts_beside_everything_else(tool, sample, call):
    tool.dress(sample)
    before = tool.guided_noise(*call, 2.0)
    lora = LoraAdapter(tool.denoiser.unet, rank=2, generator=torch.Generator().manual_seed(1))
    with lora.on():
        assert torch.allclose(tool.guided_noise(*call, 2.0), before, atol=1e-5)
        with torch.no_grad():
            for name, parameter in lora.parameters.items():
                if ".lora_B." in name:
                    parameter.add_(0.3)
        assert (tool.guided_noise(*call, 2.0) - before).abs().max() > 1e-3
    lora.remove()
    assert torch.allclose(tool.guided_noise(*call, 2.0), before, atol=1e-5)


def test_it_works_in_half_precision(sample, tiny_pipelines):
    prior = load_folder(tiny_pipelines["sdxl"], CPU, torch.bfloat16)
    half = tiny_idm(prior)
    half.clip.model.to(torch.bfloat16)
    half.prompted.adapter.to(torch.bfloat16)
    half.dress(sample)
    cond = half.encode_prompt(worn_prompts(sample.garments[0]))
    latents = torch.randn(ROWS, 4, *half.denoiser.latent_hw)
    noise = half.guided_noise(
        latents, torch.tensor([900, 250]), cond, half.encode_negative(["lowres"]), 2.0
    )
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()


def test_pictures_are_the_persons_own_outside_of_the_mask(tool, sample, call):
    tool.dress(sample)
    images = sample_portraits(
        tool,
        call[2],
        call[3],
        generators=[torch.Generator().manual_seed(seed) for seed in range(ROWS)],
        config=DdimConfig(steps=2, guidance_scale=2.0, eta=1.0),
    )
    pasted = sample.paste_back(images)
    outside = (sample.mask == 0).expand_as(pasted)
    assert torch.equal(pasted[outside], sample.person[outside])
    assert torch.equal(pasted[~outside], images[~outside])


def test_what_does_not_fit_is_refused(tool, sample, call, tiny_pipelines):
    prior = load_folder(tiny_pipelines["sdxl"], CPU)
    with pytest.raises(UnsupportedModel, match="takes 4 channels, expected 13"):
        TryOnDenoiser(prior, prior.unet, extra_channels=9, image_hw=SIZE)
    other = load_folder(tiny_pipelines["sd1"], CPU)
    with pytest.raises(UnsupportedModel, match=r"reads words of width \d+, the prior's have \d+"):
        TryOnDenoiser(other, tool.denoiser.unet, extra_channels=9, image_hw=SIZE)
    with pytest.raises(ShapeError, match=r"24x18 pixels do not fit.*multiples of 4"):
        TryOnDenoiser(prior, tool.denoiser.unet, extra_channels=9, image_hw=(24, 18))
    with pytest.raises(ShapeError, match=r"expected \[B, 24, 16, 3\]"):
        tool.dress(tiny_sample(rows=1, size=(32, 16)))
    with pytest.raises(StudioError, match="2 garments for each person"):
        tool.dress(replace(sample, garments=sample.garments * 2))
    fresh = IdmVtonPrior(tool.denoiser, tool.garment_net, tool.prompted.adapter, tool.clip)
    with pytest.raises(StudioError, match="nobody to dress"):
        fresh.guided_noise(*call, 2.0)
