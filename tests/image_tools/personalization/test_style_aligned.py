"""Style sets and style references: against each other, beside other tools, and switched off."""

from __future__ import annotations

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.conditions import cat_embeddings
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior, prior_modules
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.sampling import ddim_steps, sample_images
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.inversion import invert_latents
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior, edit_images
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from image_tools.personalization.style_aligned import (
    StyleAlignedPrior,
    StyleReferencePrior,
    draw_style_set,
    styled,
)
from image_tools.personalization.style_aligned_configs import (
    StyleAlignedConfig,
    StyleInversionConfig,
    StyleSharingConfig,
)
from image_tools.personalization.style_references import (
    InvertedReference,
    NoisedReference,
    inverted_reference,
    noised_reference,
)
from renderers.errors import ShapeError, StudioError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.personalization.subjects import images_of
from tests.image_tools.personalization.tiny_ip_adapters import random_features, tiny_ip_adapter
from tests.image_tools.random_loras import random_lora

OFF = StyleSharingConfig(attention="off", normalized=(), group_norm="own")
PROMPTS = ("a red duck", "a red mushroom", "a purple duck")
STYLE = "a purple mushroom"
STEPS = 4
SAMPLER = DdimConfig(steps=STEPS, guidance_scale=3.0)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def plain(request, tiny_pipelines):
    return load_folder(tiny_pipelines[request.param], torch.device("cpu"))


@pytest.fixture(scope="module")
def sd1(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


@pytest.fixture(scope="module")
def reference(sd1):
    return noised_reference(sd1, images_of(1), STYLE, seed=3)


def noisy(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@torch.no_grad()
def guided(prior, latents=None, t=(501, 501, 501), prompts=PROMPTS):
    latents = noisy(len(t)) if latents is None else latents
    cond, uncond = prior.encode_prompt(list(prompts)), prior.encode_negative([""])
    return prior.guided_noise(latents, torch.tensor(t), cond, uncond, 4.0, rescale=0.3)


@torch.no_grad()
def conditional(prior):
    return prior.predict_output(
        noisy(), torch.tensor([501, 501, 501]), prior.encode_prompt(list(PROMPTS))
    )


def close(found, wanted, atol=2e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0.0)


def test_off_is_the_plain_prior(plain):
    """Bit for bit, for every way to draw with it."""
    reference = NoisedReference(noisy(1), STYLE, plain.alphas_cumprod)
    for tool in (StyleAlignedPrior(plain, OFF), StyleReferencePrior(plain, reference, OFF)):
        assert torch.equal(guided(tool), guided(plain))
        assert torch.equal(conditional(tool), conditional(plain))
    drawn = draw_style_set(plain, PROMPTS, generators=generators(3), config=SAMPLER, sharing=OFF)
    alone = sample_images(plain, PROMPTS, generators=generators(3), config=SAMPLER)
    assert torch.equal(drawn, alone)


def test_the_first_row_of_both_halves_is_as_without_sharing(plain):
    before = dict(plain.unet.attn_processors)
    for call in (guided, conditional):
        found, wanted = call(StyleAlignedPrior(plain)), call(plain)
        close(found[0], wanted[0])
        assert (found[1:] - wanted[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert all(plain.unet.attn_processors[name] is before[name] for name in before)


def test_a_reference_that_rides_along_is_a_first_row(plain):
    """One denoiser call with timesteps of their own equals a set for each row."""
    reference, t = NoisedReference(noisy(4)[3:], STYLE, plain.alphas_cumprod), (501, 21, 501)
    config = StyleSharingConfig(score_shift=0.4).with_picture()
    tool = StyleReferencePrior(plain, reference, config)
    before = plain.denoiser_evaluations
    found = guided(tool, t=t)
    assert plain.denoiser_evaluations - before == 2 * (3 + 2)  # two timesteps, two halves
    for row, step in enumerate(t):
        own = reference.at(torch.tensor([step]))
        pair = torch.cat([own, noisy()[row : row + 1]])
        alone = StyleAlignedPrior(plain, config)
        wanted = guided(alone, pair, (step, step), (STYLE, PROMPTS[row]))
        close(found[row], wanted[1])


def test_a_noised_reference_has_noise_of_each_timestep(sd1, reference):
    t = torch.tensor([21, 700, 21])
    found = reference.at(t)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found, reference.at(t))
    alpha, sigma = alpha_sigma(sd1.alphas_cumprod, t, found)
    noise = (found - alpha * reference.latents) / sigma
    close(add_noise(reference.latents.expand_as(found), noise, alpha, sigma), found)
    assert not torch.allclose(noise[0], noise[1], atol=0.1)
    close(reference.latents, sd1.encode_images(images_of(1)))
    other = NoisedReference(reference.latents, STYLE, sd1.alphas_cumprod, seed=4)
    assert not torch.allclose(other.at(t), found, atol=0.1)


def test_an_inverted_reference_is_ahead_of_the_first_steps():
    """As published: zts[offset], and after step i zts[max(offset + 1, i + 1)], zts[0] noise."""
    path = tuple(torch.full((1, 1, 1, 1), float(9 - k)) for k in range(10))  # value k is zts[k]
    reference = InvertedReference(path, STYLE, tuple(range(900, 0, -100)), offset=3)
    rows = torch.full((2, 1, 1, 1), -1.0)
    in_first_row = [float(reference.start)]
    for step in range(9):
        after = reference.after_step(step, rows)
        assert after[1] == -1.0
        in_first_row.append(float(after[0]))
    assert in_first_row == [3, 4, 4, 4, 4, 5, 6, 7, 8, 9]
    at = reference.at(torch.tensor(reference.timesteps)).flatten().tolist()
    assert at == in_first_row[:-1]


def test_a_set_with_a_picture_equals_a_reference_that_rides_along(sd1):
    """The two ways to draw with an inverted reference; the second one with a stock sampler."""
    config = StyleInversionConfig(offset=1)
    inverted = inverted_reference(sd1, images_of(1), STYLE, steps=STEPS, config=config)
    drawn = draw_style_set(
        sd1, PROMPTS, generators=generators(3), config=SAMPLER, reference=inverted
    )
    tool = StyleReferencePrior(sd1, inverted)
    riding = sample_images(tool, PROMPTS, generators=generators(3), config=SAMPLER)
    close(drawn, riding, atol=1e-4)
    plain = sample_images(sd1, PROMPTS, generators=generators(3), config=SAMPLER)
    assert (drawn - plain).abs().mean() > 1e-3


def test_inversion_is_guided(sd1):
    """Each step backwards by the formula of DDIM, with guidance between prompt and nothing."""
    cond, uncond = sd1.encode_prompt([STYLE]), sd1.encode_negative([""])
    path = invert_latents(sd1, noisy(1), cond, steps=STEPS, uncond=uncond, guidance_scale=2.0)
    latents = noisy(1)
    for step in reversed(ddim_steps(sd1, STEPS)):
        t = torch.tensor([step.t])
        with torch.no_grad():
            told, untold = (sd1.predict_noise(latents, t, text) for text in (cond, uncond))
        noise = untold + 2.0 * (told - untold)
        ratio = (step.alpha_bar / step.alpha_bar_prev) ** 0.5
        spread = (1 / step.alpha_bar - 1) ** 0.5 - (1 / step.alpha_bar_prev - 1) ** 0.5
        latents = ratio * latents + step.alpha_bar**0.5 * spread * noise
    close(path[-1], latents, atol=1e-4)


def test_a_set_is_drawn_with_its_first_picture_unchanged(sd1):
    drawn = draw_style_set(sd1, PROMPTS, generators=generators(3), config=SAMPLER)
    plain = sample_images(sd1, PROMPTS, generators=generators(3), config=SAMPLER)
    close(drawn[0], plain[0], atol=1e-4)
    assert (drawn[1:] - plain[1:]).abs().mean() > 1e-3


def controlled(prior, **settings):
    model = tiny_controlnet(prior)
    return ControlledPrior(prior, [Control(model, condition_images(prior), **settings)])


def test_controls_around_a_set_leave_its_reference_free(sd1):
    aligned = StyleAlignedPrior(sd1)
    found, free = guided(controlled(aligned)), guided(aligned)
    close(found[0], free[0])
    assert (found[1:] - free[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    inside = guided(StyleAlignedPrior(controlled(sd1)))
    assert (inside[0] - free[0]).abs().max() > 1e-3


def test_controls_around_a_reference_act_on_the_batch_alone(sd1, reference):
    found = guided(controlled(StyleReferencePrior(sd1, reference)))
    rows = torch.cat([reference.at(torch.tensor([501])), noisy()])
    aligned = StyleAlignedPrior(sd1, StyleSharingConfig().with_picture())
    wanted = guided(controlled(aligned), rows, (501,) * 4, (STYLE, *PROMPTS))
    close(found, wanted[1:])


def test_loras_act_beside_it(sd1):
    before = guided(StyleAlignedPrior(sd1))
    attach_to_prior(sd1, random_lora(prior_modules(sd1)), name="style", weight=1.0)
    try:
        found, wanted = guided(StyleAlignedPrior(sd1)), guided(sd1)
    finally:
        detach_from_prior(sd1, "style")
    close(found[0], wanted[0])
    assert (found[1:] - before[1:]).abs().max() > 1e-3
    assert torch.equal(guided(StyleAlignedPrior(sd1)), before)


def shown(prior):
    adapter = tiny_ip_adapter(prior.unet)
    tool = IPAdapterPrior(prior, adapter, scale=0.7)
    tool.show(random_features("base"), random_features("base", seed=2))
    return tool


def test_images_as_prompts_act_on_every_row_of_a_set(sd1):
    """In either order of the tools, on both halves; they look at text, the style at images."""
    inside, outside = StyleAlignedPrior(shown(sd1)), shown(StyleAlignedPrior(sd1))
    found = guided(inside)
    close(found, guided(outside))
    close(found[0], guided(shown(sd1))[0])
    for other in (shown(sd1), StyleAlignedPrior(sd1)):
        assert (found[1:] - guided(other)[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_images_as_prompts_around_a_reference_are_not_shown_to_it(sd1, reference):
    found = guided(shown(StyleReferencePrior(sd1, reference)))
    everywhere = guided(StyleReferencePrior(shown(sd1), reference))
    assert (found - everywhere).abs().max() > 1e-4
    assert (found - guided(StyleReferencePrior(sd1, reference))).abs().max() > 1e-3


def edits(prior, *, share):
    edit = EditedPromptConfig(PROMPTS[1], cross_steps=(0.0, share), self_steps=(0.0, share))
    return PromptToPromptPrior(prior, PromptToPromptConfig(PROMPTS[0], (edit,), steps=STEPS))


def test_prompt_edits_keep_their_roles(sd1, reference):
    """The source is the reference of a set, in either order of the tools."""
    pair = {"t": (501, 501), "prompts": PROMPTS[:2]}
    aligned = StyleAlignedPrior(sd1)
    both = guided(edits(aligned, share=1.0), **pair)
    close(both, guided(StyleAlignedPrior(edits(sd1, share=1.0)), **pair))
    without_style = guided(edits(sd1, share=1.0), **pair)
    without_edits = guided(edits(aligned, share=0.0), **pair)
    close(both[0], without_style[0])
    close(without_edits, guided(aligned, **pair))
    for other in (without_style, without_edits):
        assert (both[1] - other[1]).abs().max() > 1e-3
    riding = guided(edits(StyleReferencePrior(sd1, reference), share=1.0), **pair)
    assert (riding - both).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_edited_pictures_are_drawn_in_the_style_of_a_reference(sd1, reference):
    tool = edits(StyleReferencePrior(sd1, reference), share=1.0)
    drawn = edit_images(tool, generators=generators(1), config=SAMPLER)
    alone = sample_images(
        StyleReferencePrior(sd1, reference), PROMPTS[:1], generators=generators(1), config=SAMPLER
    )
    close(drawn[0], alone, atol=1e-4)


def test_unequal_texts_are_refused(sd1, reference):
    tool, text = StyleReferencePrior(sd1, reference), sd1.encode_prompt([PROMPTS[0]])
    longer = text.__class__(torch.cat([text.tokens, text.tokens], dim=1))
    with pytest.raises(ShapeError, match="Put tools that change the text inside"):
        tool.predict_output(noisy(1), torch.tensor([5]), longer)
    assert len(cat_embeddings([text, text])) == 2


def test_what_does_not_fit_is_refused(sd1, reference):
    with pytest.raises(StudioError, match="attention is full with a reference picture"):
        StyleReferencePrior(sd1, reference, StyleSharingConfig(attention="full"))
    with pytest.raises(StudioError, match="offset is 5 with 4 steps"):
        inverted_reference(sd1, images_of(1), STYLE, steps=4)
    with pytest.raises(ValueError, match="3 prompts came with 2 generators"):
        draw_style_set(sd1, PROMPTS, generators=generators(2), config=SAMPLER)
    inverted = InvertedReference((noisy(1),) * 3, STYLE, (500, 0), 0)
    with pytest.raises(ValueError, match="has 4 steps and the reference was inverted with 2"):
        draw_style_set(sd1, PROMPTS, generators=generators(3), config=SAMPLER, reference=inverted)
    for settings, message in (
        ({}, "neither an image nor prompts"),
        ({"image": "a.png"}, "image_prompt is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            StyleAlignedConfig(**settings)


def test_styles_stand_behind_prompts():
    assert styled("a toy train", "macro photo") == "a toy train, macro photo."
    assert styled("a toy train.", "macro photo.") == "a toy train, macro photo."
    assert styled("a toy train.", "") == "a toy train."
