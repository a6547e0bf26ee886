"""Denoiser evaluations: computed as they are recorded, and scaled."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.text_to_3d.budgets import scaled, scene_rows, stage_rows
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.lora_files import write_lora
from image_tools.personalization.dreambooth_configs import LoraShapeConfig
from image_tools.personalization.trainable_lora import new_lora
from studio.config import load_scene, load_task, preset_names
from studio.configs import SceneConfig
from studio.runner import Runner
from studio.subject.configs import PlainSubjectConfig
from tests.image_tools.tiny_unets import tiny_multiview_unet
from tests.studio.conftest import start, tiny_prior, tiny_scene  # noqa: F401 - fixtures

MULTIVIEW_CAMERAS = "stages.0.cameras={kind: multiview, batch_size: 4, height: 12, width: 12}"
MILESTONES = (
    "stages.0.cameras.milestones=[{from_fraction: 0.5, height: 12, width: 12, batch_size: 1}]"
)
VARIANTS = {
    "sds": [],
    "sds without guidance": ["stages.0.guidance.guidance_scale=1.0"],
    "sds, guided from the middle on": [
        "stages.0.guidance.guidance_scale=[[0.0, 1.0], [0.5, 1.0], [0.5, 7.5]]"
    ],
    "perp-neg": ["view_prompts.kind=perp_neg"],
    "smaller batches from the middle on": [MILESTONES],
    "vsd": ["stages.0.guidance={kind: vsd, critic: {steps: 3}}"],
    "vsd, guided critic, perp-neg": [
        "stages.0.guidance={kind: vsd, critic: {guidance_scale: 2.0}}",
        "view_prompts.kind=perp_neg",
    ],
    "dreamflow": ["stages.0.guidance={kind: dreamflow, timesteps: 3}"],
}
PLACES = (
    "prompt=a red duck left of a mushroom",
    "layout=[{prompt: a red duck, center: [0.0, -0.4, 0.0], size: [0.5, 0.5, 0.7]}, "
    "{prompt: a mushroom, center: [0.0, 0.4, 0.0], size: [0.5, 0.5, 0.7]}]",
)
ANNEALED = "sds: {timesteps: {kind: annealed, start_t: 0.9, end_t: 0.1}}"
FALLING = "[[0.0, 0.9], [0.5, 0.9], [0.5, 0.2]]"
JUMPING = f"sds: {{timesteps: {{kind: uniform, min_t: {FALLING}, max_t: {FALLING}}}}}"
PLACED = {
    "layout in all steps": "{kind: layout_guided, min_t: 0.0}",
    "layout in half of the steps": "{kind: layout_guided, min_t: 0.0, close_ups: 0.5}",
    "layout in no step": "{kind: layout_guided, min_t: 1.0}",
    "layout without strength": "{kind: layout_guided, min_t: 0.0, scale: 0.0}",
    "layout in the first half, annealed": f"{{kind: layout_guided, min_t: 0.51, {ANNEALED}}}",
    "layout in the first half, drawn": f"{{kind: layout_guided, min_t: 0.5, {JUMPING}}}",
    "regions by attention": "{kind: regional_sds, mode: attn_resize, close_ups: 0.5}",
    "regions by latents": "{kind: regional_sds, mode: latent}",
    "regions by latents, unguided": (
        "{kind: regional_sds, mode: latent, sds: {guidance_scale: 1.0}}"
    ),
    "regions by latents, the scene's alone": "{kind: regional_sds, mode: latent, base_ratio: 1.0}",
    "regions by latents, close-ups alone": "{kind: regional_sds, mode: latent, close_ups: 1.0}",
}
"""Rules of which all steps are known without their draws."""
EDITS = {
    "everywhere": "{kind: delta_edit}",
    "unguided": "{kind: delta_edit, guidance_scale: 1.0}",
    "with words": "{kind: delta_edit, mask: {kind: word}, keep: 2.0}",
    "with words, attention shared": "{kind: delta_edit, mask: {kind: word}, attention: {}}",
}

ASSETS = [name for name in preset_names() if isinstance(load_task(name).config, SceneConfig)]
"""Presets that optimise something; pictures have no stages to scale."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_those_that_a_run_records(variant, tiny_scene, tmp_path):  # noqa: F811
    scene, run = start(tiny_scene, tmp_path, "stages.0.steps=4", *VARIANTS[variant])
    Runner(scene, run).optimise()
    assert scene_rows(scene) == run.read_info()["denoiser_evaluations"]


@pytest.mark.parametrize("variant", PLACED)
def test_rows_of_rules_with_places_are_those_that_a_run_records(
    variant,
    tiny_scene,  # noqa: F811
    tmp_path,
):
    rule = f"stages.0.guidance={PLACED[variant]}"
    scene, run = start(tiny_scene, tmp_path, "stages.0.steps=4", *PLACES, rule)
    Runner(scene, run).optimise()
    assert scene_rows(scene) == run.read_info()["denoiser_evaluations"]


@pytest.mark.parametrize("variant", ["layout in all steps", "regions by latents"])
def test_rules_with_places_cost_nothing_more_without_a_layout(variant, tiny_scene):  # noqa: F811
    scene = load_scene(tiny_scene, [f"stages.0.guidance={PLACED[variant]}"]).config
    assert scene_rows(scene) == scene_rows(load_scene(tiny_scene).config)


def test_rows_of_a_layout_are_averages_over_noise_levels():
    """Levels from 0.02 to h, which falls from 0.98 to 0.5: above 0.5 are 1 - ln 2 of them."""
    scene = load_scene("pocket-layout", ["stages.0.guidance.close_ups=0.0"]).config
    views = scene.stages[0].steps * scene.stages[0].cameras.batch_size
    assert stage_rows(scene, 0) / views == pytest.approx(3.0 - math.log(2.0), abs=0.01)


def test_rows_of_regions_are_averages_over_close_ups():
    mode = "stages.0.guidance.mode=latent"
    scene = load_scene("pocket-regional", [mode, "stages.0.guidance.close_ups=0.25"]).config
    views = scene.stages[0].steps * scene.stages[0].cameras.batch_size
    assert stage_rows(scene, 0) == views * (0.25 * 2 + 0.75 * 6)


def test_rows_of_objects_in_turn_are_those_of_one_guided_set_a_step():
    scene = load_scene("pocket-objects").config
    assert scene_rows(scene) == 2 * scene.stages[0].steps * 4


@pytest.fixture(scope="module")
def source(tiny_scene, tmp_path_factory):  # noqa: F811
    """A finished run to edit."""
    scene, run = start(tiny_scene, tmp_path_factory.mktemp("source"), "stages.0.steps=1", PLACES[0])
    Runner(scene, run).optimise()
    return run


@pytest.mark.parametrize("variant", EDITS)
def test_rows_of_an_edit_by_its_prompt_are_those_that_it_records(
    variant,
    source,
    tiny_scene,  # noqa: F811
    tmp_path,
):
    edit = (
        f"edit={{run: {source.path}, word: red duck}}",
        "prompt=a red fox left of a mushroom",
        "stages.0.field={kind: previous}",
        f"stages.0.guidance={EDITS[variant]}",
    )
    scene, run = start(tiny_scene, tmp_path, "stages.0.steps=4", *edit)
    Runner(scene, run).optimise()
    assert scene_rows(scene) == run.read_info()["denoiser_evaluations"]


@pytest.mark.parametrize("students", [1, 2])
@pytest.mark.parametrize("variant", ["sds", "sds without guidance", "vsd", "dreamflow"])
def test_rows_of_consistency_guidance_are_those_that_a_run_records(
    variant,
    students,
    tiny_scene,  # noqa: F811
    tiny_prior,  # noqa: F811
    tmp_path,
):
    files = [lora_file(tiny_prior, tmp_path / f"{k}.safetensors", seed=k) for k in range(students)]
    subjects = ", ".join(f"{{loras: [{{path: {file}}}]}}" for file in files)
    prior = (
        f"prior={{kind: personalized, base: {{kind: pocket, path: {tiny_prior}}}, "
        f"guidance: consistency, subjects: [{subjects}]}}"
    )
    scene, run = start(tiny_scene, tmp_path, "stages.0.steps=4", *VARIANTS[variant], prior)
    Runner(scene, run).optimise()
    assert scene_rows(scene) == run.read_info()["denoiser_evaluations"]


def lora_file(prior_folder: Path, path: Path, *, seed: int) -> Path:
    """A LoRA of the prior in a file."""
    prior = load_folder(prior_folder, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    write_lora(path, new_lora(prior, LoraShapeConfig(rank=2), generator), layout="diffusers")
    return path


def test_a_subject_s_own_consistency_guidance_is_one_more_row_a_view():
    consistent = [
        *("stages.shape.prior=null", "stages.shape.guidance={kind: sds}"),
        "stages.shape.cameras={kind: random}",
        "stages.shape.subject={kind: consistency, weights: full}",
    ]
    given = ["subject.images=photos", "subject.word=dog", *consistent]
    stage = load_scene("dreambooth3d-dco", given).config
    plain = replace(stage.stages[0], subject=PlainSubjectConfig(weights="full"))
    without = replace(stage, stages=(plain, *stage.stages[1:]))
    assert stage_rows(stage, 0) / stage_rows(without, 0) == 3 / 2


def test_rows_of_a_multiview_run_are_those_that_it_records(
    tiny_scene,  # noqa: F811
    tiny_prior,  # noqa: F811
    tmp_path,
):
    """Its prompts are the same for all views, whatever the scene says."""
    folder = tmp_path / "pocket-mv"
    tiny_multiview_unet().save_pretrained(folder / "unet")
    shutil.copytree(tiny_prior / "scheduler", folder / "scheduler")
    prior = f"prior={{kind: pocket_mv, path: {folder}, base: {tiny_prior}}}"
    rule = "stages.0.guidance={kind: multiview}"
    words = "view_prompts.kind=perp_neg"
    ground = "stages.0.background.share=batch"
    scene, run = start(tiny_scene, tmp_path / "runs", prior, rule, MULTIVIEW_CAMERAS, words, ground)
    Runner(scene, run).optimise()
    assert scene_rows(scene) == run.read_info()["denoiser_evaluations"]


def rescaled(preset: str, evaluations: int, *more: str):
    """A preset and what is made of it for a budget."""
    before = load_scene(preset, ["prompt=a duck", *more]).config
    overrides = scaled(before, evaluations)
    return before, load_scene(preset, ["prompt=a duck", *more, *overrides]).config


@pytest.mark.parametrize("preset", ASSETS)
@pytest.mark.parametrize("evaluations", [3200, 7760])
def test_every_preset_meets_a_budget_and_keeps_its_shares(preset, evaluations):
    before, after = rescaled(preset, evaluations)
    assert scene_rows(after) == pytest.approx(evaluations, rel=0.01)
    for index in range(len(before.stages)):
        share = stage_rows(before, index) / scene_rows(before)
        assert stage_rows(after, index) / scene_rows(after) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("preset", ASSETS)
def test_a_scene_that_meets_its_budget_stays_as_it_is(preset):
    """So that its finished runs are found again."""
    before, _ = rescaled(preset, 1)
    assert rescaled(preset, scene_rows(before))[1] == before


@pytest.mark.parametrize("preset", ["dreamflow", "pocket-dreamflow"])
@pytest.mark.parametrize("evaluations", [100, 2587, 7760])
def test_timesteps_of_dreamflow_keep_their_batches(preset, evaluations):
    before, after = rescaled(preset, evaluations)
    for old, new in zip(before.stages, after.stages, strict=True):
        batches = old.steps // old.guidance.timesteps
        assert new.steps == batches * new.guidance.timesteps
        assert replace(new, steps=old.steps, guidance=old.guidance) == old


def test_particles_and_warm_ups_are_scaled_along():
    key = "stages.0.guidance.critic.warmup_steps"
    _, after = rescaled("pocket-prolificdreamer", 1000, "stages.0.particles=3", f"{key}=36")
    assert after.stages[0].steps % 3 == 0
    ratio = after.stages[0].steps / 360
    assert after.stages[0].guidance.critic.warmup_steps == round(36 * ratio)
    assert after.stages[1].guidance.critic.warmup_steps == 0


def test_a_stage_has_at_least_one_step():
    _, after = rescaled("pocket-magic3d", 1)
    assert [stage.steps for stage in after.stages] == [1, 1]
