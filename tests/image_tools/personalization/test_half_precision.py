"""Reference tools on a denoiser in half precision, as the presets for large weights have it.

bfloat16 stands for float16: a CPU has both, and a tensor left in another format fails in either.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.loading import load_folder
from image_tools.personalization.instant_id_configs import HeadConfig, InstantIDConfig
from image_tools.personalization.instant_id_files import write_instant_id
from image_tools.personalization.ip_adapter_configs import IPAdapterConfig
from image_tools.personalization.ip_adapter_files import write_ip_adapter
from image_tools.personalization.kosmos_g import KosmosGPrior
from image_tools.personalization.kosmos_g_weights import read_kosmos_g, write_kosmos_g
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig, MSSubjectConfig
from image_tools.personalization.photomaker_configs import PhotoMakerConfig
from image_tools.personalization.photomaker_files import write_photomaker
from image_tools.personalization.references import build_reference_tool
from image_tools.personalization.style_aligned import draw_style_set
from image_tools.personalization.style_aligned_configs import (
    StyleAlignedConfig,
    StyleInversionConfig,
)
from image_tools.personalization.style_references import inverted_reference
from renderers.cameras import orbit_cameras
from tests.image_tools.personalization.subjects import images_of
from tests.image_tools.personalization.tiny_instant_ids import IDENTITY_WIDTH, tiny_instant_id
from tests.image_tools.personalization.tiny_ip_adapters import (
    FACE_WIDTH,
    nested,
    random_lora_keys,
    tiny_ip_adapter,
)
from tests.image_tools.personalization.tiny_kosmos import tiny_kosmos
from tests.image_tools.personalization.tiny_photomakers import faces_of, tiny_photomaker
from tests.image_tools.personalization.tiny_subjects import write_tiny_adapter
from tests.image_tools.vision.tiny_clip import write_tiny_clip

CPU, HALF = torch.device("cpu"), torch.bfloat16
# Of the guided noise's norm; a bfloat16 has eight bits, and guidance enlarges what is rounded.
TOLERANCE = 0.06
TOOLS = ["base", "faceid", "instant_id", "ms_diffusion", "photomaker", "style_aligned"]


@pytest.fixture(scope="module")
def priors(tiny_pipelines):
    """The same tiny SDXL in float32 and in half precision."""
    return [load_folder(tiny_pipelines["sdxl"], CPU, dtype) for dtype in (torch.float32, HALF)]


@pytest.fixture(scope="module")
def configs(priors, tmp_path_factory):
    """Every tool with weights and pictures of its own."""
    from PIL import Image

    folder, (prior, _) = tmp_path_factory.mktemp("tools"), priors
    Image.fromarray((images_of(1)[0] * 255.0).byte().numpy()).save(folder / "photo.png")
    photo = str(folder / "photo.png")
    for name, width in (("id", IDENTITY_WIDTH), ("face", FACE_WIDTH)):
        np.save(folder / f"{name}.npy", np.linspace(-1.0, 1.0, width, dtype=np.float32))
    np.save(folder / "maker.npy", faces_of(1)[0].numpy())
    write_instant_id(folder / "instant_id", tiny_instant_id(prior))
    write_photomaker(folder / "maker.bin", tiny_photomaker(prior, "v2"))
    write_tiny_clip(folder / "encoder", width=32, pooled=24)
    write_ip_adapter(folder / "base.bin", tiny_ip_adapter(prior.unet))
    face = nested(tiny_ip_adapter(prior.unet, "faceid"))
    face["ip_adapter"] |= random_lora_keys(prior.unet)
    torch.save(face, folder / "faceid.bin")
    return {
        "base": IPAdapterConfig(
            str(folder / "base.bin"), images=(photo,), image_encoder=str(folder / "encoder")
        ),
        "faceid": IPAdapterConfig(
            str(folder / "faceid.bin"), identities=(str(folder / "face.npy"),)
        ),
        "instant_id": InstantIDConfig(
            str(folder / "instant_id"), identity=str(folder / "id.npy"), head=HeadConfig()
        ),
        "ms_diffusion": MSDiffusionConfig(
            **write_tiny_adapter(folder, prior),
            subjects=(MSSubjectConfig((photo,), "duck", (0.0, 0.0, 1.0, 0.75)),),
        ),
        "photomaker": PhotoMakerConfig(
            str(folder / "maker.bin"), photos=(photo,), identities=(str(folder / "maker.npy"),)
        ),
        "style_aligned": StyleAlignedConfig(image=photo, image_prompt="a red vase"),
    }


@torch.no_grad()
def guided(prior, prompt: str):
    """For two views from the front."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prior.see_cameras(
        orbit_cameras(1, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=16, width=16)[
            [0, 0]
        ]
    )
    cond, uncond = prior.encode_prompt([prompt]), prior.encode_negative([""])
    return prior.guided_noise(latents, torch.tensor([300, 500]), cond, uncond, 5.0)


@pytest.mark.parametrize("name", TOOLS)
def test_guidance_is_that_of_float32_within_rounding(priors, configs, name):
    prompt = "a duck img" if name == "photomaker" else "a duck"
    tools = [build_reference_tool(configs[name], prior) for prior in priors]
    full, half = (guided(tool, prompt) for tool in tools)
    assert half.dtype == full.dtype == torch.float32
    assert (half - full).norm() < TOLERANCE * full.norm()
    assert (full - guided(priors[0], "a duck")).abs().max() > 1e-2, "the tool is off"


def test_a_set_is_drawn_beside_an_inverted_picture(priors):
    def draw(prior):
        settings = StyleInversionConfig(offset=1)
        picture = inverted_reference(prior, images_of(1), "a vase", steps=3, config=settings)
        generators = [torch.Generator().manual_seed(4)]
        sampler = DdimConfig(steps=3, guidance_scale=2.0)
        return draw_style_set(
            prior, ["a duck"], generators=generators, config=sampler, reference=picture
        )

    full, half = map(draw, priors)
    assert (half - full).abs().mean() < 0.05


@torch.no_grad()
def test_kosmos_g_reads_pictures_in_half_precision(tiny_pipelines, tmp_path):
    """On a CPU the tool keeps its language model in float32; a GPU has it in half precision."""
    write_kosmos_g(tmp_path / "kosmos", tiny_kosmos(tmp_path / "vocabulary"))
    prior, prompt = load_folder(tiny_pipelines["sd1"], CPU, HALF), "a <i> hat"
    states = [
        KosmosGPrior(prior, read_kosmos_g(tmp_path / "kosmos", dtype), images_of(1))
        .encode_prompt([prompt])
        .tokens
        for dtype in (torch.float32, HALF)
    ]
    assert states[1].dtype == torch.float32
    assert (states[1] - states[0]).norm() < TOLERANCE * states[0].norm()
