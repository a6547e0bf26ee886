"""Pseudo views: the object of a stage from all sides, redrawn by the trained subject.

Renders are taken before the background that evaluation has, or each before a plain colour that the
object lacks there; as 8-bit images, so that a run that is killed here goes on with the same
numbers. Each view draws noise of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from guidance.configs import (
    DirectionalPromptsConfig,
    PerpNegPromptsConfig,
    PlainPromptsConfig,
    RelationPromptsConfig,
    ViewPromptsConfig,
)
from guidance.control_sds import condition_image, scene_controls
from guidance.control_sds_configs import MADE_OF_NORMALS, ConditionView
from guidance.perp_neg import PerpNegCondition
from guidance.prompts import ViewCondition, build_view_prompts, view_texts
from guidance.views import direction_index, sided_row
from image_tools.control.controlnet import ControlledPrior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.redraw import redraw_images, redraw_steps
from image_tools.personalization.class_images import read_image, write_image
from image_tools.personalization.loop import batch_generator
from image_tools.personalization.photo_cutouts import far_color, on_plain
from image_tools.vision.cutout_configs import CutoutConfig
from renderers.cameras import Cameras, orbit_cameras
from renderers.configs import CamerasConfig
from renderers.materials import ALBEDO
from renderers.outputs import RenderOutput
from studio.configs import SceneConfig
from studio.previews import preview_cameras
from studio.run_folder import write_atomic
from studio.scene_parts import SceneRenderer
from studio.subject.configs import ConsistencySubjectConfig, PseudoViewsConfig
from studio.subject.folder import SubjectFolder, image_path, read_images, write_images

__all__ = [
    "PseudoViews",
    "captions_of",
    "read_views",
    "redraw_views",
    "redrawing_rows",
    "render_views",
    "view_cameras",
    "widened",
]

AT_ONCE = 4
# Numbers of the generators of views; far from those of class images and batches.
DRAW = 1 << 43


@dataclass(frozen=True)
class PseudoViews:
    """Redrawn views with their cameras."""

    images: Float[Tensor, "n h w 3"]
    masks: Float[Tensor, "n h w 1"]
    """Opacity of the renders that they were made from."""
    cameras: Cameras
    grounds: Float[Tensor, "n 3"] | None = None
    """Plain colour around the object in each, where the grounds are known."""


def view_cameras(config: PseudoViewsConfig, cameras: CamerasConfig, *, size: int) -> Cameras:
    """Cameras evenly around the object at the middle of a stage's distances, front first."""
    typical = preview_cameras(cameras, size)
    rings = [
        orbit_cameras(
            config.count,
            elevation_deg=elevation,
            distance=float(typical.camera_distance[0]),
            fovy_deg=math.degrees(float(typical.fovy[0])),
            height=size,
            width=size,
        )
        for elevation in config.elevations_deg
    ]
    views = [rings[k % len(rings)][k] for k in range(config.count)]
    parts = {
        entry.name: torch.cat([getattr(view, entry.name) for view in views])
        for entry in fields(Cameras)
        if isinstance(getattr(views[0], entry.name), Tensor)
    }
    return replace(views[0], **parts)


@torch.no_grad()
def render_views(
    renderer: SceneRenderer,
    cameras: Cameras,
    folder: SubjectFolder,
    *,
    sees: Sequence[ConditionView] = (),
    cutout: CutoutConfig | None = None,
) -> None:
    """Write the renders and the opacity of all views, and what controls see of them.

    Grounds are those of evaluation, or colours where the views will be cut out onto colours.
    """
    device = next(renderer.parameters()).device
    renders, masks = [], []
    seen: dict[ConditionView, list[Tensor]] = {kind: [] for kind in sees}
    rng = np.random.default_rng(0 if cutout is None else cutout.seed)
    wants_normals = bool(MADE_OF_NORMALS & set(sees))
    for start in range(0, len(cameras), AT_ONCE):
        views = cameras[slice(start, start + AT_ONCE)].to(device)
        output = renderer.render(views, shading=ALBEDO, with_normals=wants_normals)
        if cutout is not None and cutout.ground == "colors":
            output = output.over(_far_grounds(output, rng))
        renders.append(output.comp_rgb.cpu())
        masks.append(output.opacity.expand_as(output.comp_rgb).cpu())
        for kind, images in seen.items():
            images.append(condition_image(kind, output, views, size=views.height).cpu())
    for kind, images in seen.items():
        write_images(folder.views(kind), torch.cat(images))
    write_images(folder.views("masks"), torch.cat(masks))
    write_images(folder.views("renders"), torch.cat(renders))  # last: they say that all is there


def _far_grounds(output: RenderOutput, rng: np.random.Generator) -> Float[Tensor, "b 1 1 3"]:
    """A colour for each view that the object does not show there."""
    colors = [
        far_color(image, mask[..., 0], rng)
        for image, mask in zip(output.comp_rgb, output.opacity, strict=True)
    ]
    return torch.stack(colors)[:, None, None]


def redraw_views(
    scene: SceneConfig,
    prior: DiffusionPrior,
    cameras: Cameras,
    folder: SubjectFolder,
    *,
    should_stop: Callable[[], bool],
) -> bool:
    """Redraw the renders that are not redrawn yet; False if it was asked to stop.

    Args:
        scene: its prompts by view, seed and settings.
        prior: with the subject's weights.
        cameras: of the renders.
        folder: holds the renders, gets the views.
        should_stop: asked between views.
    """
    target = folder.views("pseudo")
    target.mkdir(parents=True, exist_ok=True)
    prompts = build_view_prompts(scene.view_prompts, prior, scene.prompt, scene.negative_prompt)
    controls = scene.subject.views.controls
    if controls:
        prior = ControlledPrior(prior, scene_controls(controls, prior))
    for start in range(0, len(cameras), AT_ONCE):
        chosen = range(start, min(start + AT_ONCE, len(cameras)))
        # Whole groups again, because the neighbours in a batch may change a result's last bits.
        if all(image_path(target, index).exists() for index in chosen):
            continue
        if should_stop():
            return False
        condition = prompts.at(cameras[list(chosen)])
        images = _redrawn(scene, prior, condition, chosen, folder)
        for index, image in zip(chosen, images, strict=True):
            write_image(image_path(target, index), image)
    _record(scene, cameras, folder)
    return True


def _redrawn(
    scene: SceneConfig,
    prior: DiffusionPrior | ControlledPrior,
    condition: ViewCondition | PerpNegCondition,
    chosen: range,
    folder: SubjectFolder,
) -> Float[Tensor, "n h w 3"]:
    """Some renders, redrawn together."""
    config = scene.subject.views
    sampler = config.sampler
    if isinstance(prior, ControlledPrior):
        prior.show([_images(folder, control.sees, chosen) for control in config.controls])

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        return condition.guided_noise(
            prior, z_t, t, sampler.guidance_scale, rescale=sampler.guidance_rescale
        )

    return redraw_images(
        prior,
        _images(folder, "renders", chosen),
        guided,
        strength=config.strength,
        generators=[batch_generator(scene.seed, DRAW + index) for index in chosen],
        config=sampler,
    )


def _images(folder: SubjectFolder, kind: str, chosen: range) -> Float[Tensor, "n h w 3"]:
    """Some renders, or what a control sees of them."""
    return torch.stack([read_image(image_path(folder.views(kind), index)) for index in chosen])


def redrawing_rows(scene: SceneConfig, prior: DiffusionPrior) -> int:
    """Rows that redrawing all views sends through the denoiser."""
    config = scene.subject.views
    steps = redraw_steps(prior, strength=config.strength, steps=config.sampler.steps)
    return config.count * len(steps) * _rows_of_a_prediction(scene)


def _rows_of_a_prediction(scene: SceneConfig) -> int:
    """Rows of one guided prediction."""
    config = scene.subject.views
    if isinstance(scene.view_prompts, PerpNegPromptsConfig):
        return 4  # without prompt, with it, and two negatives
    if isinstance(config.subject, ConsistencySubjectConfig):
        return 3
    return 1 if config.sampler.guidance_scale == 1.0 else 2


def captions_of(prompts: ViewPromptsConfig, caption: str, cameras: Cameras) -> tuple[str, ...]:
    """A caption with the words of each view behind it."""
    if isinstance(prompts, RelationPromptsConfig):
        prompts = prompts.objects
    if isinstance(prompts, PlainPromptsConfig):
        return (caption,) * len(cameras)
    is_directional = isinstance(prompts, DirectionalPromptsConfig)
    limits = prompts if is_directional else DirectionalPromptsConfig()
    rows = direction_index(cameras.azimuth_deg, cameras.elevation_deg, limits)
    rows = sided_row(rows, cameras.azimuth_deg)
    texts = view_texts(prompts.words, caption)
    return tuple(texts[row] for row in rows.tolist())


def read_views(
    folder: SubjectFolder, cameras: Cameras, cutout: CutoutConfig | None = None
) -> PseudoViews:
    """The views of a run, on plain grounds if they are cut out."""
    masks, images = read_images(folder.views("masks"))[..., :1], read_images(folder.views("pseudo"))
    if cutout is None:
        return PseudoViews(images, masks, cameras)
    plain = on_plain(images, torch.ones(images.shape[:3]), cutout, size=images.shape[1])
    return PseudoViews(plain.images, masks, cameras, plain.grounds)


def widened(masks: Float[Tensor, "n h w 1"], margin: float) -> Float[Tensor, "n h w 1"]:
    """Masks with a border of ``margin`` times their size, 1 inside and 0 outside."""
    inside = (masks > 0.5).to(masks).movedim(-1, 1)
    reach = round(margin * masks.shape[1])
    grown = F.max_pool2d(inside, 2 * reach + 1, stride=1, padding=reach)
    return grown.movedim(1, -1)


def _record(scene: SceneConfig, cameras: Cameras, folder: SubjectFolder) -> None:
    """Write down from where each view is seen and what it was drawn from."""
    prompts = captions_of(scene.view_prompts, scene.prompt, cameras)
    rows = [
        {
            "image": image_path(folder.views("pseudo"), index).name,
            "prompt": prompts[index],
            "azimuth_deg": round(float(cameras.azimuth_deg[index]), 3),
            "elevation_deg": round(float(cameras.elevation_deg[index]), 3),
            "distance": round(float(cameras.camera_distance[index]), 6),
            "fovy_deg": round(math.degrees(float(cameras.fovy[index])), 3),
        }
        for index in range(len(cameras))
    ]
    write_atomic(folder.views_record, json.dumps(rows, indent=2) + "\n")
