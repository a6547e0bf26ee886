"""DreamFlow: the exact flow between Gaussians, its schedule, its noises, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidance.build import build_guidance
from guidance.configs import PlainPromptsConfig
from guidance.critic_configs import CriticConfig
from guidance.dreamflow import DreamFlowGuidance, FlowSchedule, flow_schedule
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.prompts import build_view_prompts
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.parametrization import alpha_sigma
from image_tools.diffusion.prior import DiffusionPrior
from renderers.cameras import Cameras, orbit_cameras
from studio.checkpoints import list_checkpoints
from studio.runner import Runner
from tests.guidance.test_sds import ALPHAS, GaussianPrior
from tests.studio.conftest import TINY, start, tiny_prior  # noqa: F401 - a fixture

CPU = torch.device("cpu")
STAGES = {"nerf": (1.0, 0.2), "mesh": (0.5, 0.1), "refine": (0.3, 0.0)}
EXACT = {"nerf": 0.0786, "mesh": 0.5559, "refine": 0.7684}
STD, TARGET, START = 1.0, 1.5, -0.5


class GaussianCritic:
    """The exact denoiser of renders ~ N(mean, STD^2); learning tells it their mean."""

    def __init__(self, mean: float) -> None:
        self.model = GaussianPrior(mean, STD)

    def encode_prompt(self, prompts) -> TextEmbedding:
        return self.model.encode_prompt(prompts)

    def predict_noise(self, latents: Tensor, t: Tensor, text, camera) -> Tensor:
        return self.model.predict_output(latents, t, None)

    def train_step(self, latents, text, camera, *, t=None, generator) -> float:
        self.model.mean = float(latents.mean())
        return 0.0

    def state(self) -> dict[str, Tensor]:
        return {"mean": torch.tensor(self.model.mean)}

    def load_state(self, tensors) -> None:
        self.model.mean = float(tensors["mean"])

    def close(self) -> None:
        return None


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cameras(n: int = 2) -> Cameras:
    return orbit_cameras(n, elevation_deg=15.0, distance=3.0, fovy_deg=40.0, height=16, width=16)


def _rule(prior, critic=None, **config) -> DreamFlowGuidance:
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "red duck")
    return DreamFlowGuidance(DreamFlowConfig(**config), prior, prompts, seed=0, critic=critic)


def _schedule(stage: str, timesteps: int) -> FlowSchedule:
    start_t, end_t = STAGES[stage]
    return flow_schedule(ALPHAS, DreamFlowConfig(start_t=start_t, end_t=end_t, timesteps=timesteps))


def _remaining_gap(stage: str, timesteps: int, *, critic_first: bool = True) -> float:
    """What is left of the distance to the data after a whole stage, one batch per timestep.

    The paper's critic knows the renders before they move; a run trains it after them.
    """
    start_t, end_t = STAGES[stage]
    rule = _rule(
        GaussianPrior(TARGET, STD),
        GaussianCritic(START),
        start_t=start_t,
        end_t=end_t,
        timesteps=timesteps,
    )
    images, cameras, generator = torch.full((1, 1, 1, 3), START), _cameras(1), _seeded()
    for step in range(timesteps):
        fraction = step / timesteps
        if critic_first:
            rule.after_step(images, cameras, fraction=fraction, generator=generator)
        images.requires_grad_()
        output = rule(images, cameras, fraction=fraction, generator=generator)
        (gradient,) = torch.autograd.grad(output.loss, images)
        rendered, images = images.detach(), (images - gradient).detach()
        if not critic_first:
            rule.after_step(rendered, cameras, fraction=fraction, generator=generator)
    return float((images.mean() - TARGET) / (START - TARGET))


@pytest.mark.parametrize("stage", STAGES)
def test_gaussian_gap_contracts_as_the_closed_form_says(stage):
    """sqrt((s^2 + s_N^2) / (s^2 + s_0^2)), approached monotonically as the steps get finer."""
    schedule = _schedule(stage, 800)
    first, last = (float(schedule.levels[i]) for i in (0, -1))
    exact = ((STD**2 + last**2) / (STD**2 + first**2)) ** 0.5
    assert exact == pytest.approx(EXACT[stage], abs=1e-4)
    gaps = [_remaining_gap(stage, n) for n in (10, 50, 200, 800)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(exact, rel=0.02)
    assert abs(gaps[-1] / exact - 1.0) < abs(gaps[0] / exact - 1.0)


@pytest.mark.parametrize(("n", "gap"), [(10, 0.0745), (50, 0.0778), (200, 0.0784), (800, 0.0786)])
def test_gaussian_gap_of_the_first_stage_at_each_number_of_steps(n, gap):
    """Values of Euler's method at real timesteps; whole ones cost a tenth of a percent."""
    assert _remaining_gap("nerf", n) == pytest.approx(gap, rel=2.5e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_critic_that_is_trained_last_comes_to_the_same_gap(stage):
    """It lags by one timestep, which matters little when there are many."""
    gaps = [_remaining_gap(stage, n, critic_first=False) for n in (50, 200, 800)]
    errors = [abs(gap / EXACT[stage] - 1.0) for gap in gaps]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    assert gaps[-1] != _remaining_gap(stage, 800)


@pytest.mark.parametrize(("particles", "steps"), [(1, 400), (2, 800), (2, 1600), (1, 800)])
def test_a_stage_goes_the_whole_way_with_as_many_timesteps_as_a_particle_has_steps(
    particles, steps
):
    """Timesteps that no step sees would be missing from the sum of Euler steps."""
    config = DreamFlowConfig(timesteps=800).within(steps // particles)
    schedule = flow_schedule(ALPHAS, config)
    n = len(schedule.timesteps)
    assert n == min(800, steps // particles)
    for particle in range(particles):
        turns = range(particle, steps, particles)
        visited = {schedule.index(step / steps) for step in turns}
        assert visited == set(range(n))
        way = sum(schedule.step_size(index) for index in visited)
        assert way == pytest.approx(float(schedule.levels[0] - schedule.levels[-1]))


def test_one_step_moves_by_the_euler_step_times_the_difference():
    prior, images = GaussianPrior(TARGET, STD), torch.rand(3, 4, 4, 3, generator=_seeded(1))
    images.requires_grad_()
    rule = _rule(prior, GaussianCritic(START), timesteps=100)
    output = rule(images, _cameras(3), fraction=0.25, generator=_seeded())
    (gradient,) = torch.autograd.grad(output.loss, images)
    t = rule.schedule.timesteps[25]
    alpha, sigma = alpha_sigma(ALPHAS, t[None], images)
    difference = sigma * alpha * (START - TARGET) / (alpha**2 * STD**2 + sigma**2)
    step = float(rule.schedule.levels[25] - rule.schedule.levels[26])
    torch.testing.assert_close(3 * gradient, (step * difference).expand_as(gradient))


def test_unit_steps_leave_the_weight_out():
    prior, images = GaussianPrior(TARGET, STD), torch.zeros(2, 4, 4, 3, requires_grad=True)
    norms = {}
    for step_norm in ("raw", "unit"):
        rule = _rule(prior, GaussianCritic(START), timesteps=100, step_norm=step_norm)
        output = rule(images, _cameras(), fraction=0.5, generator=_seeded())
        norms[step_norm] = float(output.grad_norm)
    schedule = _rule(prior, GaussianCritic(START), timesteps=100).schedule
    assert norms["raw"] == pytest.approx(norms["unit"] * schedule.step_size(50), rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("timesteps", [1, 10, 300, 800])
def test_timesteps_fall_strictly_from_start_to_end(stage, timesteps):
    schedule = _schedule(stage, timesteps)
    start_t, end_t = STAGES[stage]
    assert (schedule.times.diff() < 0).all()
    assert (schedule.levels.diff() < 0).all()
    assert float(schedule.times[0]) == min(1000 * start_t, 999)
    assert float(schedule.times[-1]) == pytest.approx(1000 * end_t)
    assert len(schedule.timesteps) == timesteps
    assert (schedule.timesteps.diff() <= 0).all()
    assert (schedule.timesteps - schedule.times[:-1]).abs().max() <= 0.5
    if timesteps <= 1000 * (start_t - end_t) - 1:
        assert (schedule.timesteps.diff() < 0).all()


def test_levels_are_those_of_the_prior_and_end_at_the_clean_image():
    schedule = _schedule("refine", 300)
    s = ((1 - ALPHAS) / ALPHAS).double().sqrt()
    torch.testing.assert_close(schedule.levels[:-1], s[schedule.timesteps])
    assert schedule.levels[-1] == 0.0


@pytest.mark.parametrize(("timesteps", "batches"), [(800, 5), (300, 5), (300, 1), (49, 3), (7, 11)])
def test_each_timestep_gets_as_many_batches_whatever_the_rounding(timesteps, batches):
    schedule, steps = _schedule("mesh", timesteps), timesteps * batches
    found = [schedule.index(step / steps) for step in range(steps)]
    assert found == [step // batches for step in range(steps)]
    assert schedule.index(1.0) == timesteps - 1


def test_schedule_needs_two_different_timesteps():
    with pytest.raises(ValueError, match="are both the last of the prior's 1000 timesteps"):
        flow_schedule(ALPHAS, DreamFlowConfig(start_t=1.0, end_t=0.9995))


@pytest.mark.parametrize(
    "values",
    [{"start_t": 0.2, "end_t": 0.2}, {"start_t": 1.1}, {"timesteps": 0}, {"grad_clip": -1}],
)
def test_config_refuses_nonsense(values):
    with pytest.raises(ValueError, match=r"Keep|expected|at least"):
        DreamFlowConfig(**values)


@pytest.fixture
def prior(tiny_pipelines) -> DiffusionPrior:
    """A fresh prior, since the critic changes its UNet."""
    return load_folder(tiny_pipelines["pocket"], CPU)


def _renders(n: int = 2) -> Tensor:
    return torch.rand(n, 16, 16, 3, generator=_seeded(1)).requires_grad_()


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "pocket", "sdxl"])
def test_render_stays_where_critic_and_prior_agree(tiny_pipelines, kind):
    prior, images = load_folder(tiny_pipelines[kind], CPU), _renders()
    output = _rule(prior, guidance_scale=1.0)(images, _cameras(), fraction=0.5, generator=_seeded())
    output.loss.backward()
    assert output.grad_norm == 0.0
    assert torch.count_nonzero(images.grad) == 0


def test_denoisers_share_a_noise_and_the_critic_learns_from_its_own(prior):
    seen: list[tuple[Tensor, Tensor]] = []
    rule, images = _rule(prior, critic=None), _renders()
    prior.unet.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
    generator = _seeded()
    rule(images, _cameras(), fraction=0.5, generator=generator)
    rule.after_step(images.detach(), _cameras(), fraction=0.5, generator=generator)
    guided, critic, learned = seen
    torch.testing.assert_close(guided[0], torch.cat([critic[0], critic[0]]))
    latents = prior.encode_images(images).detach()
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, learned[1], latents)
    noises = [(z_t.detach() - alpha * latents) / sigma for z_t in (critic[0], learned[0])]
    assert abs(float(torch.corrcoef(torch.stack([n.flatten() for n in noises]))[0, 1])) < 0.2
    t = rule.schedule.timesteps[400]
    assert {int(value) for _, steps in seen for value in steps} == {int(t)}


def test_critic_learns_at_the_timestep_of_the_flow_over_the_whole_stage(prior):
    seen: list[set[int]] = []
    rule, images = _rule(prior, timesteps=4), _renders()
    prior.unet.register_forward_pre_hook(lambda _, args: seen.append(set(args[1].tolist())))
    for step in range(8):
        t = rule(images, _cameras(), fraction=step / 8, generator=_seeded()).t
        rule.after_step(images.detach(), _cameras(), fraction=step / 8, generator=_seeded(1))
        assert seen[-3:] == [set(t.tolist())] * 3
    assert [min(t) for t in seen[::6]] == rule.schedule.timesteps.tolist() == [999, 799, 600, 400]


def test_state_goes_on_exactly(tiny_pipelines):
    images, gradients = _renders(), []
    first = _rule(load_folder(tiny_pipelines["pocket"], CPU), critic=None)
    first.after_step(images.detach(), _cameras(), fraction=0.5, generator=_seeded())
    second = _rule(load_folder(tiny_pipelines["pocket"], CPU), critic=None)
    second.load_state(first.state())
    for rule in (first, second):
        rule.after_step(images.detach(), _cameras(), fraction=0.6, generator=_seeded(5))
        output = rule(images, _cameras(), fraction=0.6, generator=_seeded(6))
        gradients.append(torch.autograd.grad(output.loss, images)[0])
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_closing_leaves_the_prior_as_it_was(prior):
    names = set(prior.unet.state_dict())
    rule = build_guidance(
        DreamFlowConfig(critic=CriticConfig(learning_rate=0.05)),
        prior,
        build_view_prompts(PlainPromptsConfig(), prior, "red duck"),
        seed=0,
    )
    assert isinstance(rule, DreamFlowGuidance)
    rule.after_step(_renders().detach(), _cameras(), fraction=0.5, generator=_seeded())
    rule.close()
    assert set(prior.unet.state_dict()) == names


def test_a_run_resumes_bit_for_bit(tmp_path, tiny_prior: Path):  # noqa: F811
    text = TINY.replace(
        "guidance: {guidance_scale: 7.0, timesteps: {max_t: [[0, 0.98], [1, 0.5]]}}",
        "guidance: {kind: dreamflow, timesteps: 3, critic: {learning_rate: 0.01}}",
    )
    assert "dreamflow" in text
    scene_file = tmp_path / "tiny.yaml"
    scene_file.write_text(text + f"prior: {{kind: pocket, path: {tiny_prior}}}\n", encoding="utf-8")
    scene, whole = start(scene_file, tmp_path / "whole")
    Runner(scene, whole).optimise()
    _, parts = start(scene_file, tmp_path / "parts")
    first = Runner(scene, parts)
    for _ in range(3):  # in the middle of the second of three timesteps
        first.step()
    first.save()
    Runner(scene, parts).optimise()
    ends = [list_checkpoints(run.checkpoints_dir)[-1] for run in (whole, parts)]
    for name in ("scene.safetensors", "optim.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
