"""Uni-ControlNet: its adapters against stock modules, and the prior with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.uni_adapters import FDN, FeatureExtractor, GlobalAdapter, LocalAdapter
from image_tools.control.uni_configs import (
    GlobalAdapterSettings,
    LocalAdapterSettings,
    UniDropoutConfig,
)
from image_tools.control.uni_controlnet import UniControlledPrior, draw_kept, stack_maps
from image_tools.diffusion.parametrization import classifier_free_guidance
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.consistency import ConsistencyPrior, Student
from renderers.errors import ShapeError, StudioError
from tests.image_tools.control.tiny_controls import (
    condition_images,
    tiny_controlnet,
    tiny_global_adapter,
    tiny_local_adapter,
)
from tests.image_tools.personalization.subjects import load_tiny

ROUNDING = 2e-5


def _inputs(prior):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([100, 700])


@torch.no_grad()
def _guided(prior, scale: float = 5.0) -> torch.Tensor:
    cond, uncond = prior.encode_prompt(["a purple duck"]), prior.encode_negative([""])
    return prior.guided_noise(*_inputs(prior), cond, uncond, scale)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def local(prior):
    return tiny_local_adapter(prior)


@pytest.fixture(scope="module")
def content(prior):
    return tiny_global_adapter(prior)


@pytest.fixture
def embedding():
    return torch.randn(1, 16, generator=torch.Generator().manual_seed(9))


def test_switched_off_the_prediction_is_the_plain_one_bit_for_bit(prior, local, content, embedding):
    maps = {"edge": condition_images(prior)}
    settings = [
        {},
        {"maps": maps, "strength": 0.0},
        {"maps": {}, "embedding": None},
        {"embedding": embedding, "content_strength": 0.0},
    ]
    for off in settings:
        modified = UniControlledPrior(prior, local, content, **off)
        assert isinstance(modified, NoisePrior)
        assert torch.equal(_guided(modified), _guided(prior))
    for on in ({"maps": maps}, {"embedding": embedding}):
        modified = UniControlledPrior(prior, local, content, **on)
        assert (_guided(modified) - _guided(prior)).abs().max() > 1e-2


def test_an_untrained_adapter_changes_nothing(prior):
    settings = LocalAdapterSettings(
        conditions=("edge", "depth"), level_widths=(8, 12), image_factor=2
    )
    fresh = LocalAdapter.from_unet(prior.unet, settings)
    modified = UniControlledPrior(prior, fresh, maps={"depth": condition_images(prior)})
    assert torch.equal(_guided(modified), _guided(prior))
    copied = fresh.down_blocks[0].resnets[0].conv2.weight
    assert torch.equal(copied, prior.unet.down_blocks[0].resnets[0].conv2.weight)


def test_denormalisation_is_its_formula():
    generator = torch.Generator().manual_seed(2)
    layer = FDN(8, 3, groups=4)
    x = torch.randn(2, 8, 5, 6, generator=generator)
    f = torch.randn(2, 3, 5, 6, generator=generator)
    groups = x.reshape(2, 4, -1)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, correction=0)
    normalised = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    gamma = F.conv2d(f, layer.conv_gamma.weight, layer.conv_gamma.bias, padding=1)
    beta = F.conv2d(f, layer.conv_beta.weight, layer.conv_beta.bias, padding=1)
    torch.testing.assert_close(layer(x, f), normalised * (1 + gamma) + beta, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "pocket"])
def test_with_constant_modulation_it_is_the_stock_controlnet(tiny_pipelines, kind):
    """gamma = weight - 1 and beta = bias make FDN a plain normalisation, wherever maps are."""
    prior = load_tiny(tiny_pipelines, kind)
    stock, adapter = tiny_controlnet(prior), tiny_local_adapter(prior)
    theirs = stock.state_dict()
    with torch.no_grad():
        adapter.load_state_dict({k: v for k, v in theirs.items() if "cond_embed" not in k}, False)
        for level, block in enumerate(adapter.down_blocks):
            name = f"down_blocks.{level}.resnets.0."
            for ours, norm in ((block.resnets[0].norm_in, "1"), (block.resnets[0].norm_out, "2")):
                ours.conv_gamma.weight.zero_()
                ours.conv_beta.weight.zero_()
                ours.conv_gamma.bias.copy_(theirs[f"{name}norm{norm}.weight"] - 1.0)
                ours.conv_beta.bias.copy_(theirs[f"{name}norm{norm}.bias"])
        for parameter in stock.controlnet_cond_embedding.conv_out.parameters():
            parameter.zero_()
        latents, t = _inputs(prior)
        text = prior.encode_prompt(["a duck", "a hat"]).tokens
        image = condition_images(prior, 2).movedim(-1, 1)
        down, mid = adapter(latents, t, text, torch.cat([image, 1.0 - image], dim=1))
        expected_down, expected_mid = stock(latents, t, text, image, return_dict=False)
    assert len(down) == len(expected_down)
    for ours, expected in zip([*down, mid], [*expected_down, expected_mid], strict=True):
        torch.testing.assert_close(ours, expected, atol=ROUNDING, rtol=1e-4)
        assert expected.abs().max() > 1e-2


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_features_have_the_sizes_of_the_levels(factor):
    settings = LocalAdapterSettings(
        conditions=("a",), stem_widths=(2,) * 5, level_widths=(3, 4, 5), image_factor=factor
    )
    features = FeatureExtractor(settings)(torch.rand(1, 3, 16 * factor, 8 * factor))
    assert [tuple(f.shape) for f in features] == [(1, 3, 16, 8), (1, 4, 8, 4), (1, 5, 4, 2)]
    assert all((f == 0.0).all() for f in features)


def test_maps_act_by_name_and_absent_ones_are_zeros(prior, local):
    images = condition_images(prior)
    both = stack_maps({"edge": images, "depth": images}, local.settings.conditions)
    assert both.shape[-1] == 6
    assert torch.equal(both[..., :3], both[..., 3:])
    edge = stack_maps({"edge": images}, local.settings.conditions)
    assert torch.equal(edge[..., :3], images)
    assert (edge[..., 3:] == 0.0).all()
    depth = stack_maps({"depth": images}, local.settings.conditions)
    torch.testing.assert_close(edge + depth, both)
    results = [
        _guided(UniControlledPrior(prior, local, maps=maps))
        for maps in ({"edge": images}, {"depth": images}, {"edge": images, "depth": images})
    ]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_content_is_tokens_for_both_halves(prior, content, embedding):
    """The unconditional half sees the tokens of an embedding of zeros."""
    modified = UniControlledPrior(prior, content=content, embedding=embedding, content_strength=0.7)
    latents, t = _inputs(prior)
    cond, uncond = prior.encode_prompt(["a purple duck"]), prior.encode_negative([""])

    def prediction(text, content_of):
        tokens = torch.cat([text.tokens, 0.7 * content(content_of)], dim=1).expand(2, -1, -1)
        return prior.unet(latents, t, encoder_hidden_states=tokens).sample

    with torch.no_grad():
        expected = classifier_free_guidance(
            prediction(uncond, torch.zeros(1, 16)), prediction(cond, embedding), 5.0
        )
        assert content(torch.zeros(1, 16)).abs().max() > 0
    torch.testing.assert_close(_guided(modified), expected, atol=ROUNDING, rtol=0)


def test_the_global_adapter_is_layers_of_stock_modules(content, embedding):
    from diffusers.models.attention import FeedForward

    first, second = FeedForward(16, 32), FeedForward(32, 64)
    first.load_state_dict(content.ff1.state_dict())
    second.load_state_dict(content.ff2.state_dict())
    hidden = first(F.layer_norm(embedding, (16,), content.norm1.weight, content.norm1.bias))
    hidden = second(F.layer_norm(hidden, (32,), content.norm2.weight, content.norm2.bias))
    torch.testing.assert_close(content(embedding), hidden.reshape(1, 4, 16))


def test_local_adapter_reads_the_contents_tokens_too(prior, local, content, embedding):
    """The addition acts on the text as it is when the denoiser is called."""
    maps = {"edge": condition_images(prior)}
    both = UniControlledPrior(prior, local, content, maps=maps, embedding=embedding)
    latents, t = _inputs(prior)
    text = prior.encode_prompt(["a duck"])
    with torch.no_grad():
        tokens = torch.cat([text.tokens, content(embedding)], dim=1).expand(2, -1, -1)
        stacked = stack_maps(maps, local.settings.conditions).movedim(-1, 1).expand(2, -1, -1, -1)
        down, mid = local(latents, t, tokens, stacked)
        expected = prior.unet(
            latents, t, encoder_hidden_states=tokens, down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=mid,
        ).sample  # fmt: skip
        ours = both.predict_output(latents, t, text)
    torch.testing.assert_close(ours, expected, atol=ROUNDING, rtol=0)


def test_it_composes_with_controls_and_consistency(
    tiny_pipelines, prior, local, content, embedding
):
    maps, control = {"edge": condition_images(prior)}, tiny_controlnet(prior)
    one = [Control(control, condition_images(prior, seed=3))]

    def uni(inner):
        return UniControlledPrior(inner, local, content, maps=maps, embedding=embedding)

    inside = _guided(uni(ControlledPrior(prior, one)))
    around = _guided(ControlledPrior(uni(prior), one))
    torch.testing.assert_close(inside, around, atol=ROUNDING, rtol=0)
    student = ConsistencyPrior(load_tiny(tiny_pipelines), [Student(loras={})])
    torch.testing.assert_close(_guided(uni(student)), _guided(uni(prior)), atol=2e-4, rtol=0)


def test_gradients_reach_latents_and_maps(prior, local):
    images = condition_images(prior).requires_grad_()
    modified = UniControlledPrior(prior, local, maps={"edge": images})
    latents, t = _inputs(prior)
    latents.requires_grad_()
    modified.predict_noise(latents, t, prior.encode_prompt(["a duck"])).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert latents.grad.abs().sum() > 0
    assert all(p.grad is None for p in local.parameters())


def test_dropout_has_the_papers_frequencies():
    rows, config = 40_000, UniDropoutConfig()
    kept, text = draw_kept(rows, 2, config, generator=torch.Generator().manual_seed(0))
    joint = (kept[:, 0].long() * 2 + kept[:, 1].long()).bincount(minlength=4)
    # keep-all 0.1, drop-all 0.1, and a quarter of the other 0.8 for each of four subsets.
    expected = torch.tensor([0.3, 0.2, 0.2, 0.3]) * rows
    chi_squared = ((joint - expected) ** 2 / expected).sum()
    assert chi_squared < 16.3  # 0.1 % of draws exceed it, three degrees of freedom
    assert abs(text.float().mean() - 0.5) < 0.01
    everything = UniDropoutConfig(text=0.0, keep_all=1.0, drop_all=0.0)
    kept, text = draw_kept(9, 3, everything, generator=torch.Generator().manual_seed(0))
    assert kept.all()
    assert text.all()


@pytest.mark.wrong_shapes
def test_bad_inputs_are_refused(tiny_pipelines, prior, local, content, embedding):
    images = condition_images(prior)
    with pytest.raises(StudioError, match="maps are pose - expected some of edge, depth"):
        UniControlledPrior(prior, local, maps={"pose": images})
    with pytest.raises(StudioError, match="maps edge came without a local adapter"):
        UniControlledPrior(prior, maps={"edge": images})
    with pytest.raises(StudioError, match="embedding came without a global adapter"):
        UniControlledPrior(prior, local, embedding=embedding)
    with pytest.raises(ShapeError, match=r"embedding has shape \(1, 5\)"):
        UniControlledPrior(prior, content=content, embedding=embedding[:, :5])
    with pytest.raises(ShapeError, match="Maps have shapes"):
        UniControlledPrior(prior, local, maps={"edge": images, "depth": images[:, :8]})
    with pytest.raises(ShapeError, match="Maps are 8x16 pixels, expected 16x16"):
        _guided(UniControlledPrior(prior, local, maps={"edge": images[:, :8]}))
    sdxl = load_tiny(tiny_pipelines, "sdxl")
    with pytest.raises(UnsupportedModel, match="addition_embed_type 'text_time'"):
        LocalAdapter.from_unet(sdxl.unet, local.settings)
    with pytest.raises(UnsupportedModel, match=r"2 levels, .* level_widths are \[192, 256"):
        LocalAdapter.from_unet(prior.unet, LocalAdapterSettings())
    wide = GlobalAdapter(GlobalAdapterSettings(width=24, tokens=2))
    with pytest.raises(UnsupportedModel, match="tokens of 24 numbers, the text has 16"):
        _guided(UniControlledPrior(prior, content=wide, embedding=torch.zeros(1, 24)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: LocalAdapterSettings(image_factor=3), "image_factor is 3 - expected"),
        (lambda: LocalAdapterSettings(conditions=("a", "a")), "expected different names"),
        (lambda: UniDropoutConfig(keep_all=0.7, drop_all=0.7), "expected at most 1 together"),
        (lambda: UniDropoutConfig(text=1.2), "text is 1.2 - expected 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings()
