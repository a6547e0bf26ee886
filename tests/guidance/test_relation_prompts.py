"""Which relation of objects is true in which view, and the texts that say so."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import (
    PlainPromptsConfig,
    RelationPromptsConfig,
    RelationWordsConfig,
    SDSConfig,
)
from guidance.layout_guided import LayoutPrompts
from guidance.layout_guided_configs import LayoutGuidedConfig
from guidance.layout_parts import object_tokens
from guidance.prompts import build_view_prompts
from guidance.relation_prompts import RELATIONS, build_relation_prompts, relations_seen
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from renderers.box_configs import BoxConfig
from renderers.boxes import project_points
from renderers.cameras import orbit_cameras
from renderers.errors import StudioError
from scenes.toybox.scene import RELATIONS as TOYBOX
from tests.guidance.layouts import LEFT, RIGHT, SCENE, gradient, objects_of

DUCK, MUSHROOM = ("a red duck", LEFT), ("a blue mushroom", RIGHT)
CONFIG = RelationPromptsConfig()
FROM_FOUR_SIDES = ("left of", "behind", "right of", "in front of")


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts(prior):
    return build_relation_prompts(CONFIG, prior, [DUCK, MUSHROOM], SCENE)


def around(n, elevation_deg=10.0):
    return orbit_cameras(
        n, elevation_deg=elevation_deg, distance=4.0, fovy_deg=42.0, height=16, width=16
    )


def test_what_is_left_from_the_front_is_right_from_behind_and_in_front_on_its_side(prompts):
    texts = [prompts.texts[row] for row in prompts.rows_at(around(4))]
    assert texts == [f"a red duck {words} a blue mushroom" for words in FROM_FOUR_SIDES]
    assert prompts.prompt == SCENE


@pytest.mark.parametrize("elevation_deg", [0.0, 30.0, 60.0])
def test_relations_are_what_the_camera_sees(elevation_deg):
    views = around(48, elevation_deg)
    places = torch.rand(40, 2, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    places[..., 2] = 0.0  # all on one ground
    for first, second in places:
        names = relations_seen((first - second)[None], views.azimuth_deg)[:, 0]
        image, depth = project_points(views, torch.stack([first, second]))
        rightwards, nearer = image[:, 0, 0] - image[:, 1, 0], depth[:, 1] - depth[:, 0]
        for name, right, near in zip(names, rightwards, nearer):
            truth = {"right": right, "left": -right, "front": near, "behind": -near}
            assert truth[RELATIONS[name]] > 0.0


@pytest.mark.parametrize(("words", "step"), TOYBOX.items())
def test_words_from_the_front_are_those_of_the_toybox_s_captions(words, step):
    seen = relations_seen(torch.tensor([step]), torch.zeros(1))
    assert getattr(CONFIG.words, RELATIONS[seen[0, 0]]) == words


def test_heights_name_the_relation_only_where_they_are_the_largest_difference():
    seen = relations_seen(torch.tensor([[0.1, 0.2, -0.3], [0.1, 0.4, 0.3]]), torch.zeros(1))
    assert [RELATIONS[k] for k in seen[0]] == ["below", "right"]


def test_more_objects_make_a_chain_in_the_layout_s_order(prior):
    hat = ("a hat", BoxConfig((0.0, 0.4, 0.9), (0.2, 0.2, 0.2)))
    config = RelationPromptsConfig(
        template="a photo of {objects}", words=RelationWordsConfig(below="below")
    )
    chain = build_relation_prompts(config, prior, [DUCK, MUSHROOM, hat], "much")
    assert len(chain.texts) == 4, "of two pairs, one turns with the camera and one never does"
    assert [chain.texts[row] for row in chain.rows_at(around(2))] == [
        "a photo of a red duck left of a blue mushroom below a hat",
        "a photo of a red duck right of a blue mushroom below a hat",
    ]


@pytest.mark.parametrize("height", [0.0, 0.5, 0.71, 0.9, 0.99998, 1.0, 1.5])
def test_every_view_has_a_text_however_narrow_the_angle_in_which_it_is_true(prior, height):
    turn = torch.deg2rad(torch.tensor(0.5))
    above = BoxConfig((float(turn.cos()), float(turn.sin()), height), (0.2, 0.2, 0.2))
    pair = [("a hat", above), ("a red duck", BoxConfig((0.0, 0.0, 0.0), (0.2, 0.2, 0.2)))]
    found = build_relation_prompts(CONFIG, prior, pair, "both")
    views = around(7200)
    rows = found.rows_at(views)
    assert rows.min() >= 0
    names = relations_seen(found.steps, views.azimuth_deg)[:, 0]
    words = [getattr(CONFIG.words, RELATIONS[name]) for name in names]
    assert [found.texts[row] for row in rows] == [f"a hat {word} a red duck" for word in words]


def test_each_view_is_guided_by_its_text(prior, prompts):
    views = around(4)
    told = prompts.at(views)
    expected = prior.encode_prompt([prompts.texts[row] for row in prompts.rows_at(views)])
    assert torch.equal(told.positive.tokens, expected.tokens)
    assert torch.equal(told.positive.azimuth_deg, views.azimuth_deg)
    assert torch.equal(told.uncond.tokens, prior.encode_negative([""]).tokens)


def test_from_the_front_it_is_plain_score_distillation_and_from_behind_another(prior, prompts):
    plain = build_view_prompts(PlainPromptsConfig(), prior, SCENE)
    rules = [SDSGuidance(SDSConfig(), prior, texts) for texts in (prompts, plain)]
    seen, expected = (gradient(rule, 2) for rule in rules)  # from the front and from behind
    assert torch.equal(seen[0], expected[0])
    assert not torch.equal(seen[1], expected[1])


def test_layout_guidance_follows_the_words_to_where_each_view_s_text_has_them(prior, prompts):
    objects = objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)
    found = LayoutPrompts(LayoutGuidedConfig(), prior, prompts, objects).at(around(4)).tokens
    for row, words in enumerate(FROM_FOUR_SIDES):
        text = f"a red duck {words} a blue mushroom"
        assert found[row] == object_tokens(prior, text, objects)
    assert found[0][1] != found[3][1], "the words between have another length"


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_and_too_many_objects_are_refused(prior, count):
    with pytest.raises(StudioError, match=rf"relations got {count} objects - expected 2 to 4"):
        build_relation_prompts(CONFIG, prior, [DUCK] * count, SCENE)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"Put \{objects\} into it"):
        RelationPromptsConfig(template="a photo")
    with pytest.raises(ValueError, match=r"words\.left is empty"):
        RelationWordsConfig(left=" ")
