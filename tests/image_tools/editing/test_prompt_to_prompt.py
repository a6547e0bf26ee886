"""Prompt-to-Prompt against loops over tokens, its identities, and the prior it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionLayer,
    AttentionOperation,
    BatchLayout,
    attention_operations,
)
from image_tools.diffusion.conditions import Condition, as_condition
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from image_tools.editing.align import (
    refinement_map,
    replacement_map,
    tokenize_prompt,
    word_weights,
)
from image_tools.editing.editing_configs import (
    EditedPromptConfig,
    LocalBlendConfig,
    PromptToPromptConfig,
    WordStepsConfig,
    WordWeightConfig,
)
from image_tools.editing.prompt_to_prompt import (
    PromptToPromptAttention,
    PromptToPromptPrior,
    edit_images,
    token_edit,
)
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError
from tests.image_tools.editing.prompts import bert_tokenizer
from tests.image_tools.published_unets import SIDES, published_unet
from tests.image_tools.tiny_unets import tiny_unet

STEPS = 4
SAMPLER = DdimConfig(steps=STEPS, guidance_scale=5.0)
SOURCE, TARGET = "a red duck", "a red mushroom"
ALWAYS, NEVER = (0.0, 1.0), (0.0, 0.0)
BLOCK = "up_blocks.1.attentions.0.transformer_blocks.0"
CROSS = AttentionLayer(f"{BLOCK}.attn2", 3, "up", True, 2)
OWN = AttentionLayer(f"{BLOCK}.attn1", 2, "up", False, 2)
ROLES = ("uncond:0", "uncond:1", "cond:0", "cond:1")


@pytest.fixture(scope="module", params=["sd1", "pocket"])
def plain(request, tiny_pipelines):
    return load_folder(tiny_pipelines[request.param], torch.device("cpu"))


def config(*edits, source=SOURCE, **settings) -> PromptToPromptConfig:
    return PromptToPromptConfig(source, edits, steps=STEPS, **settings)


def edit(prompt=TARGET, *, cross=ALWAYS, own=ALWAYS, **settings) -> EditedPromptConfig:
    return EditedPromptConfig(prompt, cross_steps=cross, self_steps=own, **settings)


def generators(seeds=(0,)):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def edited(plain, wanted, *, seeds=(0,)):
    prior = PromptToPromptPrior(plain, wanted)
    return edit_images(prior, generators=generators(seeds), config=SAMPLER)


def call(layer, step, roles=ROLES):
    return AttentionCall(layer, BatchLayout(roles=roles, step=step), (4, 3))


class SeenPrior(WrappedPrior):
    """A prior that keeps the attention probabilities of each layer, after the edits around it."""

    def __init__(self, plain):
        super().__init__(plain)
        self.seen: dict[str, torch.Tensor] = {}

    def guided_noise(self, *given, **settings):
        with attention_operations(self.unet, [Keeper(self.seen)]):
            return self.plain.guided_noise(*given, **settings)


class Keeper(AttentionOperation):
    def __init__(self, seen):
        self.seen = seen

    def needs_probabilities(self, call):
        return True

    def probabilities(self, call, probabilities):
        self.seen[call.layer.name] = probabilities
        return probabilities


@torch.no_grad()
def noise_of(prior, *, scale, target=TARGET, seed=2):
    """Predictions for a source and an edit that begin with different latents."""
    latents = [torch.randn(1, 4, 8, 8, generator=generators((s,))[0]) for s in (1, seed)]
    t = torch.tensor([751, 751])
    cond, uncond = prior.encode_prompt([SOURCE, target]), prior.encode_negative([""])
    return prior.guided_noise(torch.cat(latents), t, cond, uncond.expand(2), scale)


def tokens(text):
    return tokenize_prompt(bert_tokenizer(), text)


def sharing(source, target, wanted) -> PromptToPromptAttention:
    return PromptToPromptAttention([token_edit(tokens(source), tokens(target), wanted, STEPS)])


def maps(seed=0, *, rows=4, n=12, m=24):
    return torch.rand(rows, 2, n, m, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize(
    ("align", "source", "target", "words", "weights"),
    [
        ("replace", "a cat sits", "a crocodile sits", (), ()),
        ("replace", "a crocodile sits", "a cat sits", (WordStepsConfig("cat", 0.0, 0.3),), ()),
        ("refine", "a cat sits", "a red zqx cat", (WordStepsConfig("red", 0.5, 1.0),), ()),
        ("refine", "a cat", "a cat", (), (WordWeightConfig("cat", 4.0),)),
        ("replace", "a cat", "a zqx", (), (WordWeightConfig("zqx", -2.0),)),
    ],
)
def test_attention_to_text_equals_loops_over_tokens(align, source, target, words, weights, step):
    source, target = tokens(source), tokens(target)
    wanted = edit(
        target.text, cross=(0.0, 0.6), align=align, word_steps=words, word_weights=weights
    )
    given = maps()
    found = PromptToPromptAttention([token_edit(source, target, wanted, STEPS)]).probabilities(
        call(CROSS, step), given
    )
    spans = dict.fromkeys(range(24), (0.0, 0.6))
    for word in words:
        for t in target.tokens_of[target.words.index(word.word)]:
            spans[t] = (word.start, word.end)
    factor = word_weights(target, {w.word: w.weight for w in weights})
    expected = given.clone()
    for j in range(24):
        if align == "replace":
            mapping = replacement_map(source, target)
            column = sum(given[2, :, :, i] * mapping[i, j] for i in range(24))
        else:
            positions, alpha = refinement_map(source, target)
            column = given[2, :, :, positions[j]] if alpha[j] else given[3, :, :, j]
        if int(spans[j][0] * (STEPS + 1)) <= step < int(spans[j][1] * (STEPS + 1)):
            expected[3, :, :, j] = factor[j] * column
    torch.testing.assert_close(found, expected)
    assert torch.equal(given, maps())


def test_self_attention_is_the_source_s_in_early_steps_and_small_layers():
    wanted = replace(edit(own=(0.25, 0.75)), self_max_tokens=12)
    attention = PromptToPromptAttention([token_edit(tokens("a cat"), tokens("a duck"), wanted, 4)])
    assert [attention.applies_to(call(OWN, step)) for step in range(4)] == [
        False,
        True,
        True,
        False,
    ]
    given = maps(m=12)
    found = attention.probabilities(call(OWN, 1), given)
    assert torch.equal(found[3], given[2])
    assert torch.equal(found[:3], given[:3])
    small = PromptToPromptAttention([replace(attention.edits[0], config=edit(self_max_tokens=11))])
    assert not small.applies_to(call(OWN, 1))
    assert not attention.applies_to(call(OWN, None))


@pytest.mark.parametrize(
    ("name", "most", "shared"),
    [("SD1.5", 16 * 16, 6), ("SD2.1-768", 24 * 24, 6), ("SDXL", 32 * 32, 60)],
)
def test_published_models_share_self_attention_up_to_a_quarter_of_their_latents(name, most, shared):
    """Of 16 layers those of the two lowest levels, of SDXL's 70 those of its lowest."""
    (attention,) = sharing("a cat", "a dog", edit("a dog")).edits
    side, sizes = SIDES[name], []
    for layer in AttentionHub(published_unet(name)).layers:
        one = AttentionCall(layer, BatchLayout(step=0), (side, side))
        if not layer.is_cross and attention.fits_self(one):
            sizes.append(one.size[0] * one.size[1])
    assert (max(sizes), len(sizes)) == (most, shared)


@pytest.mark.parametrize("side", [8, 16, 32])
def test_small_latents_share_layers_of_up_to_256_tokens(side):
    """All of pocket's, whose latents are 16 x 16."""
    (attention,) = sharing("a cat", "a dog", edit("a dog")).edits
    for level in range(3):
        one = AttentionCall(replace(OWN, level=level), BatchLayout(step=0), (side, side))
        assert attention.fits_self(one) == (one.size[0] <= 16)


def test_steps_that_no_layer_could_share_are_refused(plain):
    """The tiny denoisers' smallest layer sees 4 x 4 tokens."""
    for most, own in ((16, ALWAYS), (15, NEVER)):
        PromptToPromptPrior(plain, config(edit(own=own, self_max_tokens=most)))
    with pytest.raises(UnsupportedModel, match=r"up to 15 image tokens.* smallest has 16"):
        PromptToPromptPrior(plain, config(edit(self_max_tokens=15)))


def test_self_attention_counts_steps_and_attention_to_text_one_more():
    """0.8 of 4 steps is 3, of one more 4, as published."""
    wanted = edit(cross=(0.0, 0.8), own=(0.0, 0.8), word_steps=(WordStepsConfig("red", 0.0, 0.6),))
    attention = sharing("a red cat", "a red duck", replace(wanted, prompt="a red duck"))
    found = {x: [attention.applies_to(call(x, step)) for step in range(4)] for x in (OWN, CROSS)}
    assert found[OWN] == [True, True, True, False]
    assert found[CROSS] == [True, True, True, True]
    (shared,) = attention.edits
    assert shared.gate[:, 2].tolist() == [1, 1, 1, 0]
    assert shared.gate[:, 3].tolist() == [1, 1, 1, 1]


def test_tokens_that_an_adapter_appended_are_left_alone():
    given = maps(m=28)
    attention = sharing("a cat", "a duck", edit(align="replace"))
    found = attention.probabilities(call(CROSS, 0), given)
    assert torch.equal(found[3, ..., 24:], given[3, ..., 24:])
    torch.testing.assert_close(found[3, ..., :24], given[2, ..., :24])


def test_gradients_of_both_prompts_pass_through_the_edit():
    wanted = edit("a red cat", word_weights=(WordWeightConfig("red", 2.0),))
    attention = PromptToPromptAttention(
        [token_edit(tokens("a cat"), tokens("a red cat"), wanted, 4)]
    )
    given = maps(n=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention.probabilities(call(CROSS, 0), x), (given,))


def test_gradients_of_a_layer_in_the_hub_are_those_of_finite_differences():
    """Image and text of all prompts through one layer: projections, softmax, edit, projection."""
    unet = tiny_unet().double()
    layer = unet.get_submodule(CROSS.name)
    wanted = edit("a red cat", word_weights=(WordWeightConfig("red", 2.0),))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 3, 16, generator=generator).double().requires_grad_()
    text = torch.randn(4, 24, 16, generator=generator).double().requires_grad_()
    with (
        AttentionHub(unet, [sharing("a cat", "a red cat", wanted)]) as hub,
        hub.batch(BatchLayout(roles=ROLES, step=0)),
    ):
        assert torch.autograd.gradcheck(layer, (image, text), fast_mode=True)
        (given,) = torch.autograd.grad(layer(image, text)[3].sum(), image)
    alone, edited, source = (given[row].abs().sum() for row in (1, 3, 2))
    assert alone == 0
    assert edited > 0, "the new word keeps attention of its own"
    assert source > 0, "the words in common have the source's"


def test_equal_prompts_give_equal_images_until_a_word_of_the_edit_weighs_more(plain):
    images = edited(plain, config(edit(SOURCE)), seeds=(0, 1))
    assert images.shape[:2] == (2, 2)
    torch.testing.assert_close(images[1], images[0], atol=1e-4, rtol=0)
    louder = edit(SOURCE, word_weights=(WordWeightConfig("duck", 5.0),))
    weighed = edited(plain, config(louder), seeds=(0, 1))
    torch.testing.assert_close(weighed[0], images[0], atol=1e-4, rtol=0)
    assert (weighed[1] - images[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_where_all_is_shared_the_edit_attends_as_its_source_and_no_other_row_does(plain, scale):
    """Other latents and another word: without sharing, no layer attends alike."""
    inside, seen = SeenPrior(plain), {}
    for name, steps in (("shared", ALWAYS), ("apart", NEVER)):
        prior = PromptToPromptPrior(inside, config(edit(cross=steps, own=steps, align="replace")))
        noise_of(prior, scale=scale)
        seen[name] = dict(inside.seen)
    assert len(seen["shared"]) == len(AttentionHub(plain.unet).layers)
    for name, maps in seen["shared"].items():
        *unconditional, source, edited = maps  # by rows
        is_cross = name.endswith("attn2")
        wanted = source @ prior.edits[0].mapping if is_cross else source
        torch.testing.assert_close(edited, wanted)
        assert (seen["apart"][name][-1] - wanted).abs().max() > 1e-4, name
        if unconditional:
            assert not torch.equal(*unconditional), name


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_source_row_is_bit_for_bit_what_it_is_without_edits(plain, scale):
    """With guidance and without. Both compute probabilities, as fused attention rounds apart."""
    alone = noise_of(SeenPrior(plain), scale=scale)
    wanted = config(edit(word_weights=(WordWeightConfig("mushroom", 3.0),)))
    found = noise_of(PromptToPromptPrior(SeenPrior(plain), wanted), scale=scale)
    assert torch.equal(found[0], alone[0])
    assert (found[1] - alone[1]).abs().max() > 1e-4
    other = config(edit("a duck"))
    again = noise_of(
        PromptToPromptPrior(SeenPrior(plain), other), scale=scale, target="a duck", seed=3
    )
    assert torch.equal(again[0], alone[0])


def test_shared_never_is_independent_sampling_bit_for_bit(plain):
    images = edited(plain, config(edit(cross=NEVER, own=NEVER)))
    alone = sample_images(plain, [SOURCE, TARGET], generators=generators((0, 0)), config=SAMPLER)
    assert torch.equal(images[:, 0], alone)


def test_roles_are_named_only_where_something_acts(plain):
    told = Condition(plain.encode_prompt([SOURCE]), roles=("cond",))
    off = edit(cross=NEVER, own=NEVER)
    late, never = (
        replace(off, word_steps=(WordStepsConfig("mushroom", share, 1.0),)) for share in (0.6, 0.9)
    )
    for wanted in (off, never):
        assert PromptToPromptPrior(plain, config(wanted)).modify(told, 3, is_cond=True) is told
    everywhere = torch.ones(8, 8, dtype=torch.bool)
    blend = LocalBlendConfig((("duck",), ("mushroom",)), level=0)
    for prior in (
        PromptToPromptPrior(plain, config(late)),
        PromptToPromptPrior(plain, config(edit(cross=NEVER, own=(0.0, 0.3)))),
        PromptToPromptPrior(plain, config(off), mask=everywhere),
        PromptToPromptPrior(plain, config(off, blend=blend)),
    ):
        assert prior.modify(told, 2, is_cond=True).roles == ("cond:0", "cond:1")


def test_the_source_image_does_not_depend_on_its_edits_and_the_edit_does_on_it(plain):
    images = edited(plain, config(edit(align="replace"), edit("a duck")), seeds=(0, 3))
    alone = sample_images(plain, [SOURCE] * 2, generators=generators((0, 3)), config=SAMPLER)
    torch.testing.assert_close(images[0], alone, atol=1e-4, rtol=0)
    new = sample_images(plain, [TARGET] * 2, generators=generators((0, 3)), config=SAMPLER)
    assert (images[1] - new).abs().max() > 1e-3


def test_steps_add_the_same_noise_to_source_and_edits(plain):
    """As the data set of InstructPix2Pix was drawn; the source's is what it draws alone."""
    noisy = replace(SAMPLER, eta=1.0)

    def drawn(*edits):
        prior = PromptToPromptPrior(plain, config(*edits))
        return edit_images(prior, generators=generators((0, 3)), config=noisy)

    images = drawn(edit(SOURCE), edit("a duck"))
    torch.testing.assert_close(images[1], images[0], atol=1e-4, rtol=0)
    assert (images[2] - images[0]).abs().max() > 1e-3
    torch.testing.assert_close(drawn(edit(SOURCE))[0], images[0], atol=1e-4, rtol=0)
    alone = sample_images(plain, [SOURCE] * 2, generators=generators((0, 3)), config=noisy)
    torch.testing.assert_close(images[0], alone, atol=1e-4, rtol=0)


def test_weight_1_changes_nothing_and_others_do(plain):
    same = edited(plain, config(edit(word_weights=(WordWeightConfig("mushroom", 1.0),))))
    torch.testing.assert_close(same, edited(plain, config(edit())))
    more = edited(plain, config(edit(word_weights=(WordWeightConfig("mushroom", 5.0),))))
    torch.testing.assert_close(more[0], same[0])
    assert (more[1] - same[1]).abs().max() > 1e-4


def test_a_mask_lets_edits_act_where_it_is_true(plain):
    config = PromptToPromptConfig(SOURCE, (EditedPromptConfig(TARGET),), steps=STEPS)
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[:, :4] = True
    prior = PromptToPromptPrior(plain, config, mask=left)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    blended = prior.after_step(0, latents)
    assert torch.equal(blended[0], latents[0])
    assert torch.equal(blended[1, :, :, :4], latents[1, :, :, :4])
    assert torch.equal(blended[1, :, :, 4:], latents[0, :, :, 4:])


def test_the_prior_is_left_as_it_was(plain):
    before = dict(plain.unet.attn_processors)
    edited(plain, config(edit()))
    assert all(plain.unet.attn_processors[name] is before[name] for name in before)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_unconditional_half_is_never_edited(plain, scale):
    """With equal latents, an edit that shares everything differs from the source by nothing."""
    prior = PromptToPromptPrior(plain, config(edit(SOURCE)))
    assert isinstance(prior, NoisePrior)
    latents = torch.randn(1, 4, 8, 5, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([prior.clock.timesteps[1]] * 2)
    cond = prior.encode_prompt(prior.prompts)
    uncond = prior.encode_negative(["mushroom", "duck"])
    found = prior.guided_noise(latents.repeat(2, 1, 1, 1), t, cond, uncond, scale)
    alone = plain.guided_noise(latents.repeat(2, 1, 1, 1), t, cond, uncond, scale)
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_repeated_calls_for_a_step_are_equal(plain):
    prior = PromptToPromptPrior(plain, config(edit(cross=(0.0, 0.5), own=(0.0, 0.5))))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond = prior.encode_prompt(prior.prompts)
    times = [torch.tensor([t, t]) for t in prior.clock.timesteps]
    first = [prior.predict_noise(latents, t, cond) for t in times]
    again = [prior.predict_noise(latents, t, cond) for t in reversed(times)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert not torch.equal(first[0], plain.predict_noise(latents, times[0], cond))
    assert torch.equal(first[3], plain.predict_noise(latents, times[3], cond))


def test_gradients_reach_the_source_s_latents_through_the_edit(plain):
    prior = PromptToPromptPrior(plain, config(edit()))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents.requires_grad_()
    t = torch.tensor([prior.clock.timesteps[0]] * 2)
    prior.predict_noise(latents, t, prior.encode_prompt(prior.prompts))[1].sum().backward()
    assert latents.grad[0].abs().sum() > 0


def test_what_does_not_fit_is_refused(plain):
    with pytest.raises(StudioError, match="has 3 words"):
        PromptToPromptPrior(plain, config(edit("a duck", align="replace")))
    with pytest.raises(StudioError, match="'ducks' is not in the prompt"):
        PromptToPromptPrior(plain, config(edit(word_weights=(WordWeightConfig("ducks"),))))
    prior = PromptToPromptPrior(plain, config(edit()))
    with pytest.raises(ShapeError, match="3 latents came for 2 prompts"):
        prior.modify(as_condition(plain.encode_prompt([SOURCE])), 3, is_cond=True)
    with pytest.raises(ValueError, match="has 7 steps and the edits count 4"):
        edit_images(prior, generators=generators(), config=DdimConfig(steps=7))
    with pytest.raises(ValueError, match="edits is empty"):
        config()
    with pytest.raises(ValueError, match=r"cross_steps are 0.5 to 0.2"):
        edit(cross=(0.5, 0.2))
