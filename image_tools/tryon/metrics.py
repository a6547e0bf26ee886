"""How well a picture shows a person in a garment, without any network.

    SSIM         as of Wang et al. 2004: windows of 11x11, sigma 1.5, over the valid part
    PSNR         of colours in 0..1
    colour       distance of the garment's mean colours
    patches      mean distance of patches around points of the garment in the picture and in the
                 product view, where exact correspondences are known (closed worlds), in the manner
                 of Magic Clothing's matched points (arXiv 2404.09512)
    outside      largest difference outside of what was painted anew
    stripes      period and direction of a pattern: the highest peak of its spectrum

All of them take [b, h, w, 3] in 0..1 and give one number for each row.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.errors import check_shape

__all__ = [
    "color_error",
    "outside_change",
    "patch_error",
    "psnr",
    "ssim",
    "stripe_frequency",
]

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
PATCH = 5


def ssim(
    images: Float[Tensor, "b h w 3"], targets: Float[Tensor, "b h w 3"]
) -> Float[Tensor, " b"]:
    """Structural similarity, 1 for equal pictures."""
    _check_pair(images, targets)
    x, y = images.movedim(-1, 1), targets.movedim(-1, 1)
    offsets = torch.arange(WINDOW, device=x.device).to(x) - WINDOW // 2
    line = torch.exp(-offsets.square() / (2.0 * SIGMA**2))
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(3, 1, -1, -1)

    def blurred(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=3)

    mean_x, mean_y = blurred(x), blurred(y)
    var_x = blurred(x * x) - mean_x.square()
    var_y = blurred(y * y) - mean_y.square()
    both = blurred(x * y) - mean_x * mean_y
    light = (2.0 * mean_x * mean_y + K1**2) / (mean_x.square() + mean_y.square() + K1**2)
    shape = (2.0 * both + K2**2) / (var_x + var_y + K2**2)
    return (light * shape).flatten(1).mean(dim=1)


def psnr(
    images: Float[Tensor, "b h w 3"],
    targets: Float[Tensor, "b h w 3"],
    mask: Float[Tensor, "b h w 1"] | None = None,
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB, inside the mask if there is one."""
    _check_pair(images, targets)
    return -10.0 * _mean((images - targets).square(), mask).clamp(min=1e-12).log10()


def color_error(
    images: Float[Tensor, "b h w 3"],
    mask: Float[Tensor, "b h w 1"],
    products: Float[Tensor, "b u v 3"],
    product_mask: Float[Tensor, "b u v 1"],
) -> Float[Tensor, " b"]:
    """Mean absolute difference of the mean colours of the garment in both pictures."""
    worn = (images * mask).flatten(1, 2).sum(1) / mask.flatten(1).sum(1, keepdim=True).clamp(min=1)
    count = product_mask.flatten(1).sum(1, keepdim=True).clamp(min=1)
    flat = (products * product_mask).flatten(1, 2).sum(1) / count
    return (worn - flat).abs().mean(dim=1)


def outside_change(
    images: Float[Tensor, "b h w 3"],
    person: Float[Tensor, "b h w 3"],
    mask: Float[Tensor, "b h w 1"],
) -> Float[Tensor, " b"]:
    """Largest difference to the person where nothing was to be painted; 0 after pasting back."""
    _check_pair(images, person)
    return ((images - person).abs() * (mask == 0.0)).flatten(1).amax(dim=1)


def patch_error(
    images: Float[Tensor, "b h w 3"],
    targets: Float[Tensor, "b h w 3"],
    places: Float[Tensor, "b h w 2"],
    products: Float[Tensor, "b u v 3"],
    *,
    stride: int = 4,
) -> Float[Tensor, " b"]:
    """Distance of what a picture shows of the garment to the product, beyond what is inevitable.

    Patches of the picture are compared with those of the product view at the places that belong to
    them in the true picture. Light and folds make even the true picture differ; that difference is
    taken off, so that it scores 0. A picture that shows the wrong print in the right shape scores
    high, whatever its colours are on average.

    Args:
        images: to be judged.
        targets: the true pictures.
        places: in the product view of each pixel of ``targets``, -1..1; nan where none.
        products: product views.
        stride: distance of the points that are looked at.
    """
    _check_pair(images, targets)
    seen = ~torch.isnan(places[..., 0])
    bent = F.grid_sample(
        products.movedim(-1, 1),
        torch.nan_to_num(places),
        padding_mode="border",
        align_corners=False,
    )
    weight = seen[:, None].to(images)
    errors = [_patches(picture, bent, weight) for picture in (images, targets)]
    points = torch.zeros_like(weight)
    points[:, :, stride // 2 :: stride, stride // 2 :: stride] = 1.0
    points = points * weight
    gap = ((errors[0] - errors[1]).clamp(min=0.0) * points).flatten(1).sum(dim=1)
    return gap / points.flatten(1).sum(dim=1).clamp(min=1.0)


def _patches(picture: Tensor, bent: Tensor, weight: Tensor) -> Float[Tensor, "b 1 h w"]:
    """Mean absolute difference around each pixel, over pixels of the garment."""
    apart = (picture.movedim(-1, 1) - bent).abs().mean(dim=1, keepdim=True) * weight
    sums = [F.avg_pool2d(x, PATCH, stride=1, padding=PATCH // 2) for x in (apart, weight)]
    return sums[0] / sums[1].clamp(min=1e-6)


def stripe_frequency(
    images: Float[Tensor, "b h w 3"], mask: Float[Tensor, "b h w 1"] | None = None
) -> Float[Tensor, "b 2"]:
    """Periods per picture down and across of the strongest pattern; 0, 0 for none.

    Signs are such that the first that is not 0 is positive.
    """
    grey = images.mean(dim=-1)
    weight = torch.ones_like(grey) if mask is None else mask[..., 0]
    mean = (grey * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)
    height, width = grey.shape[1:]
    window = torch.outer(*(torch.hann_window(n, device=grey.device) for n in (height, width)))
    signal = (grey - mean[:, None, None]) * weight * (window if mask is None else 1.0)
    power = torch.fft.rfft2(signal).abs()
    rows = torch.fft.fftfreq(height, d=1.0 / height, device=grey.device)
    # Slopes of light are no patterns.
    power[:, rows.abs() < 2.0, :2] = 0.0
    power[:, :, 0][:, rows < 0] = 0.0
    top, index = power.flatten(1).max(dim=1)
    row, column = index // power.shape[2], index % power.shape[2]
    found = torch.stack([rows[row], column.to(rows)], dim=1)
    return torch.where((top > 1e-3 * math.sqrt(height * width))[:, None], found, 0.0)


def _mean(values: Tensor, mask: Tensor | None) -> Float[Tensor, " b"]:
    if mask is None:
        return values.flatten(1).mean(dim=1)
    total = (values * mask).flatten(1).sum(dim=1)
    return total / (mask.expand_as(values).flatten(1).sum(dim=1)).clamp(min=1.0)


def _check_pair(images: Tensor, targets: Tensor) -> None:
    check_shape("images", images, "B H W 3")
    check_shape("targets", targets, " ".join(str(side) for side in images.shape))
