"""Training of an edit model: it starts as the prior, drops conditions, resumes bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.conditions import Condition, cat_embeddings
from image_tools.editing import edit_training
from image_tools.editing.edit_training import (
    EditBatch,
    EditDenoiser,
    EditLoss,
    draw_dropped,
    new_edit_unet,
    train_edit_unet,
)
from image_tools.editing.edit_training_configs import EditTrainingConfig
from image_tools.editing.edit_weights import read_edit_unet
from image_tools.editing.instruct_pix2pix import ImageAddition, InstructPix2PixPrior
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from renderers.errors import ShapeError, StudioError
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.image_tools.personalization.subjects import load_tiny

CONFIG = EditTrainingConfig(
    TuningConfig(steps=4, learning_rate=1e-3, save_every=2, log_every=2), mirrored=0.0
)
NO = torch.zeros(2, dtype=torch.bool)


def batches(batch: int, generator: torch.Generator) -> EditBatch:
    """Images that turn grey where they are told to."""
    sources = torch.rand(2, 16, 16, 3, generator=generator)
    return EditBatch(sources, sources.mean(-1, keepdim=True).expand_as(sources), ("grey",) * 2)


@pytest.fixture
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


def noisy_batch(prior):
    """Noisy latents, instructions, and latents of images before."""
    generator = torch.Generator().manual_seed(3)
    latents, sources = torch.randn(2, 2, 4, 8, 8, generator=generator)
    return draw_noisy(prior, latents, generator), encode_text(prior, ["duck", "red"]), sources


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
def test_the_first_loss_is_the_plain_priors_and_moves_the_new_channels(tiny_pipelines, kind):
    prior = load_tiny(tiny_pipelines, kind)
    unet = new_edit_unet(prior)
    denoiser = EditDenoiser(prior, unet)
    unet.requires_grad_(True)
    noisy, text, sources = noisy_batch(prior)
    loss = denoiser.error(noisy, text, sources, NO)
    with torch.no_grad():
        expected = denoising_errors(prior, noisy, text).mean()
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert unet.conv_in.weight.grad[:, 4:].abs().max() > 0
    assert all(p.grad is None for p in prior.unet.parameters())


def test_images_are_shown_as_inference_shows_them_and_dropped_ones_as_zeros(prior):
    """The VAE's own latents, unscaled: the tiny factor is 0.18."""
    unet = tiny_edit_unet(prior)
    denoiser = EditDenoiser(prior, unet)
    noisy, text, sources = noisy_batch(prior)
    editor = InstructPix2PixPrior(prior, unet).editor
    shown = [editor.unscaled(sources), torch.zeros_like(sources)]
    for latents, dropped in zip(shown, (NO, ~NO), strict=True):
        condition = Condition(text, additions=(ImageAddition(latents),))
        with torch.no_grad():
            expected = denoising_errors(editor, noisy, condition).mean()
            assert torch.equal(denoiser.error(noisy, text, sources, dropped), expected)


def test_instruction_and_image_are_dropped_alone_and_together_in_five_percent_each():
    count = 100_000
    text, image = draw_dropped(count, 0.05, generator=torch.Generator().manual_seed(0))
    shares = {
        "text": (text & ~image).sum(),
        "image": (image & ~text).sum(),
        "both": (text & image).sum(),
        "none": (~text & ~image).sum(),
    }
    wanted = {"text": 5_000, "image": 5_000, "both": 5_000, "none": 85_000}
    chi_squared = sum((int(n) - wanted[name]) ** 2 / wanted[name] for name, n in shares.items())
    assert chi_squared < 16.3, shares  # 0.1 % of fair draws reach it
    text, image = draw_dropped(100, 0.0, generator=torch.Generator().manual_seed(0))
    assert not text.any()
    assert not image.any()


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_denoiser_sees_the_vaes_mode_and_dropped_words_as_sampling_does(
    tiny_pipelines, kind, monkeypatch
):
    """Of SDXL dropped words are zeros, not an encoded empty prompt."""
    prior, seen = load_tiny(tiny_pipelines, kind), []
    unet, drops = tiny_edit_unet(prior), torch.tensor([True, False])
    monkeypatch.setattr(edit_training, "draw_dropped", lambda *_, **__: (drops, NO))
    unet.register_forward_pre_hook(lambda _, *given: seen.extend(given), with_kwargs=True)
    with torch.no_grad():
        EditLoss(prior, unet, batches, CONFIG)(0, batch_generator(0, 0))
        pixels = 2.0 * batches(0, batch_generator(0, 0)).sources.movedim(-1, 1) - 1.0
        mode = prior.vae.encode(pixels).latent_dist.mode()
    (sample, _), told = seen
    torch.testing.assert_close(sample[:, 4:], mode)
    wanted = cat_embeddings([prior.encode_negative([""]), prior.encode_prompt(["grey"])])
    torch.testing.assert_close(told["encoder_hidden_states"], wanted.tokens)
    if kind == "sdxl":
        torch.testing.assert_close(told["added_cond_kwargs"]["text_embeds"], wanted.pooled)


def test_both_images_are_mirrored_together(prior):
    def mirrored(batch: int, generator: torch.Generator) -> EditBatch:
        pairs = batches(batch, generator)
        return EditBatch(pairs.sources.flip(2), pairs.targets.flip(2), pairs.instructions)

    unet = tiny_edit_unet(prior)
    with torch.no_grad():
        losses = [
            EditLoss(prior, unet, source, replace(CONFIG, mirrored=share))(0, batch_generator(0, 0))
            for source, share in ((batches, 1.0), (mirrored, 0.0), (batches, 0.0))
        ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_an_interrupted_training_goes_on_bit_for_bit_its_averages_included(prior, tmp_path):
    whole, parts = new_edit_unet(prior), new_edit_unet(prior)
    result = train_edit_unet(prior, whole, batches, CONFIG, tmp_path / "whole", identity="grey")
    assert result.finished
    folder, stop = tmp_path / "parts", LoopHooks(should_stop=lambda: True)
    first = train_edit_unet(prior, parts, batches, CONFIG, folder, identity="grey", hooks=stop)
    assert (first.finished, first.step, first.files) == (False, 1, ())
    again = new_edit_unet(prior)
    second = train_edit_unet(prior, again, batches, CONFIG, folder, identity="grey")
    assert second.finished
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in again.state_dict().items())
    with pytest.raises(StudioError, match="holds a training with other settings"):
        train_edit_unet(prior, again, batches, CONFIG, folder, identity="blue")


def test_the_result_is_a_stock_denoiser_with_averaged_weights(prior, tmp_path):
    averaged, last = new_edit_unet(prior), new_edit_unet(prior)
    result = train_edit_unet(prior, averaged, batches, CONFIG, tmp_path / "a", identity="grey")
    config = replace(CONFIG, average_decay=0.0, checkpointing=True)
    train_edit_unet(prior, last, batches, config, tmp_path / "b", identity="grey")
    read = read_edit_unet(result.files[-1])
    assert read.config.in_channels == 8
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)
    name = "conv_out.weight"
    moved = (last.state_dict()[name] - prior.unet.state_dict()[name]).abs().max()
    lagging = (averaged.state_dict()[name] - prior.unet.state_dict()[name]).abs().max()
    assert 0 < lagging < moved
    assert not any(p.requires_grad for p in averaged.parameters())
    assert not last.is_gradient_checkpointing


def test_training_lowers_the_error_and_makes_the_image_count(prior, tmp_path):
    """On noise never trained on; that the image helps takes more steps than a test has."""
    tuning = TuningConfig(steps=60, learning_rate=1e-2, save_every=60, log_every=60)
    config = EditTrainingConfig(tuning, average_decay=0.9, mirrored=0.0)
    unet = new_edit_unet(prior)
    train_edit_unet(prior, unet, batches, config, tmp_path, identity="grey")
    denoiser, before = EditDenoiser(prior, unet), EditDenoiser(prior, new_edit_unet(prior))
    totals = {"trained": 0.0, "untrained": 0.0, "blind": 0.0}
    for number in range(8):
        generator = batch_generator(99, number)
        pairs = batches(number, generator)
        with torch.no_grad():
            noisy = draw_noisy(prior, prior.encode_images(pairs.targets), generator)
            text = encode_text(prior, pairs.instructions)
            sources = prior.encode_images(pairs.sources)
            totals["trained"] += float(denoiser.error(noisy, text, sources, NO))
            totals["untrained"] += float(before.error(noisy, text, sources, NO))
            totals["blind"] += float(denoiser.error(noisy, text, sources, ~NO))
    assert totals["trained"] < 0.95 * totals["untrained"]
    assert abs(totals["trained"] - totals["blind"]) > 1e-3


@pytest.mark.wrong_shapes
def test_wrong_batches_and_settings_are_refused():
    images = torch.zeros(2, 16, 16, 3)
    with pytest.raises(ShapeError, match="2 sources, 2 targets and 1 instructions"):
        EditBatch(images, images, ("grey",))
    with pytest.raises(ValueError, match=r"dropout is 0.5 - expected 0 to 1/3"):
        EditTrainingConfig(dropout=0.5)
    with pytest.raises(ValueError, match=r"mirrored is 2.0 - expected 0 to 1"):
        EditTrainingConfig(mirrored=2.0)
    with pytest.raises(ValueError, match=r"average_decay is 1.0 - expected 0 up to 1"):
        EditTrainingConfig(average_decay=1.0)
