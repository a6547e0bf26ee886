"""The shipped face analyser on a real portrait, and its parts in closed form.

``portrait.jpg`` is a detail of Hans Holbein's "Anne of Cleves" of about 1539 (public domain).
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from image_tools.vision.face_crops import Frame, cut, frame_around, windows
from image_tools.vision.face_detection import (
    Detections,
    anchor_centers,
    blend_overlapping,
    box_overlap,
    decode_detections,
)
from image_tools.vision.faces import Face, FaceNotFound, load_face_image, main_face
from image_tools.vision.mesh_faces import MeshFaceAnalyzer
from renderers.errors import ShapeError

PORTRAIT = Path(__file__).parent / "portrait.jpg"
SIZE = 200
# Where a person sees them: eyes, nose, corners of the mouth.
SEEN = [(73.5, 92.0), (127.0, 91.0), (102.0, 127.0), (83.0, 145.0), (121.0, 145.0)]


@pytest.fixture(scope="module")
def analyzer():
    return MeshFaceAnalyzer()


@pytest.fixture(scope="module")
def portrait():
    return load_face_image(PORTRAIT, size=SIZE)


@pytest.fixture(scope="module")
def face(analyzer, portrait):
    return main_face(analyzer, portrait, name="portrait.jpg")


def resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    pixels = image.movedim(-1, 0)[None]
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].movedim(0, -1)


def likeness(first: Face, second: Face) -> float:
    return float(first.normed @ second.normed)


def test_landmarks_lie_where_a_person_sees_them(face):
    assert (face.kps - torch.tensor(SEEN)).norm(dim=1).max() < 4.0
    left, top, right, bottom = face.bbox.tolist()
    assert left < SEEN[0][0] - 10 < SEEN[1][0] + 10 < right
    assert top < SEEN[0][1] - 10 < SEEN[4][1] + 10 < bottom
    assert face.score > 0.8
    assert face.embedding.shape == (MeshFaceAnalyzer.width,)
    assert float(face.normed.norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(face.embedding.norm()) > 2.0


@pytest.mark.parametrize("change", ["mirrored", "brighter", "larger"])
def test_the_same_person_stays_herself(analyzer, portrait, face, change):
    changed = {
        "mirrored": lambda: portrait.flip(1),
        "brighter": lambda: (1.3 * portrait + 0.05).clamp(0.0, 1.0),
        "larger": lambda: resized(portrait, 500, 500),
    }[change]()
    found = main_face(analyzer, changed, name=change)
    assert likeness(face, found) > 0.8
    if change == "mirrored":
        mirrored = face.kps[[1, 0, 2, 4, 3]] * torch.tensor([-1.0, 1.0]) + torch.tensor([SIZE, 0])
        assert (found.kps - mirrored).norm(dim=1).max() < 5.0
    if change == "larger":
        assert (found.kps / 2.5 - face.kps).norm(dim=1).max() < 4.0


def test_a_face_that_fills_the_picture_is_found_in_a_larger_one(analyzer, portrait, face):
    left, top, right, bottom = (int(side) for side in face.bbox)
    tight = resized(portrait[top + 4 : bottom - 4, left + 4 : right - 4], 320, 240)
    found = main_face(analyzer, tight, name="tight")
    scale = torch.tensor([240 / (right - left - 8), 320 / (bottom - top - 8)])
    wanted = (face.kps - torch.tensor([left + 4.0, top + 4.0])) * scale
    assert (found.kps - wanted).norm(dim=1).max() < 24.0


def test_turned_faces_have_turned_landmarks(analyzer, portrait, face):
    turned = cut(portrait, Frame(100.0, 100.0, 200.0, math.radians(25.0)), size=SIZE)
    found = main_face(analyzer, turned, name="turned")
    back = Frame(100.0, 100.0, 200.0, math.radians(25.0)).to_picture(found.kps / SIZE)
    assert (back - face.kps).norm(dim=1).max() < 5.0
    assert likeness(face, found) > 0.8


def test_of_several_faces_the_largest_is_taken_and_the_others_are_told(analyzer, portrait, caplog):
    picture = torch.full((SIZE, 2 * SIZE, 3), 0.1)
    picture[40:160, 20:140] = resized(portrait, 120, 120)
    picture[:, SIZE:] = portrait
    with caplog.at_level(logging.WARNING):
        found = main_face(analyzer, picture, name="pair.png")
    assert found.kps[:, 0].min() > SIZE
    assert "There are 2 faces in 'pair.png'; the largest one is used" in caplog.text


def test_a_picture_without_a_face_is_refused(analyzer):
    generator = torch.Generator().manual_seed(0)
    hills = resized(torch.rand(5, 5, 3, generator=generator), 60, 90)
    assert analyzer.faces(hills) == []
    with pytest.raises(FaceNotFound, match=r"No face was found in 'hills.png' \(90x60 pixels\)"):
        main_face(analyzer, hills, name="hills.png")


@pytest.mark.wrong_shapes
def test_what_is_no_picture_is_refused(analyzer):
    with pytest.raises(ShapeError, match=r"image has shape \(1, 20, 20, 3\)"):
        analyzer.faces(torch.zeros(1, 20, 20, 3))


def test_anchors_are_the_middles_of_their_cells():
    centers = anchor_centers()
    assert centers.shape == (896, 2)
    assert centers[0].tolist() == centers[1].tolist() == [1 / 32, 1 / 32]
    assert centers[2].tolist() == [3 / 32, 1 / 32]
    assert centers[512].tolist() == centers[517].tolist() == [1 / 16, 1 / 16]
    assert centers[-1].tolist() == [15 / 16, 15 / 16]


def test_a_box_is_measured_from_its_anchor():
    raw = torch.zeros(896, 17)
    raw[:, 0] = -50.0
    raw[2, :7] = torch.tensor([2.0, 12.8, 0.0, 25.6, 51.2, -12.8, 6.4])
    found = decode_detections(raw, min_score=0.5)
    assert len(found) == 1
    middle = torch.tensor([3 / 32 + 0.1, 1 / 32])
    half = torch.tensor([0.1, 0.2])
    torch.testing.assert_close(found.boxes[0], torch.cat([middle - half, middle + half]))
    torch.testing.assert_close(found.points[0, 0], torch.tensor([3 / 32 - 0.1, 1 / 32 + 0.05]))
    assert float(found.scores[0]) == pytest.approx(1 / (1 + math.exp(-2.0)))


def test_overlapping_boxes_are_blended_by_their_scores():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.8], [2.0, 2.0, 3.0, 3.0]])
    scores = torch.tensor([0.6, 0.9, 0.7])
    found = blend_overlapping(Detections(scores, boxes, torch.zeros(3, 6, 2)))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7]))
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.0, 0.0, 1.0, 0.88]))
    torch.testing.assert_close(found.boxes[1], boxes[2])
    assert box_overlap(boxes[0], boxes).tolist() == pytest.approx([1.0, 0.8, 0.0])


def test_a_frame_takes_points_to_the_picture_and_what_is_cut_is_there():
    frame = Frame(30.0, 20.0, 10.0, math.pi / 2.0)
    corners = frame.to_picture(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))
    torch.testing.assert_close(corners, torch.tensor([[35.0, 15.0], [35.0, 25.0], [30.0, 20.0]]))
    x = torch.arange(64.0)[None, :, None].expand(48, 64, 3) / 64.0
    straight = cut(x, Frame(32.0, 24.0, 16.0), size=16)
    torch.testing.assert_close(straight, x[16:32, 24:40])
    # Turned by a quarter, columns become rows; what lies outside repeats the border.
    turned = cut(x, Frame(32.0, 24.0, 16.0, math.pi / 2.0), size=16)
    torch.testing.assert_close(turned, x[16:32, 24:40].transpose(0, 1).flip(0), atol=1e-5, rtol=0)
    assert float(cut(x, Frame(0.0, 24.0, 16.0), size=16)[:, :8].max()) == 0.0


def test_large_frames_are_reduced_before_they_are_cut():
    stripes = (torch.arange(400) % 2).float()[None, :, None].expand(400, 400, 3)
    small = cut(stripes, Frame(200.0, 200.0, 400.0), size=50)
    assert float((small - 0.5).abs().max()) < 0.13


def test_frames_around_points_level_the_eyes():
    eyes = torch.tensor([[10.0, 10.0], [20.0, 20.0]])
    points = torch.tensor([[10.0, 10.0], [20.0, 20.0], [15.0, 15.0]])
    frame = frame_around(points, eyes=eyes, scale=2.0)
    assert (frame.x, frame.y) == pytest.approx((15.0, 15.0))
    assert frame.angle == pytest.approx(math.pi / 4.0)
    assert frame.side == pytest.approx(2.0 * math.hypot(10.0, 10.0))


def test_windows_go_from_the_whole_to_more_and_to_parts_that_cover_everything():
    tries = windows(300, 500)
    assert [round(frames[0].side) for frames in tries] == [500, 750, 1100, 300, 200]
    for frames in tries[3:]:
        seen = torch.zeros(300, 500, dtype=torch.bool)
        for frame in frames:
            half = frame.side / 2.0
            rows = slice(max(0, int(frame.y - half)), int(frame.y + half))
            seen[rows, max(0, int(frame.x - half)) : int(frame.x + half)] = True
        assert seen.all()
