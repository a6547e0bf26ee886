"""The LoRA critic: invisible to the prior, its own gradients only, and exact when resumed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guidance.critic import PATIENCE, LoraCritic, training_target
from guidance.critic_configs import CriticConfig
from image_tools.configs import DiffusersPriorConfig
from image_tools.diffusion.attention import AttentionOperation, attention_operations
from image_tools.diffusion.camera_embedding import CAMERA_WIDTH, camera_vector
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.modified import ModifiedPrior
from image_tools.diffusion.parametrization import add_noise, alpha_sigma, output_to_noise
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel
from renderers.cameras import orbit_cameras
from renderers.errors import StudioError
from tests.tiny_models import PIPELINE_KINDS

CPU = torch.device("cpu")
T = torch.tensor([100, 700])


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _camera(n: int = 2) -> Tensor:
    cameras = orbit_cameras(
        n, elevation_deg=20.0, distance=3.0, fovy_deg=40.0, height=8, width=8, azimuth_start_deg=30
    )
    return camera_vector(cameras.c2w)


def _latents(prior: DiffusionPrior, n: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, prior.latent_channels, 8, 8, generator=_seeded(seed))


def _critic(prior: DiffusionPrior, /, seed: int = 0, **config) -> LoraCritic:
    return LoraCritic(prior, CriticConfig(**config), seed=seed)


def _train(critic: LoraCritic, steps: int = 3, seed: int = 5, n: int = 2) -> list[float]:
    generator, latents = _seeded(seed), _latents(critic.prior, n)
    text = critic.encode_prompt(["a duck"])
    return [critic.train_step(latents, text, _camera(n), generator=generator) for _ in range(steps)]


@torch.no_grad()
def _prior_pred(prior: DiffusionPrior) -> Tensor:
    text, uncond = prior.encode_prompt(["a duck"]), prior.encode_negative([""])
    return prior.guided_noise(_latents(prior), T, text, uncond, 7.5)


@torch.no_grad()
def _critic_pred(critic: LoraCritic, camera: Tensor | None) -> Tensor:
    text = critic.encode_prompt(["a duck"])
    return critic.predict_noise(_latents(critic.prior), T, text, camera)


@pytest.fixture
def prior(tiny_pipelines) -> DiffusionPrior:
    """A fresh prior, since the critic changes its UNet."""
    return load_folder(tiny_pipelines["pocket"], CPU)


def _second_folder(tiny_pipelines, tmp_path: Path, kind: str) -> Path:
    """A pipeline of another kind with the image encoder of "sd1"."""
    folder = tmp_path / kind
    shutil.copytree(tiny_pipelines[kind], folder)
    shutil.rmtree(folder / "vae")
    shutil.copytree(tiny_pipelines["sd1"] / "vae", folder / "vae")
    return folder


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
def test_starts_as_the_prior_whatever_the_camera(tiny_pipelines, kind):
    prior = load_folder(tiny_pipelines[kind], CPU)
    with torch.no_grad():
        plain = prior.predict_noise(_latents(prior), T, prior.encode_prompt(["a duck"]))
    critic = _critic(prior)
    assert torch.equal(_critic_pred(critic, _camera()), plain)
    assert torch.equal(_critic_pred(critic, None), plain)


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
def test_the_prior_predicts_bit_for_bit_as_without_a_critic(tiny_pipelines, kind):
    prior = load_folder(tiny_pipelines[kind], CPU)
    plain = _prior_pred(prior)
    critic = _critic(prior, learning_rate=0.05, camera_dropout=0.0)
    assert torch.equal(_prior_pred(prior), plain)
    _train(critic)
    moved = _critic_pred(critic, _camera())
    assert (moved - _critic_pred(critic, _camera().flip(0))).abs().max() > 1e-4
    assert torch.equal(_prior_pred(prior), plain)
    names = {name for name, p in prior.unet.named_parameters() if p.requires_grad}
    assert names == set()
    critic.close()
    critic.close()
    assert torch.equal(_prior_pred(prior), plain)
    assert not any("lora" in name for name in prior.unet.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_prior_stays_bit_for_bit_and_the_critic_float32(tiny_pipelines, dtype):
    prior = load_folder(tiny_pipelines["sd1"], CPU, dtype)
    plain = _prior_pred(prior)
    critic = _critic(prior, learning_rate=1e-3, weight_decay=0.0)
    assert {p.dtype for p in critic.parameters.values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in critic.parameters.items()}
    losses = _train(critic)
    assert all(torch.tensor(losses).isfinite())
    moved = {n for n, p in critic.parameters.items() if not torch.equal(p, before[n])}
    assert moved == set(critic.parameters), "no gradient was lost to the number format"
    assert torch.equal(_prior_pred(prior), plain)


def test_without_camera_condition_it_knows_none(prior):
    critic = _critic(prior, camera_condition="none", learning_rate=0.05)
    assert not any(name.startswith("class_embedding") for name in critic.parameters)
    _train(critic)
    assert torch.equal(_critic_pred(critic, _camera()), _critic_pred(critic, None))


def test_an_unknown_camera_is_a_camera_of_zeros(prior):
    critic = _critic(prior, learning_rate=0.05, camera_dropout=0.0)
    _train(critic)
    zeros = torch.zeros(2, CAMERA_WIDTH)
    assert torch.equal(_critic_pred(critic, None), _critic_pred(critic, zeros))
    assert not torch.equal(_critic_pred(critic, None), _critic_pred(critic, _camera()))


def test_cameras_are_dropped_per_view_and_at_the_given_rate(prior):
    seen = []
    critic = _critic(prior, camera_dropout=0.25)
    critic.camera_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    _train(critic, steps=30, n=4)
    rows = torch.stack(seen)
    dropped = (rows == 0.0).all(dim=2)
    assert 0.15 < dropped.float().mean() < 0.35
    assert (dropped.any(1) & ~dropped.all(1)).any(), "some views of a batch, not all or none"
    assert torch.equal(rows[~dropped], _camera(4).expand(30, -1, -1)[~dropped])


def test_critic_guidance_is_the_one_formula_between_zero_and_known_camera(prior):
    critic = _critic(prior, guidance_scale=3.0, learning_rate=0.05, camera_dropout=0.0)
    _train(critic)
    plain = LoraCritic._predict_noise
    text, latents = critic.encode_prompt(["a duck"]), _latents(prior)
    with torch.no_grad():
        zero = plain(critic, latents, T, text, torch.zeros(2, CAMERA_WIDTH))
        known = plain(critic, latents, T, text, _camera())
    guided = _critic_pred(critic, _camera())
    torch.testing.assert_close(guided, zero + 3.0 * (known - zero), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
def test_loss_is_the_error_in_the_denoisers_own_parametrisation(tiny_pipelines, kind):
    prior = load_folder(tiny_pipelines[kind], CPU)
    critic = _critic(prior, learning_rate=0.0, weight_decay=0.0)
    latents, text = _latents(prior), critic.encode_prompt(["a duck"])
    loss = critic.train_step(latents, text, _camera(), t=T, generator=_seeded(9))
    noise = torch.randn(latents.shape, generator=_seeded(9))
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, T, latents)
    z_t = alpha * latents + sigma * noise
    with torch.no_grad():
        output = prior.predict_output(z_t, T, text)
    target = noise if kind == "sd1" else alpha * noise - sigma * latents
    assert loss == pytest.approx(float((output - target).square().mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_output_means_the_true_noise(kind, generator):
    x0 = torch.randn(3, 4, 8, 8, generator=generator)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    alpha_bar = torch.tensor([0.99, 0.5, 0.01]).reshape(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    target = training_target(noise, x0, alpha, sigma, kind)
    z_t = add_noise(x0, noise, alpha, sigma)
    torch.testing.assert_close(
        output_to_noise(target, z_t, alpha, sigma, kind), noise, atol=1e-5, rtol=1e-5
    )


def test_no_gradient_reaches_the_renders_or_the_prior(prior):
    critic = _critic(prior)
    latents = _latents(prior).requires_grad_()
    text = critic.encode_prompt(["a duck"])
    critic.train_step(latents, text, _camera(), generator=_seeded())
    assert latents.grad is None
    assert all(parameter.grad is None for parameter in prior.unet.parameters())
    assert all(parameter.grad is None for parameter in prior.vae.parameters())


def test_training_on_one_image_lowers_the_loss_and_moves_towards_the_noise(tiny_pipelines):
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    critic = _critic(prior, rank=8, learning_rate=2e-2, camera_dropout=0.0)
    batch, camera = _latents(prior, 1, seed=3).expand(4, -1, -1, -1), _camera(1).expand(4, -1)
    text, t = critic.encode_prompt(["a duck"]), torch.tensor([150, 300, 450, 600])
    noise = torch.randn(batch.shape, generator=_seeded(8))
    z_t = add_noise(batch, noise, *alpha_sigma(prior.alphas_cumprod, t, batch))

    def error() -> float:
        with torch.no_grad():
            return float((critic.predict_noise(z_t, t, text, camera) - noise).square().mean())

    before, generator = error(), _seeded(4)
    losses = [critic.train_step(batch, text, camera, generator=generator) for _ in range(60)]
    assert sum(losses[-15:]) < 0.95 * sum(losses[:15])
    assert error() < 0.9 * before


def test_the_given_timestep_is_used_and_otherwise_all_are_drawn(prior):
    seen = []
    critic = _critic(prior)
    hook = prior.unet.register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
    text = critic.encode_prompt(["a duck"])
    critic.train_step(_latents(prior), text, _camera(), t=T, generator=_seeded())
    _train(critic, steps=40)
    hook.remove()
    assert torch.equal(seen[0], T)
    drawn = torch.cat(seen[1:])
    assert drawn.min() < 100
    assert drawn.max() > prior.num_train_timesteps - 100
    assert drawn.max() < prior.num_train_timesteps


def test_the_learning_rate_warms_up(prior):
    critic = _critic(prior, warmup_steps=4, learning_rate=1e-3)
    rates = []
    for _ in range(6):
        _train(critic, steps=1)
        rates.append(critic._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_an_update_that_is_not_finite_is_left_out(prior):
    critic = _critic(prior)
    before = {name: value.clone() for name, value in critic.state().items()}
    text = critic.encode_prompt(["a duck"])
    latents = torch.full_like(_latents(prior), float("nan"))
    loss = critic.train_step(latents, text, _camera(), generator=_seeded())
    assert loss != loss
    after = critic.state()
    assert all(torch.equal(after[n], value) for n, value in before.items() if n != "lost")
    _train(critic, steps=1)
    assert critic.state()["lost"] == 0


def test_a_critic_that_never_learns_ends_with_a_reason(prior):
    critic = _critic(prior)
    text = critic.encode_prompt(["a duck"])
    latents = torch.full_like(_latents(prior), float("nan"))

    def step() -> None:
        critic.train_step(latents, text, _camera(), generator=_seeded())

    for _ in range(PATIENCE - 1):
        step()
    with pytest.raises(StudioError, match="not finite 20 times in a row, at a loss of nan"):
        step()


def test_half_precision_finds_a_scale_at_which_gradients_fit(tiny_pipelines):
    """Too large a sum is inf in float16; each update that is lost halves the scale of the next."""
    critic = _critic(load_folder(tiny_pipelines["sd1"], CPU, torch.float16))
    critic._half_scale = 2.0**24
    losses = _train(critic, steps=PATIENCE)
    assert critic.updates > 0
    found = float(critic.state()["half_scale"])
    assert 0.0 < found < 2.0**24
    assert critic.updates == PATIENCE - round(math.log2(2.0**24 / found))
    assert all(torch.tensor(losses).isfinite())
    critic.load_state({**critic.state(), "half_scale": torch.tensor(0.125)})
    assert critic.state()["half_scale"] == 0.125


def test_resume_is_bit_exact(tiny_pipelines, tmp_path):
    priors = [load_folder(tiny_pipelines["pocket"], CPU) for _ in range(2)]
    config = {"learning_rate": 1e-3, "warmup_steps": 5}
    whole = _critic(priors[0], **config)
    _train(whole, 3)
    save_file({name: x.contiguous() for name, x in whole.state().items()}, tmp_path / "critic")
    resumed = _critic(priors[1], seed=99, **config)
    resumed.load_state(load_file(tmp_path / "critic"))
    expected, found = _train(whole, 4, seed=6), _train(resumed, 4, seed=6)
    assert found == expected
    a, b = whole.state(), resumed.state()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert int(a["updates"]) == 7
    assert torch.equal(_critic_pred(whole, _camera()), _critic_pred(resumed, _camera()))


def test_a_state_before_the_first_update_can_be_loaded(tiny_pipelines):
    priors = [load_folder(tiny_pipelines["pocket"], CPU) for _ in range(2)]
    fresh, used = _critic(priors[0]), _critic(priors[1], seed=3)
    _train(used)
    used.load_state(fresh.state())
    assert _train(used, 2) == _train(fresh, 2)


def test_a_state_of_another_rank_is_refused(tiny_pipelines):
    priors = [load_folder(tiny_pipelines["pocket"], CPU) for _ in range(2)]
    wide, narrow = _critic(priors[0], rank=8), _critic(priors[1], rank=2)
    with pytest.raises(StudioError, match="another rank or model"):
        narrow.load_state(wide.state())


def test_the_seed_decides_the_critic(tiny_pipelines):
    priors = [load_folder(tiny_pipelines["pocket"], CPU) for _ in range(3)]
    a, b, c = (_critic(p, seed=s).state() for p, s in zip(priors, (1, 1, 2), strict=True))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_checkpointing_changes_nothing_but_memory(tiny_pipelines):
    priors = [load_folder(tiny_pipelines["pocket"], CPU) for _ in range(2)]
    plain, saving = _critic(priors[0]), _critic(priors[1], checkpointing=True)
    assert _train(plain) == pytest.approx(_train(saving), rel=1e-5)
    for name, value in plain.parameters.items():
        torch.testing.assert_close(value, saving.parameters[name])
    saving.close()
    assert not priors[1].unet.is_gradient_checkpointing


def test_checkpointing_recomputes_with_the_attention_that_the_prior_had(tiny_pipelines):
    """The backward pass runs when a reference tool's operations are gone from the denoiser."""

    class Flattened(AttentionOperation):
        def applies_to(self, call):
            return not call.layer.is_cross

        def inputs(self, call, hidden, context):
            return 0.5 * hidden, context

    class Odd(ModifiedPrior):
        def predict_output(self, latents, t, condition):
            with attention_operations(self.unet, [Flattened()]):
                return self.plain.predict_output(latents, t, condition)

    priors = [Odd(load_folder(tiny_pipelines["pocket"], CPU)) for _ in range(2)]
    plain, saving = _critic(priors[0]), _critic(priors[1], checkpointing=True)
    without = _critic(load_folder(tiny_pipelines["pocket"], CPU))
    losses = _train(plain)
    assert losses != _train(without)
    assert losses == pytest.approx(_train(saving), rel=1e-5)
    for name, value in plain.parameters.items():
        torch.testing.assert_close(value, saving.parameters[name])


@pytest.mark.parametrize(("own", "second"), [("sd1", "sd2_v"), ("sd2_v", "sd1")])
def test_a_critic_on_a_second_model_of_another_parametrisation(
    tiny_pipelines, tmp_path, own, second
):
    prior = load_folder(_second_folder(tiny_pipelines, tmp_path, own), CPU)
    folder = _second_folder(tiny_pipelines, tmp_path / "second", second)
    plain, before = _prior_pred(prior), prior.denoiser_evaluations
    critic = _critic(prior, prior=DiffusersPriorConfig(model=str(folder)), learning_rate=0.01)
    assert critic.host.prediction_type != prior.prediction_type

    reference = load_folder(folder, CPU)
    text, latents = critic.encode_prompt(["a duck"]), _latents(prior)
    with torch.no_grad():
        expected = reference.predict_noise(latents, T, text)
    assert torch.equal(_critic_pred(critic, _camera()), expected)
    assert prior.denoiser_evaluations == before + 2, "the stage's prior counts for both"
    losses = _train(critic)
    assert all(torch.tensor(losses).isfinite())
    assert prior.denoiser_evaluations == before + 8
    assert torch.equal(_prior_pred(prior), plain)
    assert not any("lora" in name for name in prior.unet.state_dict())


def test_evaluations_are_counted_once_per_latent(prior):
    _prior_pred(prior)
    assert prior.denoiser_evaluations == 4
    critic = _critic(prior)
    _critic_pred(critic, _camera())
    assert prior.denoiser_evaluations == 6
    _train(critic, 3)
    assert prior.denoiser_evaluations == 12


def test_a_second_model_with_other_latents_is_refused(tiny_pipelines, tmp_path):
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    same_kind = tmp_path / "other"
    shutil.copytree(tiny_pipelines["sd1"], same_kind)
    weights = same_kind / "vae/diffusion_pytorch_model.safetensors"
    tensors = {name: 1.5 * value for name, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match="encodes images differently"):
        _critic(prior, prior=DiffusersPriorConfig(model=str(same_kind)))


@pytest.mark.parametrize(
    ("folder", "key", "value", "message"),
    [
        ("vae/config.json", '"scaling_factor": ', "0.5", "scaling_factor"),
        ("scheduler/scheduler_config.json", '"num_train_timesteps": ', "500", "500 timesteps"),
    ],
)
def test_a_second_model_with_other_settings_is_refused(
    tiny_pipelines, tmp_path, folder, key, value, message
):
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    other = tmp_path / "other"
    shutil.copytree(tiny_pipelines["sd1"], other)
    lines = (other / folder).read_text().splitlines()
    changed = [
        line.split(key)[0] + key + value + ("," if line.rstrip().endswith(",") else "")
        if key in line
        else line
        for line in lines
    ]
    assert changed != lines
    (other / folder).write_text("\n".join(changed))
    with pytest.raises(UnsupportedModel, match=message):
        _critic(prior, prior=DiffusersPriorConfig(model=str(other)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"camera_dropout": 1.5}, "camera_dropout is 1.5"),
        ({"camera_condition": "none", "guidance_scale": 2.0}, "knows no camera"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CriticConfig(**settings)


def test_only_the_critics_parameters_move(prior):
    frozen = {name: value.clone() for name, value in prior.unet.state_dict().items()}
    critic = _critic(prior, learning_rate=0.01)
    _train(critic)
    critic.close()
    after = prior.unet.state_dict()
    assert frozen.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert isinstance(critic.camera_embedding, nn.Module)
