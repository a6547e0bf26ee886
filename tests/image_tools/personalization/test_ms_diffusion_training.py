"""Training of MS-Diffusion's adapter: what is dropped, that it learns, and resuming."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.configs import PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.ip_adapter_configs import ImageDropConfig
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.ms_diffusion import MSDiffusionPrior
from image_tools.personalization.ms_diffusion_configs import MSShape, MSTrainingConfig
from image_tools.personalization.ms_diffusion_subjects import see_subjects
from image_tools.personalization.ms_diffusion_training import (
    Dropped,
    SubjectBatch,
    SubjectsLoss,
    draw_dropped,
    new_ms_adapter,
    train_ms_diffusion,
)
from image_tools.personalization.ms_diffusion_weights import read_ms_adapter
from image_tools.vision.clip_images import ClipImages
from renderers.errors import ShapeError, StudioError
from tests.image_tools.personalization.subjects import images_of, load_tiny
from tests.image_tools.personalization.tiny_subjects import PROMPT, two_subjects
from tests.image_tools.vision.tiny_clip import tiny_clip

NOTHING = MSTrainingConfig(drops=ImageDropConfig(0.0, 0.0, 0.0), grounding_drop=0.0)
SHORT = MSTrainingConfig(TuningConfig(steps=3, learning_rate=1e-3, save_every=1, log_every=3))


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def clip():
    return ClipImages(tiny_clip())


def new_adapter(prior, clip):
    """An untrained adapter, always the same."""
    generator = torch.Generator().manual_seed(4)
    return new_ms_adapter(prior, clip, generator=generator, dim=64, depth=1, tokens=3, dummies=2)


def batches(number: int, generator: torch.Generator) -> SubjectBatch:
    """Pictures of one colour on the left and one on the right, or of one of them alone."""
    colors = torch.rand(2, 2, 3, generator=generator)
    colors[1, 1] = 0.0
    halves = colors[:, None, :, None].expand(2, 16, 2, 8, 3)
    return SubjectBatch(
        images=halves.reshape(2, 16, 16, 3),
        captions=("a duck and a mushroom", "a duck"),
        references=colors[:, :, None, None].expand(2, 2, 32, 32, 3),
        phrases=(("duck", "mushroom"), ("duck", "")),
        boxes=torch.tensor(
            [[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]], [[0.0, 0.0, 0.5, 1.0], [0.0] * 4]]
        ),
    )


def test_an_untrained_adapter_starts_from_the_texts_own_projections(prior, clip):
    before = torch.get_rng_state()
    adapter = new_adapter(prior, clip)
    assert torch.equal(torch.get_rng_state(), before)
    layer = prior.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2")
    assert torch.equal(adapter.keys[1].to_k_ip.weight, layer.to_k.weight)
    assert torch.equal(adapter.keys[1].to_v_ip.weight, layer.to_v.weight)
    again = new_adapter(prior, clip).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in adapter.state_dict().items())
    assert all(torch.isfinite(t).all() for t in again.values())


def test_shares_of_what_is_dropped_are_those_of_the_settings():
    config = MSTrainingConfig(drops=ImageDropConfig(0.1, 0.2, 0.3), grounding_drop=0.25)
    dropped = draw_dropped(40_000, config, torch.Generator().manual_seed(0))

    def share(rows):
        return float(rows.float().mean())

    assert share(dropped.image & ~dropped.text) == pytest.approx(0.1, abs=0.01)
    assert share(dropped.text & ~dropped.image) == pytest.approx(0.2, abs=0.01)
    assert share(dropped.text & dropped.image) == pytest.approx(0.3, abs=0.01)
    assert share(dropped.grounding) == pytest.approx(0.25, abs=0.01)
    assert share(dropped.grounding & dropped.image) == pytest.approx(0.1, abs=0.01)
    none = draw_dropped(100, NOTHING, torch.Generator().manual_seed(0))
    assert not any(rows.any() for rows in (none.image, none.text, none.grounding))


@torch.no_grad()
def test_dropped_images_are_zero_pixels_and_dropped_grounding_is_learned(prior, clip):
    loss = SubjectsLoss(prior, clip, new_adapter(prior, clip), batches, NOTHING)
    batch = batches(0, torch.Generator().manual_seed(1))
    yes, no = torch.tensor([True, False]), torch.zeros(2, dtype=torch.bool)
    shown = loss.subjects(batch, Dropped(no, no, no)).tokens
    hidden = loss.subjects(batch, Dropped(yes, no, no)).tokens
    assert torch.equal(hidden[1], shown[1])
    features = clip.see(clip.black(2)).hidden
    wanted = torch.stack([features, clip.hidden(batch.references[1])])
    torch.testing.assert_close(loss._features(batch.references, yes).unflatten(0, (2, 2)), wanted)
    free = loss.subjects(batch, Dropped(no, no, yes)).tokens
    moved = SubjectBatch(**{**vars(batch), "boxes": batch.boxes.flip(2)})
    again = loss.subjects(moved, Dropped(no, no, yes)).tokens
    assert torch.equal(free[0], again[0])
    assert not torch.equal(free[1], again[1])


@torch.no_grad()
def test_padding_has_no_part_in_the_loss(prior, clip):
    loss = SubjectsLoss(prior, clip, new_adapter(prior, clip), batches, NOTHING)
    batch = batches(0, torch.Generator().manual_seed(1))
    strange = batch.references.clone()
    strange[1, 1] = 1.0
    other = SubjectBatch(**{**vars(batch), "references": strange})

    def value(shown):
        loss.batches = lambda number, generator: shown
        return loss(0, torch.Generator().manual_seed(2))

    assert torch.equal(value(other), value(batch))


def test_the_loss_falls_and_what_is_written_reads_identically(prior, clip, tmp_path):
    adapter = new_adapter(prior, clip)
    before = {name: p.clone() for name, p in prior.unet.named_parameters()}
    dummies = adapter.dummy_image_tokens.clone()
    loss = SubjectsLoss(prior, clip, adapter, batches, NOTHING)

    def judged():
        with torch.no_grad():
            return float(sum(loss(k, batch_generator(99, k)) for k in range(4)))

    start = judged()
    config = replace(NOTHING, loop=TuningConfig(steps=20, learning_rate=3e-3))
    result = train_ms_diffusion(prior, clip, adapter, batches, config, tmp_path, identity="halves")
    assert (result.finished, result.step) == (True, 20)
    assert judged() < start
    assert torch.equal(adapter.dummy_image_tokens, dummies)
    assert all(torch.equal(p, before[name]) for name, p in prior.unet.named_parameters())
    read = read_ms_adapter(result.files[-1], prior.unet).state_dict()
    assert all(torch.equal(t, read[name]) for name, t in adapter.state_dict().items())
    assert not any(p.requires_grad for p in adapter.parameters())


@pytest.mark.slow
def test_recomputed_activations_give_the_same_training(prior, clip, tmp_path):
    trained = {}
    for is_recomputed in (False, True):
        adapter = new_adapter(prior, clip)
        folder = tmp_path / str(is_recomputed)
        loop = replace(SHORT.loop, steps=2, checkpoint_steps=(1,))
        config = replace(SHORT, loop=loop, checkpointing=is_recomputed)
        result = train_ms_diffusion(
            prior, clip, adapter, batches, config, folder, identity="halves"
        )
        assert [path.name for path in result.files] == [
            "step-000001.safetensors",
            "ms_adapter.safetensors",
        ]
        trained[is_recomputed] = adapter.state_dict()
    for name, tensor in trained[False].items():
        torch.testing.assert_close(trained[True][name], tensor, atol=1e-5, rtol=1e-4)


def test_an_interrupted_training_goes_on_bit_for_bit(prior, clip, tmp_path):
    whole, parts, again = (new_adapter(prior, clip) for _ in range(3))
    arguments = (batches, SHORT)
    train_ms_diffusion(prior, clip, whole, *arguments, tmp_path / "whole", identity="halves")
    folder, stop = tmp_path / "parts", LoopHooks(should_stop=lambda: True)
    first = train_ms_diffusion(
        prior, clip, parts, *arguments, folder, identity="halves", hooks=stop
    )
    assert (first.finished, first.step, first.files) == (False, 1, ())
    train_ms_diffusion(prior, clip, again, *arguments, folder, identity="halves")
    assert all(torch.equal(t, whole.state_dict()[name]) for name, t in again.state_dict().items())
    with pytest.raises(StudioError, match="holds a training with other settings"):
        train_ms_diffusion(prior, clip, again, *arguments, folder, identity="others")


def test_trained_as_it_is_used_with_full_scale(prior, clip):
    """The loss is the error of the prior with these subjects in their boxes."""
    adapter, generator = new_adapter(prior, clip), torch.Generator().manual_seed(5)
    loss = SubjectsLoss(prior, clip, adapter, batches, NOTHING)
    with torch.no_grad():
        found = loss(0, torch.Generator().manual_seed(6))
        batch = batches(0, generator.manual_seed(6))
        dropped = draw_dropped(2, NOTHING, generator)
        mean, std = prior.encode_posterior(batch.images)
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        noisy, rows = draw_noisy(prior, latents, generator), loss.subjects(batch, dropped)
        text = encode_text(prior, batch.captions)
        subjects = MSDiffusionPrior(prior, adapter, rows)
        torch.testing.assert_close(found, denoising_errors(subjects, noisy, text).mean())
        assert found != denoising_errors(prior, noisy, text).mean()


@pytest.mark.slow
@torch.no_grad()
def test_the_shipped_prior_takes_an_adapter_of_its_width(clip):
    prior = load_prior(PocketPriorConfig(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    adapter = new_ms_adapter(prior, clip, generator=generator, dim=384)
    expected = {"image_width": 32, "phrase_width": 384, "text_width": 384, "dim": 384, "heads": 6}
    assert adapter.shape == MSShape(**expected)
    config = two_subjects(scale=1.0)
    rows = see_subjects(prior, clip, config, images_of(2).split(1), prompt=PROMPT).at(adapter)
    subjects = MSDiffusionPrior(prior, adapter, rows)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    t, text = torch.tensor([600]), prior.encode_prompt([PROMPT])
    moved = (subjects.predict_noise(latents, t, text) - prior.predict_noise(latents, t, text)).abs()
    assert torch.isfinite(moved).all()
    assert moved.max() > 1e-2


@pytest.mark.wrong_shapes
def test_what_does_not_belong_together_is_refused(prior, clip):
    batch = batches(0, torch.Generator().manual_seed(1))
    with pytest.raises(ShapeError, match=r"2 images, 1 captions"):
        SubjectBatch(**{**vars(batch), "captions": ("a duck",)})
    with pytest.raises(ShapeError, match=r"with places for \[1, 2\] subjects"):
        SubjectBatch(**{**vars(batch), "boxes": batch.boxes[:, :1]})
    other = ClipImages(tiny_clip(width=16))
    with pytest.raises(UnsupportedModel, match="tokens of 16 numbers, the adapter reads 32"):
        SubjectsLoss(prior, other, new_adapter(prior, clip), batches, NOTHING)
