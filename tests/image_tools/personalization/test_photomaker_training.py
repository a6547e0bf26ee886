"""PhotoMaker's trainer: what it shows, where errors count, and that it learns and comes back."""

from __future__ import annotations

import pytest
import torch

from image_tools.errors import UnsupportedModel
from image_tools.personalization.dreambooth_configs import LoraShapeConfig
from image_tools.personalization.loop import LoopHooks
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.photomaker import photomaker_prior
from image_tools.personalization.photomaker_encoder import encoder_from_clip
from image_tools.personalization.photomaker_files import read_photomaker
from image_tools.personalization.photomaker_people import (
    PeoplePhotos,
    on_noise,
    other_photos,
)
from image_tools.personalization.photomaker_prompts import TriggerError
from image_tools.personalization.photomaker_training import (
    PhotoMakerLoss,
    masked_errors,
    train_photomaker,
)
from image_tools.personalization.photomaker_training_configs import PhotoMakerTrainingConfig
from renderers.errors import StudioError
from tests.image_tools.personalization.subjects import images_of, load_tiny, predict
from tests.image_tools.personalization.tiny_photomakers import (
    FACE,
    faces_of,
    portraits,
    tiny_encoder,
    tiny_shape,
)

SHORT = PhotoMakerTrainingConfig(
    loop=TuningConfig(steps=20, learning_rate=0.02, log_every=20, save_every=20),
    encoder_learning_rate=0.01,
    lora=LoraShapeConfig(rank=2),
    batch_size=2,
    max_photos=2,
)


def people(count=6, **changes):
    """Two people of three photos each, standing in the middle."""
    masks = torch.zeros(count, 16, 16)
    masks[:, 4:12, 4:12] = 1.0
    settings = {
        "images": images_of(count, seed=8),
        "masks": masks,
        "captions": ("a man img", "a girl img") * (count // 2),
        "people": (3, 7) * (count // 2),
    }
    return PeoplePhotos(**{**settings, **changes})


@pytest.fixture
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sdxl")


def test_a_picture_is_never_shown_to_itself():
    who, generator = (1, 2, 1, 1, 2, 1), torch.Generator().manual_seed(0)
    seen = [other_photos(who, row, 2, generator) for row in range(6) for _ in range(20)]
    for index, chosen in enumerate(seen):
        row = index // 20
        assert row not in chosen
        assert len(set(chosen)) == len(chosen)
        assert all(who[other] == who[row] for other in chosen)
    assert {len(chosen) for chosen in seen} == {1, 2}
    assert {other for chosen in seen[:20] for other in chosen} == {2, 3, 5}


def test_noise_stands_around_people_alone(generator):
    photos = people()
    shown = on_noise(photos.images, photos.masks, generator)
    inside = photos.masks[..., None].expand_as(shown) == 1.0
    assert torch.equal(shown[inside], photos.images[inside])
    around = shown[~inside]
    assert 0.45 < around.mean() < 0.55
    assert 0.27 < around.std() < 0.31  # uniform: 1 / sqrt(12)


def test_masked_errors_are_means_over_the_mask(generator):
    errors = torch.rand(4, 3, 8, 8, generator=generator)
    masks = torch.zeros(4, 16, 16)
    masks[:2, 4:12, 6:10] = 1.0
    masks[3] = 1.0
    found = masked_errors(errors, masks, torch.tensor([True, False, True, True]))
    assert torch.allclose(found[0], errors[0, :, 2:6, 3:5].mean())
    assert torch.allclose(found[1:], errors[1:].flatten(1).mean(dim=1))  # also an empty mask


def test_gradients_reach_the_encoder_through_the_frozen_denoiser(prior):
    """But where the prompt is left out."""
    encoder = tiny_encoder("v1").requires_grad_(True)
    loss = PhotoMakerLoss(prior, encoder, people(), SHORT)
    text = loss.text([0, 1], torch.tensor([True, False]), torch.Generator().manual_seed(1))
    assert torch.equal(text.tokens[:1], prior.encode_negative([""]).tokens)
    gradient = torch.autograd.grad(text.tokens[0].sum() + text.tokens[1].square().sum(),
        [encoder.fuse_module.mlp1.fc1.weight, encoder.visual_projection_2.weight])  # fmt: skip
    assert all(part.abs().sum() > 0 for part in gradient)
    value = loss(0, torch.Generator().manual_seed(2))
    assert torch.equal(value, loss(0, torch.Generator().manual_seed(2)))
    assert not torch.equal(value, loss(0, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("version", ["v1", pytest.param("v2", marks=pytest.mark.slow)])
def test_training_lowers_the_loss_and_its_file_comes_back(prior, tmp_path, version):
    before, losses = predict(prior), []
    faces = faces_of(6) if version == "v2" else None
    photos, encoder = people(faces=faces), tiny_encoder(version)
    start = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    measure = PhotoMakerLoss(prior, encoder, photos, SHORT)

    def mean_loss():
        with torch.no_grad():
            values = [measure(k, torch.Generator().manual_seed(k)) for k in range(4)]
        return float(torch.stack(values).mean())

    def after_step(step):
        if step == SHORT.loop.steps:
            losses.append(mean_loss())

    losses.append(mean_loss())
    result = train_photomaker(
        prior, encoder, photos, SHORT, tmp_path, hooks=LoopHooks(after_step=after_step)
    )
    assert result.finished
    assert losses[1] < 0.97 * losses[0]
    assert torch.equal(predict(prior), before)
    again = read_photomaker(result.files[-1])
    trained = encoder.state_dict()
    assert all(torch.equal(t, trained[name]) for name, t in again.encoder.state_dict().items())
    unused = "visual_projection" if version == "v2" else "nothing"
    same = [n for n, t in start.items() if torch.equal(t, trained[n]) and unused not in n]
    # Pooling has a norm of its own, which v2 leaves out.
    assert all("post_layernorm" in name for name in same)
    assert not any(p.requires_grad for p in encoder.parameters())
    known = photomaker_prior(prior, again, portraits(), faces=faces_of(), merge_t=999)
    assert not torch.equal(predict(known, "a man img"), before)


def test_an_interrupted_training_goes_on_to_the_same_file(prior, tmp_path):
    def train(folder, stop_at=None, encoder=None):
        steps = []
        hooks = LoopHooks(after_step=steps.append, should_stop=lambda: len(steps) == stop_at)
        config = PhotoMakerTrainingConfig(
            loop=TuningConfig(steps=4, learning_rate=0.02, checkpoint_steps=(2,)),
            lora=LoraShapeConfig(rank=2), batch_size=2, max_photos=2, clip_layers=1,
        )  # fmt: skip
        encoder = encoder or tiny_encoder("v1")
        return train_photomaker(prior, encoder, people(), config, folder, hooks=hooks)

    whole = train(tmp_path / "whole")
    part = train(tmp_path / "parts", stop_at=2)
    assert (part.finished, part.step) == (False, 2)
    rest = train(tmp_path / "parts")
    assert rest.files[-1].read_bytes() == whole.files[-1].read_bytes()
    assert rest.files[0].read_bytes() == whole.files[0].read_bytes()
    same = tiny_encoder("v1")  # goes on in the process that stopped
    train(tmp_path / "same", stop_at=1, encoder=same)
    train(tmp_path / "same", stop_at=2, encoder=same)
    rest = train(tmp_path / "same", encoder=same)
    assert rest.files[-1].read_bytes() == whole.files[-1].read_bytes()
    start, trained = tiny_encoder("v1"), read_photomaker(whole.files[-1]).encoder
    layers = "vision_model.encoder.layers"
    for name, tensor in start.state_dict().items():
        is_frozen = name.startswith("vision_model.") and not name.startswith(f"{layers}.1.")
        assert torch.equal(tensor, trained.state_dict()[name]) == is_frozen, name


def test_encoders_begin_as_clip(generator):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    shape = tiny_shape("v1")
    sizes = {
        "image_size": shape.image_size, "patch_size": shape.patch_size,
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "projection_dim": shape.projections[0],
    }  # fmt: skip
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, num_attention_heads=1)).eval()
    encoder = encoder_from_clip(clip, text_width=32, face=FACE, generator=generator)
    assert encoder.shape == tiny_shape("v2")
    pixels = torch.rand(2, 3, 8, 8, generator=generator)
    mine, theirs = encoder.vision_model(pixels), clip.vision_model(pixels)
    assert torch.equal(mine.pooler_output, theirs.pooler_output)
    drawn = [encoder.visual_projection_2.weight, encoder.fuse_module.mlp1.fc1.weight]
    again = encoder_from_clip(clip, text_width=32, generator=generator.manual_seed(0))
    assert torch.equal(again.visual_projection_2.weight, drawn[0])
    assert torch.equal(again.fuse_module.mlp1.fc1.weight, drawn[1])
    with pytest.raises(UnsupportedModel, match="heads, quick_gelu, and a projection of 12 for"):
        encoder_from_clip(clip, text_width=12, generator=generator)


def test_data_that_teach_nothing_are_refused(prior):
    with pytest.raises(StudioError, match="one photo of person 5"):
        people(people=(3, 7, 3, 7, 3, 5))
    with pytest.raises(StudioError, match="6 images, 6 masks, 6 captions, 5 people"):
        people(people=(3, 7, 3, 7, 3))
    for caption, said in (
        ("a man", "does not hold"),
        ("x" * 75 + " img", "is token 75 and stands for 2"),
    ):
        with pytest.raises(TriggerError, match=said):
            PhotoMakerLoss(prior, tiny_encoder("v1"), people(captions=(caption,) * 6), SHORT)
