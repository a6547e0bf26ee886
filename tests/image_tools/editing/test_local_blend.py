"""Local blending: masks from maps in closed form, and the two ends of its effect."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionLayer,
    BatchLayout,
)
from image_tools.diffusion.loading import load_folder
from image_tools.editing.editing_configs import (
    EditedPromptConfig,
    LocalBlendConfig,
    PromptToPromptConfig,
    WordWeightConfig,
)
from image_tools.editing.local_blend import WordMapRecorder, blend_latents, word_masks
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior, edit_images
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError
from tests.image_tools.published_unets import SIDES, published_unet

STEPS = 4
EDIT = EditedPromptConfig("a red mushroom", self_steps=(0.0, 0.0))
WORDS = (("duck",), ("mushroom",))


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def images(plain, blend):
    prior = PromptToPromptPrior(
        plain, PromptToPromptConfig("a red duck", (EDIT,), blend, steps=STEPS)
    )
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return edit_images(prior, generators=generators, config=DdimConfig(steps=STEPS))


def blend(**settings) -> LocalBlendConfig:
    return LocalBlendConfig(WORDS, level=0, **{"start": 0.0, **settings})


def test_masks_are_pooled_enlarged_and_cut_at_a_share_of_their_maximum():
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, 0, 0], maps[0, 0, 3, 3], maps[1, 0, 1, 1] = 1.0, 0.25, 8.0
    found = word_masks(maps, (8, 8), threshold=0.3, pool=3)
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    expected[0, 0, :4, :4] = True
    expected[1, 0, :6, :6] = True
    assert torch.equal(found, expected)
    assert word_masks(maps, (8, 6), threshold=0.3, pool=1)[1, 0].sum() == 4 - 1 - 1


def test_edits_keep_latents_inside_of_their_masks_alone():
    latents = torch.arange(3.0).reshape(3, 1, 1, 1, 1).expand(3, 1, 2, 1, 4)
    masks = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    found = blend_latents(latents, masks[:, None, None])
    assert found[0].eq(0).all()
    assert found[1, 0, 0, 0].tolist() == [0, 1, 0, 0]
    assert found[2, 0, 1, 0].tolist() == [2, 0, 2, 0]
    with pytest.raises(ShapeError, match="masks have shape"):
        blend_latents(latents, masks[:, None])


def test_edits_may_act_where_both_prompts_words_are_less_where_either_s_words_to_keep_are(plain):
    """All cases of two places: (M_source or M_edit) and not (S_source or S_edit)."""
    config = blend(keep_words=(("red",), ("red",)), threshold=0.5, keep_threshold=0.5)
    prior = PromptToPromptPrior(
        plain, PromptToPromptConfig("a red duck", (EDIT,), config, steps=STEPS)
    )
    table = list(itertools.product([False, True], repeat=4))
    # Places are 4 columns apart: the words' maps are widened by one on each side.
    seen = torch.zeros(4, 1, 4 * len(table))
    seen[:, 0, ::4] = torch.tensor(table).T.float()
    for recorder, maps in zip(prior.blend.operations, seen.split(2), strict=True):
        recorder.maps[0, 0] = maps[:, None]
    size = tuple(seen.shape[1:])
    found = prior.blend.masks(0, size)[:, 0, 0, ::4]
    wanted = [(m_0 or m_p) and not (s_0 or s_p) for m_0, m_p, s_0, s_p in table]
    assert found[1].tolist() == wanted
    latents = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, *size)
    blended = prior.blend(0, latents)[:, 0, 0, ::4]
    assert blended[1].bool().tolist() == wanted
    assert not blended[0].any()


def test_recorded_maps_are_those_after_the_edit_of_attention(plain):
    """The edit's word takes over its source's map, times its weight."""
    edit = EditedPromptConfig(
        "a red mushroom",
        align="replace",
        cross_steps=(0.0, 1.0),
        word_weights=(WordWeightConfig("mushroom", 3.0),),
    )
    found = {}
    for name, shares in (("edited", (0.0, 1.0)), ("own", (0.0, 0.0))):
        wanted = replace(edit, cross_steps=shares)
        prior = PromptToPromptPrior(
            plain, PromptToPromptConfig("a red duck", (wanted,), blend(), steps=STEPS)
        )
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([prior.clock.timesteps[0]] * 2)
        with torch.no_grad():
            prior.predict_noise(latents, t, prior.encode_prompt(prior.prompts))
        found[name] = prior.blend.operations[0].sum_until(0)
    source, edited = found["edited"]
    torch.testing.assert_close(edited, 3.0 * source)
    torch.testing.assert_close(found["own"][0], source)
    assert (found["own"][1] - edited).abs().max() > 1e-3


def test_recorded_maps_are_means_over_heads_of_sums_over_words():
    words = [torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0])]
    recorder = WordMapRecorder(words, level=1)
    layer = AttentionLayer("down_blocks.1", 5, "down", True, 2, level=1)
    given = torch.rand(4, 2, 6, 3, generator=torch.Generator().manual_seed(0))
    roles = ("uncond:0", "uncond:1", "cond:0", "cond:1")
    for step in (0, 1, 1, 2):
        call = AttentionCall(layer, BatchLayout(roles=roles, step=step), (4, 6))
        assert recorder.applies_to(call)
        assert recorder.probabilities(call, given * (step + 1)) is not None
    expected = [given[2, :, :, 1:].sum(-1).mean(0), given[3, :, :, 2].mean(0)]
    found = recorder.sum_until(1)
    torch.testing.assert_close(found[:, 0], 3.0 * torch.stack(expected).reshape(2, 2, 3))
    recorder.sum_until(0)  # a new image begins
    torch.testing.assert_close(recorder.sum_until(2), found / 3.0)
    for other in (
        AttentionLayer("mid_block", 5, "mid", True, 2, level=1),
        AttentionLayer("down_blocks.0", 5, "down", True, 2, level=0),
        AttentionLayer("down_blocks.1", 5, "down", False, 2, level=1),
    ):
        assert not recorder.applies_to(AttentionCall(other, BatchLayout(step=0), (4, 6)))


def test_a_threshold_nothing_reaches_keeps_the_source_and_one_below_all_does_nothing(plain):
    free = images(plain, None)
    kept = images(plain, blend(threshold=2.0))
    torch.testing.assert_close(kept[1], kept[0])
    torch.testing.assert_close(kept[0], free[0], atol=1e-5, rtol=0)
    assert (free[1] - free[0]).abs().max() > 1e-3
    torch.testing.assert_close(images(plain, blend(threshold=-1.0)), free)


def test_the_last_step_counts_even_where_blending_starts_late(plain):
    """Of 4 steps, a start of 0.99 leaves 3 alone, and one of 1 all."""
    late = images(plain, blend(threshold=2.0, start=0.99))
    torch.testing.assert_close(late[1], late[0])
    torch.testing.assert_close(images(plain, blend(threshold=2.0, start=1.0)), images(plain, None))


def test_words_to_keep_are_taken_out_again(plain):
    everything = {"threshold": -1.0, "keep_words": (("red",), ("red",))}
    kept = images(plain, blend(**everything, keep_threshold=-1.0))
    torch.testing.assert_close(kept[1], kept[0])
    free = images(plain, blend(**everything, keep_threshold=2.0))
    torch.testing.assert_close(free, images(plain, None))


def test_what_does_not_fit_is_refused(plain):
    with pytest.raises(StudioError, match="'cat' is not in the prompt"):
        images(plain, LocalBlendConfig((("cat",), ("mushroom",)), level=0))
    with pytest.raises(UnsupportedModel, match=r"level of the blend is 2.*expected one of \[0\]"):
        images(plain, LocalBlendConfig(WORDS))
    with pytest.raises(ValueError, match="has 1 entries for 2 prompts"):
        images(plain, LocalBlendConfig((("duck",),)))
    with pytest.raises(ValueError, match="keep_words has 1 entries"):
        LocalBlendConfig(WORDS, keep_words=(("red",),))
    with pytest.raises(StudioError, match="No attention maps were seen"):
        WordMapRecorder([torch.ones(3)], 0).sum_until(2)


def test_level_2_of_stable_diffusion_is_what_the_authors_blend_by():
    """attention_store["down_cross"][2:4] + attention_store["up_cross"][:3], of 16 x 16."""
    side, cross = SIDES["SD1.5"], {"down": [], "up": []}
    recorder, seen = WordMapRecorder([], 2), []
    for layer in AttentionHub(published_unet("SD1.5")).layers:
        call = AttentionCall(layer, BatchLayout(step=0), (side, side))
        if layer.is_cross and layer.place in cross and call.size[0] * call.size[1] <= 32**2:
            cross[layer.place].append(layer.name)
        if recorder.applies_to(call):
            assert call.size == (16, 16)
            seen.append(layer.name)
    assert sorted(seen) == sorted(cross["down"][2:4] + cross["up"][:3])
