"""Self-guidance: its schedule, its energy at the reference, its gradient, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.control.controlnet import ControlledPrior
from image_tools.control.image_properties import shape
from image_tools.control.regional import RegionalPrior
from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from image_tools.control.self_guidance import (
    Reference,
    ReferenceRecorder,
    SelfGuidedPrior,
    active_steps,
    reference_of_latents,
)
from image_tools.control.self_guidance_configs import (
    CopyAppearanceConfig,
    CopyLayoutConfig,
    MoveConfig,
    ResizeConfig,
    RestyleConfig,
    SelfGuidanceConfig,
)
from image_tools.control.self_guidance_terms import Observed, edit_terms, energy
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_step, ddim_steps, sample_images
from image_tools.editing.align import tokenize_prompt
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError
from tests.image_tools.editing.prompts import bert_tokenizer

PROMPT, STEPS, SCALE = "a red duck and a cat", 4, 3.0
SAMPLER = DdimConfig(steps=STEPS, guidance_scale=SCALE)
EDITS = {
    "move": MoveConfig(("duck",), (0.25, -0.125)),
    "resize": ResizeConfig(("duck",), 1.5),
    "restyle": RestyleConfig(),
    "copy_appearance": CopyAppearanceConfig(("duck",), ("cat",)),
    "copy_layout": CopyLayoutConfig(("duck",), ("cat",)),
}


@pytest.fixture(scope="module", params=["sd1", "pocket"])
def plain(request, tiny_pipelines):
    return load_folder(tiny_pipelines[request.param], torch.device("cpu"))


@pytest.fixture(scope="module")
def small(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


def config(*edits, **settings) -> SelfGuidanceConfig:
    settings = {"steps": STEPS, "full_steps": 0.5, "alternating_steps": 0.0, **settings}
    return SelfGuidanceConfig(PROMPT, edits or (EDITS["move"],), **settings)


def seeded(seed: int = 0):
    return [torch.Generator().manual_seed(seed)]


def sampled(prior, seed: int = 0):
    return sample_images(prior, [PROMPT], generators=seeded(seed), config=SAMPLER)


def recorded(plain, wanted, seed: int = 0) -> Reference:
    recorder = ReferenceRecorder(plain, wanted)
    sampled(recorder, seed)
    return recorder.reference


def latents(seed: int = 1, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def first_call(prior, z, *, scale=SCALE):
    t = torch.tensor([prior.clock.timesteps[0]] * len(z))
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
    return prior.guided_noise(z, t, cond, uncond, scale)


def reference_at(plain, wanted, z) -> Reference:
    """The reference's first step alone, at given latents."""
    recorder = ReferenceRecorder(plain, wanted)
    with torch.no_grad():
        first_call(recorder, z)
    return recorder.reference


def energy_at(prior, z, *, step=0):
    """g as the prior sees it, with a graph."""
    with prior.watching(step) as watcher:
        t = torch.tensor([prior.clock.timesteps[step]] * len(z))
        cond = prior.modify(_condition(prior), len(z), is_cond=True)
        prior.plain.guided_noise(z, t, cond, cond, 1.0)
    return prior.energy(watcher.observed(), step)


def _condition(prior):
    from image_tools.diffusion.conditions import as_condition

    return as_condition(prior.encode_prompt([PROMPT]))


def test_all_first_steps_are_guided_then_every_second_and_none_of_the_last():
    wanted = SelfGuidanceConfig(PROMPT, (EDITS["move"],), steps=64)
    on = "".join("x" if step in active_steps(wanted) else "." for step in range(64))
    assert on == "x" * 12 + "x." * 25 + ".."
    assert active_steps(config()) == {0, 1}
    assert active_steps(config(full_steps=0.0)) == frozenset()
    assert active_steps(config(full_steps=1.0, alternating_steps=1.0)) == {0, 1, 2, 3}


def test_recording_and_a_scale_of_0_leave_the_images_as_they_are(plain):
    alone = sampled(plain)
    wanted = config()
    recorder = ReferenceRecorder(plain, wanted)
    torch.testing.assert_close(sampled(recorder), alone, atol=1e-4, rtol=0)
    assert set(recorder.reference.steps) == {0, 1}
    off = SelfGuidedPrior(plain, replace(wanted, scale=0.0), recorder.reference)
    assert isinstance(off, NoisePrior)
    assert torch.equal(sampled(off), alone)
    never = SelfGuidedPrior(plain, replace(wanted, full_steps=0.0), recorder.reference)
    assert torch.equal(sampled(never), alone)


@pytest.mark.parametrize("name", list(EDITS))
def test_every_edit_changes_the_image_and_leaves_the_prior(plain, name):
    before, alone = dict(plain.unet.attn_processors), sampled(plain)
    wanted = config(EDITS[name], scale=2000.0)
    prior = SelfGuidedPrior(plain, wanted, recorded(plain, wanted, seed=5))
    found = sampled(prior)
    assert torch.isfinite(found).all()
    assert (found - alone).abs().max() > 1e-5
    assert all(plain.unet.attn_processors[n] is before[n] for n in before)
    assert not any(module._forward_hooks for module in plain.unet.modules())


@pytest.mark.parametrize(
    "edit",
    [
        MoveConfig(("duck",), (0.0, 0.0)),
        ResizeConfig(("duck",), 1.0),
        RestyleConfig(),
        CopyAppearanceConfig(("duck",)),
        CopyLayoutConfig(("duck",)),
    ],
)
def test_edits_that_ask_for_nothing_have_no_energy_at_the_reference(small, edit):
    wanted = config(edit)
    prior = SelfGuidedPrior(small, wanted, reference_at(small, wanted, latents()))
    assert energy_at(prior, latents()).item() == pytest.approx(0.0, abs=1e-5)
    assert energy_at(prior, latents(2)).item() > 1e-4


def test_the_gradient_is_that_of_finite_differences(small):
    """Through attention and features of the denoiser, in one random direction."""
    wanted = config(EDITS["resize"])
    prior = SelfGuidedPrior(small, wanted, reference_at(small, wanted, latents(3)))
    z = latents().requires_grad_()
    (gradient,) = torch.autograd.grad(energy_at(prior, z), [z])
    direction = gradient / gradient.norm()
    step = 1e-2
    with torch.no_grad():
        ahead, behind = (energy_at(prior, z + s * direction) for s in (step, -step))
    slope = float(ahead - behind) / (2.0 * step)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.05)


def test_a_step_along_the_gradient_lowers_the_energy(small):
    wanted = config(EDITS["move"])
    prior = SelfGuidedPrior(small, wanted, reference_at(small, wanted, latents(3)))
    z = latents().requires_grad_()
    value = energy_at(prior, z)
    (gradient,) = torch.autograd.grad(value, [z])
    with torch.no_grad():
        assert energy_at(prior, z - 0.02 * gradient / gradient.norm()) < value


@torch.no_grad()
@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("name", list(EDITS))
def test_a_guided_step_of_the_sampler_ends_with_less_energy_than_a_plain_one(plain, name, distance):
    """Summed over four images: the next step looks at another timestep than the gradient's."""
    wanted = config(EDITS[name], scale=20.0, distance=distance)
    start = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    step = ddim_steps(plain, STEPS)[0]
    guided = SelfGuidedPrior(plain, wanted, recorded(plain, wanted, seed=5))
    ends = [
        ddim_step(start, first_call(prior, start), step, eta=0.0, noise=None)
        for prior in (guided, SelfGuidedPrior(plain, replace(wanted, scale=0.0), guided.reference))
    ]
    with_guidance, without = (energy_at(guided, end, step=1).item() for end in ends)
    assert with_guidance < without


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("sigma_weight", ["none", "sigma", "one_minus_alpha_bar"])
def test_the_prediction_is_guidance_plus_the_weighted_gradient(small, rows, sigma_weight):
    wanted = config(scale=50.0, sigma_weight=sigma_weight)
    prior = SelfGuidedPrior(small, wanted, reference_at(small, wanted, latents(3)))
    z = latents(rows=rows).requires_grad_()
    (gradient,) = torch.autograd.grad(energy_at(prior, z), [z])
    alpha_bar = small.alphas_cumprod[prior.clock.timesteps[0]]
    factor = {"none": 1.0, "sigma": (1 - alpha_bar).sqrt(), "one_minus_alpha_bar": 1 - alpha_bar}
    with torch.no_grad():
        found, base = first_call(prior, z), None
        t = torch.tensor([prior.clock.timesteps[0]] * rows)
        cond, uncond = small.encode_prompt([PROMPT]), small.encode_negative([""])
        base = small.guided_noise(z, t, cond, uncond, SCALE)
    expected = base + 50.0 * factor[sigma_weight] * gradient
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_real_image_needs_no_inversion(small):
    wanted = config(EDITS["copy_appearance"], reference_prompt="a purple cat")
    reference = reference_of_latents(
        small, wanted, latents()[..., :6], generator=torch.Generator().manual_seed(2)
    )
    assert reference.prompt == "a purple cat"
    assert set(reference.steps) == set(active_steps(wanted))
    again = reference_of_latents(
        small, wanted, latents()[..., :6], generator=torch.Generator().manual_seed(2)
    )
    assert torch.equal(again.at(1).features, reference.at(1).features)


def test_it_composes_with_regions_in_either_order(small):
    plan = RegionalConfig("1,1", (RegionConfig("a red duck"), RegionConfig("a cat")))
    wanted = config(scale=0.0)
    regional = sampled(RegionalPrior(small, plan))
    for prior in (
        ReferenceRecorder(RegionalPrior(small, plan), wanted),
        RegionalPrior(ReferenceRecorder(small, wanted), plan),
    ):
        torch.testing.assert_close(sampled(prior), regional, atol=1e-4, rtol=0)
        assert set(prior.reference.steps) == {0, 1}


def test_regions_that_call_the_denoiser_one_by_one_are_refused(small):
    """Off, it may stand around them."""
    both = (RegionConfig("a red duck"), RegionConfig("a cat"))
    regional = RegionalPrior(small, RegionalConfig("1,1", both, mode="latent"))
    reference = reference_at(small, config(), latents())
    wanted = r"got regions of mode latent, .* Set the regions' mode to attn_crop or attn_resize"
    for prior in (
        ReferenceRecorder(regional, config()),
        SelfGuidedPrior(regional, config(), reference),
        SelfGuidedPrior(ControlledPrior(regional, []), config(), reference),
    ):
        with pytest.raises(UnsupportedModel, match=wanted):
            first_call(prior, latents())
    off = SelfGuidedPrior(regional, config(scale=0.0), reference)
    assert torch.equal(sampled(off), sampled(regional))


def test_terms_of_a_move_hold_everything_else():
    prompt = tokenize_prompt(bert_tokenizer(), "a red crocodile and a cat")
    edit = MoveConfig(("crocodile",), (0.5, 0.0), weight=2.0, keep_weight=1.0)
    terms = edit_terms([edit], prompt, prompt)
    own = [(term.kind, term.mine, term.shift) for term in terms[:2]]
    assert own == [("shape", (3, 4), (0.5, 0.0)), ("centroid", (3, 4), (0.5, 0.0))]
    kept = [term for term in terms if term.kind == "shape" and term.shift == (0.0, 0.0)]
    assert [term.mine for term in kept] == [(1,), (2,), (5,), (6,), (7,)]
    assert sum(term.weight for term in kept) == pytest.approx(1.0)
    assert sum(term.kind == "appearance" for term in terms) == 6


def test_terms_follow_words_into_another_prompt():
    tokenizer = bert_tokenizer()
    prompt = tokenize_prompt(tokenizer, "a big red cat")
    reference = tokenize_prompt(tokenizer, "a red cat")
    terms = edit_terms([RestyleConfig()], prompt, reference)
    assert [(term.mine, term.theirs) for term in terms] == [
        ((1,), (1,)),
        ((3,), (2,)),
        ((4,), (3,)),
    ]
    (term,) = edit_terms([CopyLayoutConfig(("big",), ("cat",))], prompt, reference)
    assert (term.mine, term.theirs) == ((2,), (3,))
    with pytest.raises(StudioError, match="Restyle keeps none"):
        edit_terms([RestyleConfig(("big",))], prompt, reference)


def test_a_number_is_the_same_word_in_both_prompts():
    tokenizer = bert_tokenizer()
    prompt = tokenize_prompt(tokenizer, "a big red cat and a cat")
    reference = tokenize_prompt(tokenizer, "a red cat and a cat")
    for edit in (CopyLayoutConfig((3,)), CopyAppearanceConfig((3,)), MoveConfig((3,), (0.1, 0.0))):
        term = edit_terms([edit], prompt, reference)[0]
        assert (term.mine, term.theirs) == ((4,), (3,))
    (term,) = edit_terms([CopyLayoutConfig((3,), (5,))], prompt, reference)
    assert (term.mine, term.theirs) == ((4,), (6,))
    (term,) = edit_terms([CopyLayoutConfig(("cat",))], prompt, reference)
    assert (term.mine, term.theirs) == ((4, 7), (3, 6))
    for edit in (CopyLayoutConfig((1,)), ResizeConfig((1,), 2.0)):
        with pytest.raises(
            StudioError, match=r"number 1 .* is 'big', which the reference's prompt"
        ):
            edit_terms([edit], prompt, reference)


@pytest.mark.parametrize(
    "edit",
    [
        lambda: MoveConfig((), (0.1, 0.0)),
        lambda: ResizeConfig((), 2.0),
        lambda: CopyAppearanceConfig(()),
        lambda: CopyLayoutConfig((), ("cat",)),
    ],
)
def test_edits_of_no_words_are_refused(edit):
    with pytest.raises(ValueError, match="words is empty - expected at least one word"):
        edit()


def test_what_does_not_fit_is_refused(small):
    wanted = config()
    reference = reference_at(small, wanted, latents())
    with pytest.raises(StudioError, match="'dog' is not in the prompt"):
        SelfGuidedPrior(small, config(MoveConfig(("dog",), (0.1, 0.0))), reference)
    with pytest.raises(StudioError, match="reference has no step 1"):
        reference.at(1)
    with pytest.raises(UnsupportedModel, match=r"levels are \[4\].*some of \[0, 1\]"):
        SelfGuidedPrior(small, config(levels=(4,)), reference)
    with pytest.raises(UnsupportedModel, match="the denoiser has no '7' there"):
        SelfGuidedPrior(small, config(features="up_blocks.7"), reference)
    prior = SelfGuidedPrior(small, wanted, reference)
    with pytest.raises(ShapeError, match="Record the reference at the same image size"):
        first_call(prior, torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match="scale is 0"):
        ResizeConfig(("duck",), 0.0)
    with pytest.raises(ValueError, match="edits is empty"):
        SelfGuidanceConfig(PROMPT, ())


def test_energies_add_up():
    tokenizer = bert_tokenizer()
    prompt = tokenize_prompt(tokenizer, "a red cat")
    maps = [torch.rand(24, 6, 6, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    seen = [Observed((m,), m[:5]) for m in maps]
    edits = [CopyLayoutConfig(("cat",)), CopyAppearanceConfig(("red",))]
    parts = [energy(edit_terms([edit], prompt, prompt), *seen) for edit in edits]
    both = energy(edit_terms(edits, prompt, prompt), *seen)
    torch.testing.assert_close(both, parts[0] + parts[1])
    twice = energy(edit_terms([replace(edits[0], weight=2.0)], prompt, prompt), *seen)
    torch.testing.assert_close(twice, 2.0 * parts[0])


def test_distances_are_means_of_absolute_or_of_squared_differences():
    prompt = tokenize_prompt(bert_tokenizer(), "a red cat")
    maps = [torch.rand(24, 6, 6, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    seen = [Observed((m,), m[:5]) for m in maps]
    (cat,) = prompt.tokens_of[2]
    difference = shape(maps[0][cat][None]) - shape(maps[1][cat][None])
    terms = edit_terms([CopyLayoutConfig(("cat",), weight=3.0)], prompt, prompt)
    assert torch.equal(energy(terms, *seen), 3.0 * difference.abs().mean())
    assert torch.equal(energy(terms, *seen, distance="l1"), energy(terms, *seen))
    squared = energy(terms, *seen, distance="l2")
    torch.testing.assert_close(squared, 3.0 * difference.square().mean())
    every = [*EDITS.values(), CopyAppearanceConfig(("cat",))]
    prompt = tokenize_prompt(bert_tokenizer(), PROMPT)
    for edit in every:
        terms = edit_terms([edit], prompt, prompt)
        found = [energy(terms, *seen, distance=name) for name in ("l1", "l2")]
        assert 0.0 < found[1] < found[0]
