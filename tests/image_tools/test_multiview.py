"""The multi-view prior: plain without cameras, and MVDream's block with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from image_tools.configs import PocketMultiViewPriorConfig
from image_tools.diffusion.attention import AttentionHub, BatchLayout
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.diffusion.multiview import CrossViewAttention, MultiViewPrior
from image_tools.diffusion.prior import PriorParts
from image_tools.errors import UnsupportedModel, WeightsMissing
from renderers.errors import ShapeError
from tests.image_tools.tiny_unets import inputs, tiny_multiview_unet, tiny_unet

CPU = torch.device("cpu")
VIEWS = 4


@pytest.fixture
def cameras() -> torch.Tensor:
    """Camera vectors of two sets of four."""
    return torch.randn(2 * VIEWS, 16, generator=torch.Generator().manual_seed(5))


def _parts(plain, unet) -> PriorParts:
    return PriorParts(
        unet=unet,
        vae=plain.vae,
        text=plain.text,
        scheduler_config=plain.scheduler_config,
        fingerprint="tiny",
    )


@pytest.fixture(scope="module")
def base(tiny_pipelines):
    """VAE, text and schedule of a tiny pocket."""
    return load_folder(tiny_pipelines["pocket"], CPU)


@pytest.fixture
def prior(base) -> MultiViewPrior:
    """A multi-view prior with random weights."""
    return MultiViewPrior(_parts(base, tiny_multiview_unet()), views=VIEWS)


def _predict(prior, cameras, order=None, rows=2 * VIEWS):
    """The output for the fixed batch, its rows in another order."""
    latents, t, tokens = inputs(rows)
    t, tokens = t[:1].expand(rows), tokens[:1].expand(rows, -1, -1)
    order = list(range(rows)) if order is None else order
    cameras = None if cameras is None else cameras[order]
    condition = Condition(TextEmbedding(tokens), cameras)
    with torch.no_grad():
        return prior.predict_output(latents[order], t, condition)


def test_without_cameras_it_is_the_plain_unet_bit_for_bit(base, prior):
    plain = type(base)(_parts(base, tiny_unet()))
    assert torch.equal(_predict(prior, None), _predict(plain, None))
    assert torch.equal(_predict(prior, None, rows=1), _predict(plain, None, rows=1))


def test_views_see_each_other_and_sets_do_not(prior, cameras):
    together = _predict(prior, cameras)
    alone = _predict(prior, cameras[:VIEWS], rows=VIEWS)
    torch.testing.assert_close(together[:VIEWS], alone, atol=1e-5, rtol=1e-5)
    prior.views = 1
    assert (_predict(prior, cameras) - together).abs().max() > 1e-4


def test_permuting_the_views_permutes_the_output(prior, cameras):
    order = [2, 0, 3, 1, 4, 5, 6, 7]
    expected = _predict(prior, cameras)[order]
    torch.testing.assert_close(_predict(prior, cameras, order), expected, atol=1e-5, rtol=1e-5)


def test_cameras_change_the_prediction(prior, cameras):
    assert (_predict(prior, cameras) - _predict(prior, -cameras)).abs().max() > 1e-3


def test_guidance_keeps_the_halves_apart(prior, cameras):
    """Classifier-free guidance stacks [uncond, cond]: both halves are whole sets."""
    latents, t, tokens = inputs(2 * VIEWS)
    cond = Condition(TextEmbedding(tokens), cameras)
    uncond = Condition(TextEmbedding(torch.zeros(1, 5, 16)).expand(2 * VIEWS), cameras)
    with torch.no_grad():
        guided = prior.guided_noise(latents, t, cond, uncond, 3.0)
        separate = [prior.predict_noise(latents, t, c) for c in (uncond, cond)]
    expected = separate[0] + 3.0 * (separate[1] - separate[0])
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


def test_incomplete_sets_are_refused(prior, cameras):
    with pytest.raises(ShapeError, match="6 rows are not whole sets of 4"):
        _predict(prior, cameras[:6], rows=6)


def test_a_text_to_image_model_is_refused(base):
    with pytest.raises(UnsupportedModel, match="no camera embedding"):
        MultiViewPrior(_parts(base, tiny_unet()))


def test_close_gives_the_unet_its_attention_back(base):
    unet = tiny_multiview_unet()
    before = dict(unet.attn_processors)
    MultiViewPrior(_parts(base, unet)).close()
    assert all(unet.attn_processors[name] is before[name] for name in before)


def naive_attention(layer, queries, context):
    """Softmax attention head by head, straight from the weights."""
    q = queries @ layer.to_q.weight.T
    k, v = context @ layer.to_k.weight.T, context @ layer.to_v.weight.T
    width = q.shape[-1] // layer.heads
    heads = []
    for h in range(layer.heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / width**0.5
        heads.append(scores.softmax(-1) @ v[..., part])
    out = layer.to_out[0]
    return torch.cat(heads, -1) @ out.weight.T + out.bias


def naive_block(block, x, text, views):
    """MVDream's transformer block: only the self-attention sees the frames side by side."""
    rows, tokens, width = x.shape
    side_by_side = block.norm1(x).reshape(rows // views, views * tokens, width)
    x = x + naive_attention(block.attn1, side_by_side, side_by_side).reshape(rows, tokens, width)
    x = x + naive_attention(block.attn2, block.norm2(x), text)
    gate = block.ff.net[0].proj(block.norm3(x))
    value, gate = gate.chunk(2, -1)
    return x + block.ff.net[2](value * F.gelu(gate))


@torch.no_grad()
def test_a_transformer_block_equals_mvdreams_written_out():
    unet = tiny_unet()
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 6, 16, generator=generator)
    text = torch.randn(8, 5, 16, generator=generator)
    with AttentionHub(unet, [CrossViewAttention()]) as hub:
        for views in (1, 4):
            with hub.batch(BatchLayout(views=views)):
                found = block(x, encoder_hidden_states=text)
            expected = naive_block(block, x, text, views)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (naive_block(block, x, text, 4) - naive_block(block, x, text, 1)).abs().max() > 1e-3


def test_pocket_mv_is_a_denoiser_on_top_of_a_pocket(tiny_pipelines, tmp_path, base):
    tiny_multiview_unet().save_pretrained(tmp_path / "unet")
    settings = (tiny_pipelines["pocket"] / "scheduler" / "scheduler_config.json").read_text()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(settings)
    config = PocketMultiViewPriorConfig(path=str(tmp_path), base=str(tiny_pipelines["pocket"]))
    prior = load_prior(config, CPU)
    assert isinstance(prior, MultiViewPrior)
    assert prior.views == VIEWS
    assert prior.fingerprint != base.fingerprint
    tokens = prior.encode_prompt(["red duck"]).tokens
    assert torch.equal(tokens, base.encode_prompt(["red duck"]).tokens)


def test_a_missing_pocket_mv_says_how_to_make_it(tmp_path):
    config = PocketMultiViewPriorConfig(path=str(tmp_path))
    with pytest.raises(WeightsMissing, match="studio train pocket-mv"):
        load_prior(config, CPU)
