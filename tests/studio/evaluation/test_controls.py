"""Measures of control: silhouettes, edges and colours with a known answer, and a whole report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.pocket.paths import POCKET_FOLDER
from studio.evaluation.controls import (
    ControlCases,
    ControlEvalConfig,
    color_transfer,
    edge_f1,
    evaluate_controls,
    silhouette_iou,
)
from studio.evaluation.judge import load_judge

CONFIG = ControlEvalConfig(samples=3, steps=1, batch_size=2)


def square(left: int, size: int = 64) -> tuple[torch.Tensor, np.ndarray]:
    """A red square of 16 pixels on white, and its mask."""
    mask = np.zeros((size, size), dtype=bool)
    mask[20:36, left : left + 16] = True
    image = torch.ones(size, size, 3)
    image[torch.from_numpy(mask)] = torch.tensor([0.85, 0.1, 0.1])
    return image, mask


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside the background."""
    inner = mask[1:-1, :-2] & mask[1:-1, 2:] & mask[:-2, 1:-1] & mask[2:, 1:-1]
    return mask & ~np.pad(inner, 1)


def test_silhouettes_overlap_by_area() -> None:
    image, _ = square(20)
    masks = np.stack([square(left)[1] for left in (20, 28, 40)])
    expected = [1.0, (16 * 8) / (16 * 24), 0.0]
    assert silhouette_iou(image.expand(3, -1, -1, -1), masks) == pytest.approx(expected)


def test_nothing_seen_and_nothing_there_is_no_overlap() -> None:
    blank = torch.ones(1, 8, 8, 3)
    assert silhouette_iou(blank, np.zeros((1, 8, 8), dtype=bool)) == [0.0]


def test_edges_one_pixel_apart_agree_and_others_do_not() -> None:
    image, _ = square(20)
    edges = np.stack([outline(square(left)[1]) for left in (20, 21, 40)])
    exact, near, far = edge_f1(image.expand(3, -1, -1, -1), edges)
    assert exact == 1.0
    assert near > 0.7
    assert far < 0.1
    assert edge_f1(torch.ones(1, 64, 64, 3), edges[:1]) == [0.0]


@pytest.fixture(scope="module")
def prior():
    return load_folder(POCKET_FOLDER, torch.device("cpu"))


@pytest.fixture(scope="module")
def cases() -> ControlCases:
    """Three squares."""
    images, masks = zip(*(square(left) for left in (10, 20, 30)), strict=True)
    return ControlCases(
        prompts=("a red mug", "a blue mug", "a red duck"),
        masks=np.stack(masks),
        edges=np.stack([outline(mask) for mask in masks]),
        labels=np.array([[26, 0], [26, 2], [0, 0]]),
        renders=torch.stack(images),
    )


def test_a_control_that_does_nothing_gains_nothing(prior, cases) -> None:
    """Every control, and none, starts from the same noise."""
    asked = []

    def idle(rows: slice):
        asked.append((rows.start, rows.stop))
        return prior

    report = evaluate_controls(prior, {"idle": idle}, load_judge(), cases, CONFIG)
    assert asked == [(0, 2), (2, 3)]
    assert torch.equal(report.images["idle"], report.images["plain"])
    told = report.as_dict()["figures"]
    for figure in ("silhouette", "edge_f1", "kind", "color"):
        assert told[f"idle_{figure}"] == told[f"plain_{figure}"]
    assert told["idle_gain"] == {"value": 0.0, "low": None, "high": None, "n": 3}


def test_the_true_images_reach_the_top_of_the_measures(prior, cases) -> None:
    figures = evaluate_controls(prior, {}, load_judge(), cases, CONFIG).figures
    assert figures["true_silhouette"].value == 1.0
    assert figures["true_edge_f1"].value == 1.0
    kinds = figures["true_kind"]
    assert kinds.low <= kinds.value <= kinds.high


def test_a_report_is_plain_json_values(prior, cases) -> None:
    told = evaluate_controls(prior, {}, load_judge(), cases, CONFIG).as_dict()
    assert told["config"]["steps"] == 1
    assert set(told["figures"]["plain_kind"]) == {"value", "low", "high", "n"}


def test_colour_transfer_counts_the_colour_that_is_wanted(prior, cases) -> None:
    judge = load_judge()
    drawn = evaluate_controls(prior, {}, judge, cases, CONFIG).images["plain"]
    seen = judge(drawn).color.argmax(1).numpy()
    for wanted, share in ((seen, 1.0), ((seen + 1) % 10, 0.0)):
        assert color_transfer(lambda _: prior, judge, cases, wanted, CONFIG).value == share
