"""Pairs for image-prompted models from the toybox: a scene, and other views of its objects.

The target is a view of one to four objects, with the exact box of each as it is seen there. Each
object comes again as a reference: alone, from another side, cut out on white, black or a random
colour, so that a model cannot copy pixels. Captions name the kinds; how often they also tell
colours and patterns is a setting: what the words say need not be looked up in the images.

Pair k depends only on its generator. As a batch, pairs are padded to a number of subjects with
black images and empty boxes.

    source = ReferencePairs(ReferencePairConfig())
    pair = source.pair(np.random.default_rng([0, k]))
    train_ms_diffusion(prior, clip, adapter, subject_batches(source, rows=8), ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from image_tools.personalization.ms_diffusion_training import SubjectBatch, SubjectBatches
from renderers.cameras import Cameras, orbit_cameras
from scenes.toybox.captions import plain_caption, with_article
from scenes.toybox.catalog import KINDS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry, render_buffers, render_rgb
from scenes.toybox.samples import SampleConfig, random_background, random_cameras
from scenes.toybox.scene import RELATIONS, SceneSpec, build_scene
from scenes.toybox.splits import combinations, sample_object

__all__ = [
    "ReferencePair",
    "ReferencePairConfig",
    "ReferencePairs",
    "mask_box",
    "subject_batch",
    "subject_batches",
]

BACKDROPS = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
MARGIN = 0.08
"""Free space around a reference, share of its larger side."""


@dataclass(frozen=True)
class ReferencePairConfig:
    """What the pairs show."""

    samples: SampleConfig = field(default_factory=SampleConfig)
    """Size of targets, side of the split, backgrounds and elevations; ``pairs`` is not used."""
    counts: tuple[float, float, float, float] = (0.3, 0.4, 0.2, 0.1)
    """Shares of scenes of one, two, three and four objects."""
    told: float = 0.3
    """Share of captions that tell colours and patterns, not kinds alone."""
    reference_size: int = 64
    """Height and width of references in pixels."""
    turned_deg: tuple[float, float] = (25.0, 120.0)
    """How far a reference's camera stands from the target's, in azimuth to either side."""
    least_area: float = 0.01
    """Share of the target below which an object counts as hidden and is no subject."""

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if min(self.counts) < 0.0 or sum(self.counts) <= 0.0:
            raise ValueError(f"counts are {list(self.counts)} - expected shares, one above 0.")
        low, high = self.turned_deg
        if not 0.0 < low <= high <= 180.0:
            raise ValueError(
                f"turned_deg is {list(self.turned_deg)} - expected above 0 and up to 180, rising."
            )


@dataclass(frozen=True)
class ReferencePair:
    """A target and references of its objects that can be seen.

    Attributes:
        target: ``[h, w, 3]`` in 0..1.
        caption: what it shows; it has every phrase.
        phrases: words for each subject, in the order of the caption.
        boxes: ``[n, 4]`` left, top, right, bottom, shares of the target.
        references: ``[n, s, s, 3]`` in 0..1.
        instances: ``[h, w]`` int: 0 background, k + 1 where subject k is seen, -1 other objects.
        objects: what each subject is.
        turned_deg: azimuth of each reference's camera from the target's.
    """

    target: np.ndarray
    caption: str
    phrases: tuple[str, ...]
    boxes: np.ndarray
    references: np.ndarray
    instances: np.ndarray
    objects: tuple[ObjectSpec, ...]
    turned_deg: np.ndarray


class ReferencePairs:
    """An endless source of pairs; the same generator state gives the same pair."""

    def __init__(self, config: ReferencePairConfig) -> None:
        """Fix the distribution; nothing is rendered yet."""
        self.config = config
        self._kinds = combinations(config.samples.held_out)
        self._parity = 1 if config.samples.evaluation else 0
        self._counts = np.array(config.counts) / sum(config.counts)

    def pair(self, rng: np.random.Generator) -> ReferencePair:
        """Draw one pair; a scene of which nothing can be seen is drawn again."""
        config = self.config
        spec = self._scene(rng)
        camera = random_cameras(
            rng,
            image_size=config.samples.image_size,
            elevation_deg=config.samples.elevation_deg,
            front=len(spec.objects) > 1,
        )
        background = random_background(rng, config.samples.white_background)
        seen = render_buffers(ToyGeometry(build_scene(spec)), camera, background=background)
        ids = seen.instance[0]
        counts = np.bincount(ids.ravel(), minlength=len(spec.objects) + 1)[1:]
        kept = np.nonzero(counts >= config.least_area * ids.size)[0]
        if len(kept) == 0:
            return self.pair(rng)
        is_told = rng.random() < config.told
        phrases = [_phrase(spec.objects[k], is_told) for k in kept]
        shots = [self._reference(spec.objects[k], camera, rng) for k in kept]
        names = np.full(len(spec.objects) + 1, -1)
        names[0], names[kept + 1] = 0, np.arange(len(kept)) + 1
        return ReferencePair(
            target=seen.rgb[0],
            caption=plain_caption(spec) if is_told else _kinds_alone(spec),
            phrases=tuple(phrases),
            boxes=np.stack([mask_box(ids == k + 1) for k in kept]),
            references=np.stack([image for image, _ in shots]),
            instances=names[ids],
            objects=tuple(spec.objects[k] for k in kept),
            turned_deg=np.array([turned for _, turned in shots]),
        )

    def _scene(self, rng: np.random.Generator) -> SceneSpec:
        count = 1 + int(rng.choice(len(self._counts), p=self._counts))
        objects = tuple(
            sample_object(rng, self._kinds, individual_parity=self._parity) for _ in range(count)
        )
        names = list(RELATIONS)
        relations = tuple(names[int(rng.integers(len(names)))] for _ in range(count - 1))
        return SceneSpec(objects, relations)

    def _reference(
        self, spec: ObjectSpec, target: Cameras, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """An object alone, as large as it fits, and how far its camera is turned."""
        turned = rng.uniform(*self.config.turned_deg) * rng.choice([-1.0, 1.0])
        geometry = ToyGeometry(build_scene(SceneSpec((spec,))))
        size = self.config.reference_size
        camera = orbit_cameras(
            1,
            elevation_deg=rng.uniform(0.0, 40.0),
            distance=2.6,
            fovy_deg=40.0,
            height=2 * size,
            width=2 * size,
            azimuth_start_deg=float(target.azimuth_deg[0]) + turned,
        )
        choice = int(rng.integers(len(BACKDROPS) + 1))
        color = BACKDROPS[choice] if choice < len(BACKDROPS) else rng.uniform(0.0, 1.0, 3)
        color = np.asarray(color, dtype=np.float32)
        rgb, mask = render_rgb(geometry, camera, background=color)
        return _cut_out(rgb[0], mask_box(mask[0] > 0.0), color, size), float(turned)


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of a mask that is not empty, shares of its sides."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    height, width = mask.shape
    corners = (columns[0] / width, rows[0] / height)
    return np.array([*corners, (columns[-1] + 1) / width, (rows[-1] + 1) / height])


def subject_batch(pairs: Sequence[ReferencePair], *, subjects: int) -> SubjectBatch:
    """Pairs as one batch, each padded to so many subjects.

    Raises:
        ValueError: a pair has more.
    """
    most = max(len(pair.phrases) for pair in pairs)
    if most > subjects:
        raise ValueError(f"a pair has {most} subjects, and {subjects} fit. Give room for more.")

    def padded(rows: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(np.ascontiguousarray(rows)).float()
        return torch.cat([values, values.new_zeros(subjects - len(rows), *values.shape[1:])])

    return SubjectBatch(
        images=torch.from_numpy(np.stack([pair.target for pair in pairs])).float(),
        captions=tuple(pair.caption for pair in pairs),
        references=torch.stack([padded(pair.references) for pair in pairs]),
        phrases=tuple((*p.phrases, *[""] * (subjects - len(p.phrases))) for p in pairs),
        boxes=torch.stack([padded(pair.boxes) for pair in pairs]),
    )


def subject_batches(source: ReferencePairs, *, rows: int, subjects: int = 4) -> SubjectBatches:
    """Batch after batch of new pairs, for a trainer."""

    def batch(number: int, generator: torch.Generator) -> SubjectBatch:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        pairs = [source.pair(np.random.default_rng([seed, row])) for row in range(rows)]
        return subject_batch(pairs, subjects=subjects)

    return batch


def _phrase(spec: ObjectSpec, is_told: bool) -> str:
    """What a caption calls an object, without its article."""
    if not is_told:
        return KINDS[spec.kind].noun
    return plain_caption(SceneSpec((spec,))).partition(" ")[2]


def _kinds_alone(spec: SceneSpec) -> str:
    """A caption without colours and patterns."""
    said = with_article(KINDS[spec.objects[0].kind].noun)
    for relation, item in zip(spec.relations, spec.objects[1:], strict=True):
        said += f" {relation} {with_article(KINDS[item.kind].noun)}"
    return said


def _cut_out(image: np.ndarray, box: np.ndarray, color: np.ndarray, size: int) -> np.ndarray:
    """The square around a box with some margin, at another size; the colour beyond the image."""
    side = image.shape[0]
    left, top, right, bottom = box * side
    half = max(right - left, bottom - top) * (0.5 + MARGIN)
    x, y = (round(middle - half) for middle in ((left + right) / 2, (top + bottom) / 2))
    square = np.broadcast_to(color, (round(2 * half),) * 2 + (3,)).copy()
    first, end = np.maximum([y, x], 0), np.minimum([y + len(square), x + len(square)], side)
    inside = (slice(first[0] - y, end[0] - y), slice(first[1] - x, end[1] - x))
    square[inside] = image[first[0] : end[0], first[1] : end[1]]
    pixels = torch.from_numpy(square).movedim(-1, 0)[None]
    small = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return small[0].movedim(0, -1).clamp(0.0, 1.0).numpy()
