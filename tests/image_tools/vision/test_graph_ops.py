"""TensorFlow's padding and resizing, against small cases worked out by hand."""

from __future__ import annotations

import pytest
import torch

from image_tools.vision.graph_ops import convolution, max_pool, pad_same, resize_bilinear


def _row(*values: float) -> torch.Tensor:
    """A picture of one row and one channel."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "before", "after"),
    [(5, 3, 1, 1, 1), (5, 3, 2, 1, 1), (4, 3, 2, 0, 1), (4, 2, 2, 0, 0), (7, 5, 2, 2, 2),
     (6, 5, 2, 1, 2), (4, 1, 2, 0, 0)],
)  # fmt: skip
def test_same_padding_puts_the_odd_pixel_behind(length, kernel, stride, before, after):
    padded = pad_same(torch.ones(1, 1, 1, length), (1, kernel), stride)
    assert padded.flatten().tolist() == [0.0] * before + [1.0] * length + [0.0] * after


def test_a_strided_convolution_by_hand():
    """Length 4, kernel (1, 10, 100), stride 2: windows begin at 0 and 2, one zero behind."""
    weight = torch.tensor([1.0, 10.0, 100.0]).reshape(1, 1, 1, 3)
    result = convolution(
        _row(1, 2, 3, 4), weight, torch.tensor([0.5]), stride=2, padding="same", groups=1
    )
    assert result.flatten().tolist() == [321.5, 43.5]


def test_depthwise_kernels_stay_with_their_channel():
    weight = torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1)
    images = torch.tensor([1.0, 10.0]).reshape(1, 1, 1, 2)
    result = convolution(images, weight, None, stride=1, padding="valid", groups=2)
    assert result.flatten().tolist() == [2.0, 30.0]


def test_padding_never_wins_a_pool():
    pooled = max_pool(_row(-3, -2, -1), size=2, stride=2, padding="same")
    assert pooled.flatten().tolist() == [-2.0, -1.0]
    assert max_pool(torch.ones(1, 3, 3, 1), size=2, stride=2, padding="valid").shape[1:3] == (1, 1)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("legacy", [0.0, 0.5, 1.0, 1.0]),
        ("half_pixel", [0.0, 0.25, 0.75, 1.0]),
        ("align_corners", [0.0, 1 / 3, 2 / 3, 1.0]),
    ],
)
def test_resizing_looks_where_its_rule_says(rule, expected):
    result = resize_bilinear(_row(0, 1), (1, 4), rule)
    torch.testing.assert_close(result.flatten(), torch.tensor(expected))


def test_legacy_resizing_in_two_directions():
    """3 x 2 to 2 x 4: rows at 0 and 1.5, columns at 0, 0.5, 1 and (cut off) 1.5."""
    images = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])[None, ..., None]
    result = resize_bilinear(images, (2, 4), "legacy")[0, ..., 0]
    assert result.tolist() == [[0.0, 0.5, 1.0, 1.0], [3.0, 3.5, 4.0, 4.0]]
