"""Several scenes in one stage: who is trained when, what is kept, and which one is shown."""

from __future__ import annotations

import pytest
import torch

from studio.checkpoints import load_checkpoint
from studio.commands import export
from studio.errors import ConfigError
from studio.runner import Runner
from studio.stages import build_stage, load_stage, particle_prefix
from tests.studio.conftest import start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

CPU = torch.device("cpu")
TABLE = "field.grid.table"


def test_steps_go_round_and_change_one_particle_at_a_time(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path, "stages.0.particles=3")
    runner = Runner(scene, run)
    fresh = [particle.field.grid.table.detach().clone() for particle in runner.stage.particles]
    for step in range(4):
        before = [p.field.grid.table.detach().clone() for p in runner.stage.particles]
        runner.step()
        after = [particle.field.grid.table for particle in runner.stage.particles]
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [k == step % 3 for k in range(3)]
    assert not torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[1], fresh[2])


def test_the_first_particle_begins_as_the_only_one_would(tiny_scene, tmp_path):
    alone, _ = start(tiny_scene, tmp_path / "1")
    several, _ = start(tiny_scene, tmp_path / "3", "stages.0.particles=3")
    first = build_stage(alone, 0, CPU).renderer.state_dict()
    again = build_stage(several, 0, CPU).renderer.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_every_particle_refreshes_its_occupancy_at_its_own_steps(tiny_scene, tmp_path):
    """Every other step is the same particle's; by the stage's steps one would never have a turn."""
    scene, run = start(tiny_scene, tmp_path, "stages.0.particles=2")
    runner = Runner(scene, run)
    fresh = [particle.occupancy.values.clone() for particle in runner.stage.particles]
    for _ in range(2):
        runner.step()
    after = [particle.occupancy.values for particle in runner.stage.particles]
    assert not any(torch.equal(a, b) for a, b in zip(fresh, after, strict=True))


def test_a_run_with_particles_resumes_bit_for_bit_and_shows_each(tiny_scene, tmp_path):
    several = "stages.0.particles=2"
    scene, whole = start(tiny_scene, tmp_path / "whole", several)
    expected = run_to_the_end(scene, whole)
    _, parts = start(tiny_scene, tmp_path / "parts", several)
    first = Runner(scene, parts)
    for _ in range(3):
        first.step()
    first.save()
    assert_equal_bits(expected, run_to_the_end(scene, parts))

    saved = load_checkpoint(expected).scene
    for k in range(2):
        shown = load_stage(whole, particle=k).field.grid.table
        assert torch.equal(shown, saved[particle_prefix(k) + TABLE])
    with pytest.raises(ConfigError, match="particle: is 2, and stage shape has 2"):
        load_stage(whole, particle=2)


def test_a_later_stage_goes_on_with_the_first_particles(tiny_scene, tmp_path):
    path = tmp_path / "two.yaml"
    later = """  - name: detail
    steps: 2
    particles: 2
    field: {kind: previous}
    renderer: {samples_per_ray: 24, occupancy: {resolution: 12, update_every: 2}}
    background: {kind: random}
    cameras: {batch_size: 1, height: 12, width: 12, distance_range: [2.6, 3.2]}
export:"""
    path.write_text(tiny_scene.read_text(encoding="utf-8").replace("export:", later), "utf-8")
    scene, run = start(path, tmp_path, "stages.0.particles=3", "stages.0.steps=3")
    runner = Runner(scene, run)
    for _ in range(3):
        runner.step()
    before = [particle.field.grid.table.detach().clone() for particle in runner.stage.particles]
    assert runner.has_next()
    after = [particle.field.grid.table for particle in runner.stage.particles]
    assert len(after) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))


def test_the_scene_says_which_particle_is_exported(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path, "stages.0.particles=2", "export.particle=1")
    saved = load_checkpoint(run_to_the_end(scene, run)).scene
    assert torch.equal(load_stage(run).field.grid.table, saved["particle.1." + TABLE])


def test_each_particle_can_be_exported(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path, "stages.0.particles=2", "export.search_resolution=24")
    run_to_the_end(scene, run)
    files = []
    for particle in (0, 1):
        export.run(run.path, particle=particle, texture=0, formats="ply")
        files.append((run.asset_dir / "asset.ply").read_bytes())
    assert files[0] != files[1]
    with pytest.raises(ConfigError, match="particle: is 2"):
        export.run(run.path, particle=2)
