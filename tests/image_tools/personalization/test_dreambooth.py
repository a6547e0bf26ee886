"""DreamBooth: both halves of a batch weigh right, only what is meant changes, resume is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.loading import load_folder
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.class_images import make_class_images
from image_tools.personalization.denoising import NoisyBatch, denoising_errors, min_snr_weights
from image_tools.personalization.dreambooth import SubjectLoss, train_dreambooth, trained_weights
from image_tools.personalization.dreambooth_configs import (
    BatchConfig,
    ClassImagesConfig,
    DreamBoothConfig,
)
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.pipeline_folder import write_pipeline
from renderers.errors import StudioError
from tests.image_tools.personalization.subjects import (
    SHORT,
    images_of,
    load_tiny,
    photos,
    predict,
)

CLASS = CaptionedImages(images_of(4, seed=5), ("a photo of a duck",) * 4)
CONFIG = DreamBoothConfig(batch=BatchConfig(size=2, min_snr_gamma=5.0), loop=SHORT)


def _loss(prior, **changes) -> SubjectLoss:
    settings = {"class_weight": 0.5, "is_text_trained": False, "seed": 0, **changes}
    config = settings.pop("config", CONFIG.batch)
    return SubjectLoss(prior, photos(), settings.pop("class_set", CLASS), config, **settings)


def _weights(prior) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in prior.unet.state_dict().items()}


def _changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
@torch.no_grad()
def test_each_half_has_the_min_snr_weights_of_its_own_timesteps(tiny_pipelines, kind):
    prior = load_tiny(tiny_pipelines, kind)
    loss = _loss(prior)
    noisy, captions = loss.draw(3, batch_generator(0, 3))
    assert captions == ["a photo of sks duck"] * 2 + ["a photo of a duck"] * 2
    for part, rows in zip(loss.parts(3, batch_generator(0, 3)), (slice(0, 2), slice(2, 4))):
        half = NoisyBatch(noisy.z_t[rows], noisy.t[rows], noisy.target[rows])
        errors = denoising_errors(prior, half, prior.encode_prompt(captions[rows]))
        expected = (min_snr_weights(prior, half.t, 5.0) * errors).mean()
        torch.testing.assert_close(part, expected)


@torch.no_grad()
def test_loss_is_the_subject_s_plus_lambda_times_the_class_s(tiny_pipelines):
    prior = load_tiny(tiny_pipelines)
    losses = [float(_loss(prior, class_weight=w)(1, batch_generator(0, 1))) for w in (0, 1, 3)]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0]


def test_only_the_denoiser_changes_and_nothing_wants_gradients_afterwards(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines)
    encoder = prior.text.towers[0].encoder
    frozen = [prior.vae.state_dict(), encoder.state_dict()]
    copies = [{k: v.clone() for k, v in state.items()} for state in frozen]
    before, name = _weights(prior), prior.fingerprint
    result = train_dreambooth(prior, photos(), CLASS, CONFIG, tmp_path)
    assert result.finished
    assert result.step == 4
    assert _changed(before, prior.unet.state_dict()) == set(before)
    assert all(not _changed(copy, state) for copy, state in zip(copies, frozen, strict=True))
    assert not any(
        p.requires_grad for m in (prior.unet, prior.vae, encoder) for p in m.parameters()
    )
    assert prior.fingerprint != name


def test_text_encoders_are_trained_on_request_and_prompts_are_not_stale(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines, "pocket")
    before = prior.encode_prompt(["a red duck"]).tokens
    config = replace(CONFIG, parts="unet_and_text", text_learning_rate=1e-2)
    seen = []
    hooks = LoopHooks(after_step=lambda _: seen.append(prior.encode_prompt(["a red duck"]).tokens))
    train_dreambooth(prior, photos(), None, config, tmp_path, hooks=hooks)
    assert all(not torch.equal(tokens, before) for tokens in seen)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(prior.encode_prompt(["a red duck"]).tokens, seen[-1])


@pytest.mark.parametrize("parts", ["unet", "unet_and_text"])
def test_stopped_training_goes_on_bit_for_bit(tiny_pipelines, tmp_path, parts):
    config = replace(CONFIG, parts=parts, text_learning_rate=1e-3)
    whole = load_tiny(tiny_pipelines)
    train_dreambooth(whole, photos(), CLASS, config, tmp_path / "a")
    first = load_tiny(tiny_pipelines)
    stop = LoopHooks(should_stop=lambda: True)
    assert not train_dreambooth(first, photos(), CLASS, config, tmp_path / "b", hooks=stop).finished
    second = load_tiny(tiny_pipelines)
    assert train_dreambooth(second, photos(), CLASS, config, tmp_path / "b").finished
    assert torch.equal(predict(whole), predict(second))
    assert not _changed(whole.unet.state_dict(), second.unet.state_dict())


@pytest.mark.parametrize("parts", ["unet", "unet_and_text"])
def test_a_stopped_training_goes_on_with_the_prior_that_it_changed(tiny_pipelines, tmp_path, parts):
    """In the same process, bit for bit; other settings are refused as ever."""
    config = replace(CONFIG, parts=parts, text_learning_rate=1e-3)
    whole = load_tiny(tiny_pipelines)
    train_dreambooth(whole, photos(), CLASS, config, tmp_path / "a")
    prior, stop = load_tiny(tiny_pipelines), LoopHooks(should_stop=lambda: True)
    plain = prior.fingerprint
    for _ in range(2):
        found = train_dreambooth(prior, photos(), CLASS, config, tmp_path / "b", hooks=stop)
        assert not found.finished
        assert prior.fingerprint != plain
    other = replace(config, class_images=replace(config.class_images, weight=0.5))
    for folder in ("b", "a"):  # which says nothing against going on with what it is
        with pytest.raises(StudioError, match="holds a training with other settings"):
            train_dreambooth(prior, photos(), CLASS, other, tmp_path / folder)
    assert train_dreambooth(prior, photos(), CLASS, config, tmp_path / "b").finished
    assert torch.equal(predict(whole), predict(prior))
    assert prior.fingerprint == whole.fingerprint


def test_a_prior_that_changed_since_is_another_training(tiny_pipelines, tmp_path):
    prior, stop = load_tiny(tiny_pipelines), LoopHooks(should_stop=lambda: True)
    train_dreambooth(prior, photos(), CLASS, CONFIG, tmp_path / "a", hooks=stop)
    train_dreambooth(prior, photos(), CLASS, CONFIG, tmp_path / "b")  # trains it further
    with pytest.raises(StudioError, match="holds a training with other settings"):
        train_dreambooth(prior, photos(), CLASS, CONFIG, tmp_path / "a")


def test_a_training_that_breaks_off_leaves_no_stale_fingerprint(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines)
    plain = prior.fingerprint

    def interrupt(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dreambooth(
            prior, photos(), CLASS, CONFIG, tmp_path, hooks=LoopHooks(after_step=interrupt)
        )
    assert prior.fingerprint != plain


def test_a_checkpoint_is_the_partial_training_itself(tiny_pipelines, tmp_path):
    loop = replace(SHORT, checkpoint_steps=(2, 4))
    prior = load_tiny(tiny_pipelines)
    result = train_dreambooth(prior, photos(), CLASS, replace(CONFIG, loop=loop), tmp_path / "a")
    short = load_tiny(tiny_pipelines)
    half = replace(CONFIG, loop=replace(SHORT, steps=2))
    train_dreambooth(short, photos(), CLASS, half, tmp_path / "b")
    partial, last, full = (trained_weights(path) for path in result.files)
    assert not _changed(last, full)
    for prior_of, tensors in ((short, partial), (prior, full)):
        own = {f"unet.{k}": v for k, v in prior_of.unet.state_dict().items()}
        assert own.keys() == tensors.keys()
        assert not _changed(own, tensors)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "pocket"])
def test_the_result_is_a_stock_folder(tiny_pipelines, tmp_path, kind):
    from diffusers import DiffusionPipeline

    prior = load_tiny(tiny_pipelines, kind)
    config = replace(CONFIG, parts="unet_and_text", text_learning_rate=1e-2)
    train_dreambooth(prior, photos(), None, config, tmp_path / "run")
    folder = write_pipeline(prior, tiny_pipelines[kind], tmp_path / "out", parts=config.parts)
    assert torch.equal(predict(load_folder(folder, torch.device("cpu"))), predict(prior))
    pipeline = DiffusionPipeline.from_pretrained(folder)
    own, stock = prior.text.towers[0].encoder.state_dict(), pipeline.text_encoder.state_dict()
    assert not _changed(own, stock)
    files = sorted(p.relative_to(tiny_pipelines[kind]) for p in tiny_pipelines[kind].rglob("*"))
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == files
    with pytest.raises(StudioError, match="exists - expected a new folder"):
        write_pipeline(prior, tiny_pipelines[kind], folder, parts="unet")


def test_other_photos_do_not_go_on_with_a_training(tiny_pipelines, tmp_path):
    train_dreambooth(load_tiny(tiny_pipelines), photos(), None, CONFIG, tmp_path)
    with pytest.raises(StudioError, match="other settings or photos"):
        train_dreambooth(load_tiny(tiny_pipelines), photos(seed=9), None, CONFIG, tmp_path)


def test_half_precision_weights_are_refused(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines)
    prior.unet.half()
    with pytest.raises(StudioError, match=r"is torch\.float16 - expected float32"):
        train_dreambooth(prior, photos(), None, CONFIG, tmp_path)


def test_class_images_can_be_stopped_and_those_made_are_kept(tiny_pipelines, tmp_path):
    prior, made = load_tiny(tiny_pipelines), []
    settings = {"config": ClassImagesConfig(count=20, sampler=DdimConfig(steps=1)), "seed": 0}

    def check_stop() -> None:
        made.append(len(list(tmp_path.glob("*.png"))))
        if len(made) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_class_images(
            prior, "a duck", tmp_path, log=lambda _: None, check_stop=check_stop, **settings
        )
    assert made == [0, 8, 16]
    images = make_class_images(prior, "a duck", tmp_path, log=lambda _: None, **settings)
    assert len(images.images) == 20


def test_class_images_are_made_once_and_the_same_after_a_kill(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines)
    config = ClassImagesConfig(count=3, sampler=DdimConfig(steps=2))

    def make(**changes):
        settings = {"config": config, "seed": 0, "log": lambda _: None, **changes}
        return make_class_images(prior, "a photo of a duck", tmp_path, **settings)

    images = make()
    assert images.captions == ("a photo of a duck",) * 3
    evaluations = prior.denoiser_evaluations
    assert torch.equal(make().images, images.images)
    assert prior.denoiser_evaluations == evaluations, "nothing was made again"
    (tmp_path / "0001.png").unlink()
    assert torch.equal(make().images, images.images), "each image has its own seed"
    more = make(config=replace(config, count=4))
    assert torch.equal(more.images[:3], images.images)
    with pytest.raises(StudioError, match="were made with seed 0 - expected 1"):
        make(seed=1)
