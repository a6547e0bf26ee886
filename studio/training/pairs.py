"""Exact pairs for InstructPix2Pix from the toybox: one scene, one attribute changed, and the words.

    recolor, pattern   the same individual in another colour or pattern
    replace            another kind in its place, with its colour and pattern
    add, remove        the other object stays where it is

Both images have one camera and one background, so that everything else is equal to the bit. Colours
and kinds stay among the training combinations, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scenes.toybox.captions import plain_caption, with_article
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, KINDS, PATTERNS
from scenes.toybox.objects import ObjectSpec, build_object
from scenes.toybox.samples import SampleConfig, ToySampler
from scenes.toybox.scene import SceneSpec, ToyScene, build_scene
from scenes.toybox.splits import combinations, sample_object

__all__ = ["EDITS", "EditSampler", "ToyEdit", "change_object", "instruct"]

EDITS: dict[str, float] = {
    "recolor": 0.35,
    "pattern": 0.15,
    "replace": 0.25,
    "add": 0.125,
    "remove": 0.125,
}
"""Shares of the edits."""
OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
}
MARKS = {"striped": "stripes", "dotted": "dots", "checked": "checks"}
TEMPLATES: dict[str, tuple[str, ...]] = {
    "recolor": (
        "make {it} {color}",
        "turn {it} {color}",
        "paint {it} {color}",
        "change the color of {it} to {color}",
        "{it} should be {color}",
    ),
    "pattern": ("make {it} {pattern}", "give {it} {marks}", "add {marks} to {it}"),
    "plain": ("make {it} plain", "remove the {marks} from {it}", "{it} without {marks}"),
    "replace": (
        "replace {it} with {new}",
        "turn {it} into {new}",
        "swap {it} for {new}",
        "make {it} {new}",
    ),
    "add": (
        "add {new} {relation} {it}",
        "put {new} {relation} {it}",
        "{new} {relation} {it}",
    ),
    "remove": ("remove {it}", "take away {it}", "delete {it}", "get rid of {it}"),
}


@dataclass(frozen=True)
class ToyEdit:
    """Two scenes that differ in one thing, and the instruction that leads from one to the other."""

    name: str
    """One of :data:`EDITS`."""
    instruction: str
    before: ToyScene
    after: ToyScene
    old: ObjectSpec
    """The edited object before; where one is added or removed, the one that stays."""
    new: ObjectSpec
    """The same object afterwards."""


class EditSampler:
    """An endless source of edits; the same generator state gives the same edit."""

    def __init__(self, samples: SampleConfig, edits: tuple[str, ...] = tuple(EDITS)) -> None:
        """Fix the distribution.

        Args:
            samples: of the scenes before the edit; ``held_out`` is not used.
            edits: which of :data:`EDITS`, in their proportions.
        """
        plain = replace(samples, held_out=False)
        self._any, self._pairs = ToySampler(plain), ToySampler(replace(plain, pairs=1.0))
        self._names = edits
        shares = np.array([EDITS[name] for name in edits])
        self._shares = shares / shares.sum()
        self._parity = 1 if samples.evaluation else 0

    def edit(self, rng: np.random.Generator) -> ToyEdit:
        """Draw one edit."""
        name = self._names[int(rng.choice(len(self._names), p=self._shares))]
        if name in ("add", "remove"):
            return self._counted(name, rng)
        spec = _told_apart(self._any, rng)
        # What stands on something else may change its kind, what carries it may not.
        is_tower = "on top of" in spec.relations and name == "replace"
        index = 0 if is_tower else int(rng.integers(len(spec.objects)))
        old = spec.objects[index]
        new, words = change_object(name, old, rng, individual_parity=self._parity)
        said = instruct(words, spec, index, rng)
        before = build_scene(spec)
        return ToyEdit(name, said, before, _swapped(before, index, new), old, new)

    def _counted(self, name: str, rng: np.random.Generator) -> ToyEdit:
        """An object more or less."""
        spec = _told_apart(self._pairs, rng)
        relation = spec.relations[0]
        index = 0 if relation == "on top of" else int(rng.integers(2))
        kept, whole = 1 - index, build_scene(spec)
        alone = ToyScene(
            (whole.objects[kept],), whole.offsets[kept : kept + 1], whole.scales[kept : kept + 1]
        )
        stays = spec.objects[kept]
        if name == "remove":
            said = instruct({"form": "remove"}, spec, index, rng)
            return ToyEdit(name, said, whole, alone, stays, stays)
        words = {
            "form": "add",
            "new": plain_caption(SceneSpec((spec.objects[index],))),
            "relation": relation if index == 0 else OPPOSITE[relation],
        }
        said = instruct(words, SceneSpec((stays,)), 0, rng)
        return ToyEdit(name, said, alone, whole, stays, stays)


def change_object(
    name: str, old: ObjectSpec, rng: np.random.Generator, *, individual_parity: int
) -> tuple[ObjectSpec, dict[str, str]]:
    """An object after an edit, and the words that an instruction for it needs.

    Args:
        name: recolor, pattern or replace.
        old: the object before.
        rng: draws what it becomes.
        individual_parity: of the individuals of another kind.
    """
    allowed = combinations(held_out=False)
    if name == "recolor":
        colors = [c for c in COLOR_NAMES if c != old.color and (old.kind, c) in allowed]
        new = replace(old, color=colors[int(rng.integers(len(colors)))])
        return new, {"form": "recolor", "color": new.color}
    if name == "pattern":
        patterns = [pattern for pattern in PATTERNS if pattern != old.pattern]
        new = replace(old, pattern=patterns[int(rng.integers(len(patterns)))])
        if new.pattern == "plain":
            return new, {"form": "plain", "marks": MARKS[old.pattern]}
        return new, {"form": "pattern", "pattern": new.pattern, "marks": MARKS[new.pattern]}
    kinds = [k for k in KIND_NAMES if k != old.kind and (k, old.color) in allowed]
    kind = kinds[int(rng.integers(len(kinds)))]
    drawn = sample_object(rng, [(kind, old.color)], individual_parity=individual_parity)
    new = replace(drawn, pattern=old.pattern)
    return new, {"form": "replace", "new": with_article(KINDS[kind].noun)}


def _told_apart(sampler: ToySampler, rng: np.random.Generator) -> SceneSpec:
    """A scene in which no two objects are called alike."""
    while True:
        spec = sampler.scene(rng)
        names = {plain_caption(SceneSpec((one,))) for one in spec.objects}
        if len(names) == len(spec.objects):
            return spec


def instruct(words: dict[str, str], spec: SceneSpec, index: int, rng: np.random.Generator) -> str:
    """An instruction about an object of a scene, by the words of ``change_object``."""
    it = _name_of(spec, index, rng)
    forms = TEMPLATES[words["form"]]
    return forms[int(rng.integers(len(forms)))].format(it=it, **words)


def _name_of(spec: SceneSpec, index: int, rng: np.random.Generator) -> str:
    """What the object is called: so that it cannot be mistaken for another one of the scene."""
    own = spec.objects[index]
    noun = KINDS[own.kind].noun
    others = [o for k, o in enumerate(spec.objects) if k != index]
    if not others:
        return ("it", f"the {noun}")[int(rng.integers(2))]
    if all(o.kind != own.kind for o in others):
        return f"the {noun}"
    words = plain_caption(SceneSpec((own,))).partition(" ")[2]
    return f"the {words}"


def _swapped(scene: ToyScene, index: int, new: ObjectSpec) -> ToyScene:
    """Another object in the place of one, on the ground that it stood on beside others."""
    old, made = scene.objects[index], build_object(new)
    offsets = scene.offsets.copy()
    if len(scene.objects) > 1:
        drop = old.vertices[:, 2].min() - made.vertices[:, 2].min()
        offsets[index, 2] += drop * scene.scales[index]
    objects = [made if k == index else o for k, o in enumerate(scene.objects)]
    return ToyScene(tuple(objects), offsets, scene.scales)
