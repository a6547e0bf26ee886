"""Condition images: Canny's rules, and exact buffers in the form that ControlNets know."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from image_tools.control.annotators import (
    axis_depth,
    camera_normals,
    canny_edges,
    canny_image,
    depth_image,
    depth_of_render,
    line_image,
    normal_image,
    normals_of_render,
    palette,
    segmentation_image,
)
from image_tools.control.controlnet import check_condition_image
from renderers.cameras import orbit_cameras
from renderers.errors import ShapeError, StudioError
from renderers.outputs import RenderOutput
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry, render_buffers
from scenes.toybox.scene import SceneSpec, build_scene

SIZE = 48
RADIUS = 0.7


def _cameras(views: int = 3):
    return orbit_cameras(
        views, elevation_deg=25.0, distance=3.0, fovy_deg=40.0, height=SIZE, width=SIZE + 8
    )


@pytest.fixture(scope="module")
def sphere():
    """Cameras and the exact render of a ball at the origin, its normals turned inside out."""
    cameras = _cameras()
    rays_o, rays_d = cameras.rays()
    middle = -(rays_o * rays_d).sum(-1)
    miss = rays_o.square().sum(-1) - middle.square()
    hit = miss < RADIUS**2
    distance = torch.where(hit, middle - (RADIUS**2 - miss).clamp(min=0.0).sqrt(), 0.0)
    normal = torch.where(hit[..., None], (rays_o + distance[..., None] * rays_d) / RADIUS, 0.0)
    # Half seen through: depth is weighted with the opacity.
    opacity = 0.5 * hit.float()
    rgb = torch.zeros(*hit.shape, 3)
    output = RenderOutput(
        comp_rgb=rgb, opacity=opacity[..., None], depth=(opacity * distance)[..., None],
        comp_rgb_bg=rgb, normal=-normal,
    )  # fmt: skip
    return cameras, output, hit, normal


def _disk(size: int = 40, radius: float = 11.0) -> np.ndarray:
    row, col = np.mgrid[:size, :size] - (size - 1) / 2.0
    return np.repeat(255.0 * (np.hypot(row, col) < radius)[..., None], 3, -1)


def test_a_step_is_one_line():
    image = np.zeros((9, 12, 3))
    image[:, 6:] = 255.0
    edges = canny_edges(image, low=100.0, high=200.0)
    assert edges.any(0).sum() == 1
    assert edges.sum() == 9
    assert np.array_equal(canny_edges(image.swapaxes(0, 1), low=100.0, high=200.0), edges.T)


def test_a_disk_has_a_thin_closed_outline():
    from scipy import ndimage

    edges = canny_edges(_disk(), low=100.0, high=200.0)
    row, col = np.nonzero(edges)
    distance = np.hypot(row - 19.5, col - 19.5)
    assert np.abs(distance - 11.0).max() < 1.6
    _, outside = ndimage.label(~edges)
    assert outside == 2  # inside and outside do not touch through the line's sides
    assert edges.sum() < 1.3 * 2.0 * math.pi * 11.0


def test_edges_of_any_one_channel_count():
    image = np.zeros((8, 8, 3))
    image[:, 4:, 1] = 255.0
    image[4:, :, 2] = 20.0
    edges = canny_edges(image, low=100.0, high=200.0)
    alone = canny_edges(image[..., 1:2], low=100.0, high=200.0)
    assert np.array_equal(edges, alone)
    assert edges.sum() == 8


def test_weak_edges_stay_where_they_touch_strong_ones():
    """Sobel gives four times the step: 40 is weak, 160 strong, for thresholds 100 and 400."""
    image = np.zeros((20, 12, 3))
    image[:, 6:] = 40.0
    assert not canny_edges(image, low=100.0, high=400.0).any()
    image[10:, 6:] = 160.0
    edges = canny_edges(image, low=100.0, high=400.0)
    assert edges[:, 5:7].any(1)[[0, 5, 15, 19]].all()
    assert not canny_edges(image, low=200.0, high=400.0)[:8].any()


def test_flat_images_have_no_edges_and_images_stay_images():
    flat = torch.full((2, 8, 8, 3), 0.7)
    assert not canny_image(flat).any()
    disk = torch.from_numpy(_disk() / 255.0).float()[None]
    lines = canny_image(disk)
    assert lines.shape == disk.shape
    assert lines.dtype == torch.float32
    assert lines.unique().tolist() == [0.0, 1.0]
    check_condition_image(lines, "canny", 3)


def test_axis_depth_is_that_of_the_surface(sphere):
    """z of a point in camera axes, from distances along rays weighted with opacity."""
    cameras, output, hit, normal = sphere
    points = RADIUS * normal
    local = torch.einsum("bij,bhwj->bhwi", cameras.w2c()[:, :3, :3], points)
    expected = -(local + cameras.w2c()[:, None, None, :3, 3])[..., 2]
    depth = axis_depth(output, cameras)
    torch.testing.assert_close(depth[hit], expected[hit], atol=1e-4, rtol=0)
    assert (depth[~hit] == 0.0).all()


def test_near_is_bright_and_the_background_black(sphere):
    cameras, output, hit, _ = sphere
    image = depth_image(axis_depth(output, cameras), hit.float())
    check_condition_image(image, "depth", 3)
    assert (image[~hit] == 0.0).all()
    assert image[hit].min() == pytest.approx(0.2, abs=1e-5)
    row, col = SIZE // 2, SIZE // 2 + 4
    torch.testing.assert_close(image[:, row, col], torch.ones(3, 3), atol=5e-3, rtol=0)
    depth = axis_depth(output, cameras)[0][hit[0]]
    brightness = image[0][hit[0]][:, 0]
    assert (brightness[depth.argsort()].diff() <= 1e-6).all()
    # Inverse, not linear: the brightness is affine in 1 / depth.
    share = (1.0 / depth - 1.0 / depth.max()) / (1.0 / depth.min() - 1.0 / depth.max())
    torch.testing.assert_close(brightness, 0.2 + 0.8 * share, atol=1e-4, rtol=0)


def test_flat_and_empty_views_have_a_depth_image_and_gradients_are_finite():
    depth = torch.full((2, 4, 4), 2.0, requires_grad=True)
    mask = torch.zeros(2, 4, 4)
    mask[0, :2] = 1.0
    image = depth_image(depth, mask)
    assert (image[0, :2] == 1.0).all()
    assert not image[1].any()
    image.sum().backward()
    assert depth.grad.isfinite().all()


def test_depth_images_are_differentiable():
    generator = torch.Generator().manual_seed(0)
    depth = (2.0 + torch.rand(1, 3, 3, generator=generator)).double().requires_grad_()
    mask = torch.ones(1, 3, 3).double()
    mask[0, 0, 0] = 0.0
    assert torch.autograd.gradcheck(lambda d: depth_image(d, mask), (depth,))


def test_normals_face_the_viewer_in_camera_axes(sphere):
    """A ball's normals at its outline are across the view, in its middle towards the viewer."""
    cameras, output, hit, normal = sphere
    found = camera_normals(output.normal, cameras)
    expected = torch.einsum("bij,bhwj->bhwi", cameras.w2c()[:, :3, :3], normal)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    image = normal_image(found, hit.float())
    check_condition_image(image, "normal", 3)
    row, col = SIZE // 2, SIZE // 2 + 4
    middle = torch.tensor([0.5, 0.5, 1.0]).expand(3, 3)
    torch.testing.assert_close(image[:, row, col], middle, atol=0.03, rtol=0)
    assert torch.equal(image[~hit], torch.tensor([0.5, 0.5, 1.0]).expand((~hit).sum(), 3))
    rows, cols = hit[0].nonzero().unbind(1)
    assert image[0, rows[0], cols[0], 1] > 0.8  # top: +y up
    assert image[0, row, cols.max(), 0] > 0.8  # right: +x right
    assert image[0, row, cols.min(), 0] < 0.2


def test_conditions_of_renders_cover_as_much_as_the_render(sphere):
    cameras, output, hit, _ = sphere
    depth = depth_of_render(output, cameras)
    full = depth_image(axis_depth(output, cameras), hit.float())
    torch.testing.assert_close(depth, 0.5 * full)
    normals = normals_of_render(output, cameras)
    whole = normal_image(camera_normals(output.normal, cameras), hit.float())
    background = torch.tensor([0.5, 0.5, 1.0])
    torch.testing.assert_close(normals, 0.5 * whole + 0.5 * background)


def test_buffers_of_the_toybox_make_conditions():
    """The same functions on exact buffers: depth along the axis, normals of the camera, ids."""
    spec = SceneSpec((ObjectSpec("duck", "red"), ObjectSpec("house", "blue")), ("left of",))
    cameras = orbit_cameras(2, elevation_deg=15.0, distance=4.0, fovy_deg=40.0, height=32, width=32)
    buffers = render_buffers(ToyGeometry(build_scene(spec)), cameras, background=np.ones(3))
    ids, seen = torch.from_numpy(buffers.instance), torch.from_numpy(buffers.instance > 0)
    conditions = {
        "depth": depth_image(torch.from_numpy(buffers.depth), seen.float()),
        "normal": normal_image(torch.from_numpy(buffers.normal), seen.float()),
        "seg": segmentation_image(ids),
        "edge": line_image(torch.from_numpy(buffers.edges)),
        "canny": canny_image(torch.from_numpy(buffers.rgb)),
    }
    for name, image in conditions.items():
        check_condition_image(image, name, 3)
        assert image.shape == (2, 32, 32, 3)
    assert (conditions["normal"][..., 2] >= 0.5).all()
    assert len(conditions["seg"].reshape(-1, 3).unique(dim=0)) == 3


def test_regions_have_one_colour_each():
    ids = torch.tensor([[[0, 1], [2, 1]]])
    image = segmentation_image(ids)
    assert torch.equal(image[0, 0, 0], torch.zeros(3))
    assert torch.equal(image[0, 0, 1], image[0, 1, 1])
    assert torch.equal(image[0, 1, 0], palette(2)[1])
    own = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(segmentation_image(ids, own)[0, 0, 1], own[0])
    colors = palette(24)
    assert torch.equal(colors[:5], palette(5))
    distances = torch.cdist(colors, colors) + 9.0 * torch.eye(24)
    assert distances.min() > 0.05
    assert torch.cdist(colors, torch.zeros(1, 3)).min() > 0.4


@pytest.mark.wrong_shapes
def test_wrong_inputs_are_refused(sphere):
    cameras, output, _, _ = sphere
    with pytest.raises(StudioError, match="low 200, high 100 - expected"):
        canny_edges(np.zeros((4, 4, 3)), low=200, high=100)
    with pytest.raises(ShapeError, match="images has shape"):
        canny_image(torch.zeros(4, 4, 3))
    with pytest.raises(ShapeError, match=r"mask has shape \(1, 2, 2\), depth \(1, 4, 4\)"):
        depth_image(torch.ones(1, 4, 4), torch.ones(1, 2, 2))
    with pytest.raises(StudioError, match="depth is -1 where the mask covers it"):
        depth_image(-torch.ones(1, 4, 4), torch.ones(1, 4, 4))
    with pytest.raises(ShapeError, match=r"mask has shape \(1, 2, 2\), normals"):
        normal_image(torch.ones(1, 4, 4, 3), torch.ones(1, 2, 2))
    with pytest.raises(StudioError, match="ids go from -1 to 1 - expected 0 to 1"):
        segmentation_image(torch.tensor([[[-1, 1]]]))
    with pytest.raises(StudioError, match="ids go from 0 to 3 - expected 0 to 2"):
        segmentation_image(torch.tensor([[[0, 3]]]), torch.zeros(2, 3))
    bare = RenderOutput(output.comp_rgb, output.opacity, output.depth, output.comp_rgb_bg)
    with pytest.raises(StudioError, match="render has no normals"):
        normals_of_render(bare, cameras)
