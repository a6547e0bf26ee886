"""DreamBooth-LoRA: the shapes asked for, nothing else trained, files that stock diffusers loads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.lora_apply import attach_to_prior, loras_active, prior_modules
from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.lora_files import read_lora
from image_tools.personalization.dreambooth_configs import (
    ATTENTION_TARGETS,
    CONVOLUTION_TARGETS,
    BatchConfig,
    DreamBoothLoraConfig,
    LoraShapeConfig,
    RankPatternConfig,
)
from image_tools.personalization.dreambooth_lora import train_dreambooth_lora
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.trainable_lora import TrainableLora, new_lora
from renderers.errors import StudioError
from tests.file_bits import bits_of
from tests.image_tools.personalization.subjects import (
    SHORT,
    load_tiny,
    photos,
    predict,
    train_numbers,
)

FULL = LoraShapeConfig(
    rank=4, alpha=2.0, targets=ATTENTION_TARGETS + CONVOLUTION_TARGETS, text_rank=2
)
CONFIG = DreamBoothLoraConfig(
    lora=FULL, text_learning_rate=1e-3, batch=BatchConfig(size=2), loop=SHORT
)


def _train(prior, folder, config=CONFIG, **settings):
    return train_dreambooth_lora(prior, photos(), None, config, folder, **settings)


def _deltas(lora: LoraFile) -> dict[str, tuple[int, float]]:
    return {f"{s}.{name}": (delta.rank, delta.alpha) for s, name, delta in lora.deltas()}


def test_ranks_and_alphas_follow_the_patterns(tiny_pipelines):
    patterns = (
        RankPatternConfig("attn2", rank=2, alpha=8.0),
        RankPatternConfig("mid_block", rank=0),
    )
    config = LoraShapeConfig(rank=4, alpha=1.0, patterns=patterns)
    deltas = _deltas(new_lora(load_tiny(tiny_pipelines), config, batch_generator(0, 0)))
    assert {shape for name, shape in deltas.items() if "attn2" in name} == {(2, 8.0)}
    assert {shape for name, shape in deltas.items() if "attn2" not in name} == {(4, 1.0)}
    assert not any("mid_block" in name and "attn1" in name for name in deltas)
    assert all(name.endswith(ATTENTION_TARGETS) for name in deltas)


def test_convolutions_and_text_encoders_get_deltas_too(tiny_pipelines):
    prior = load_tiny(tiny_pipelines, "sdxl")
    _ = prior.text.towers
    deltas = _deltas(new_lora(prior, FULL, batch_generator(0, 0)))
    assert {name.partition(".")[0] for name in deltas} == {
        *("unet", "text_encoder", "text_encoder_2")
    }
    assert any(name.endswith("resnets.0.conv1") for name in deltas)
    assert {s for n, s in deltas.items() if n.startswith("text")} == {(2, 2.0)}


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_a_new_one_changes_nothing_and_only_its_parameters_train(tiny_pipelines, variant):
    prior = load_tiny(tiny_pipelines)
    before = predict(prior)
    config = replace(FULL, variant=variant)
    lora = TrainableLora(prior, config, name="subject", generator=batch_generator(0, 0))
    if variant == "lora":
        assert torch.equal(predict(prior), before)
    else:
        torch.testing.assert_close(predict(prior), before)
        assert any(name.endswith("magnitude") for name in lora.parameters)
    assert not any(p.requires_grad for p in prior.unet.parameters())
    trained = [p for group in lora.groups(text_learning_rate=0.1) for p in group.parameters]
    assert sorted(trained) == sorted(lora.parameters)
    train_numbers(lora.parameters.values())
    assert not torch.equal(predict(prior), before)
    with lora.off():
        assert torch.equal(predict(prior), before)
    lora.detach()
    assert torch.equal(predict(prior), before)


def test_training_leaves_the_prior_as_it_was(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines)
    before, names, mark = predict(prior), list(prior.unet.state_dict()), prior.fingerprint
    weights = {k: v.clone() for k, v in prior.unet.state_dict().items()}
    seen = []
    hooks = LoopHooks(after_step=lambda _: seen.append(predict(prior)))
    _train(prior, tmp_path, hooks=hooks)
    assert all(not torch.equal(prediction, before) for prediction in seen)
    assert torch.equal(predict(prior), before)
    assert list(prior.unet.state_dict()) == names
    assert all(torch.equal(weights[k], v) for k, v in prior.unet.state_dict().items())
    assert prior.fingerprint == mark
    assert not any(p.requires_grad for p in prior.unet.parameters())


def test_another_lora_stays_as_it_is_and_is_not_trained(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines)
    other = new_lora(prior, LoraShapeConfig(rank=2), batch_generator(1, 0))
    attach_to_prior(prior, other, name="style", weight=0.5)
    numbers = [p for n, p in prior.unet.named_parameters() if ".style." in n]
    train_numbers(numbers)
    copies, before = [p.clone() for p in numbers], predict(prior)
    _train(prior, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(copies, numbers, strict=True))
    assert torch.equal(predict(prior), before), "its weight of 0.5 included"


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "pocket"])
def test_files_load_in_stock_diffusers_and_predict_the_same(tiny_pipelines, tmp_path, kind):
    from diffusers import DiffusionPipeline

    prior, seen = load_tiny(tiny_pipelines, kind), []
    # Stock diffusers knows no LoRA on BERT, pocket's text encoder.
    config = replace(CONFIG, lora=replace(FULL, text_rank=0)) if kind == "pocket" else CONFIG
    hooks = LoopHooks(after_step=lambda _: seen.append(predict(prior)))
    result = _train(prior, tmp_path, config, hooks=hooks)
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipelines[kind])
    pipeline.load_lora_weights(result.files[-1].parent, weight_name=result.files[-1].name)
    stock = load_tiny(tiny_pipelines, kind)
    stock.unet = pipeline.unet.eval()
    for tower, encoder in zip(stock.text.towers, ("text_encoder", "text_encoder_2")):
        object.__setattr__(tower, "encoder", getattr(pipeline, encoder))
    torch.testing.assert_close(predict(stock), seen[-1], atol=2e-6, rtol=1e-4)
    assert not torch.equal(predict(load_tiny(tiny_pipelines, kind)), seen[-1])


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_stopped_training_goes_on_bit_for_bit(tiny_pipelines, tmp_path, variant):
    config = replace(CONFIG, lora=replace(FULL, variant=variant))
    whole = _train(load_tiny(tiny_pipelines), tmp_path / "a", config)
    stop = LoopHooks(should_stop=lambda: True)
    assert not _train(load_tiny(tiny_pipelines), tmp_path / "b", config, hooks=stop).finished
    resumed = _train(load_tiny(tiny_pipelines), tmp_path / "b", config)
    assert bits_of(whole.files[-1]) == bits_of(resumed.files[-1])


def test_checkpoints_are_lora_files_that_a_training_can_start_from(tiny_pipelines, tmp_path):
    loop = replace(SHORT, checkpoint_steps=(2,))
    result = _train(load_tiny(tiny_pipelines), tmp_path / "a", replace(CONFIG, loop=loop))
    partial, full = (read_lora(path, layers_per_block=1) for path in result.files)
    assert result.files[0].parent.name == "step-000002"
    assert _deltas(partial) == _deltas(full)
    seen = []
    prior = load_tiny(tiny_pipelines)
    frozen = replace(
        CONFIG, loop=replace(SHORT, steps=1, learning_rate=0.0), text_learning_rate=0.0
    )
    frozen = replace(frozen, loop=replace(frozen.loop, weight_decay=0.0))
    hooks = LoopHooks(after_step=lambda _: seen.append(predict(prior)))
    train_dreambooth_lora(prior, photos(), None, frozen, tmp_path / "b", hooks=hooks, start=partial)
    attach_to_prior(prior, partial, name="partial")
    with loras_active(prior_modules(prior), {"partial": 1.0}):
        torch.testing.assert_close(predict(prior), seen[0])


def test_targets_that_no_layer_has_are_refused(tiny_pipelines, tmp_path):
    config = replace(CONFIG, lora=LoraShapeConfig(targets=("to_quit",)))
    with pytest.raises(StudioError, match="No layer of the unet ends in to_quit - expected"):
        _train(load_tiny(tiny_pipelines), tmp_path, config)
