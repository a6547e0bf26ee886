"""DCO: the loss starts at log 2 with beta / 2 times the plain gradient, and the prior stays off."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.lora_apply import attach_to_prior, loras_active, prior_modules
from image_tools.diffusion.lora_files import read_lora
from image_tools.personalization.captioned import CaptionedImages, rows_of_batch
from image_tools.personalization.captions import SubjectCaptions
from image_tools.personalization.dco import DcoLoss, dco_loss, train_dco
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth_configs import BatchConfig, DcoConfig, LoraShapeConfig
from image_tools.personalization.embedding_files import read_embeddings
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.tokens import attach_tokens
from image_tools.personalization.trainable_lora import TrainableLora
from renderers.errors import StudioError
from tests.file_bits import bits_of
from tests.image_tools.personalization.subjects import (
    SHORT,
    images_of,
    load_tiny,
    predict,
    train_numbers,
)

BASE = ("a red duck, front view", "a duck on grass", "a duck")
CONFIG = DcoConfig(lora=LoraShapeConfig(rank=4, text_rank=2), batch=BatchConfig(size=3), loop=SHORT)
OWN = tuple(text.replace("duck", "<pet>") for text in BASE)
WORDS = SubjectCaptions(OWN, BASE, ("<pet>",), ("duck",))


def _loss(prior, config=CONFIG, captions=BASE, is_text_trained=True):
    lora = TrainableLora(prior, config.lora, name="s", generator=batch_generator(0, 9))
    subject = CaptionedImages(images_of(3), captions)
    return DcoLoss(lora, subject, BASE, config, is_text_trained=is_text_trained), lora


def _gradients(loss, parameters) -> torch.Tensor:
    for parameter in parameters:
        parameter.requires_grad_(True)
    found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
def test_it_starts_at_log_two_with_half_beta_times_the_plain_gradient(tiny_pipelines, kind):
    loss, lora = _loss(load_tiny(tiny_pipelines, kind))
    parameters = list(lora.parameters.values())
    assert float(loss(0, batch_generator(0, 0))) == pytest.approx(math.log(2.0), abs=1e-6)
    dco = _gradients(lambda: loss(0, batch_generator(0, 0)), parameters)
    plain = _gradients(lambda: loss.errors(0, batch_generator(0, 0))[0].mean(), parameters)
    assert plain.abs().max() > 0.0
    torch.testing.assert_close(dco, CONFIG.beta / 2 * plain, rtol=1e-4, atol=1e-6 * CONFIG.beta)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_in_mixed_precision_it_starts_at_log_two_exactly(tiny_pipelines, kind):
    loss, _ = _loss(load_tiny(tiny_pipelines, kind))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        student, reference = loss.errors(0, batch_generator(0, 0))
    assert torch.equal(student, reference), "beta would blow up what texts differ by"


def test_its_gradient_is_beta_sigmoid_times_the_plain_one(generator):
    student = torch.rand(5, generator=generator, dtype=torch.float64, requires_grad=True)
    reference, beta = torch.rand(5, generator=generator, dtype=torch.float64), 7.0
    (gradient,) = torch.autograd.grad(dco_loss(student, reference, beta), student)
    expected = beta * torch.sigmoid(beta * (student.detach() - reference)) / 5
    torch.testing.assert_close(gradient, expected)
    better = dco_loss(reference - 10.0, reference, beta)
    assert float(better) == pytest.approx(0.0, abs=1e-12), "better than the prior: nothing to learn"


def test_the_sigmoid_is_taken_per_sample(generator):
    student, reference = torch.rand(2, 4, generator=generator)
    each = [dco_loss(student[k : k + 1], reference[k : k + 1], 50.0) for k in range(4)]
    torch.testing.assert_close(dco_loss(student, reference, 50.0), torch.stack(each).mean())
    assert not torch.isclose(
        dco_loss(student, reference, 50.0),
        dco_loss(student.mean()[None], reference.mean()[None], 50.0),
    )


def test_the_reference_pass_may_come_before_or_after(tiny_pipelines):
    prior = load_tiny(tiny_pipelines)
    loss, lora = _loss(prior, is_text_trained=False)
    parameters = list(lora.parameters.values())
    train_numbers(parameters, std=0.05)
    loss.text = loss.base_text  # one text for both, so that only the order differs
    before = _gradients(lambda: loss(0, batch_generator(0, 0)), parameters)

    def student_first():
        generator = batch_generator(0, 0)
        rows = rows_of_batch(3, 3, seed=0, batch=0)
        noisy = draw_noisy(prior, loss.latents.draw(rows, generator), generator)
        text = loss.base_text([BASE[row] for row in rows])
        student = denoising_errors(prior, noisy, text)
        with torch.no_grad(), lora.off():
            reference = denoising_errors(prior, noisy, text)
        return dco_loss(student, reference, CONFIG.beta)

    assert torch.equal(_gradients(student_first, parameters), before)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.no_grad()
def test_the_reference_is_the_untrained_prior_text_encoders_included(tiny_pipelines, kind):
    untrained, _ = _loss(load_tiny(tiny_pipelines, kind))
    expected = untrained.errors(0, batch_generator(0, 0))[1]
    loss, lora = _loss(load_tiny(tiny_pipelines, kind))
    train_numbers(lora.parameters.values())
    student, reference = loss.errors(0, batch_generator(0, 0))
    assert torch.equal(reference, expected)
    assert not torch.isclose(student, expected).any()


def test_gradients_reach_the_student_only(tiny_pipelines):
    prior = load_tiny(tiny_pipelines)
    loss, lora = _loss(prior)
    for parameter in lora.parameters.values():
        parameter.requires_grad_(True)
    loss(0, batch_generator(0, 0)).backward()
    own = {id(p) for p in lora.parameters.values()}
    modules = (prior.unet, prior.vae, prior.text.towers[0].encoder)
    others = [p for module in modules for p in module.parameters() if id(p) not in own]
    assert all(p.grad is None and not p.requires_grad for p in others)
    assert all(p.requires_grad for p in lora.parameters.values()), "the switch gave them back"
    assert any(p.grad is not None and p.grad.any() for p in lora.parameters.values())


def test_words_train_along_with_their_length_kept(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines, "sdxl")
    before = predict(prior)
    first = prior.text.towers[0].encoder.get_input_embeddings().weight.clone()
    config = replace(CONFIG, text_learning_rate=1e-2)
    result = train_dco(prior, images_of(3), WORDS, config, tmp_path)
    assert torch.equal(predict(prior), before)
    assert torch.equal(prior.text.towers[0].encoder.get_input_embeddings().weight, first)
    word_file, lora_file = result.files
    (word,) = read_embeddings(word_file)
    assert word.token == "<pet>"
    assert word.metadata["fix_eos"] == "false", "as the authors' code pools"
    ids = prior.text.towers[0].tokenizer("duck", add_special_tokens=False).input_ids
    start = first[ids].mean(dim=0)
    torch.testing.assert_close(word.rows[0][0].norm(), start.norm())
    assert not torch.isclose(word.rows[0][0], start).all()
    assert set(read_lora(lora_file).sections) == {"unet", "text_encoder", "text_encoder_2"}
    with attach_tokens(prior, [word]):
        assert not torch.equal(predict(prior, "a <pet>"), predict(prior, "a duck"))


def test_stopped_training_goes_on_bit_for_bit(tiny_pipelines, tmp_path):
    def train(folder, **settings):
        prior = load_tiny(tiny_pipelines)
        return train_dco(prior, images_of(3), WORDS, CONFIG, tmp_path / folder, **settings)

    whole = train("a")
    assert not train("b", hooks=LoopHooks(should_stop=lambda: True)).finished
    resumed = train("b")
    for one, other in zip(whole.files, resumed.files, strict=True):
        assert bits_of(one) == bits_of(other)


def _started(tiny_pipelines, tmp_path, *, seed=5, is_still=False, **settings):
    """A training from a LoRA with numbers in it, the LoRA, and predictions after each step."""
    prior, seen = load_tiny(tiny_pipelines), []
    start = _trained_lora(tiny_pipelines, seed)
    still = replace(SHORT, learning_rate=0.0, weight_decay=0.0)
    config = replace(CONFIG, loop=still, text_learning_rate=0.0) if is_still else CONFIG
    hooks = LoopHooks(after_step=lambda _: seen.append(predict(prior)), **settings)
    captions = SubjectCaptions(BASE, BASE)
    result = train_dco(prior, images_of(3), captions, config, tmp_path, hooks=hooks, start=start)
    return result, start, seen


def _trained_lora(tiny_pipelines, seed):
    lora = TrainableLora(
        load_tiny(tiny_pipelines), CONFIG.lora, name="s", generator=batch_generator(seed, 9)
    )
    train_numbers(lora.parameters.values(), seed=seed, std=0.05)
    return lora.file()


def test_a_lora_to_go_on_from_is_where_the_training_starts(tiny_pipelines, tmp_path):
    result, start, seen = _started(tiny_pipelines, tmp_path, is_still=True)
    prior = load_tiny(tiny_pipelines)
    attach_to_prior(prior, start, name="start")
    with loras_active(prior_modules(prior), {"start": 1.0}):
        torch.testing.assert_close(predict(prior), seen[0])
    assert not torch.isclose(predict(load_tiny(tiny_pipelines)), seen[0]).all()
    kept = dict(_flat(read_lora(result.files[-1], layers_per_block=1)))
    for key, delta in _flat(start):
        assert torch.equal(kept[key].up, delta.up), "learning rate 0 leaves it as it was"


def _flat(lora):
    return [((section, name), delta) for section, name, delta in lora.deltas()]


@torch.no_grad()
def test_what_it_starts_from_is_no_part_of_the_reference(tiny_pipelines):
    untrained, _ = _loss(load_tiny(tiny_pipelines))
    expected = untrained.errors(0, batch_generator(0, 0))[1]
    prior = load_tiny(tiny_pipelines)
    lora = TrainableLora(
        prior,
        CONFIG.lora,
        name="s",
        generator=batch_generator(0, 9),
        start=_trained_lora(tiny_pipelines, 5),
    )
    subject = CaptionedImages(images_of(3), BASE)
    loss = DcoLoss(lora, subject, BASE, CONFIG, is_text_trained=True)
    student, reference = loss.errors(0, batch_generator(0, 0))
    assert torch.equal(reference, expected)
    assert not torch.isclose(student, expected).any()


def test_a_started_training_goes_on_bit_for_bit_and_only_from_the_same_start(
    tiny_pipelines, tmp_path
):
    whole, _, _ = _started(tiny_pipelines, tmp_path / "a")
    stopped, _, _ = _started(tiny_pipelines, tmp_path / "b", should_stop=lambda: True)
    assert not stopped.finished
    resumed, _, _ = _started(tiny_pipelines, tmp_path / "b")
    assert bits_of(whole.files[-1]) == bits_of(resumed.files[-1])
    with pytest.raises(StudioError, match="a training with other settings"):
        _started(tiny_pipelines, tmp_path / "a", seed=6)


def test_min_snr_weights_have_no_place_in_the_loss():
    with pytest.raises(ValueError, match=r"min_snr_gamma is 5\.0 - expected none"):
        DcoConfig(batch=BatchConfig(min_snr_gamma=5.0))
