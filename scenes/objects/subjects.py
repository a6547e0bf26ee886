"""Subject sets: a few casual photos of one thing, with its true shape held back for scoring.

Each of the twelve subjects is an object that no training of ours ever sees. Its photos are taken
from hand-held positions in front of it, each in another room with other light, slightly tilted and
off centre, with a little sensor noise: what DreamBooth (arXiv 2208.12242) and DreamBooth3D
(arXiv 2303.13508) start from. The photos depend only on the subject, the size and the seed.

    photos = subject_photos("dog")                       # five, 256 px
    write_subject_set("dog", Path("photos"))             # photos/dog-0.png ... for the studio
    truth = true_mesh("dog")                             # for IoU and Chamfer
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from renderers.cameras import Cameras
from renderers.mesh import Mesh
from renderers.poses import directions_from_angles, look_at, up_from_angles
from scenes.objects.backdrops import random_room
from scenes.objects.errors import UnknownObject
from scenes.objects.pack import default_pack
from scenes.objects.render import ObjectGeometry, render_rgb
from scenes.objects.splits import SUBJECT_SOURCES
from scenes.toybox.objects import OBJECT_RADIUS

__all__ = [
    "SUBJECTS",
    "SubjectPhoto",
    "subject_photos",
    "true_mesh",
    "true_views",
    "write_subject_set",
]

SUBJECTS: tuple[str, ...] = tuple(noun.replace(" ", "-") for noun in SUBJECT_SOURCES)
"""Names in the pack of the twelve subjects."""
PHOTOS = 5
FRONT_SPREAD_DEG = 80.0
SENSOR_NOISE = 0.008


@dataclass(frozen=True)
class SubjectPhoto:
    """One photo and how it was taken; only the image is for the model that learns."""

    rgb: np.ndarray
    """``[h, w, 3]`` float32 in 0..1."""
    mask: np.ndarray
    """``[h, w]`` coverage of the subject."""
    camera: Cameras
    """The one camera."""


def _mesh(name: str):
    if name not in SUBJECTS:
        raise UnknownObject(
            f"{name!r} is no subject, expected one of {', '.join(SUBJECTS)}. "
            "Other objects of the pack are reached with load_object."
        )
    return default_pack().load(name)


def subject_photos(
    name: str, *, count: int = PHOTOS, image_size: int = 256, seed: int = 0
) -> list[SubjectPhoto]:
    """Casual photos of a subject.

    Args:
        name: one of ``SUBJECTS``.
        count: how many.
        image_size: height and width in pixels.
        seed: another set of photos of the same thing.

    Raises:
        UnknownObject: there is no such subject.
    """
    mesh = _mesh(name)
    geometry = ObjectGeometry(mesh)
    digest = hashlib.sha256(f"photos/{name}/{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    photos = []
    for k in range(count):
        # One slice of the front for each photo, so that five photos show different sides.
        step = 2 * FRONT_SPREAD_DEG / count
        azimuth = -FRONT_SPREAD_DEG + step * (k + rng.uniform(0.1, 0.9))
        camera = _hand_held(rng, azimuth, image_size)
        room = random_room(rng, mesh)
        rgb, mask = render_rgb(geometry, camera, background=room.image(camera), light=room.light)
        noisy = rgb[0] + rng.normal(0.0, SENSOR_NOISE, rgb[0].shape)
        photos.append(SubjectPhoto(np.clip(noisy, 0, 1).astype(np.float32), mask[0], camera))
    return photos


def _hand_held(rng: np.random.Generator, azimuth_deg: float, image_size: int) -> Cameras:
    """A camera that looks nearly at the subject, from above the table, slightly rolled."""
    azimuth = torch.tensor([azimuth_deg], dtype=torch.float32)
    elevation = torch.tensor([rng.uniform(6.0, 38.0)], dtype=torch.float32)
    fovy = float(np.deg2rad(rng.uniform(34.0, 52.0)))
    distance = OBJECT_RADIUS * rng.uniform(1.12, 1.45) / np.sin(fovy / 2)
    position = directions_from_angles(azimuth, elevation) * float(distance)
    centre = torch.tensor(rng.uniform(-0.1, 0.1, (1, 3)), dtype=torch.float32)
    c2w = look_at(position, centre, up_from_angles(azimuth, elevation))
    roll = float(np.deg2rad(rng.uniform(-7.0, 7.0)))
    turn = torch.eye(4)[None].clone()
    turn[:, :2, :2] = torch.tensor(
        [[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]], dtype=torch.float32
    )
    return Cameras(
        c2w=c2w @ turn,
        fovy=torch.tensor([fovy], dtype=torch.float32),
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        camera_distance=torch.tensor([distance], dtype=torch.float32),
        light_position=position,
        height=image_size,
        width=image_size,
    )


def write_subject_set(
    name: str, folder: Path, *, count: int = PHOTOS, image_size: int = 256, seed: int = 0
) -> list[Path]:
    """Write the photos as ``<name>-<k>.png`` and return the files; the truth stays back."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, photo in enumerate(subject_photos(name, count=count, image_size=image_size, seed=seed)):
        paths.append(folder / f"{name}-{k}.png")
        Image.fromarray(np.round(photo.rgb * 255).astype(np.uint8)).save(paths[-1])
    return paths


def true_mesh(name: str) -> Mesh:
    """The subject's shape, for geometry scores."""
    return _mesh(name).geometry()


def true_views(name: str, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Held-back views ``[b, h, w, 3]`` on white and masks ``[b, h, w]``, in the toybox's light."""
    return render_rgb(ObjectGeometry(_mesh(name)), cameras, background=np.ones(3))
