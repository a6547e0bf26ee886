"""Edits by instruction: the two-scale formula, off, and the dataset that follows an exact model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from guidance.build import build_guidance
from guidance.configs import PlainPromptsConfig, SDSConfig
from guidance.image_distance import image_distance
from guidance.instruct_edit import InstructSDSGuidance
from guidance.instruct_edit_configs import (
    DatasetUpdateConfig,
    EditModelConfig,
    InstructSDSConfig,
)
from guidance.instruct_edit_views import DatasetUpdateGuidance
from guidance.original import Original
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.configs import DdimConfig
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.errors import UnsupportedModel, WeightsMissing
from renderers.cameras import Cameras, orbit_cameras
from tests.image_tools.control.tiny_controls import condition_images
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.image_tools.personalization.subjects import load_tiny

INSTRUCTION = "make it blue"
SIZE = 16
SAMPLER = DdimConfig(steps=4, guidance_scale=3.0)


class Views:
    """The original: for each camera a smooth image that depends on its azimuth."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, cameras: Cameras) -> torch.Tensor:
        self.asked += len(cameras)
        angle = torch.deg2rad(cameras.azimuth_deg)[:, None, None]
        x = torch.linspace(0, 1, SIZE)
        planes = [
            0.5 + 0.3 * torch.sin(angle + phase + 3.0 * x[:, None] + x[None]) for phase in (0, 1, 2)
        ]
        return torch.stack(planes, dim=-1)


def ring(count: int = 4) -> Cameras:
    return orbit_cameras(count, elevation_deg=15, distance=3, fovy_deg=40, height=SIZE, width=SIZE)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "pocket")


@pytest.fixture(scope="module")
def edit_model(prior, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("ip2p")
    tiny_edit_unet(prior).save_pretrained(folder)
    return str(folder)


def prompts(prior):
    return build_view_prompts(PlainPromptsConfig(), prior, INSTRUCTION)


def original(prior) -> Original:
    return Original(Views(), prompts(prior))


def model(folder: str, **settings) -> EditModelConfig:
    return EditModelConfig(weights=folder, **settings)


def gradient(rule, images: torch.Tensor, cameras: Cameras, *, seed: int = 0):
    leaf = images.detach().clone().requires_grad_()
    guided = rule(leaf, cameras, fraction=0.3, generator=torch.Generator().manual_seed(seed))
    guided.loss.backward()
    return leaf.grad, guided


def test_gradient_is_the_formula_of_two_scales(prior, edit_model):
    config = InstructSDSConfig(model(edit_model, image_scale=1.7), guidance_scale=6.0)
    source = original(prior)
    rule = build_guidance(config, prior, prompts(prior), seed=0, original=source)
    assert isinstance(rule, InstructSDSGuidance)
    renders, cameras = condition_images(prior, 2), ring(2)
    found, guided = gradient(rule, renders, cameras)

    unet, t = tiny_edit_unet(prior), guided.t
    seen = Views()(cameras)
    images = renders.clone().requires_grad_()
    latents = prior.encode_images(images)
    generator = torch.Generator().manual_seed(0)
    torch.randint(20, 981, (2,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
    with torch.no_grad():
        z_t = add_noise(latents, noise, alpha, sigma)
        shift, scale = prior._latent_shift_scale(latents)
        image = prior.encode_images(seen) / scale + shift
        text, empty = (prior.encode_prompt([words]).expand(2).tokens for words in (INSTRUCTION, ""))

        def e(c_image, c_text):
            output = unet(torch.cat([z_t, c_image], 1), t, encoder_hidden_states=c_text).sample
            return prior.to_noise(output, z_t, t)

        none, one, both = e(0 * image, empty), e(image, empty), e(image, text)
        g = sigma**2 * (none + 1.7 * (one - none) + 6.0 * (both - one) - noise)
    latents.backward(g / 2)
    size = float(images.grad.abs().max())
    torch.testing.assert_close(found, images.grad, rtol=1e-3, atol=1e-4 * size)


def test_switched_off_it_is_plain_sds_bit_for_bit(prior, edit_model):
    config = InstructSDSConfig(model(edit_model), guidance_scale=6.0)
    rule = InstructSDSGuidance(config, prior, prompts(prior), original(prior))
    rule.prior.show(None)
    renders, cameras = condition_images(prior, 2), ring(2)
    found, _ = gradient(rule.rule, renders, cameras)
    plain = SDSGuidance(SDSConfig(guidance_scale=6.0), prior, prompts(prior))
    expected, _ = gradient(plain, renders, cameras)
    assert torch.equal(found, expected)


def test_a_model_that_ignores_image_and_text_gives_the_same_for_all_scales(prior, tmp_path):
    """With e(c_I, c_T) = e(0, 0) both guidance terms vanish: plain SDS without a prompt."""
    unet = tiny_edit_unet(prior)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:].zero_()
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name:
                parameter.zero_()
    unet.save_pretrained(tmp_path)
    renders, cameras = condition_images(prior, 2), ring(2)
    found = [
        gradient(
            InstructSDSGuidance(
                InstructSDSConfig(model(str(tmp_path), image_scale=s_i), guidance_scale=s_t),
                prior,
                prompts(prior),
                original(prior),
            ),
            renders,
            cameras,
        )[0]
        for s_i, s_t in ((1.5, 7.5), (0.3, 2.0), (1.0, 1.0))
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-5)


def test_evaluations_are_counted_by_the_stages_prior(prior, edit_model):
    config = InstructSDSConfig(model(edit_model), guidance_scale=6.0)
    rule = InstructSDSGuidance(config, prior, prompts(prior), original(prior))
    before = prior.denoiser_evaluations
    gradient(rule, condition_images(prior, 2), ring(2))
    assert prior.denoiser_evaluations - before == 3 * 2


# --- the dataset ----------------------------------------------------------------------------------


def dataset(prior, folder: str, *, count: int = 4, seed: int = 0, **settings):
    settings = {"sampler": SAMPLER, "views_per_step": 2, "every": 2, **settings}
    config = DatasetUpdateConfig(model(folder), count=count, **settings)
    source = original(prior)
    rule = build_guidance(
        config, prior, prompts(prior), seed=seed, original=source, dataset=ring(count)
    )
    assert isinstance(rule, DatasetUpdateGuidance)
    return rule, source


def step(rule, scene, *, generator: torch.Generator):
    """One step about a scene that gives images for cameras; returns the guidance."""
    cameras = rule.choose_views(ring(1))
    images = scene(cameras)
    guided = rule(images, cameras, fraction=0.5, generator=generator)
    learned = rule.after_step(images.detach(), cameras, fraction=0.5, generator=generator)
    assert set(learned) == set(rule.metric_names())
    return guided


def test_without_noise_nothing_is_edited_and_nothing_pulls(prior, edit_model):
    rule, source = dataset(prior, edit_model, min_t=0.0, max_t=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        cameras = rule.choose_views(ring(1))
        images = source.views(cameras).requires_grad_()
        guided = rule(images, cameras, fraction=0.5, generator=generator)
        assert float(guided.loss.detach()) == 0.0
        assert float(guided.grad_norm) == 0.0
        rule.after_step(images.detach(), cameras, fraction=0.5, generator=generator)
    assert torch.equal(rule.images, rule.originals)
    torch.testing.assert_close(rule.originals, Views()(ring()), rtol=0, atol=0)


def test_views_come_in_whole_rounds_and_are_edited_when_due(prior, edit_model):
    rule, source = dataset(prior, edit_model)
    generator, rows = torch.Generator().manual_seed(0), []
    for number in range(4):
        before = rule.images.clone()
        step(rule, source.views, generator=generator)
        rows.append(rule._due[1])
        changed = [k for k in range(4) if not torch.equal(before[k], rule.images[k])]
        if number >= 2:  # before that originals come in
            assert changed == (sorted(rows[-1]) if number % 2 == 0 else [])
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == [0, 1, 2, 3]
    assert int(rule.rounds.sum()) == 4


def test_edits_see_the_original_and_not_the_scene(prior, edit_model):
    """The image condition is always the first view, whatever the scene has become."""
    rule, source = dataset(prior, edit_model, count=2, every=1)
    generator = torch.Generator().manual_seed(0)
    step(rule, source.views, generator=generator)
    step(rule, lambda cameras: torch.rand(2, SIZE, SIZE, 3), generator=generator)
    rows = rule._due[1]
    expected = rule.prior._encode(Views()(ring(2))[rows])
    torch.testing.assert_close(rule.prior.image_latents, expected, rtol=0, atol=0)
    assert not torch.equal(rule.images, rule.originals)


def test_the_same_numbers_after_a_resume(prior, edit_model):
    def drive(rule, generator, count):
        return [float(step(rule, Views(), generator=generator).loss) for _ in range(count)]

    rule, _ = dataset(prior, edit_model)
    generator = torch.Generator().manual_seed(0)
    drive(rule, generator, 3)
    state = {name: value.clone() for name, value in rule.state().items()}
    kept = generator.clone_state()
    expected = drive(rule, generator, 4)
    again, source = dataset(prior, edit_model)
    again.load_state(state)
    assert drive(again, kept, 4) == expected
    assert torch.equal(again.images, rule.images)
    assert source.views.asked == 0, "originals are in the state"


def test_previews_show_the_nearest_view(prior, edit_model):
    rule, source = dataset(prior, edit_model, min_t=0.0, max_t=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        step(rule, source.views, generator=generator)
    elsewhere = orbit_cameras(
        2, elevation_deg=0, distance=3, fovy_deg=40, height=8, width=8, azimuth_start_deg=100
    )
    images = torch.rand(2, 8, 8, 3)
    guided = rule(images, elsewhere, fraction=0.5, generator=generator)
    expected = Views()(ring()[[1, 3]])
    assert guided.x0().shape == (2, 8, 8, 3)
    shrunk = torch.nn.functional.interpolate(
        expected.movedim(-1, 1), (8, 8), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(guided.x0(), shrunk.movedim(1, -1))


def exact_prior(folder, to):
    """A copy of a pipeline whose denoiser predicts clean latents, and its folder."""
    shutil.copytree(folder, to)
    path = to / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "prediction_type": "sample"}))
    return load_folder(to, torch.device("cpu"))


def test_a_scene_follows_an_exact_instruction_model(tiny_pipelines, tmp_path):
    """A real UNet whose answer is always the same clean latent b: "make it look like D(b)"."""
    prior = exact_prior(tiny_pipelines["pocket"], tmp_path / "prior")
    unet = tiny_edit_unet(prior)
    answer = torch.tensor([0.8, -0.5, 0.3, 0.6])
    with torch.no_grad():
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.copy_(answer)
    unet.save_pretrained(tmp_path / "ip2p")
    side = prior.latent_size
    goal = prior.decode_latents(answer.reshape(1, 4, 1, 1).expand(1, 4, side, side)).detach()
    goal = torch.nn.functional.interpolate(
        goal.movedim(-1, 1), (SIZE, SIZE), mode="bilinear", antialias=prior.image_size > SIZE
    ).movedim(1, -1)

    rule, source = dataset(prior, str(tmp_path / "ip2p"), min_t=0.6, max_t=0.9)
    pixels = source.views(ring()).clone().requires_grad_()
    place = {round(float(a)): k for k, a in enumerate(ring().azimuth_deg)}

    def scene(cameras: Cameras) -> torch.Tensor:
        return pixels[[place[round(float(a))] for a in cameras.azimuth_deg]]

    def distance() -> float:
        return float((pixels.detach() - goal).abs().mean())

    start, generator = distance(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([pixels], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        step(rule, scene, generator=generator).loss.backward()
        optimizer.step()
    assert int(rule.rounds.min()) > 0
    assert float((rule.images - goal).abs().mean()) < 0.1 * start
    assert distance() < 0.2 * start


def test_distance_of_images_is_that_of_its_formula():
    renders, images = torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8, 3)
    ones = torch.ones(2, 8, 8, 1)
    found = image_distance(renders, images, ones, scales=1, gradient_weight=0.5)
    d = renders - images
    edges = 0.5 * (d.diff(dim=1).abs().mean() + d.diff(dim=2).abs().mean())
    torch.testing.assert_close(found, d.abs().mean() + 0.5 * edges)


def test_missing_and_wrong_edit_models_are_one_clear_error(prior, tmp_path):
    absent = InstructSDSConfig(model("pocket-ip2p-of-nobody"))
    with pytest.raises(WeightsMissing, match="edit model are missing: 'pocket-ip2p-of-nobody'"):
        InstructSDSGuidance(absent, prior, prompts(prior), original(prior))
    prior.unet.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="takes 4 channels, expected 8"):
        InstructSDSGuidance(
            InstructSDSConfig(model(str(tmp_path))), prior, prompts(prior), original(prior)
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 2, "views_per_step": 3}, "no more than there are views"),
        ({"elevations_deg": (95.0,)}, "between -90 and 90"),
        ({"gradient_weight": -1.0}, "gradient_weight is -1.0"),
        ({"min_t": 1.5}, "min_t has the value 1.5"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DatasetUpdateConfig(model("x"), **settings)
