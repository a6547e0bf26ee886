"""BootComp: three branches of guidance, garments in any order, and pairs of rows told apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from image_tools.configs import DdimConfig
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.prior import DiffusionPrior, PriorParts
from image_tools.errors import UnsupportedModel
from image_tools.personalization.references import build_reference_tool, reference_files
from image_tools.tryon.bootcomp import BootCompPrior, garment_prompt, portrait_denoiser
from image_tools.tryon.bootcomp_configs import GarmentsConfig
from image_tools.tryon.bootcomp_pairs import bootstrap_garments, is_faithful
from image_tools.tryon.decomposition import DecompositionPrior, product_prompt, product_views
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.garment_configs import GarmentConfig
from image_tools.tryon.garment_files import read_garment
from image_tools.tryon.pictures import cut_out, fitted
from image_tools.tryon.samples import Garment
from image_tools.tryon.sampling import sample_portraits
from renderers.errors import ShapeError, StudioError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.tiny_unets import inputs, tiny_multiview_unet, tiny_unet
from tests.image_tools.tryon.public_files import SDXL_SCHEDULER

CPU = torch.device("cpu")
SIZE = (24, 16)
ROWS = 2


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(module, seed: int = 1):
    """A copy of a module whose weights differ."""
    other, generator = copy.deepcopy(module), noise(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return other


def garment(seed: int, category: str = "upper", rows: int = ROWS) -> Garment:
    images = torch.rand(rows, 20, 30, 3, generator=noise(seed))
    return Garment(images, (category,) * rows, ("",) * rows)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    """A frozen generator."""
    return load_folder(tiny_pipelines["sd1"], CPU)


@pytest.fixture(scope="module")
def dressed(prior) -> BootCompPrior:
    """With two garments on each person."""
    return BootCompPrior(prior, moved(prior.unet), [garment(2), garment(3, "skirt")])


@pytest.fixture(scope="module")
def denoiser(tiny_pipelines) -> TryOnDenoiser:
    """A decomposition network of SDXL's design, for portraits."""
    plain = load_folder(tiny_pipelines["sdxl"], CPU)
    return TryOnDenoiser(plain, moved(plain.unet, 4), extra_channels=0, image_hw=SIZE)


def call(prior) -> tuple:
    """Latents, timesteps and texts of a call."""
    latents, t, _ = inputs(ROWS)
    return latents, t, prior.encode_prompt(["a woman"]), prior.encode_negative([""])


def test_without_garments_the_generator_predicts_bit_for_bit(prior):
    bare = BootCompPrior(prior, moved(prior.unet))
    arguments = call(prior)
    assert torch.equal(bare.guided_noise(*arguments, 4.0), prior.guided_noise(*arguments, 4.0))
    assert torch.equal(bare.predict_noise(*arguments[:3]), prior.predict_noise(*arguments[:3]))


def test_portraits_are_drawn_with_the_authors_schedule(prior):
    """DDPM whose last timestep is pure noise; x0 can still be had from eps there."""
    from diffusers import DDPMScheduler

    portraits = portrait_denoiser(prior, prior.unet, image_hw=SIZE)
    stock = DDPMScheduler.from_config(prior.scheduler_config, rescale_betas_zero_snr=True)
    assert torch.allclose(portraits.alphas_cumprod[:-1], stock.alphas_cumprod[:-1], atol=1e-6)
    assert 0.0 < float(portraits.alphas_cumprod[-1]) < 1e-6 < float(prior.alphas_cumprod[-1])
    assert portraits.image_hw == SIZE


def test_guidance_has_three_branches(prior, dressed):
    latents, t, cond, uncond = call(prior)
    told = dressed.modify(Condition(cond), ROWS, is_cond=True)
    shown = dressed.modify(Condition(uncond), ROWS, is_cond=True)
    none = dressed.modify(Condition(uncond), ROWS, is_cond=False)
    both, only, neither = (prior.predict_noise(latents, t, c) for c in (told, shown, none))
    expected = neither + 2.0 * (only - neither) + 4.0 * (both - only)
    assert torch.allclose(dressed.guided_noise(latents, t, cond, uncond, 4.0), expected, atol=2e-4)
    assert torch.allclose(dressed.predict_noise(latents, t, cond), both, atol=1e-5)
    assert (only - neither).abs().max() > 1e-3


def test_rows_may_say_which_half_of_guidance_they_are(prior, dressed):
    """Rules that stack rows themselves (Perp-Neg) tell them apart by roles."""
    latents, t, cond, _ = call(prior)
    both = Condition(cond.expand(ROWS), roles=("uncond", "cond"))
    output = dressed.predict_noise(latents, t, both)
    none = dressed.modify(Condition(cond), ROWS, is_cond=False)
    assert torch.allclose(output[0], prior.predict_noise(latents, t, none)[0], atol=1e-5)
    assert torch.allclose(output[1], dressed.predict_noise(latents, t, cond)[1], atol=1e-5)


def test_views_of_a_set_wear_the_garments_together(tiny_pipelines):
    """Equal views of a multi-view prior stay equal, and the garments change them."""
    base = load_folder(tiny_pipelines["pocket"], CPU)
    parts = PriorParts(
        unet=tiny_multiview_unet(),
        vae=base.vae,
        text=base.text,
        scheduler_config=base.scheduler_config,
        fingerprint="tiny",
    )
    views = MultiViewPrior(parts, views=ROWS)
    tool = BootCompPrior(
        views, moved(tiny_unet()), [garment(2, rows=1), garment(3, "skirt", rows=1)]
    )
    latents, t, cond, uncond = call(base)
    latents, t = (part[:1].repeat(ROWS, *[1] * (part.ndim - 1)) for part in (latents, t))
    cameras = torch.zeros(ROWS, 16)
    told, untold = (Condition(text.expand(ROWS), cameras) for text in (cond, uncond))
    drawn = tool.guided_noise(latents, t, told, untold, 4.0)
    assert torch.allclose(drawn[0], drawn[1], atol=1e-4)
    assert not torch.allclose(drawn, views.guided_noise(latents, t, told, untold, 4.0), atol=1e-3)
    views.close()


def test_the_scale_of_garments_counts(prior, dressed):
    arguments = call(prior)
    before = dressed.guided_noise(*arguments, 4.0)
    dressed.garment_scale = 3.0
    changed = dressed.guided_noise(*arguments, 4.0)
    dressed.garment_scale = 2.0
    assert (changed - before).abs().max() > 1e-3


def test_the_order_of_garments_means_nothing(prior, dressed):
    turned = BootCompPrior(prior, dressed.encoder, [garment(3, "skirt"), garment(2)])
    arguments = call(prior)
    expected = dressed.guided_noise(*arguments, 4.0)
    assert torch.allclose(turned.guided_noise(*arguments, 4.0), expected, atol=2e-4)
    one = BootCompPrior(prior, dressed.encoder, [garment(2)])
    assert not torch.allclose(one.guided_noise(*arguments, 4.0), expected, atol=1e-3)


def test_a_controlnet_around_it_acts_on_all_branches(prior, dressed):
    control = Control(tiny_controlnet(prior), condition_images(prior))
    arguments = call(prior)
    controlled = ControlledPrior(dressed, [control])
    assert not torch.allclose(
        controlled.guided_noise(*arguments, 4.0), dressed.guided_noise(*arguments, 4.0), atol=1e-3
    )
    off = ControlledPrior(dressed, [replace(control, strength=0.0)])
    assert torch.equal(off.guided_noise(*arguments, 4.0), dressed.guided_noise(*arguments, 4.0))


def test_a_config_names_the_encoder_and_what_is_worn(prior, tiny_pipelines, tmp_path):
    """As a reference tool it guides pictures and 3D scenes."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shirt.png")
    shirt = GarmentConfig(str(tmp_path / "shirt.png"), "upper")
    config = GarmentsConfig(str(tiny_pipelines["sd1"] / "unet"), (shirt,), garment_scale=3.0)
    tool = build_reference_tool(config, prior)
    arguments = call(prior)
    garments = [read_garment(shirt, prior.image_hw)]
    expected = BootCompPrior(prior, prior.unet, garments, garment_scale=3.0)
    assert torch.allclose(
        tool.guided_noise(*arguments, 4.0), expected.guided_noise(*arguments, 4.0), atol=1e-5
    )
    assert config.pictures() == [("garments.0.image", shirt.image)]
    assert [path.parent.name for path in reference_files(config)] == ["unet"]
    assert not replace(config, garments=(replace(shirt, category="lower"),)).problems("a man")
    with pytest.raises(ValueError, match="garments is empty"):
        replace(config, garments=())


def test_the_words_of_the_released_example_are_known(prior):
    """Its info.json has "upper garment", "lower garment" and "shoes"; case means nothing."""
    told = [garment_prompt(category).lower() for category in ("upper", "lower", "shoes")]
    assert told == [
        "a photo of upper garment",
        "a photo of lower garment",
        "a photo of shoes",
    ]
    tool = BootCompPrior(prior, moved(prior.unet), [garment(2), garment(3, "lower")])
    arguments = call(prior)
    drawn = tool.guided_noise(*arguments, 4.0)
    tool.wear([garment(2), garment(3, "pants")])
    assert not torch.equal(drawn, tool.guided_noise(*arguments, 4.0))
    with pytest.raises(
        StudioError, match=r"does not know the category 'lower' - expected upper, pants"
    ):
        product_prompt("lower")


def test_encoders_of_other_designs_are_refused(prior):
    wide = tiny_unet()
    wide.mid_block = None
    with pytest.raises(UnsupportedModel, match="width none in mid_block"):
        BootCompPrior(prior, wide)


@torch.no_grad()
def pairs_of_rows(denoiser: TryOnDenoiser, latents, t, text, references) -> torch.Tensor:
    """The authors' pass: noisy and clean rows in turn, told apart in every attention layer."""
    unet = copy.deepcopy(denoiser.unet)
    for name, attn in unet.named_modules():
        if not name.endswith((".attn1", ".attn2")):
            continue

        def forward(hidden, encoder_hidden_states=None, attn=attn, name=name, **_):
            noisy, clean = hidden[0::2], hidden[1::2]
            output = torch.zeros_like(hidden)
            if name.endswith(".attn1"):
                output[0::2] = attn.processor(attn, noisy, torch.cat([noisy, clean], dim=1))
                output[1::2] = attn.processor(attn, clean)
            else:
                output[0::2] = attn.processor(attn, noisy, encoder_hidden_states[0::2])
            return output

        attn.forward = forward
    added = denoiser.added_conditions(text)
    rows = 2 * len(latents)

    def in_turn(noisy, clean):
        return torch.stack([noisy, clean], dim=1).reshape(rows, *noisy.shape[1:])

    output = unet(
        in_turn(latents, references),
        in_turn(t, torch.zeros_like(t)),
        encoder_hidden_states=text.tokens.repeat_interleave(2, dim=0),
        added_cond_kwargs={
            "text_embeds": in_turn(added["text_embeds"], torch.zeros_like(added["text_embeds"])),
            "time_ids": added["time_ids"].repeat_interleave(2, dim=0),
        },
    )
    return output.sample[0::2]


def test_decomposition_equals_pairs_of_rows(denoiser):
    pictures = torch.rand(ROWS, *SIZE, 3, generator=noise(5))
    latents = torch.randn(ROWS, 4, *denoiser.latent_hw, generator=noise(6))
    t = torch.tensor([700, 30])
    text = denoiser.encode_prompt(["A product photo of Dress", "A product photo of Hat"])
    prior = DecompositionPrior(denoiser)
    plain = prior.predict_output(latents, t, text)
    prior.show(pictures)
    expected = pairs_of_rows(denoiser, latents, t, text, denoiser.encode_images(pictures))
    assert torch.allclose(prior.predict_output(latents, t, text), expected, atol=2e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_no_garment_is_the_picture_of_nothing(denoiser):
    """Guidance leads away from features of a latent of zeros, which are not zero."""
    pictures = torch.rand(ROWS, *SIZE, 3, generator=noise(5))
    latents = torch.randn(ROWS, 4, *denoiser.latent_hw, generator=noise(6))
    t = torch.tensor([700, 30])
    cond, uncond = (
        denoiser.encode_prompt(["A product photo of Dress"]),
        denoiser.encode_negative([""]),
    )
    prior = DecompositionPrior(denoiser)
    prior.show(pictures)
    text = cond.expand(ROWS), uncond.expand(ROWS)
    zero = pairs_of_rows(denoiser, latents, t, text[1], torch.zeros_like(latents))
    shown = pairs_of_rows(denoiser, latents, t, text[0], denoiser.encode_images(pictures))
    guided = prior.guided_noise(latents, t, cond, uncond, 2.0)
    assert torch.allclose(guided, zero + 2.0 * (shown - zero), atol=1e-4)


def test_product_views_are_kept_where_they_look_like_the_garment(denoiser):
    photos = torch.rand(ROWS, 30, 30, 3, generator=noise(7))
    masks = torch.zeros(ROWS, 30, 30, 1)
    masks[:, 5:20, 8:18] = 1.0
    prior = DecompositionPrior(denoiser)
    distance = lambda a, b: (a - b).abs().mean(dim=(1, 2, 3))  # noqa: E731
    generators = [noise(8), noise(9)]
    arguments = (prior, photos, masks, ["upper", "skirt"], distance)
    products, kept = bootstrap_garments(*arguments, generators=generators, threshold=1.0)
    assert products.shape == (ROWS, *SIZE, 3)
    assert kept.tolist() == [True, True]
    measured = distance(products, cut_out(photos, masks, SIZE))
    between = float(measured.mean())
    kept = is_faithful(products, cut_out(photos, masks, SIZE), distance, threshold=between)
    assert sorted(kept.tolist()) == [False, True]
    with pytest.raises(ShapeError, match="references has shape"):
        is_faithful(products, photos, distance)


def test_each_picture_depends_on_its_generator_alone(denoiser):
    prior = DecompositionPrior(denoiser)
    config = DdimConfig(steps=2, guidance_scale=2.0, eta=1.0)
    pictures = torch.rand(1, *SIZE, 3, generator=noise(5))
    prior.show(pictures)
    both = product_views(prior, ["upper"] * 2, generators=[noise(1), noise(2)], config=config)
    one = product_views(prior, ["upper"], generators=[noise(2)], config=config)
    assert torch.allclose(both[1], one[0], atol=1e-4)


def test_noisy_steps_are_those_of_the_stock_ddpm_scheduler_for_sdxls_own_settings(denoiser):
    """BootComp draws by DDPMScheduler, of the generator's file with a zero terminal signal."""
    from diffusers import DDPMScheduler

    file = DDPMScheduler.from_config(SDXL_SCHEDULER, rescale_betas_zero_snr=True)
    parts = PriorParts(
        unet=denoiser.unet,
        vae=denoiser.vae,
        text=denoiser.text,
        scheduler_config=SDXL_SCHEDULER,
        fingerprint="tiny",
    )
    denoiser = portrait_denoiser(DiffusionPrior(parts), denoiser.unet, image_hw=SIZE)
    config = DdimConfig(steps=4, guidance_scale=1.0, eta=1.0)
    text = denoiser.encode_prompt(["a shirt"])
    drawn = sample_portraits(denoiser, text, text, generators=[noise(3)], config=config)
    scheduler = DDPMScheduler.from_config(file.config)
    scheduler.set_timesteps(4)
    generator = noise(3)
    latents = torch.randn(1, 4, *denoiser.latent_hw, generator=generator)
    for t in scheduler.timesteps:
        noise_pred = denoiser.predict_noise(latents, t[None], text)
        latents = scheduler.step(noise_pred, t, latents, generator=generator).prev_sample
    assert torch.allclose(drawn, denoiser.decode_latents(latents), atol=1e-4)


def test_cut_outs_are_as_large_as_they_can_be_and_not_stretched():
    photo = torch.full((1, 40, 40, 3), 0.9)
    mask = torch.zeros(1, 40, 40, 1)
    mask[:, 10:20, 10:30] = 1.0  # twice as wide as high
    cut = cut_out(photo, mask, (24, 16))
    assert cut.shape == (1, 24, 16, 3)
    assert torch.allclose(cut[0, 8:16], torch.tensor(0.9))
    assert torch.allclose(cut[0, :8], torch.tensor(0.5))
    with pytest.raises(StudioError, match="picture 0: its mask is empty"):
        cut_out(photo, torch.zeros_like(mask), (24, 16))
    assert torch.equal(fitted(photo, (40, 40)), photo)
    white = fitted(photo, (60, 40))
    assert torch.equal(white[0, :10], torch.ones(10, 40, 3))
