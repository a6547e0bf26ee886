"""The multi-view recipe on the smallest scale, from the shipped pocket prior."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from image_tools.configs import PocketMultiViewPriorConfig
from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.camera_embedding import add_camera_embedding, camera_vector
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.multiview import CrossViewAttention, MultiViewPrior
from image_tools.pocket.paths import POCKET_FOLDER
from studio.errors import ConfigError
from studio.training import view_sets
from studio.training.denoiser import LatentCache, build_scheduler, stratified_timesteps
from studio.training.loop import LoopConfig
from studio.training.multiview import (
    PRESETS,
    JointBatches,
    TrainingBatch,
    joint_loss,
    train_multiview,
)
from studio.training.vae import build_vae
from studio.training.view_sets import ViewSetCache, ViewSetConfig, render_view_sets

CPU = torch.device("cpu")
TINY = replace(
    PRESETS["cpu"],
    view_sets=ViewSetConfig(sets=3),
    sets_per_batch=1,
    plain_images=8,
    seed=10,  # a batch of sets, then one of plain images
    loop=LoopConfig(steps=2, warmup=1, log_every=1),
)


def quiet(*_: object) -> None:
    """A log that nobody reads."""


@pytest.fixture(scope="module")
def vae():
    """A random autoencoder: only its shapes matter here."""
    from studio.training.vae import VAEConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_vae(VAEConfig(widths=(8, 8, 8))).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A work folder after two steps, with the result in its folder out."""
    work = tmp_path_factory.mktemp("multiview")
    _train(work)
    return work


def _train(work: Path, start: Path = POCKET_FOLDER) -> None:
    train_multiview(
        TINY,
        work,
        start=start,
        plain=work / "plain",
        out=work / "out",
        device=CPU,
        log=quiet,
    )


def test_a_set_is_four_sides_of_one_object():
    config = ViewSetConfig()
    drawn = config.sampler().view_set(np.random.default_rng(3), config.views)
    cameras = drawn.cameras
    assert drawn.rgb.shape == (4, 64, 64, 3)
    steps = cameras.azimuth_deg.diff()
    torch.testing.assert_close(steps, torch.full((3,), 90.0), atol=1e-3, rtol=0)
    for name in ("elevation_deg", "fovy", "camera_distance"):
        assert getattr(cameras, name).unique().numel() == 1
    assert 0.0 <= float(cameras.elevation_deg[0]) <= 30.0
    assert "view" not in drawn.caption
    assert (drawn.rgb[:, 0, 0] == drawn.rgb[0, 0, 0]).all()  # one background


def test_interrupted_rendering_ends_as_an_uninterrupted_one(tmp_path, vae, monkeypatch):
    monkeypatch.setattr(view_sets, "CHUNK", 2)
    config = ViewSetConfig(sets=3)

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_view_sets(tmp_path / "a", config, vae, log=stop)
    assert len(ViewSetCache(tmp_path / "a")) == 2
    resumed = render_view_sets(tmp_path / "a", config, vae, log=quiet)
    whole = render_view_sets(tmp_path / "b", config, vae, log=quiet)
    assert len(resumed) == len(whole) == 3
    assert resumed.captions == whole.captions
    assert np.array_equal(resumed.latents, whole.latents)
    drawn = config.sampler().view_set(np.random.default_rng([config.seed, 2]), config.views)
    assert np.allclose(whole.cameras[2], camera_vector(drawn.cameras.c2w).numpy())


def test_sets_of_other_settings_are_not_mixed(tmp_path, vae):
    render_view_sets(tmp_path, ViewSetConfig(sets=1), vae, log=quiet)
    with pytest.raises(ConfigError, match="of other settings or of another autoencoder"):
        render_view_sets(tmp_path, ViewSetConfig(sets=1, seed=5), vae, log=quiet)


def test_each_part_of_the_schedule_gets_one_timestep(generator):
    draws = torch.stack([stratified_timesteps(4, 1000, generator) for _ in range(500)])
    assert torch.equal(draws.sort(1).values // 250, torch.arange(4).expand(500, 4))
    assert (draws.float().mean(0) - 499.5).abs().max() < 50  # each place sees all of them


def test_batches_are_of_both_kinds_and_repeatable(trained):
    sets, plain = ViewSetCache(trained / "sets"), LatentCache(trained / "plain" / "latents")
    batches = JointBatches(TINY, sets, plain)
    drawn = [batches.at(step) for step in range(200)]
    plain_share = np.mean([batch.cameras is None for batch in drawn])
    assert 0.2 < plain_share < 0.4
    for batch in drawn:
        assert batch.latents.shape == (4, 4, 16, 16)
        assert (batch.views == 1) == (batch.cameras is None)
        if batch.views == 4:
            assert torch.equal(batch.text, batch.text[:1].expand_as(batch.text))
    again = JointBatches(TINY, sets, plain).at(7)
    assert torch.equal(again.latents, drawn[7].latents)


def test_plain_batches_train_the_plain_unet(trained):
    """No camera embedding and no attention across rows, whatever they hold."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(
        POCKET_FOLDER / "unet", torch_dtype=torch.float32, local_files_only=True
    )
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 24, 384, generator=generator)
    batch = TrainingBatch(latents, text, None, 1)
    alphas = build_scheduler().alphas_cumprod

    def loss() -> torch.Tensor:
        with torch.no_grad():
            return joint_loss(hub, batch, alphas, torch.Generator().manual_seed(4))

    with AttentionHub(unet) as hub:
        plain = loss()
    add_camera_embedding(unet, generator)
    unet.class_embedding.linear_2.bias.data.fill_(1.0)
    with AttentionHub(unet, [CrossViewAttention()]) as hub:
        assert torch.equal(loss(), plain)


def test_the_result_is_a_multiview_prior(trained):
    out = trained / "out"
    prior = load_prior(PocketMultiViewPriorConfig(path=str(out)), CPU)
    assert isinstance(prior, MultiViewPrior)
    assert prior.prediction_type == "v_prediction"
    assert prior.unet.class_embedding.linear_2.weight.abs().max() > 0
    written = json.loads((out / "training.json").read_text())
    assert written["facts"]["steps"] == TINY.loop.steps
    assert "_name_or_path" not in json.loads((out / "unet" / "config.json").read_text())


def test_a_finished_training_stays_as_it_is(trained):
    weights = trained / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    _train(trained)
    assert weights.read_bytes() == before


def test_a_training_goes_on_from_its_own_start_only(trained, tmp_path):
    from diffusers import UNet2DConditionModel

    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / name).symlink_to(POCKET_FOLDER / name)
    unet = UNet2DConditionModel.from_pretrained(POCKET_FOLDER / "unet", local_files_only=True)
    unet.conv_out.bias.data.add_(1.0)
    unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(ConfigError, match="began from another model"):
        _train(trained, start=tmp_path)


def test_plain_latents_of_another_autoencoder_are_refused(trained, tmp_path):
    work = tmp_path / "work"
    (work / "plain").mkdir(parents=True)
    (work / "plain" / "images").symlink_to(trained / "plain" / "images")
    folder = work / "plain" / "latents"
    folder.mkdir()
    for path in (trained / "plain" / "latents").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    latents = np.load(folder / "latents.npy")
    np.save(folder / "latents.npy", latents[:, ::-1])
    with pytest.raises(ConfigError, match="of another autoencoder"):
        _train(work)
