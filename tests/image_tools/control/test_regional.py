"""Regional prompts: identities, a layer by hand, masks, adapters' tokens, and all three modes."""

from __future__ import annotations

import itertools

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.regional import RegionalPrior, rect_masks, region_weights
from image_tools.control.regional_configs import RegionalConfig, RegionConfig, parse_ratio
from image_tools.control.uni_controlnet import UniControlledPrior
from image_tools.diffusion.attention import AttentionHub, AttentionOperation
from image_tools.diffusion.conditions import as_condition
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior
from image_tools.personalization.consistency import ConsistencyPrior, Student
from renderers.errors import ShapeError
from tests.image_tools.control.tiny_controls import (
    condition_images,
    tiny_controlnet,
    tiny_global_adapter,
    tiny_local_adapter,
)

SIZES = [(8, 8), (8, 4), (5, 7)]
MODES = ["attn_crop", "attn_resize", "latent"]
BASE, LEFT, RIGHT = "a red duck", "a mushroom", "a purple duck"
SCALE = 4.0


@pytest.fixture(scope="module", params=["sd1", "sdxl", "pocket"])
def plain(request, tiny_pipelines):
    return load_folder(tiny_pipelines[request.param], torch.device("cpu"))


@pytest.fixture(scope="module")
def small(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


def plan(*prompts, ratio="1,1", **settings) -> RegionalConfig:
    return RegionalConfig(ratio, tuple(map(RegionConfig, prompts)), **settings)


@torch.no_grad()
def guided(prior, prompt=BASE, *, size=(8, 8), scale=SCALE, negative="", rescale=0.0):
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
    cond, uncond = prior.encode_prompt([prompt]), prior.encode_negative([negative])
    return prior.guided_noise(
        latents, torch.tensor([200, 700]), cond, uncond, scale, rescale=rescale
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_with_the_base_alone_it_is_the_plain_prior_bit_for_bit(plain, mode, rescale):
    prior = RegionalPrior(plain, plan(LEFT, RIGHT, base_ratio=1.0, mode=mode))
    assert isinstance(prior, NoisePrior)
    assert torch.equal(guided(prior, rescale=rescale), guided(plain, rescale=rescale))


@pytest.mark.parametrize("mode", ["attn_crop", "latent"])
@pytest.mark.parametrize("size", SIZES)
def test_the_base_s_prompt_in_every_region_is_the_plain_prior(plain, mode, size):
    prior = RegionalPrior(plain, plan(BASE, BASE, base_ratio=0.3, mode=mode))
    found = guided(prior, size=size, negative="a cat")
    torch.testing.assert_close(
        found, guided(plain, size=size, negative="a cat"), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_one_region_for_itself_is_that_prompt(small, mode, scale):
    prior = RegionalPrior(small, plan(LEFT, ratio="1", base_ratio=0.0, mode=mode))
    found = guided(prior, scale=scale)
    torch.testing.assert_close(found, guided(small, LEFT, scale=scale), atol=1e-4, rtol=1e-4)


def test_pooled_text_of_sdxl_is_the_whole_image_s(tiny_pipelines):
    sdxl = load_folder(tiny_pipelines["sdxl"], torch.device("cpu"))
    text = RegionalPrior(sdxl, plan(LEFT, RIGHT)).encode_prompt([BASE])
    assert torch.equal(text.pooled, sdxl.encode_prompt([BASE]).pooled)
    assert text.tokens.shape[1] == 3 * 77


@torch.no_grad()
@pytest.mark.parametrize("mode", ["attn_crop", "attn_resize"])
def test_a_layer_equals_plain_answers_cut_or_shrunk(small, mode):
    """In one call of the denoiser, the first layer's answers are composed of three plain ones."""

    class First(AttentionOperation):
        def __init__(self):
            self.seen = []

        def applies_to(self, call):
            return call.layer.name.startswith("down_blocks") and call.layer.is_cross

        def output(self, call, output):
            self.seen.append(output)
            return output

    def first_layer(prior, prompt):
        seen = First()
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        with AttentionHub(small.unet, [seen]):
            prior.predict_output(latents, torch.tensor([400]), prior.encode_prompt([prompt]))
        return seen.seen[0].reshape(1, 8, 8, -1)

    regional = RegionalPrior(small, plan(LEFT, RIGHT, ratio="1,3", base_ratio=0.25, mode=mode))
    base, left, right = (first_layer(small, prompt) for prompt in (BASE, LEFT, RIGHT))
    if mode == "attn_crop":
        regions = torch.cat([left[:, :, :2], right[:, :, 2:]], dim=2)
    else:
        wide = right.movedim(-1, 1)
        shrunk = torch.nn.functional.interpolate(wide, (8, 6), mode="area").movedim(1, -1)
        quarter = left.unflatten(2, (2, 4)).mean(dim=3)
        regions = torch.cat([quarter, shrunk], dim=2)
    found = first_layer(regional, BASE)
    torch.testing.assert_close(found, 0.25 * base + 0.75 * regions, atol=1e-5, rtol=1e-4)


def test_latent_mode_blends_predictions(small):
    prior = RegionalPrior(small, plan(LEFT, RIGHT, base_ratio=0.25, mode="latent"))
    before = small.denoiser_evaluations
    found = guided(prior)
    assert small.denoiser_evaluations - before == 3 * 2 * 2
    base, left, right = (guided(small, prompt) for prompt in (BASE, LEFT, RIGHT))
    regions = torch.cat([left[..., :4], right[..., 4:]], dim=-1)
    torch.testing.assert_close(found, 0.25 * base + 0.75 * regions, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        *itertools.product(MODES, [(8, 8), (8, 4), (4, 12), (12, 8)]),
        *(("latent", size) for size in [(5, 7), (9, 6)]),
    ],
)
def test_masks_of_rectangles_are_the_rectangles(small, mode, size):
    """Layers halve even sizes without a rest; in latent mode there is one resolution."""
    config = plan(LEFT, RIGHT, BASE, ratio="1,1,1; 1,1", mode=mode)
    masks = rect_masks(parse_ratio(config.ratio), size)
    found = guided(RegionalPrior(small, config, masks=masks), size=size)
    expected = guided(RegionalPrior(small, config), size=size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (9, 6), (7, 13)])
@pytest.mark.parametrize("ratio", ["1,1", "1,1,1; 1,1", "1,2,1"])
def test_masks_of_odd_sizes_differ_from_rectangles_in_the_places_that_are_cut(size, ratio):
    """A layer of half the size draws whole places for rectangles and shares them by masks."""
    rects = parse_ratio(ratio)
    coarse = tuple((side + 1) // 2 for side in size)
    ratios = [0.0] * len(rects)
    soft = region_weights(rect_masks(rects, size), ratios, coarse)
    hard = region_weights(rect_masks(rects, coarse), ratios, coarse)
    is_cut = ((soft > 0.0) & (soft < 1.0)).any(dim=0)
    assert is_cut.any()
    assert torch.equal(soft[:, ~is_cut], hard[:, ~is_cut])
    torch.testing.assert_close(soft.sum(dim=0), torch.ones(coarse))


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_masks_for_each_image_are_those_of_its_own_call(small, mode):
    config = plan(LEFT, RIGHT, mode=mode)
    halves = rect_masks(parse_ratio("1,1"), (8, 8))
    both = torch.stack([halves, halves.flip(0)])
    prior = RegionalPrior(small, config)
    found = guided(prior.showing(both))
    for k, masks in enumerate(both):
        expected = guided(RegionalPrior(small, config, masks=masks))
        torch.testing.assert_close(found[k], expected[k], atol=1e-5, rtol=1e-5)
    assert (found[1] - guided(prior)[1]).abs().max() > 1e-3, "the second has its sides swapped"
    assert torch.equal(guided(prior), guided(RegionalPrior(small, config))), "the prior was moved"


def test_weights_sum_to_one_where_masks_overlap_and_where_there_are_none():
    masks = torch.zeros(2, 4, 4)
    masks[0, :, :3], masks[1, :, 2:] = 1.0, 1.0
    masks[:, 3] = 0.0
    weights = region_weights(masks, [0.0, 0.5], (4, 4))
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(4, 4))
    assert weights[:, 0, 0].tolist() == [0.0, 1.0, 0.0]
    assert weights[:, 0, 2].tolist() == [0.25, 0.5, 0.25]
    assert weights[:, 0, 3].tolist() == [0.5, 0.0, 0.5]
    assert weights[:, 3, 1].tolist() == [1.0, 0.0, 0.0]
    coarse = region_weights(masks, [0.0, 0.0], (2, 2))
    assert coarse[1, 1, 0] == 0.5


@torch.no_grad()
def test_tokens_that_an_adapter_appends_are_seen_by_base_and_regions(small):
    """With one prompt everywhere, appended tokens act as on the plain prior."""
    prior = RegionalPrior(small, plan(BASE, BASE, base_ratio=0.4))
    extra = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(3))

    class Appends(AttentionOperation):
        def applies_to(self, call):
            return call.layer.is_cross

        def inputs(self, call, hidden, context):
            return hidden, torch.cat([context, extra.expand(len(context), -1, -1)], dim=1)

    without = guided(prior)
    with AttentionHub(small.unet, [Appends()]):
        found, expected = guided(prior), guided(small)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - without).abs().max() > 1e-3


def controls(plain):
    """Tools that run a network of their own beside the denoiser, as functions of a prior."""
    images, content = condition_images(plain), tiny_global_adapter(plain)
    net, adapter = tiny_controlnet(plain), tiny_local_adapter(plain)
    width = content.settings.width
    seen = torch.randn(1, width, generator=torch.Generator().manual_seed(4))
    maps = {"edge": images}
    return {
        "controlnet": lambda prior: ControlledPrior(prior, [Control(net, images)]),
        "uni": lambda prior: UniControlledPrior(prior, adapter, maps=maps),
        "uni with content": lambda prior: UniControlledPrior(
            prior, adapter, content, maps=maps, embedding=seen
        ),
    }


@pytest.mark.parametrize("mode", ["attn_crop", "latent"])
@pytest.mark.parametrize(
    ("tool", "is_inside"),
    [
        ("controlnet", True),
        ("controlnet", False),
        ("uni", True),
        ("uni", False),
        ("uni with content", True),
    ],
)
def test_with_the_base_s_prompt_in_every_region_it_is_the_control_alone(
    small, tool, is_inside, mode
):
    """ControlNets and local adapters read one prompt and what adapters appended, no regions."""
    regions, controlled = plan(BASE, BASE, base_ratio=0.3, mode=mode), controls(small)[tool]
    if is_inside:
        prior = RegionalPrior(controlled(small), regions)
    else:
        prior = controlled(RegionalPrior(small, regions))
    alone = guided(controlled(small), negative="a cat")
    torch.testing.assert_close(guided(prior, negative="a cat"), alone, atol=1e-4, rtol=1e-4)
    assert (alone - guided(small, negative="a cat")).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("mode", ["attn_crop", "attn_resize"])
def test_controls_read_the_base_s_prompt_whatever_the_regions_show(small, mode):
    seen = []
    net = tiny_controlnet(small)
    net.register_forward_pre_hook(
        lambda _module, _given, named: seen.append(named["encoder_hidden_states"]), with_kwargs=True
    )
    control = Control(net, condition_images(small))
    regional = RegionalPrior(small, plan(LEFT, RIGHT, mode=mode))
    inside = guided(RegionalPrior(ControlledPrior(small, [control]), regional.config))
    around = guided(ControlledPrior(regional, [control]))
    assert torch.equal(inside, around)
    told = [small.encode_negative([""]), small.encode_prompt([BASE])]
    expected = torch.cat([text.tokens.expand(2, -1, -1) for text in told])
    assert [torch.equal(tokens, expected) for tokens in seen] == [True, True]


def test_regions_of_each_way_of_reading_a_subject_are_those_of_its_own(small):
    """Text that lies side by side in its width is cut there before it is cut into regions."""
    student = ConsistencyPrior(small, [Student(loras={})])
    prior = RegionalPrior(student, plan(LEFT, RIGHT, base_ratio=0.3))
    expected = guided(RegionalPrior(small, plan(LEFT, RIGHT, base_ratio=0.3)))
    torch.testing.assert_close(guided(prior), expected, atol=2e-4, rtol=0)


def test_negative_prompts_of_regions_and_a_common_prompt(small):
    own = RegionalConfig(
        "1,1",
        (RegionConfig(LEFT, negative_prompt="a cat"), RegionConfig(RIGHT)),
        common="a photo",
    )
    prior = RegionalPrior(small, own)
    negative = prior.encode_negative(["red"]).tokens.split(77, dim=1)
    for part, prompt in zip(negative, ("red", "a cat", "red"), strict=True):
        assert torch.equal(part, small.encode_negative([prompt]).tokens)
    positive = prior.encode_prompt([BASE]).tokens.split(77, dim=1)
    assert torch.equal(positive[2], small.encode_prompt([f"a photo, {RIGHT}"]).tokens)
    assert torch.equal(positive[0], small.encode_prompt([BASE]).tokens)


def test_samplers_take_it_and_the_prior_is_left_as_it_was(plain):
    before, alone = dict(plain.unet.attn_processors), guided(plain)
    prior = RegionalPrior(plain, plan(LEFT, RIGHT))
    images = sample_images(
        prior,
        [BASE, LEFT],
        generators=[torch.Generator().manual_seed(k) for k in range(2)],
        config=DdimConfig(steps=2),
    )
    assert torch.isfinite(images).all()
    assert all(plain.unet.attn_processors[name] is before[name] for name in before)
    assert torch.equal(guided(plain), alone)


@torch.no_grad()
@pytest.mark.parametrize("inner", ["regional", "edit"])
def test_it_composes_with_prompt_to_prompt_in_either_order(small, inner):
    """With everything shared and equal latents, an edit's regional image is the source's."""
    edit = EditedPromptConfig(LEFT, align="replace", cross_steps=(0.0, 1.0), self_steps=(0.0, 1.0))
    edits, regions = PromptToPromptConfig("a duck", (edit,), steps=1), plan(LEFT, RIGHT)
    if inner == "regional":
        prior = PromptToPromptPrior(RegionalPrior(small, regions), edits)
    else:
        prior = RegionalPrior(PromptToPromptPrior(small, edits), regions)
    latents = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    t = torch.tensor([prior.clock.timesteps[0]] * 2)

    def predict(prior):
        cond, uncond = prior.encode_prompt(["a duck", LEFT]), prior.encode_negative([""])
        return prior.guided_noise(latents, t, cond, uncond, SCALE)

    found, apart = predict(prior), predict(RegionalPrior(small, regions))
    torch.testing.assert_close(found[0], apart[0], atol=1e-4, rtol=1e-4)
    assert (found[1] - apart[1]).abs().max() > 1e-4


def test_what_does_not_fit_is_refused(small):
    prior = RegionalPrior(small, plan(LEFT, RIGHT))
    with pytest.raises(ShapeError, match=r"has 77 tokens, expected 231 for 2 regions"):
        prior.modify(as_condition(small.encode_prompt([BASE])), 1, is_cond=True)
    with pytest.raises(ShapeError, match=r"masks has shape \(3, 8, 8\), expected \[2, H, W\]"):
        RegionalPrior(small, plan(LEFT, RIGHT), masks=torch.ones(3, 8, 8))
