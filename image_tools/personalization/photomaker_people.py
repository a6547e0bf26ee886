"""Photos of people that PhotoMaker learns from, and what of them a sample is shown.

A picture of somebody is learned from other photos of the same person, never from itself, and from
nothing in them but the person (arXiv 2312.04461). That the noise around people is uniform is our
choice.

    people = PeoplePhotos(images, masks, ("a man img", "a man img, smiling"), people=(0, 0))
    chosen = other_photos(people.people, row, 4, generator)
    shown = on_noise(people.images[chosen], people.masks[chosen], generator)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from renderers.errors import StudioError

__all__ = ["PeoplePhotos", "on_noise", "other_photos"]


@dataclass(frozen=True)
class PeoplePhotos:
    """Photos of several people, two or more of each."""

    images: Float[Tensor, "n h w 3"]
    """In 0..1."""
    masks: Float[Tensor, "n h w"]
    """1 where the person is, 0 elsewhere."""
    captions: tuple[str, ...]
    """What each shows, with the trigger behind the class word: a man img on a beach."""
    people: tuple[int, ...]
    """Who it is: equal numbers are the same person."""
    faces: Float[Tensor, "n face"] | None = None
    """Embeddings of the faces, for v2."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together, and people with one photo."""
        sizes = {
            "images": len(self.images),
            "masks": len(self.masks),
            "captions": len(self.captions),
            "people": len(self.people),
        }
        if self.faces is not None:
            sizes["faces"] = len(self.faces)
        if len(set(sizes.values())) > 1 or not self.people:
            said = ", ".join(f"{count} {name}" for name, count in sizes.items())
            raise StudioError(f"There are {said} - expected as many of each, and at least two.")
        alone = [who for who in self.people if self.people.count(who) == 1]
        if alone:
            raise StudioError(
                f"There is one photo of person {alone[0]} - expected two or more: a picture is "
                "learned from other photos of the person in it. Add photos, or leave this one out."
            )


def other_photos(
    people: Sequence[int], row: int, limit: int, generator: torch.Generator
) -> list[int]:
    """One to ``limit`` photos of the person in photo ``row``, without that one, in random order."""
    others = [other for other, who in enumerate(people) if who == people[row] and other != row]
    most = min(limit, len(others))
    count = int(torch.randint(1, most + 1, (), generator=generator))
    order = torch.randperm(len(others), generator=generator)[:count]
    return [others[place] for place in order.tolist()]


def on_noise(
    images: Float[Tensor, "n h w 3"], masks: Float[Tensor, "n h w"], generator: torch.Generator
) -> Float[Tensor, "n h w 3"]:
    """People in front of noise, uniform in 0..1."""
    noise = torch.rand(images.shape, generator=generator).to(images)
    return noise.lerp(images, masks[..., None].to(images))
