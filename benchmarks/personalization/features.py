"""Whether pictures show a subject, by features that no prior was trained with.

Features are what the judge's last layer reads: 640 numbers of a network that was trained on toybox
renders alone, never on a prior's samples nor on these subjects. A picture is as similar to a
subject as to its nearest reference, by the cosine. References are renders from all sides on white,
and photos in rooms that no method has seen, so that a photo's background, learned by heart, is not
taken for the subject.

    fidelity(X) = (mean s(X) - mean s(others)) / (mean s(truth) - mean s(others))

1 is as like the subject as further photos of it, 0 as like it as photos of the other subjects. An
untrained prior's pictures of the class are somewhere between, so read it beside theirs. A picture
is ``identified`` if it is more like the subject than like any other subject or any other object of
its class, and no less than nine in ten further photos are: a blot is like nothing, and still
nearest to something. How often that is so of pictures of the truth is measured each time
(``Retrieval``): a measure that cannot tell subjects apart could not tell methods apart.

    features = SubjectFeatures(load_judge(), CASES)
    features.fidelity(images, "rabbit")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.personalization.subjects import Case
from scenes.objects.pack import default_pack
from scenes.objects.render import ObjectGeometry, render_rgb
from scenes.objects.subjects import subject_photos, true_views
from scenes.toybox.captions import view_word
from scenes.toybox.catalog import COLOR_NAMES
from scenes.toybox.objects import ObjectSpec
from studio.evaluation.intervals import SHARE, Estimate, mean_estimate
from studio.evaluation.judge import Judge
from studio.evaluation.views import eval_cameras, render_toy

__all__ = ["Retrieval", "SubjectFeatures", "judge_features", "share_by_subject"]

SIZE = 64
RING, MATE_VIEWS = 12, 6
RING_ELEVATIONS_DEG = (0.0, 30.0)
HELD_BACK_ELEVATION_DEG = 15.0
REFERENCE_SEEDS, HELD_BACK_SEEDS = (1, 2, 3), (4, 5)
"""Sets of photos; set 0 is what methods are trained on."""
UNLIKE = 0.1
"""Share of a subject's further photos that are less like it than a picture of it has to be."""
FRONT_TEMPERATURE = 0.05


def judge_features(judge: Judge, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b d"]:
    """What the judge's last layer reads of images, as unit vectors."""
    found: list[Tensor] = []
    hook = judge.net.heads.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        judge(images)
    finally:
        hook.remove()
    return F.normalize(torch.cat(found).cpu())


@dataclass(frozen=True)
class Retrieval:
    """How well features tell subjects and their sides apart, on pictures of the truth.

    Intervals are over subjects.
    """

    photos: Estimate
    """Share of further photos, in other rooms, that are identified; 0.9 is the most to expect."""
    renders: Estimate
    """The same of renders on white from all sides, between the references' elevations."""
    views: Estimate
    """Share of these renders whose nearest reference shows the same side, where there are sides."""


class SubjectFeatures:
    """References of all subjects, and pictures that are held back to know the scale."""

    def __init__(self, judge: Judge, cases: Sequence[Case]) -> None:
        """Render everything, some seconds for each subject.

        Args:
            judge: gives the features.
            cases: subjects that can be measured, and that a picture is told apart from: two at
                least.
        """
        names = [case.name for case in cases]
        self.judge, self.names = judge, tuple(names)
        self._mates = {case.name: self._class_mates(case) for case in cases}
        self._rings = {name: self._views(name, RING_ELEVATIONS_DEG) for name in names}
        self._photos = {name: self._photographed(name, REFERENCE_SEEDS) for name in names}
        self._more_photos = {name: self._photographed(name, HELD_BACK_SEEDS) for name in names}
        self._more_views = {name: self._views(name, (HELD_BACK_ELEVATION_DEG,)) for name in names}
        self._floors = {
            name: self._similar(self._more_photos[name], name).quantile(UNLIKE) for name in names
        }
        self._view_words = [
            _view(k, elevation) for elevation in RING_ELEVATIONS_DEG for k in range(RING)
        ]

    def embed(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b d"]:
        """Unit vectors of pictures."""
        return judge_features(self.judge, images)

    def fidelity(self, images: Float[Tensor, "b h w 3"], name: str) -> float:
        """How like a subject pictures are, between 0 for others and 1 for itself."""
        others = torch.cat([self._more_photos[other] for other in self.names if other != name])
        low = self._similar(others, name).mean()
        high = self._similar(self._more_photos[name], name).mean()
        return float((self._similar(self.embed(images), name).mean() - low) / (high - low))

    def identified(self, images: Float[Tensor, "b h w 3"], name: str) -> Bool[Tensor, " b"]:
        """Whether each picture is more like this subject than like others and its class."""
        return self._identified(self.embed(images), name)

    def views_seen(self, images: Float[Tensor, "b h w 3"], name: str) -> list[str]:
        """The side that each picture shows: that of the subject's most similar render."""
        return self._seen(self.embed(images), name)

    def front(self, images: Float[Tensor, "b h w 3"], name: str) -> Float[Tensor, " b"]:
        """How much each picture looks like the subject's front, 0 to 1: a softmax over renders."""
        likeness = (self.embed(images) @ self._rings[name].T / FRONT_TEMPERATURE).softmax(dim=1)
        is_front = torch.tensor([word == "front view" for word in self._view_words])
        return likeness[:, is_front].sum(dim=1)

    def retrieval(self, fronted: Sequence[str]) -> Retrieval:
        """How the features do on the truth.

        Args:
            fronted: subjects with a front, whose sides can be told apart.
        """
        asked = [_view(k, HELD_BACK_ELEVATION_DEG) for k in range(RING)]
        sides = [
            [
                seen == view
                for seen, view in zip(self._seen(self._more_views[name], name), asked, strict=True)
            ]
            for name in fronted
        ]
        return Retrieval(
            *(self._retrieved(held) for held in (self._more_photos, self._more_views)),
            share_by_subject(sides),
        )

    def _views(self, name: str, elevations_deg: Sequence[float]) -> Float[Tensor, "b d"]:
        """Features of renders on white, one ring for each elevation."""
        rings = [eval_cameras(RING, size=SIZE, elevation_deg=e) for e in elevations_deg]
        rgb = np.concatenate([true_views(name, ring)[0] for ring in rings])
        return self.embed(torch.from_numpy(rgb).float())

    def _class_mates(self, case: Case) -> Float[Tensor, "b d"]:
        """Features of other objects of a subject's class: a toy in all colours, or real ones."""
        views = []
        if case.kind is not None:
            ring = eval_cameras(MATE_VIEWS, size=SIZE)
            views += [render_toy(ObjectSpec(case.kind, color), ring).rgb for color in COLOR_NAMES]
        for mate in case.mates:
            ring = eval_cameras(RING, size=SIZE)
            geometry = ObjectGeometry(default_pack().load(mate))
            rgb, _ = render_rgb(geometry, ring, background=np.ones(3))
            views.append(torch.from_numpy(rgb).float())
        return self.embed(torch.cat(views)) if views else torch.zeros(0, 1)

    def _photographed(self, name: str, seeds: Sequence[int]) -> Float[Tensor, "b d"]:
        """Features of photos."""
        sets = [subject_photos(name, image_size=SIZE, seed=seed) for seed in seeds]
        rgb = np.stack([photo.rgb for photos in sets for photo in photos])
        return self.embed(torch.from_numpy(rgb).float())

    def _similar(self, embedded: Float[Tensor, "b d"], name: str) -> Float[Tensor, " b"]:
        """The cosine to the nearest reference."""
        references = torch.cat([self._rings[name], self._photos[name]])
        return (embedded @ references.T).amax(dim=1)

    def _identified(self, embedded: Float[Tensor, "b d"], name: str) -> Bool[Tensor, " b"]:
        others = [self._similar(embedded, other) for other in self.names if other != name]
        if len(self._mates[name]):
            others.append((embedded @ self._mates[name].T).amax(dim=1))
        likeness = self._similar(embedded, name)
        return (likeness > torch.stack(others).amax(dim=0)) & (likeness >= self._floors[name])

    def _seen(self, embedded: Float[Tensor, "b d"], name: str) -> list[str]:
        nearest = (embedded @ self._rings[name].T).argmax(dim=1)
        return [self._view_words[index] for index in nearest.tolist()]

    def _retrieved(self, held_back: dict[str, Tensor]) -> Estimate:
        """Share of held-back pictures of all subjects that are taken for what they show."""
        right = [self._identified(held_back[name], name).tolist() for name in self.names]
        return share_by_subject(right)


def _view(index: int, elevation_deg: float) -> str:
    """The side that a camera of a ring sees."""
    return view_word(360.0 * index / RING, elevation_deg)


def share_by_subject(right: Sequence[Sequence[bool]]) -> Estimate:
    """How often something is right, of each subject's pictures.

    Pictures of one subject are right or wrong together, so the interval is over subjects.
    """
    return mean_estimate([sum(own) / len(own) for own in right], within=SHARE)
