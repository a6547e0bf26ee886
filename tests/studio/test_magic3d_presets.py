"""The Magic3D presets: published values where they claim them, and scenes that can run."""

from __future__ import annotations

from renderers.mesh_configs import GridTetsConfig, MeshRendererConfig
from studio.config import load_scene


def test_magic3d_holds_the_published_values():
    scene = load_scene("magic3d").config
    coarse, mesh = scene.stages
    assert [coarse.steps, mesh.steps] == [10_000, 5_000]
    assert [coarse.cameras.height, mesh.cameras.height] == [64, 512]
    assert [coarse.guidance.weighting, mesh.guidance.weighting] == ["uniform", "sds"]
    # eps_c + 100 (eps_c - eps_u) is eps_u + 101 (eps_c - eps_u).
    assert coarse.guidance.guidance_scale == mesh.guidance.guidance_scale == 101.0
    assert mesh.guidance.timesteps.max_t == 0.5
    assert mesh.cameras.fovy_deg_range == (30.0, 45.0)
    assert mesh.losses.normal_consistency == 10_000.0
    assert coarse.field.bands is None
    assert coarse.material.light_mix == mesh.material.light_mix == "soft"
    assert mesh.field == GridTetsConfig(resolution=128)


def test_pocket_magic3d_spends_as_many_denoiser_evaluations_as_the_demo():
    demo, scene = load_scene("demo").config, load_scene("pocket-magic3d").config
    assert [s.cameras.batch_size for s in scene.stages] == [demo.stages[0].cameras.batch_size] * 2
    assert sum(stage.steps for stage in scene.stages) == demo.stages[0].steps
    assert scene.stages[0].field == demo.stages[0].field
    assert isinstance(scene.stages[1].renderer, MeshRendererConfig)
    assert (scene.stages[1].guidance.timesteps.min_t, scene.stages[1].guidance.timesteps.max_t) == (
        0.02,
        0.5,
    )
