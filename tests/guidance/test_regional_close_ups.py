"""Close-ups of single objects: what is cut out, which objects are drawn, and where gradients go."""

from __future__ import annotations

import pytest
import torch

from guidance.build import build_guidance
from guidance.regional_sds import RegionalPrompts
from guidance.regional_sds_close_ups import CloseUpGuidance, close_ups, draw_objects
from guidance.regional_sds_configs import RegionalSDSConfig
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from renderers.box_configs import BoxConfig
from renderers.boxes import box_masks
from renderers.cameras import orbit_cameras
from tests.guidance.layouts import LEFT, RIGHT, SCENE, cameras, objects_of, prompts_of, renders

BOXES = [LEFT, RIGHT]


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


@pytest.fixture(scope="module")
def objects(prior):
    return objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)


def rule(prior, objects, share):
    config = RegionalSDSConfig(close_ups=share)
    return build_guidance(config, prior, prompts_of(prior, SCENE), seed=0, layout=objects)


def test_close_up_of_a_painted_box_is_that_box_alone_and_centred():
    size, around = (
        64,
        orbit_cameras(4, elevation_deg=10.0, distance=2.9, fovy_deg=42.0, height=64, width=64),
    )
    masks = box_masks(BOXES, around, (size, size))
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    images = torch.einsum("bkhw,kc->bhwc", masks, colors)
    green = torch.zeros_like(images) + torch.tensor([0.0, 1.0, 0.0])
    images = images + (1.0 - masks.sum(dim=1)[..., None]) * green
    for k in (0, 1):
        # From the front and from behind; from the sides one object hides the other.
        cut = close_ups(images, green, BOXES, around, masks, torch.full((4,), k))[::2]
        assert cut[..., 2 - 2 * k].max() < 0.05, "the other object is not there"
        own = cut[..., 2 * k]
        assert own.max() > 0.95
        assert own.mean() > 0.4, "it fills the image"
        places = (torch.arange(size) + 0.5) / size
        for axis in (1, 2):
            filled = (own > 0.5).any(dim=3 - axis)
            for one in filled:
                middle = (places[one].min() + places[one].max()) / 2
                assert middle == pytest.approx(0.5, abs=0.04)


def test_the_whole_image_s_own_square_comes_back_as_it_is():
    camera = orbit_cameras(1, elevation_deg=0.0, distance=3.0, fovy_deg=60.0, height=8, width=8)
    # Its front face, 2 from the camera, is as large as the image.
    side = 2 * 2 * (1 / 3) ** 0.5
    box = [BoxConfig((0.5, 0.0, 0.0), (1.0, side, side))]
    image = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(1, 1, 8, 8)
    found = close_ups(image, torch.zeros_like(image), box, camera, masks, torch.zeros(1).long())
    torch.testing.assert_close(found, image, atol=1e-5, rtol=0)


def test_objects_that_others_hide_are_not_drawn():
    near, far = BoxConfig((0.6, 0.0, 0.0), (0.4,) * 3), BoxConfig((-0.6, 0.0, 0.0), (0.4,) * 3)
    front = cameras(2)  # from +x and from -x
    masks = box_masks([near, far], front, (32, 32))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [draw_objects([near, far], front, masks, generator=generator) for _ in range(20)]
    )
    assert (drawn == torch.tensor([0, 1])).all()
    masks = box_masks(BOXES, front, (32, 32))
    both = [draw_objects(BOXES, front, masks, generator=generator) for _ in range(20)]
    assert set(torch.cat(both).tolist()) == {0, 1}


def test_gradient_of_a_close_up_stays_in_the_drawn_object_s_box(prior, objects):
    images, around = renders(), cameras()
    rule(prior, objects, 1.0)(
        images, around, fraction=0.5, generator=torch.Generator().manual_seed(0)
    ).loss.backward()
    touched = images.grad.abs().sum(dim=-1) > 0.0
    larger = [BoxConfig(b.center, tuple(1.1 * s for s in b.size)) for b in BOXES]
    seen = box_masks(larger, around, (16, 16)) > 0.0
    for view in range(2):
        inside = [bool((touched[view] & ~seen[view, k]).any()) for k in (0, 1)]
        assert inside.count(False) == 1, "one object's pixels, and none else"
    assert touched.any()


def test_share_of_the_steps_is_that_of_close_ups(prior, objects):
    none, half = rule(prior, objects, 0.0), rule(prior, objects, 0.5)
    assert type(none) is SDSGuidance
    assert isinstance(none.prompts, RegionalPrompts)
    assert isinstance(half, CloseUpGuidance)
    assert type(rule(prior, (), 0.5)) is SDSGuidance
    before, generator = prior.denoiser_evaluations, torch.Generator().manual_seed(3)
    for _ in range(8):
        half(renders(), cameras(), fraction=0.5, generator=generator)
    assert prior.denoiser_evaluations - before == 8 * 4, "attention composes without more calls"


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"close_ups is 2\.0 - expected 0 to 1"):
        RegionalSDSConfig(close_ups=2.0)
