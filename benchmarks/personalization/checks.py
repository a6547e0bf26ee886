"""Whether a picture shows what its prompt asks for beside the subject.

* view: the side of the subject's most similar render (``features``);
* color: the judge's first choice, as for every other asset;
* relation: the named colour covers more of the half where the other thing should stand than of the
  other half, and enough of it to be a thing;
* background: the colour word of the picture's border.

How often each check is right about pictures that do show it is measured on the truth
(``check_accuracy``): renders of painted subjects, of pairs, and of photos on coloured grounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.personalization.features import SubjectFeatures, share_by_subject
from benchmarks.personalization.subjects import Ask, Case, border_color
from renderers.cameras import orbit_cameras
from scenes.objects.colors import RECOLORS, WORDS, color_words
from scenes.objects.pack import default_pack
from scenes.objects.render import ObjectGeometry, Recolor, render_rgb
from scenes.toybox.catalog import COLOR_NAMES
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry
from scenes.toybox.render import render_rgb as render_toys
from scenes.toybox.scene import SceneSpec, build_scene
from studio.evaluation.intervals import Estimate
from studio.evaluation.views import eval_cameras

__all__ = ["check_accuracy", "obeyed"]

THING_SHARE = 0.04
"""A thing beside the subject covers at least this share of its half of the picture."""


def obeyed(
    images: Float[Tensor, "b h w 3"], asks: Sequence[Ask], case: Case, features: SubjectFeatures
) -> list[bool]:
    """Whether each picture shows what its prompt asks for; plain prompts ask for nothing more."""
    views = features.views_seen(images, case.name)
    seen = features.judge(images).color.argmax(dim=1).tolist()
    found = []
    for image, ask, view, color in zip(images.numpy(), asks, views, seen, strict=True):
        if ask.group == "view":
            found.append(view == ask.wanted)
        elif ask.group == "color":
            found.append(COLOR_NAMES[color] == ask.wanted)
        elif ask.group == "relation":
            found.append(_stands_there(image, *ask.wanted.split()))
        else:
            found.append(ask.group == "plain" or border_color(image) == ask.wanted)
    return found


def _stands_there(image: np.ndarray, half: str, color: str) -> bool:
    """Whether more of a colour is in one half than in the other, and enough for a thing."""
    height, width = image.shape[:2]
    has_it = (color_words(image.reshape(-1, 3)) == WORDS.index(color)).reshape(height, width)
    left, right = has_it[:, : width // 2].mean(), has_it[:, width // 2 :].mean()
    there, elsewhere = (left, right) if half == "left" else (right, left)
    return bool(there > elsewhere and there >= THING_SHARE)


def check_accuracy(cases: Sequence[Case], features: SubjectFeatures) -> dict[str, Estimate]:
    """How often the checks of colour, relation and background see what is there.

    The view check is measured by ``SubjectFeatures.retrieval``.

    Args:
        cases: subjects to render; colours are tried where a subject can be painted.
        features: of these subjects.
    """
    found: dict[str, list[list[bool]]] = {"color": [], "relation": [], "background": []}
    for case in cases:
        own: dict[str, list[bool]] = {}
        for images, ask in (*_painted(case), *_pairs(case), *_walls(case)):
            right = obeyed(images, [ask] * len(images), case, features)
            own.setdefault(ask.group, []).extend(right)
        for group, right in own.items():
            found[group].append(right)
    return {group: share_by_subject(right) for group, right in found.items() if right}


def _painted(case: Case) -> list[tuple[Tensor, Ask]]:
    """The subject in the colours that it is asked for, where it has a part to paint."""
    info, cameras = default_pack().info(case.name), eval_cameras(4)
    found = []
    for color in case.colors if info.recolor else ():
        paint = Recolor(info.recolor, RECOLORS[color])
        geometry = ObjectGeometry(default_pack().load(case.name), paint)
        rgb, _ = render_rgb(geometry, cameras, background=np.ones(3))
        found.append((torch.from_numpy(rgb).float(), Ask("color", "", color)))
    return found


def _pairs(case: Case) -> list[tuple[Tensor, Ask]]:
    """A toy beside the things that the subject is asked to stand beside."""
    paint, other = case.colors
    found = []
    for relation, kind, color, half in (
        ("left of", "apple", other, "right"),
        ("right of", "mug", paint, "left"),
    ):
        toy = ObjectSpec("chair", "white" if color != "white" else "black")
        scene = SceneSpec((toy, ObjectSpec(kind, color)), (relation,))
        cameras = orbit_cameras(
            3, elevation_deg=15.0, distance=2.7, fovy_deg=40.0, height=64, width=64
        )[:1]
        rgb, _ = render_toys(ToyGeometry(build_scene(scene)), cameras, background=np.ones(3))
        found.append((torch.from_numpy(rgb).float(), Ask("relation", "", f"{half} {color}")))
    return found


def _walls(case: Case) -> list[tuple[Tensor, Ask]]:
    """The subject before a wall of the colour that it is asked for."""
    color = case.colors[1]
    geometry = ObjectGeometry(default_pack().load(case.name))
    wall = np.array(RECOLORS[color])
    rgb, _ = render_rgb(geometry, eval_cameras(4), background=wall)
    return [(torch.from_numpy(rgb).float(), Ask("background", "", color))]
