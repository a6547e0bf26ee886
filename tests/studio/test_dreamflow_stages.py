"""DreamFlow's three stages as one run: volume, mesh, and the mesh with a refiner of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from renderers.fields.tet_mesh import TetMeshField
from studio.checkpoints import list_checkpoints, load_checkpoint
from studio.finish import finish_run
from studio.run_folder import RunFolder
from studio.runner import Runner
from tests.studio.conftest import TINY, start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end
from tests.tiny_models import write_pipeline, write_refiner

SDS = "guidance: {guidance_scale: 7.0, timesteps: {max_t: [[0, 0.98], [1, 0.5]]}}"
FLOW = """guidance: {{kind: dreamflow, start_t: {start}, end_t: {end}, timesteps: 2,
      critic: {{learning_rate: 0.01, rank: 2}}}}"""
LATER = """  - name: mesh
    steps: 4
    field: {{kind: grid_tets, resolution: 8}}
    renderer: {{kind: mesh}}
    background: {{kind: random}}
    cameras: {{batch_size: 1, height: 16, width: 16, distance_range: [2.6, 3.2]}}
    {mesh}
  - name: refine
    steps: 4
    field: {{kind: previous}}
    renderer: {{kind: mesh}}
    background: {{kind: random}}
    cameras: {{batch_size: 1, height: 16, width: 16, distance_range: [2.6, 3.2]}}
    prior: {{kind: diffusers, model: {refiner}}}
    {refine}
export:"""


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory) -> Path:
    """The three stages with a tiny Stable Diffusion and a tiny refiner."""
    folder = tmp_path_factory.mktemp("dreamflow")
    later = LATER.format(
        mesh=FLOW.format(start=0.5, end=0.1),
        refine=FLOW.format(start=0.3, end=0.0),
        refiner=write_refiner(folder / "refiner"),
    )
    text = TINY.replace(SDS, FLOW.format(start=1.0, end=0.2)).replace("steps: 6", "steps: 4")
    assert text.count("kind: dreamflow") == 1
    prior = f"prior: {{kind: diffusers, model: {write_pipeline(folder / 'sd1', 'sd1')}}}\n"
    path = folder / "dreamflow.yaml"
    path.write_text(text.replace("export:", later) + prior, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(scene_file, tmp_path_factory) -> tuple[RunFolder, Path]:
    """A run that nothing interrupted, and its last checkpoint."""
    scene, run = start(scene_file, tmp_path_factory.mktemp("whole"), "saving.keep_checkpoints=9")
    return run, run_to_the_end(scene, run)


def test_the_last_stage_is_guided_by_the_refiner_and_moves_the_mesh(whole):
    run, end = whole
    assert end.name == "step-000012"
    weights = run.read_info()["weights"]
    assert set(weights) == {"prior", "stages.refine.prior"}
    assert "refiner" in weights["stages.refine.prior"]["model"]
    ends = {path.name: load_checkpoint(path) for path in list_checkpoints(run.checkpoints_dir)}
    before, after = ends["step-000008"].scene, ends["step-000012"].scene
    for name in ("field.sdf", "field.colour.grid.table"):
        assert not (before[name] == after[name]).all()
    assert any("critic" in key or "lora" in key for key in (*after, *ends["step-000012"].optim))


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param((8,), id="before the refiner", marks=pytest.mark.slow),
        pytest.param((3, 6, 11), id="in each stage"),
    ],
)
def test_a_run_with_a_refiner_resumes_bit_for_bit(stops, scene_file, whole, tmp_path):
    scene, run = start(scene_file, tmp_path)
    for stop in stops:
        runner = Runner(scene, run)
        while runner.steps_done < stop:
            assert runner.has_next()
            runner.step()
        runner.save()
    assert_equal_bits(whole[1], run_to_the_end(scene, run))


@pytest.mark.slow
def test_the_refined_mesh_becomes_an_asset(whole):
    run, _ = whole
    paths = finish_run(run)
    assert paths["asset"].is_file()
    assert (run.asset_dir / "asset.ply").is_file()


@pytest.mark.slow
def test_the_refiner_is_loaded_when_its_stage_begins_and_goes_on_with_the_mesh(
    scene_file, tmp_path
):
    scene, run = start(scene_file, tmp_path)
    runner = Runner(scene, run)
    texts = []
    while runner.has_next():
        runner.step()
        texts.append(runner.prior.unet.config.addition_embed_type)
    assert texts == [None] * 8 + ["text_time"] * 4
    assert isinstance(runner.stage.field, TetMeshField)
