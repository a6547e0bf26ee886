"""Score distillation with subjects: rectangles of boxes, hidden objects, views, and plain SDS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from guidance.build import build_guidance
from guidance.configs import PerpNegPromptsConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from guidance.subjects_sds import SubjectPrompts, mask_rectangles
from guidance.subjects_sds_configs import SubjectsSDSConfig
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ip_adapter_configs import ViewFadeConfig
from image_tools.personalization.ms_diffusion_configs import (
    AutoLayoutConfig,
    MSDiffusionConfig,
    MSSubjectConfig,
)
from renderers.boxes import project_points
from renderers.errors import StudioError
from tests.guidance.layouts import (
    LEFT,
    RIGHT,
    SCENE,
    cameras,
    gradient,
    objects_of,
    prompts_of,
    sds_config,
)
from tests.image_tools.personalization.subjects import images_of, load_tiny
from tests.image_tools.personalization.tiny_subjects import write_tiny_adapter

EVEN = ViewFadeConfig(least=1.0)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines)


@pytest.fixture(scope="module")
def tool(prior, tmp_path_factory):
    """Two subjects, of one and of two pictures, and a tiny adapter that does something."""
    folder = tmp_path_factory.mktemp("subjects")
    files, paths = write_tiny_adapter(folder, prior), []
    for k, image in enumerate(images_of(3, size=32)):
        paths.append(str(folder / f"{k}.png"))
        Image.fromarray((image.numpy() * 255).astype(np.uint8)).save(paths[-1])
    subjects = (
        MSSubjectConfig(tuple(paths[:1]), "duck"),
        MSSubjectConfig(tuple(paths[1:]), "blue mushroom"),
    )
    return MSDiffusionConfig(subjects=subjects, scale=1.0, fade=EVEN, **files)


@pytest.fixture(scope="module")
def objects(prior):
    """A duck on the left and a mushroom on the right."""
    return objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)


@pytest.fixture(scope="module")
def subjects(prior, tool, objects):
    """Prompts with the subjects."""
    return SubjectPrompts(SubjectsSDSConfig(tool), prior, prompts_of(prior, SCENE), objects)


def guided(prior, condition, rows: int = 2):
    """Guided noise for fixed latents."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))[:rows]
    return condition.guided_noise(prior, latents, torch.full((rows,), 500), 5.0)


def test_rectangles_are_around_what_is_seen_and_empty_where_too_little_is():
    masks = torch.zeros(1, 3, 4, 8)
    masks[0, 0, 1:3, 2:7], masks[0, 1, 3, 7] = 0.5, 1.0
    found = mask_rectangles(masks, 0.0)
    assert found[0].tolist() == [[0.25, 0.25, 0.875, 0.75], [0.875, 0.75, 1.0, 1.0], [0.0] * 4]
    assert mask_rectangles(masks, 0.1)[0, 1].tolist() == [0.0] * 4
    assert mask_rectangles(torch.ones(2, 2), 0.0).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_from_the_front_boxes_are_the_projections_of_the_objects_corners(subjects):
    rows = subjects.at(cameras(1)).prior.subjects
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
    for image, box in zip(rows.boxes[0], (LEFT, RIGHT, RIGHT), strict=True):
        points = torch.tensor(box.center) + corners * torch.tensor(box.size)
        places = project_points(cameras(1), points)[0][0]
        expected = torch.cat([places.amin(0), places.amax(0)])
        torch.testing.assert_close(image, expected, atol=1.5 / 64, rtol=0.0)
    assert rows.boxes[0, 0, 2] < rows.boxes[0, 1, 0], "the duck is left of the mushroom"


def test_a_hidden_object_s_subject_is_left_out_and_the_others_stay(subjects):
    """Seen from the side, one box stands behind the other."""
    boxes = subjects.at(cameras(4)).prior.subjects.boxes
    is_seen = (boxes[..., 2] > boxes[..., 0]).tolist()
    assert is_seen[0] == is_seen[2] == [True] * 3
    assert sorted(map(tuple, (is_seen[1], is_seen[3]))) == [
        (False, True, True),
        (True, False, False),
    ]


@torch.no_grad()
def test_views_are_guided_each_with_its_own_boxes(prior, subjects):
    both = guided(prior, subjects.at(cameras(2)))
    for row in range(2):
        one = subjects.at(_view(cameras(2), row))
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        alone = one.guided_noise(prior, latents[row : row + 1], torch.full((1,), 500), 5.0)
        torch.testing.assert_close(both[row], alone[0], atol=1e-4, rtol=1e-4)
    plain = guided(prior, prompts_of(prior, SCENE).at(cameras(2)))
    assert (both - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def _view(views, row: int):
    """One camera of several."""
    tensors = {
        name: value[row : row + 1]
        for name, value in vars(views).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(views, **tensors)


@torch.no_grad()
def test_subjects_count_less_from_behind(prior, tool, objects):
    fading = replace(tool, fade=ViewFadeConfig(least=0.0))
    scene = prompts_of(prior, SCENE)
    prompts = SubjectPrompts(SubjectsSDSConfig(fading), prior, scene, objects)
    found, plain = (guided(prior, one.at(cameras(2))) for one in (prompts, scene))
    assert (found[0] - plain[0]).abs().max() > 1e-3, "the front"
    torch.testing.assert_close(found[1], plain[1], atol=1e-5, rtol=1e-5)


def test_the_rule_is_plain_sds_without_layout_and_at_scale_zero(prior, tool, objects):
    scene, sds = prompts_of(prior, SCENE), sds_config()
    plain = gradient(SDSGuidance(sds, prior, scene))
    on, off = (
        SubjectsSDSConfig(replace(tool, scale=scale), sds=sds, least_area=0.0)
        for scale in (1.0, 0.0)
    )
    assert (on.is_on, off.is_on) == (True, False)
    for config, layout in ((on, ()), (off, objects)):
        rule = build_guidance(config, prior, scene, seed=0, layout=layout)
        assert torch.equal(gradient(rule), plain)
    rule = build_guidance(on, prior, scene, seed=0, layout=objects)
    assert (gradient(rule) - plain).abs().max() > 1e-6


def test_subjects_stand_in_objects_of_their_name_each_in_its_own(prior, tool, objects):
    two = replace(tool, subjects=(tool.subjects[0], tool.subjects[0]))
    config = SubjectsSDSConfig(two)
    assert config.objects_in(["a duck", "a cat", "the other duck"]) == [0, 2]
    assert config.objects_in(["a red duck", "a cat"]) == [0, None]
    with pytest.raises(StudioError, match="The subject 'duck' has no object of its own in the lay"):
        SubjectPrompts(config, prior, prompts_of(prior, SCENE), objects)


def test_what_does_not_fit_is_refused(prior, tool, objects):
    negatives = build_view_prompts(PerpNegPromptsConfig(), prior, SCENE)
    prompts = SubjectPrompts(SubjectsSDSConfig(tool), prior, negatives, objects)
    with pytest.raises(UnsupportedModel, match="Subjects got view prompts of kind perp_neg"):
        prompts.at(cameras(1))
    with pytest.raises(ValueError, match=r"tool.layout finds places while a sampler draws"):
        SubjectsSDSConfig(replace(tool, layout=AutoLayoutConfig()))
    with pytest.raises(ValueError, match=r"least_area is 1.0 - expected from 0 to below 1"):
        SubjectsSDSConfig(tool, least_area=1.0)
