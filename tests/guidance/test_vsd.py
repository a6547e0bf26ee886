"""Variational score distillation: its closed forms, its two gradients kept apart, and resuming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidance.build import build_guidance
from guidance.configs import (
    AnnealedTimestepsConfig,
    DirectionalPromptsConfig,
    PlainPromptsConfig,
    SDSConfig,
    UniformTimestepsConfig,
)
from guidance.critic import LoraCritic
from guidance.critic_configs import CriticConfig, VSDConfig
from guidance.gradient import gradient_norm
from guidance.noising import draw_noisy_latents
from guidance.prompts import build_view_prompts
from guidance.schedules import value_at
from guidance.sds import SDSGuidance
from guidance.vsd import VSDGuidance
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from renderers.cameras import Cameras, orbit_cameras
from renderers.errors import ShapeError
from studio.checkpoints import list_checkpoints, load_checkpoint
from studio.config import load_scene
from studio.configs import AdamWConfig
from studio.metrics_log import read_metrics
from studio.runner import Runner
from studio.stages import rule_tensors
from tests.guidance.test_sds import GaussianPrior
from tests.studio.conftest import TINY, start, tiny_prior  # noqa: F401 - a fixture

CPU = torch.device("cpu")


class GivenCritic:
    """A critic that does not learn: ``answer(z_t, t)`` is its prediction."""

    def __init__(self, answer) -> None:
        self.answer, self.closed = answer, False

    def encode_prompt(self, prompts) -> TextEmbedding:
        return TextEmbedding(torch.zeros(len(prompts), 1, 1))

    def predict_noise(self, latents: Tensor, t: Tensor, text, camera) -> Tensor:
        return self.answer(latents, t)

    def train_step(self, latents, text, camera, *, t=None, generator) -> float:
        return 0.0

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, tensors) -> None:
        assert tensors == {}

    def close(self) -> None:
        self.closed = True


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cameras(n: int = 2) -> Cameras:
    return orbit_cameras(n, elevation_deg=15.0, distance=3.0, fovy_deg=40.0, height=16, width=16)


def _renders(n: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(n, 16, 16, 3, generator=_seeded(seed)).requires_grad_()


def _learning(prior: DiffusionPrior, **critic) -> VSDGuidance:
    """With the same prompt for all views and a LoRA critic of these settings."""
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "red duck")
    return VSDGuidance(VSDConfig(critic=CriticConfig(**critic)), prior, prompts, seed=0)


def _vsd(prior, critic=None, plain: bool = False, **config) -> VSDGuidance:
    view_prompts = PlainPromptsConfig() if plain else DirectionalPromptsConfig()
    prompts = build_view_prompts(view_prompts, prior, "red duck")
    return VSDGuidance(VSDConfig(**config), prior, prompts, seed=0, critic=critic)


def _gradient(rule, images: Tensor, cameras: Cameras, seed: int = 0, fraction: float = 0.5):
    """Gradient of the loss with respect to the renders, times the batch."""
    output = rule(images, cameras, fraction=fraction, generator=_seeded(seed))
    (gradient,) = torch.autograd.grad(output.loss, images)
    return gradient * len(images)


def _learn(rule: VSDGuidance, images: Tensor, steps: int = 3, seed: int = 7) -> None:
    generator, cameras = _seeded(seed), _cameras(len(images))
    for _ in range(steps):
        rule.after_step(images.detach(), cameras, fraction=0.5, generator=generator)


@contextmanager
def _read_by(unet: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The noisy latents that a denoiser reads meanwhile."""
    read: list[Tensor] = []
    hook = unet.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        yield read
    finally:
        hook.remove()


@pytest.fixture
def prior(tiny_pipelines) -> DiffusionPrior:
    """A fresh prior, since the critic changes its UNet."""
    return load_folder(tiny_pipelines["pocket"], CPU)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
@pytest.mark.parametrize("share", ["view", "batch"])
def test_is_sds_bit_for_bit_when_the_critic_returns_the_noise(tiny_pipelines, kind, share):
    prior, cameras, images = load_folder(tiny_pipelines[kind], CPU), _cameras(), _renders()
    settings = {
        "guidance_scale": 7.5,
        "timesteps": UniformTimestepsConfig(max_t=((0.0, 0.98), (1.0, 0.5)), share=share),
        "grad_clip": 0.7,
    }
    drawn = draw_noisy_latents(
        prior,
        prior.encode_images(images),
        settings["timesteps"],
        fraction=0.5,
        generator=_seeded(),
    )
    rule = _vsd(prior, GivenCritic(lambda z_t, t: drawn.noise), **settings)
    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, "red duck")
    sds = SDSGuidance(SDSConfig(**settings), prior, prompts)
    assert torch.equal(_gradient(rule, images, cameras), _gradient(sds, images, cameras))
    outputs = [r(images, cameras, fraction=0.5, generator=_seeded()) for r in (rule, sds)]
    assert torch.equal(outputs[0].grad_norm, outputs[1].grad_norm)
    assert torch.equal(outputs[0].t, outputs[1].t)
    assert torch.equal(outputs[0].x0(), outputs[1].x0())


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "pocket", "sdxl"])
def test_vanishes_when_the_critic_is_the_prior_without_guidance(tiny_pipelines, kind):
    prior, images = load_folder(tiny_pipelines[kind], CPU), _renders()
    rule = _vsd(prior, plain=True, guidance_scale=1.0)
    output = rule(images, _cameras(), fraction=0.5, generator=_seeded())
    output.loss.backward()
    assert output.grad_norm == 0.0
    assert torch.count_nonzero(images.grad) == 0
    guided = _vsd(prior, plain=True, guidance_scale=7.5)
    assert guided(images, _cameras(), fraction=0.5, generator=_seeded()).grad_norm > 1e-3


@pytest.mark.parametrize(
    ("t", "mean", "sds_std"), [(100, -0.934, 0.83), (500, -0.563, 0.30), (900, -0.119, 0.06)]
)
def test_gaussian_world_has_the_mean_of_sds_and_none_of_its_variance(t, mean, sds_std):
    """Data ~ N(1, 1/4), renders ~ N(0, 1/4): the gradient is sigma alpha (0 - 1) / var(z_t)."""
    truth = GaussianPrior(mean=1.0, std=0.5)
    renders = GaussianPrior(mean=0.0, std=0.5)
    images = 0.5 * torch.randn(4, 64, 64, 3, generator=_seeded(3))
    images.requires_grad_()
    settings = {
        "guidance_scale": 1.0,
        "weighting": "uniform",
        "timesteps": AnnealedTimestepsConfig(start_t=t / 1000, end_t=t / 1000),
    }
    critic = GivenCritic(lambda z_t, steps: renders.predict_output(z_t, steps, None))
    vsd = _gradient(_vsd(truth, critic, plain=True, **settings), images, _cameras(4))
    prompts = build_view_prompts(PlainPromptsConfig(), truth, "")
    sds = _gradient(SDSGuidance(SDSConfig(**settings), truth, prompts), images, _cameras(4))
    alpha_bar = truth.alphas_cumprod[t].double()
    exact = -(alpha_bar * (1 - alpha_bar)).sqrt() / (alpha_bar / 4 + 1 - alpha_bar)
    assert float(exact) == pytest.approx(mean, abs=2e-3)
    torch.testing.assert_close(vsd, torch.full_like(vsd, float(exact)), atol=1e-5, rtol=1e-5)
    assert vsd.std() < 1e-6
    assert sds.std() == pytest.approx(sds_std, abs=0.01)
    assert sds.mean() == pytest.approx(float(exact), abs=4 * sds_std / sds.numel() ** 0.5)


def test_gradient_of_the_scene_never_reaches_the_critic_nor_the_critics_the_scene(prior):
    rule, images = _vsd(prior), _renders()
    before = {name: value.clone() for name, value in rule.state().items()}
    output = rule(images, _cameras(), fraction=0.5, generator=_seeded())
    output.loss.backward()
    critic = rule.critic
    assert isinstance(critic, LoraCritic)
    assert all(parameter.grad is None for parameter in critic.parameters.values())
    assert all(parameter.grad is None for parameter in prior.unet.parameters())
    assert all(torch.equal(rule.state()[name], value) for name, value in before.items())
    scene_gradient = images.grad.clone()
    # Renders that still hang on the scene: those of the step, whose latents are known, and others.
    with _read_by(prior.unet) as read:
        rule.after_step(images, _cameras(), fraction=0.5, generator=_seeded())
        rule.after_step(1.0 - images, _cameras(), fraction=0.5, generator=_seeded())
    assert len(read) == 2
    assert not any(latents.requires_grad for latents in read)
    assert torch.equal(images.grad, scene_gradient)
    moved = [n for n, value in before.items() if not torch.equal(rule.state()[n], value)]
    assert any("lora_B" in name for name in moved)
    assert any("class_embedding" in name for name in moved)


def test_the_critic_cuts_latents_off_that_hang_on_the_scene(prior):
    critic = LoraCritic(prior, CriticConfig(), seed=0)
    latents = torch.randn(2, prior.latent_channels, 8, 8, generator=_seeded()).requires_grad_()
    with _read_by(prior.unet) as read:
        critic.train_step(latents, critic.encode_prompt(["a"]), None, generator=_seeded())
    assert [latents.requires_grad for latents in read] == [False]


def test_the_prior_is_bit_for_bit_the_same_after_training_and_after_closing(prior):
    t, text = torch.tensor([100, 700]), prior.encode_prompt(["a duck", "a cup"])
    uncond, images = prior.encode_negative([""]), _renders()
    latents = prior.encode_images(images).detach()
    with torch.no_grad():
        plain = prior.guided_noise(latents, t, text, uncond, 7.5)
    rule = _learning(prior, learning_rate=0.05)
    before = _gradient(rule, images, _cameras())
    _learn(rule, images)
    assert not torch.equal(_gradient(rule, images, _cameras()), before)
    with torch.no_grad():
        assert torch.equal(prior.guided_noise(latents, t, text, uncond, 7.5), plain)
        rule.close()
        assert torch.equal(prior.guided_noise(latents, t, text, uncond, 7.5), plain)


def test_renders_are_encoded_once_per_step_unless_they_are_others(prior):
    calls = []
    hook = prior.vae.encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    rule, images, cameras = _vsd(prior), _renders(), _cameras()
    rule(images, cameras, fraction=0.5, generator=_seeded())
    first = rule.after_step(images.detach(), cameras, fraction=0.5, generator=_seeded(1))
    assert calls == [2]
    rule(images, cameras, fraction=0.5, generator=_seeded())
    rule.after_step(images.detach().clone(), cameras, fraction=0.5, generator=_seeded())
    assert calls == [2, 2, 2]
    rule(images, cameras, fraction=0.5, generator=_seeded())
    with torch.no_grad():
        images += 0.1
    rule.after_step(images.detach(), cameras, fraction=0.5, generator=_seeded())
    assert calls == [2, 2, 2, 2, 2], "the same memory with other numbers in it"
    hook.remove()
    assert first.keys() == set(rule.metric_names())


def test_reusing_the_latents_changes_nothing(tiny_pipelines):
    images, cameras, losses = _renders(), _cameras(), []
    for reuse in (True, False):
        rule = _vsd(load_folder(tiny_pipelines["pocket"], CPU))
        rule(images, cameras, fraction=0.5, generator=_seeded())
        given = images.detach() if reuse else images.detach().clone()
        losses.append(rule.after_step(given, cameras, fraction=0.5, generator=_seeded(1)))
    assert losses[0] == losses[1]


def test_particles_share_the_critic(prior):
    rule = _learning(prior, learning_rate=0.02)
    one, other = _renders(seed=1), _renders(seed=2)
    before = _gradient(rule, other, _cameras())
    _learn(rule, one)
    assert not torch.equal(_gradient(rule, other, _cameras()), before)
    updates = int(rule.state()["updates"])
    _learn(rule, other, steps=2)
    assert int(rule.state()["updates"]) == updates + 2


def test_the_critic_takes_as_many_updates_a_step_as_asked_for(prior):
    rule = _learning(prior, steps=3)
    _learn(rule, _renders(), steps=2)
    assert int(rule.state()["updates"]) == 6


def test_the_guidance_scale_follows_its_schedule(prior):
    rules = [
        _vsd(prior, GivenCritic(lambda z_t, t: z_t), guidance_scale=scale)
        for scale in (((0.0, 1.0), (1.0, 21.0)), 6.0, 1.0)
    ]
    images = _renders()
    found = [_gradient(rule, images, _cameras(), fraction=0.25) for rule in rules]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_timesteps_are_annealed_and_may_be_shared(prior):
    config = UniformTimestepsConfig(max_t=((0.0, 0.98), (0.2, 0.98), (0.2, 0.5)), share="batch")
    rule, images = _vsd(prior, timesteps=config), _renders(4)
    drawn = {0.1: [], 0.3: []}
    for fraction, found in drawn.items():
        for seed in range(15):
            generator = _seeded(seed)
            t = rule(images, _cameras(4), fraction=fraction, generator=generator).t
            assert len(set(t.tolist())) == 1
            found.append(int(t[0]))
    assert max(drawn[0.1]) > 500 >= max(drawn[0.3])


def test_numbers_of_renders_and_cameras_must_agree(prior):
    with pytest.raises(ShapeError, match="2 renders came with 3 cameras"):
        _vsd(prior)(_renders(2), _cameras(3), fraction=0.5, generator=_seeded())


def test_it_is_built_from_its_config(prior):
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "red duck")
    rules = [build_guidance(VSDConfig(), prior, prompts, seed=seed) for seed in (3, 3, 4)]
    assert all(isinstance(rule, VSDGuidance) for rule in rules)
    a, b, c = (rule.state() for rule in rules)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_gradient_norm_is_that_of_the_latent_gradient(prior):
    drawn = draw_noisy_latents(
        prior,
        prior.encode_images(_renders()).detach(),
        UniformTimestepsConfig(),
        fraction=0.5,
        generator=_seeded(),
    )
    rule = _vsd(prior, GivenCritic(lambda z_t, t: torch.zeros_like(z_t)), weighting="uniform")
    output = rule(_renders(), _cameras(), fraction=0.5, generator=_seeded())
    with torch.no_grad():
        expected = rule.prompts.at(_cameras()).guided_noise(prior, drawn.z_t, drawn.t, 7.5)
    torch.testing.assert_close(output.grad_norm, gradient_norm(expected))


def _vsd_scene(folder: Path, prior_folder: Path) -> Path:
    path = folder / "tiny.yaml"
    rule = "guidance: {kind: vsd, critic: {learning_rate: 0.01},"
    text = TINY.replace("guidance: {", "particles: 2\n    " + rule)
    path.write_text(text + f"prior: {{kind: pocket, path: {prior_folder}}}\n", encoding="utf-8")
    return path


def test_a_run_with_two_particles_resumes_bit_for_bit(tmp_path, tiny_prior):  # noqa: F811
    scene_file = _vsd_scene(tmp_path, tiny_prior)
    scene, whole = start(scene_file, tmp_path / "whole")
    Runner(scene, whole).optimise()
    losses = [float(row["critic_loss"]) for row in read_metrics(whole.metrics_path)]
    assert len(set(losses)) == 6

    _, parts = start(scene_file, tmp_path / "parts")
    first = Runner(scene, parts)
    for _ in range(3):
        first.step()
    first.save()
    Runner(scene, parts).optimise()
    ends = [list_checkpoints(run.checkpoints_dir)[-1] for run in (whole, parts)]
    for name in ("scene.safetensors", "optim.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
    saved = rule_tensors(load_checkpoint(ends[0]).optim)
    assert int(saved["updates"]) == 6
    info = whole.read_info()
    assert info["denoiser_evaluations"] == 6 * (4 + 2 + 2), "guided prior, critic, its training"


def test_prolificdreamer_preset_holds_the_published_values():
    scene = load_scene("prolificdreamer").config
    volume, geometry, texture = scene.stages
    assert (volume.steps, geometry.steps, texture.steps) == (25000, 15000, 30000)
    for stage in scene.stages:
        max_t = stage.guidance.timesteps.max_t
        assert value_at(max_t, (5000 - 5) / stage.steps) == 0.98
        assert value_at(max_t, (5000 + 5) / stage.steps) == 0.5
    for stage in (volume, texture):
        assert stage.optimizer == AdamWConfig(grid=0.01, network=0.001, weight_decay=0.01)
        assert stage.guidance.kind == "vsd"
        assert stage.guidance.guidance_scale == 7.5
        assert stage.guidance.critic.rank == 4
        assert stage.guidance.critic.learning_rate == 1e-4
        assert stage.guidance.critic.camera_dropout == 0.1
    assert volume.field.bands is None
    assert volume.renderer.occupancy.resolution == 32
    backgrounds = [stage.background.random_probability for stage in (volume, texture)]
    assert backgrounds == [0.5, 0.0]
    assert (geometry.optimizer.kind, geometry.optimizer.geometry) == ("adam", 0.005)
    assert geometry.guidance.kind == "sds"
    assert geometry.guidance.guidance_scale == 101.0, "published as 100 for another formula"
    assert geometry.guide_on == "normals"
    assert texture.geometry == "fixed"
