"""Scenes of a subject: names in prompts, settings that fit together, mistakes in clear words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from studio.config import load_scene
from studio.errors import ConfigError
from tests.studio.subject.conftest import LORA

GIVEN = ("subject.images=photos", "subject.word=teddy bear")


def problem(*overrides: str, scene: str = "dreambooth3d") -> str:
    """The message that a scene is refused with."""
    with pytest.raises(ConfigError) as refused:
        load_scene(scene, overrides)
    return str(refused.value)


def test_the_subject_is_named_where_the_prompt_leaves_a_place():
    scene = load_scene("dreambooth3d", (*GIVEN, "prompt=a {} with a hat")).config
    assert scene.prompt == "a sks teddy bear with a hat"
    assert scene.subject.caption() == "a sks teddy bear"
    assert scene.subject.caption(of_class=True) == "a teddy bear"
    token = "subject.token={kind: placeholder, word: <my-bear>}"
    scene = load_scene("dreambooth3d", (*GIVEN, token)).config
    assert scene.prompt == "a <my-bear>"


def test_a_stage_without_the_subject_reads_the_class_word():
    scene = load_scene("dreambooth3d", GIVEN).config
    assert scene.stages[0].subject is None
    assert scene.prompt_of(0) == "a teddy bear"
    assert scene.prompt_of(1) == "a sks teddy bear"
    plain = load_scene("demo").config
    assert plain.prompt_of(0) == plain.prompt


@pytest.mark.parametrize("preset", ["dreambooth3d", "dreambooth3d-dco", "dreambooth3d-sd"])
def test_presets_are_forms_that_photos_and_a_word_complete(preset):
    form = load_scene(preset).config
    assert (form.task, form.subject.images, form.subject.word) == ("dreambooth3d", "", "")
    scene = load_scene(preset, GIVEN).config
    assert scene.prompt.endswith(scene.subject.name)
    assert scene.stages[-1].subject.weights == "multiview"
    assert scene.stages[-1].losses.reconstruction != 0.0


def test_the_large_preset_has_the_published_structure():
    scene = load_scene("dreambooth3d-sd", GIVEN).config
    assert scene.subject.training.kind == "dreambooth"
    assert scene.subject.partial_steps == 150  # the paper's partial DreamBooth
    assert scene.subject.views.subject.weights == "full"
    assert scene.subject.second_training.start == "partial"
    assert [stage.subject.weights for stage in scene.stages] == ["partial", "multiview"]
    assert scene.stages[1].field.kind == "previous"


def test_the_dco_preset_is_the_other_with_a_lora_that_redraws_consistently():
    scene, other = (load_scene(name, GIVEN).config for name in ("dreambooth3d-dco", "dreambooth3d"))
    assert (scene.subject.training.kind, scene.subject.training.beta) == ("dco", 30.0)
    assert scene.subject.views.subject.kind == "consistency"
    assert (scene.stages, scene.subject.photos) == (other.stages, other.subject.photos)
    views, others = scene.subject.views, other.subject.views
    assert views.sampler.guidance_scale < others.sampler.guidance_scale
    assert views == replace(others, subject=views.subject, sampler=views.sampler)
    assert views.sampler == replace(others.sampler, guidance_scale=views.sampler.guidance_scale)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["prompt=a teddy bear"], "does not name the subject - expected {} in its place, such as"),
        (["subject.template=a photo"], "subject.template is 'a photo' - expected {} once"),
        (["subject.partial_steps=9999"], "subject.partial_steps is 9999 - expected 1 to the"),
        (["subject.views.strength=2"], "strength is 2.0 - expected 0 to 1."),
        (["subject.views.elevations_deg=[95]"], "elevations_deg is [95.0]"),
        (["subject.reconstruction.scales=9"], "scales is 9 - expected at least 1"),
        (["subject.views.subject.weights=multiview"], "are made from the views"),
        (["stages.shape.subject={kind: plain, weights: multiview}"], "and this is the first"),
        (["stages.shape.losses.reconstruction=1"], "and this is the first"),
        (["stages.shape.subject={kind: consistency}"], "needs the prior beside the subject"),
        (
            ["subject.second_training.loop.checkpoint_steps=[5]"],
            "subject.second_training.loop.checkpoint_steps: is [5] - expected none",
        ),
        (["prior.memory.dtype=float16"], "prior.memory.dtype: is float16"),
        (
            ["prior={kind: pocket_mv}", "stages.refine.prior={kind: pocket}"],
            "is carried to another",
        ),
        (["stages.shape.subject={kind: plain, weigths: full}"], "Did you mean 'weights'?"),
        (["subject.training.kind=dreamboth"], "Did you mean 'dreambooth'?"),
        (["subject=null"], "subject: is missing"),
        (["task=text_to_3d"], "task is text_to_3d"),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else "",
)
def test_settings_that_do_not_fit_are_told(overrides, expected):
    assert expected in problem(*GIVEN, *overrides)


def test_consistency_and_another_prior_fit_a_lora():
    given = (
        *GIVEN,
        "stages.shape.prior=null",
        "stages.shape.guidance={kind: sds}",
        "stages.shape.cameras={kind: random}",
        "stages.shape.subject={kind: consistency, weights: full}",
        "stages.refine.prior={kind: pocket_mv}",
    )
    scene = load_scene("dreambooth3d-dco", given).config
    assert (scene.stages[0].subject.kind, scene.stages[0].prior) == ("consistency", None)


def test_multiview_guidance_takes_plain_weights_only():
    text = problem(
        *GIVEN,
        LORA,
        "subject.partial_steps=2",
        "prior={kind: pocket_mv}",
        "stages.shape.guidance={kind: multiview}",
        "stages.shape.cameras={kind: multiview}",
        "stages.shape.subject={kind: consistency}",
    )
    assert "multiview guidance combines predictions by itself" in text


def test_a_plain_scene_has_no_place_for_a_subject():
    text = problem(
        "stages.0.subject={kind: plain, weights: full}",
        "stages.0.losses.reconstruction=1",
        scene="demo",
    )
    assert "stages.0.subject: the scene has no subject" in text
    assert "stages.0.losses.reconstruction: compares with a subject's pseudo views" in text
