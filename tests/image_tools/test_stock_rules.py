"""Old folders as the stock pipelines open them, and models that no prior can sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.configs import DdimConfig, PocketPriorConfig, SingleFilePriorConfig
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.diffusion.sampling import sample_images
from image_tools.errors import UnsupportedModel
from tests.tiny_models import write_single_file

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file:FutureWarning")

CPU = torch.device("cpu")
SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"


@pytest.fixture
def copy(tiny_pipelines, tmp_path):
    """A pipeline's folder that a test may change."""
    return lambda kind: shutil.copytree(tiny_pipelines[kind], tmp_path / kind)


def _edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _stock(folder: Path):
    from diffusers import DDIMScheduler, DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    return stock


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sd1", {"clip_sample": True}),
        ("sd1", {"steps_offset": 0}),
        ("sdxl", {"clip_sample": True}),
        ("sdxl", {"steps_offset": 0}),
    ],
)
def test_images_of_old_schedules_equal_the_stock_pipelines(copy, kind, settings):
    """Stable Diffusion's replaces both values, SDXL's neither."""
    folder = copy(kind)
    _edit_json(folder / SCHEDULER, **settings)
    expected = _stock(folder)(
        "a duck", num_inference_steps=4, guidance_scale=5.0, output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).images.movedim(1, -1)  # fmt: skip
    ours = sample_images(
        load_folder(folder, CPU),
        ["a duck"],
        generators=[torch.Generator().manual_seed(5)],
        config=DdimConfig(steps=4, guidance_scale=5.0),
    )
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "version", "size"),
    [
        ("sd1", "0.6.0", 64),
        ("sd1", "0.8.1.dev0", 64),
        ("sd1", "0.9.0.dev0", 8),
        ("sd1", "0.10.2", 8),
        ("sdxl", "0.6.0", 8),
    ],
)
def test_latents_of_old_folders_are_as_large_as_the_stock_pipelines(copy, kind, version, size):
    """CompVis/stable-diffusion-v1-4 once said 32 and draws at 512 pixels."""
    folder = copy(kind)
    _edit_json(folder / UNET, _diffusers_version=version)
    assert _stock(folder).unet.config.sample_size == size
    prior = load_folder(folder, CPU)
    assert (prior.latent_size, prior.image_size) == (size, 2 * size)


def test_the_shipped_prior_keeps_what_its_folder_says():
    folder = Path("image_tools/pocket/weights/pocket")
    prior = load_prior(PocketPriorConfig(), CPU)
    written = json.loads((Path(__file__).parents[2] / folder / SCHEDULER).read_text())
    assert prior.scheduler_config == written
    assert prior.latent_size == 16


def test_denoisers_that_are_told_the_guidance_scale_are_refused(copy):
    """LCM_Dreamshaper_v7's unet/config.json says 256."""
    from diffusers import UNet2DConditionModel

    folder = copy("sd1")
    settings = json.loads((folder / UNET).read_text()) | {"time_cond_proj_dim": 256}
    UNet2DConditionModel.from_config(settings).save_pretrained(folder / "unet")
    with pytest.raises(UnsupportedModel, match=r"time_cond_proj_dim is 256.*LCM"):
        load_folder(folder, CPU)


def test_checkpoints_of_continuous_noise_levels_are_refused(copy, tmp_path):
    """CosXL's file, which otherwise has the tensors of SDXL."""
    folder = copy("sd1")
    path = write_single_file(folder, tmp_path / "cosxl.safetensors")
    save_file({**load_file(path), "edm_vpred.sigma_max": torch.tensor(80.0)}, path)
    with pytest.raises(UnsupportedModel, match=r"cosxl.safetensors' holds 'edm_vpred.sigma_max'"):
        load_prior(SingleFilePriorConfig(path=str(path), config=str(folder)), CPU)
