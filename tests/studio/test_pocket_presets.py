"""The presets for the shipped models: what they keep of the published ones, and that they run.

The slow test takes each of them through all its stages, the hand-off to a mesh and the export, with
few steps and small pictures: the asset is not good, but it is there.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import trimesh

from image_tools.pocket.paths import POCKET_MV_FOLDER
from renderers.configs import HashVolumeConfig
from renderers.mesh_configs import GridTetsConfig, MeshRendererConfig
from studio.config import dump_yaml, load_scene
from studio.finish import finish_run
from studio.run_folder import create_run, write_atomic
from studio.runner import Runner

FLOW = [(1.0, 0.2), (0.5, 0.1), (0.3, 0.0)]
STEPS = 6
SMALL = (
    "device=cpu",
    "export.formats=[glb,ply]",
    "export.appearance=vertex",
    "export.resolution=16",
    "export.search_resolution=16",
    "export.max_faces=400",
    "export.film_frames=2",
    "export.film_size=32",
    "saving.preview_every=0",
)
POCKET_PRESETS = {
    "pocket-magic3d": ["coarse", "mesh"],
    "pocket-prolificdreamer": ["shape", "texture"],
    "pocket-dreamflow": ["nerf", "mesh", "refine"],
    "pocket-mvdream": ["shape"],
}


def test_dreamflow_holds_the_published_values():
    scene = load_scene("dreamflow").config
    nerf, mesh, refine = scene.stages
    assert [stage.cameras.height for stage in scene.stages] == [256, 512, 1024]
    assert [(s.guidance.start_t, s.guidance.end_t) for s in scene.stages] == FLOW
    assert isinstance(nerf.field, HashVolumeConfig)
    assert isinstance(mesh.field, GridTetsConfig)
    assert refine.field.kind == "previous"
    assert all(isinstance(stage.renderer, MeshRendererConfig) for stage in (mesh, refine))
    assert "stable-diffusion-2-1" in scene.prior.model
    assert (nerf.prior, mesh.prior) == (None, None)
    assert "xl-refiner" in refine.prior.model


def test_dreamflow_spends_whole_batches_on_each_timestep():
    """What is ours: 800, 300 and 300 timesteps, five batches of views on each."""
    stages = load_scene("dreamflow").config.stages
    assert [stage.guidance.timesteps for stage in stages] == [800, 300, 300]
    assert [stage.steps / stage.guidance.timesteps for stage in stages] == [5, 5, 5]
    assert {stage.guidance.step_norm for stage in stages} == {"raw"}
    assert all(stage.guidance.critic.prior is None for stage in stages)


def test_pocket_dreamflow_keeps_the_timesteps_of_the_paper():
    stages = load_scene("pocket-dreamflow").config.stages
    assert [(s.guidance.start_t, s.guidance.end_t) for s in stages] == FLOW
    assert [stage.steps % stage.guidance.timesteps for stage in stages] == [0, 0, 0]
    assert [stage.field.kind for stage in stages] == ["hash_volume", "grid_tets", "previous"]
    assert all(stage.prior is None for stage in stages)


def test_pocket_prolificdreamer_keeps_guidance_scale_rank_and_camera_dropout():
    published = load_scene("prolificdreamer").config.stages[0].guidance
    pocket = load_scene("pocket-prolificdreamer").config.stages
    assert (published.guidance_scale, published.critic.rank) == (7.5, 4)
    assert published.critic.camera_dropout == 0.1
    for stage in pocket:
        assert stage.guidance.guidance_scale == published.guidance_scale
        assert stage.guidance.critic.rank == published.critic.rank
        assert stage.guidance.critic.camera_dropout == published.critic.camera_dropout
    assert pocket[1].geometry == "fixed"
    assert {stage.guide_on for stage in pocket} == {"color"}


@pytest.mark.parametrize("name", POCKET_PRESETS)
def test_pocket_presets_take_about_as_many_steps_as_the_demo(name):
    demo, scene = load_scene("demo").config, load_scene(name).config
    views = demo.stages[0].cameras.batch_size
    assert [stage.cameras.batch_size for stage in scene.stages] == [views] * len(scene.stages)
    assert [stage.name for stage in scene.stages] == POCKET_PRESETS[name]
    assert sum(stage.steps for stage in scene.stages) <= 1.2 * demo.stages[0].steps


@pytest.mark.slow
@pytest.mark.parametrize("name", POCKET_PRESETS)
def test_pocket_preset_goes_through_all_stages_to_an_asset(name, tmp_path):
    if name == "pocket-mvdream" and not POCKET_MV_FOLDER.is_dir():
        pytest.skip("the weights of pocket-mv do not ship yet")
    overrides = list(SMALL)
    for k, stage in enumerate(load_scene(name).config.stages):
        overrides += [f"stages.{k}.steps={STEPS}", f"stages.{k}.cameras.batch_size=4"]
        overrides += [f"stages.{k}.cameras.{side}=32" for side in ("width", "height")]
        if stage.guidance.kind == "dreamflow":
            overrides.append(f"stages.{k}.guidance.timesteps=3")
        if isinstance(stage.field, GridTetsConfig):
            overrides.append(f"stages.{k}.field.resolution=16")
    scene = load_scene(name, overrides).config
    run = create_run(tmp_path, prompt=scene.prompt, method=name, seed=0, info={})
    write_atomic(run.resolved_path, dump_yaml(scene))
    runner = Runner(scene, run)
    runner.optimise()
    assert runner.stage.config.name == POCKET_PRESETS[name][-1]
    assert json.loads(run.info_path.read_text())["denoiser_evaluations"] > 0
    paths = finish_run(run)
    mesh = trimesh.load(run.asset_dir / "asset.ply")
    assert len(mesh.faces) > 20
    assert np.isfinite(mesh.vertices).all()
    assert np.isclose(np.ptp(mesh.vertices, axis=0)[1], 1.0, atol=1e-3)
    assert paths["report"].is_file()
