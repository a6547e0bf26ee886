"""Trainers of KOSMOS-G on tiny models: what is trained, falling losses, results that reload."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from image_tools.errors import UnsupportedModel
from image_tools.personalization.kosmos_g import KosmosGModel
from image_tools.personalization.kosmos_g_aligner import AlignerNet
from image_tools.personalization.kosmos_g_configs import (
    AlignTrainingConfig,
    InstructionTuningConfig,
)
from image_tools.personalization.kosmos_g_prompt import stack_rows
from image_tools.personalization.kosmos_g_training import (
    AlignmentLoss,
    InstructionBatch,
    InstructionLoss,
    train_alignment,
    train_instructions,
    tuned_parameters,
)
from image_tools.personalization.kosmos_g_weights import read_aligner, read_kosmos_g
from image_tools.personalization.loop import LoopHooks
from image_tools.personalization.loop_configs import TuningConfig
from renderers.errors import ShapeError, StudioError
from tests.image_tools.personalization.subjects import images_of, load_tiny
from tests.image_tools.personalization.tiny_kosmos import tiny_aligner, tiny_kosmos

LOOP = TuningConfig(steps=20, learning_rate=2e-3, weight_decay=0.0, save_every=10, log_every=5)
ALIGN = AlignTrainingConfig(loop=LOOP, batch_size=3)
TUNE = InstructionTuningConfig(loop=LOOP)
CAPTIONS = ("a red duck", "a hat", "a duck, a hat", "red")


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines)


@pytest.fixture
def model(tmp_path):
    return tiny_kosmos(tmp_path / "vocabulary")


def losses_of(folder) -> list[float]:
    rows = (folder / "log.csv").read_text().splitlines()[1:]
    return [float(row.split(",")[1]) for row in rows]


@torch.no_grad()
def error_of(loss: InstructionLoss) -> float:
    """Mean error over always the same noise."""
    return sum(float(loss(0, torch.Generator().manual_seed(seed))) for seed in range(5)) / 5


def batches(_: int, generator: torch.Generator) -> InstructionBatch:
    """Always the same two pictures, so that a short training has something to learn."""
    images = images_of(3)
    return InstructionBatch(
        images_of(2, seed=8), ("a <i> hat", "<i> <i>"), (images[:1], images[1:])
    )


def test_the_alignment_loss_is_its_definition(prior, model):
    """Written out for captions one by one; a row's loss does not know the others."""
    loss = AlignmentLoss(prior, model, CAPTIONS, ALIGN)
    near, back = [], []
    with torch.no_grad():
        for caption in CAPTIONS:
            batch = stack_rows([model.tokens.read(caption, 0)])
            states, wanted = model.states(batch, None), prior.text.encode([caption]).tokens
            text_states = model.aligner(states, batch.is_token)
            near.append((text_states - wanted).square().mean())
            read = model.aligner.read_back(text_states, batch.is_token)
            back.append(77 / states.shape[1] * (read - states).square().mean())
        found = loss.parts(CAPTIONS)
    torch.testing.assert_close(found[0], torch.stack(near).mean())
    torch.testing.assert_close(found[1], torch.stack(back).mean(), rtol=1e-4, atol=1e-5)


def test_alignment_trains_the_aligner_alone_and_reloads(prior, model, tmp_path):
    before = {name: value.clone() for name, value in model.mllm.state_dict().items()}
    wanted = prior.text.encode(CAPTIONS).tokens
    result = train_alignment(prior, model, CAPTIONS, ALIGN, tmp_path / "run")
    assert result.finished
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(before[name], v) for name, v in model.mllm.state_dict().items())
    read = read_aligner(result.files[0])
    assert type(read) is AlignerNet
    none = [torch.zeros(0, 1, 1, 3)] * len(CAPTIONS)
    with torch.no_grad():
        found = KosmosGModel(model.mllm, read, model.tokens).embed(CAPTIONS, none)
        assert torch.equal(found, model.embed(CAPTIONS, none))
    assert found.shape == wanted.shape
    assert not any(p.requires_grad for p in model.parameters())


def test_an_alignment_that_was_stopped_goes_on_bit_for_bit(prior, model, tmp_path):
    short = replace(ALIGN, loop=replace(LOOP, steps=4))
    whole = train_alignment(prior, model, CAPTIONS, short, tmp_path / "whole")
    again = tiny_kosmos(tmp_path / "vocabulary")
    stop = LoopHooks(should_stop=lambda: True)
    part = train_alignment(prior, again, CAPTIONS, short, tmp_path / "parts", hooks=stop)
    assert (part.finished, part.step, part.files) == (False, 1, ())
    resumed = tiny_kosmos(tmp_path / "vocabulary")
    parts = train_alignment(prior, resumed, CAPTIONS, short, tmp_path / "parts")
    first, second = (load_file(r.files[0] / "model.safetensors") for r in (whole, parts))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(StudioError, match="holds a training with other settings"):
        train_alignment(prior, resumed, CAPTIONS[:2], short, tmp_path / "parts")


def test_tuning_trains_what_the_authors_train(model):
    names = set(tuned_parameters(model))
    untouched = {name for name, _ in model.named_parameters()} - names
    assert "mllm.text_model.model.embed_tokens.weight" in names
    assert "mllm.image_to_text_projection.latent_query" in names
    assert "mllm.vision_model.model.encoder.layers.1.mlp.fc1.weight" in names
    assert "mllm.vision_model.model.post_layernorm.weight" in names
    assert "aligner.encoder_query" in names
    assert "mllm.vision_model.model.encoder.layers.0.mlp.fc1.weight" in untouched
    assert all(n.startswith(("mllm.vision_model.model.", "aligner.decoder")) for n in untouched)


def test_tuning_goes_through_the_frozen_denoiser_and_reloads(prior, model, tmp_path):
    loss = InstructionLoss(prior, model, batches, replace(TUNE, null_share=0.0))
    before = error_of(loss)
    unet = {name: value.clone() for name, value in prior.unet.state_dict().items()}
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    result = train_instructions(prior, model, batches, TUNE, tmp_path, identity="two pictures")
    assert result.finished
    assert error_of(loss) < before
    assert all(torch.equal(unet[name], value) for name, value in prior.unet.state_dict().items())
    moved = {n for n, value in model.named_parameters() if not torch.equal(value, first[n])}
    wanted = set(tuned_parameters(model))
    assert moved <= wanted
    # Biases of keys have no effect, and words that no prompt has no gradient.
    assert all(name.endswith("k_proj.bias") for name in wanted - moved)
    read, images = read_kosmos_g(result.files[0]), images_of(1)
    with torch.no_grad():
        assert torch.equal(read.embed(["a <i>"], [images]), model.embed(["a <i>"], [images]))


def test_null_rows_are_told_the_empty_prompt(prior, model):
    """With all rows null the pictures' prompts make no difference."""

    @torch.no_grad()
    def value(loss: InstructionLoss) -> float:
        return float(loss(0, torch.Generator().manual_seed(3)))

    loss = InstructionLoss(prior, model, batches, replace(TUNE, null_share=1.0))

    def others(batch: int, generator: torch.Generator) -> InstructionBatch:
        return replace(batches(batch, generator), prompts=("red <i>", "<i> <i> duck"))

    other = InstructionLoss(prior, model, others, replace(TUNE, null_share=1.0))
    assert value(loss) == value(other)
    some = InstructionLoss(prior, model, others, replace(TUNE, null_share=0.0))
    assert value(some) != value(other)


def test_what_cannot_be_trained_is_refused(prior, model, tiny_pipelines):
    with pytest.raises(StudioError, match="no captions to align by"):
        AlignmentLoss(prior, model, (), ALIGN)
    bare = KosmosGModel(model.mllm, AlignerNet(model.aligner.settings), model.tokens)
    with pytest.raises(StudioError, match="no half that reads back"):
        AlignmentLoss(prior, bare, CAPTIONS, ALIGN)
    with pytest.raises(UnsupportedModel, match="a pooled vector"):
        InstructionLoss(load_tiny(tiny_pipelines, "sdxl"), model, batches, TUNE)
    short = KosmosGModel(model.mllm, tiny_aligner(queries=5), model.tokens)
    with pytest.raises(ShapeError, match=r"makes \(5, 16\) text states, .* \(77, 16\)"):
        AlignmentLoss(prior, short, CAPTIONS, ALIGN).parts(["a hat"])
    with pytest.raises(ShapeError, match="has 2 pictures, 1 prompts and images for 0"):
        InstructionBatch(images_of(2), ("a",), ())
    with pytest.raises(ValueError, match=r"null_share is 1.5 - expected 0 to 1"):
        InstructionTuningConfig(null_share=1.5)


# What runalign.sh and runtrain.sh of the public code give to fairseq (microsoft/unilm, kosmos-g).
SCRIPTS = {
    AlignTrainingConfig: "--adam-betas (0.9,0.98) --adam-eps 1e-6 --clip-norm 2.0 --weight-decay "
    "0.01 --lr 1e-3 --warmup-updates 375 --max-update 300000 --laion-batch-size 56",
    InstructionTuningConfig: "--adam-betas (0.9,0.98) --adam-eps 1e-6 --clip-norm 2.0 "
    "--weight-decay 0.01 --lr 1e-3 --warmup-updates 375 --max-update 200000",
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_defaults_are_those_of_the_public_scripts(kind):
    words = SCRIPTS[kind].split()
    said, config = dict(zip(words[::2], words[1::2], strict=True)), kind()
    loop = config.loop
    assert f"({loop.betas[0]},{loop.betas[1]})" == said["--adam-betas"]
    assert (loop.epsilon, loop.clip_norm) == (float(said["--adam-eps"]), float(said["--clip-norm"]))
    assert loop.weight_decay == float(said["--weight-decay"])
    assert (loop.learning_rate, loop.schedule) == (float(said["--lr"]), "linear")
    assert (loop.warmup_steps, loop.steps) == (
        int(said["--warmup-updates"]),
        int(said["--max-update"]),
    )
    if "--laion-batch-size" in said:
        assert config.batch_size == int(said["--laion-batch-size"])
