"""The wardrobe: exact correspondences, labels, splits, and truth for unpaired try-on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scenes.wardrobe.cameras import frame_people
from scenes.wardrobe.flat import flat_views
from scenes.wardrobe.garments import (
    DRESS,
    LOWER,
    UPPER,
    draw_garments,
    is_held_out_garment,
    printed_color,
)
from scenes.wardrobe.labels import ATR, DENSEPOSE, LIP
from scenes.wardrobe.people import draw_people, is_held_out_person
from scenes.wardrobe.render import Scene, render_buffers
from scenes.wardrobe.samples import (
    PairConfig,
    Pairs,
    draw_pairs,
    draw_wardrobe,
    render_pairs,
)
from scenes.wardrobe.worn import Outfit

CONFIG = PairConfig(height=64, supersample=1)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return draw_pairs(CONFIG, split="train", first=0, count=8)


def chroma(colors: torch.Tensor) -> torch.Tensor:
    return colors / colors.sum(dim=-1, keepdim=True).clamp(min=1e-6)


def test_every_category_is_drawn(pairs) -> None:
    assert set(pairs.wardrobe.target.tolist()) <= {UPPER, LOWER, DRESS}
    more = draw_wardrobe(CONFIG, split="train", first=0, count=40)
    assert set(more.target.tolist()) == {UPPER, LOWER, DRESS}


def test_a_pair_depends_on_its_number_alone(pairs) -> None:
    alone = draw_pairs(CONFIG, split="train", first=5, count=1)
    assert torch.equal(alone.product[0], pairs.product[5])
    assert torch.allclose(alone.worn.rgb[0], pairs.worn.rgb[5], atol=1e-6)
    assert torch.equal(alone.worn.atr[0], pairs.worn.atr[5])
    assert alone.captions[0] == pairs.captions[5]


def test_worn_cloth_has_the_print_of_its_flat_point(pairs) -> None:
    """Light scales a colour and does not turn it."""
    wardrobe = pairs.wardrobe
    plain = replace(wardrobe.outfit.top, collar=torch.zeros(8, dtype=torch.bool))
    wardrobe = replace(wardrobe, outfit=Outfit(plain, wardrobe.outfit.bottom))
    worn = render_pairs(CONFIG, wardrobe).worn
    shown = worn.cloth == 1
    row = torch.arange(8)[:, None, None].expand_as(shown)[shown]
    color = printed_color(plain, row, worn.flat[shown], worn.is_front[shown])
    seen = worn.rgb[shown]
    is_unclipped = (seen < 0.999).all(dim=-1) & (color.sum(dim=-1) > 0.2)
    apart = (chroma(seen) - chroma(color))[is_unclipped].abs().amax(dim=-1)
    assert int(is_unclipped.sum()) > 1000
    assert float(apart.max()) < 1e-4


def test_correspondences_lead_to_the_garment_in_the_product_view(pairs) -> None:
    places = pairs.correspondence
    seen = ~torch.isnan(places[..., 0])
    assert float(seen.float().sum() / pairs.worn_mask.float().sum()) > 0.85
    coverage = F.grid_sample(
        pairs.product_mask[:, None], torch.nan_to_num(places), align_corners=False, mode="bilinear"
    )[:, 0]
    assert float((coverage[seen] > 0.5).float().mean()) > 0.98


def test_the_body_under_the_clothes_tells_nothing_of_them(pairs) -> None:
    assert torch.equal(pairs.worn.densepose, pairs.worn_other.densepose)
    assert torch.equal(pairs.worn.uv, pairs.worn_other.uv)
    assert torch.equal(pairs.worn.keypoints, pairs.worn_other.keypoints)


def test_the_truth_of_unpaired_try_on_differs_inside_the_mask(pairs) -> None:
    changes = (pairs.worn.rgb - pairs.worn_other.rgb).abs().amax(dim=-1) > 0.05
    other = replace(pairs, worn=pairs.worn_other)
    assert float(changes.float().mean()) > 0.05
    outside = changes & ~(pairs.mask | other.mask)
    # Shade beside the garment, and hems that are wider than any mask.
    assert float(outside.float().sum() / changes.float().sum()) < 0.05


def test_the_mask_tells_nothing_of_the_garment(pairs) -> None:
    """It is the same in the other garment, but for the hair and bottoms that come to light."""
    other = replace(pairs, worn=pairs.worn_other)
    apart = (pairs.mask != other.mask).float().mean()
    assert float(apart) < 0.002


def test_the_mask_covers_the_garment_and_keeps_head_and_hands(pairs) -> None:
    worn, mask = pairs.worn, pairs.mask
    hands = torch.isin(worn.densepose, torch.tensor([3, 4]))
    assert not bool((mask & hands).any())
    assert not bool((mask & (worn.atr == ATR["hair"])).any())
    lost = pairs.worn_mask & ~mask & ~hands
    assert float(lost.float().sum() / pairs.worn_mask.float().sum()) < 0.01
    assert float(mask.float().mean()) < 0.6


def test_labels_agree_in_both_numberings(pairs) -> None:
    worn = pairs.worn
    for name in ("hair", "upper", "skirt", "trousers", "dress", "left arm", "right leg"):
        assert torch.equal(worn.atr == ATR[name], worn.lip == LIP[name])
    assert torch.equal(worn.atr == 0, worn.lip == 0)
    assert torch.equal(worn.cloth > 0, torch.isin(worn.atr, torch.tensor([4, 5, 6, 7])))


def test_keypoints_are_on_the_parts_they_are_named_after(pairs) -> None:
    points = pairs.worn.keypoints
    names = {0: "head", 4: "right forearm", 7: "left forearm"}
    for index, name in names.items():
        for k in range(len(points)):
            x, y, inside = points[k, index].tolist()
            if not inside:
                continue
            rows = slice(max(int(y) - 2, 0), int(y) + 3)
            columns = slice(max(int(x) - 2, 0), int(x) + 3)
            found = set(pairs.worn.densepose[k, rows, columns].flatten().tolist())
            # A part may be behind another one.
            assert found & {*DENSEPOSE[name], 1, 2, 3, 4, *range(7, 23)}, (k, name)


def test_from_behind_people_show_their_backs() -> None:
    wardrobe = draw_wardrobe(CONFIG, split="train", first=0, count=4)
    front, back = (
        render_pairs(replace(CONFIG, azimuth_deg=a, other=False), wardrobe).worn
        for a in (0.0, 180.0)
    )
    assert float(front.is_front[front.cloth > 0].float().mean()) > 0.9
    assert float(back.is_front[back.cloth > 0].float().mean()) < 0.1
    chests = (back.densepose == DENSEPOSE["torso"][1]).sum()
    assert int(chests) < 0.1 * int((back.densepose == DENSEPOSE["torso"][0]).sum())


def test_held_out_people_and_garments_are_never_in_training() -> None:
    for split, people_out, garments_out in (
        ("train", False, False),
        ("garments", False, True),
        ("people", True, False),
        ("both", True, True),
    ):
        drawn = draw_wardrobe(CONFIG, split=split, first=0, count=30)
        assert bool((is_held_out_person(drawn.people) == people_out).all())
        assert bool((is_held_out_garment(drawn.garment) == garments_out).all())
        assert bool((is_held_out_garment(drawn.other) == garments_out).all())


def test_a_flat_garment_is_symmetric_and_has_the_length_of_its_kind() -> None:
    generator = torch.Generator().manual_seed(3)
    garments = draw_garments(6, generator, category=UPPER)
    _, alpha = flat_views(garments, height=64, width=48, supersample=1)
    assert torch.equal(alpha, alpha.flip(2))
    short = replace(garments, length=torch.full((6,), 0.45))
    long = replace(garments, length=torch.ones(6))
    areas = [
        flat_views(one, height=64, width=48, supersample=1)[1].sum((1, 2)) for one in (short, long)
    ]
    assert bool((areas[0] < areas[1]).all())


def test_sleeves_bare_the_arms() -> None:
    """The longer the sleeve, the less of an arm is seen."""
    generator = torch.Generator().manual_seed(5)
    people = draw_people(3, generator)
    tops = draw_garments(3, generator, category=UPPER)
    bottoms = draw_garments(3, generator, category=LOWER)
    cameras = frame_people(
        people, torch.zeros(3), whole=torch.zeros(3, dtype=torch.bool), height=64, width=48
    )
    bare = []
    for sleeve in (0, 1, 2):
        worn = Outfit(replace(tops, sleeve=torch.full((3,), sleeve)), bottoms)
        buffers = render_buffers(Scene.build(people, worn), cameras, supersample=1)
        arms = torch.isin(buffers.atr, torch.tensor([ATR["left arm"], ATR["right arm"]]))
        bare.append(arms.float().sum((1, 2)))
    assert bool((bare[0] > bare[1]).all())
    assert bool((bare[1] > bare[2]).all())
