"""Perp-Neg: projection, published weights, and batches equal to their rows."""

from __future__ import annotations

import math

import pytest
import torch

from guidance.configs import PerpNegPromptsConfig
from guidance.perp_neg import perp_neg_combination, perp_neg_mix, perpendicular
from guidance.prompts import build_view_prompts
from guidance.views import VIEWS
from image_tools.diffusion.loading import load_folder
from tests.guidance.test_prompts import _angles
from tests.tiny_models import PIPELINE_KINDS

CONFIG = PerpNegPromptsConfig()
SIDE, FRONT, BACK, OVERHEAD = range(4)


def _mix(azimuth: float, elevation: float = 0.0):
    return perp_neg_mix(torch.tensor([azimuth]), torch.tensor([elevation]), CONFIG)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("azimuth", "positive", "negatives", "weights"),
    [
        # Weights from the published decays by hand: f(a, b, c; r) = a exp(-b r) + c.
        (0.0, (FRONT, SIDE, 1.0), [FRONT, SIDE],
         [-(4 * math.exp(-0.5) - 2.426), -(4 - 2.426)]),
        (45.0, (FRONT, SIDE, 0.5), [FRONT, SIDE],
         [-(4 * math.exp(-0.25) - 2.426), -(4 * math.exp(-0.25) - 2.426)]),
        (90.0, (SIDE, BACK, 1.0), [SIDE, FRONT],
         [-(math.exp(-0.5) - 0.606), -(math.exp(-0.5) + 0.967)]),
        (135.0, (SIDE, BACK, 0.5), [SIDE, FRONT],
         [-(math.exp(-0.25) - 0.606), -(math.exp(-0.25) + 0.967)]),
        (180.0, (SIDE, BACK, 0.0), [SIDE, FRONT],
         [-(1 - 0.606), -(1 + 0.967)]),
    ],
)  # fmt: skip
def test_prompts_and_weights_are_the_published_ones(azimuth, positive, negatives, weights, sign):
    mix = _mix(sign * azimuth)
    assert (int(mix.near), int(mix.far)) == positive[:2]
    assert float(mix.closeness) == pytest.approx(positive[2])
    assert mix.negatives.tolist() == [negatives]
    torch.testing.assert_close(mix.weights, torch.tensor([weights]), atol=1e-6, rtol=1e-5)


def test_a_pure_view_is_hardly_its_own_negative():
    assert abs(float(_mix(0.0).weights[0, 0])) < 1e-3
    assert abs(float(_mix(90.0).weights[0, 0])) < 1e-3


def test_overhead_has_no_negatives():
    mix = _mix(30.0, 61.0)
    assert (int(mix.near), int(mix.far)) == (OVERHEAD, OVERHEAD)
    assert mix.weights.abs().sum() == 0
    assert _mix(30.0, 60.0).weights.abs().sum() > 0


def test_perpendicular_part_is_orthogonal_and_complete(generator):
    delta = torch.randn(3, 2, 4, 5, 5, generator=generator, dtype=torch.float64)
    onto = torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64)
    part = perpendicular(delta, onto)
    dots = (part.flatten(2) * onto.flatten(1)[:, None]).sum(dim=2)
    torch.testing.assert_close(dots, torch.zeros_like(dots), atol=1e-12, rtol=0)
    rest = delta - part
    ratio = rest.flatten(2) / onto.flatten(1)[:, None]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), atol=1e-8, rtol=1e-8)


def test_zero_direction_projects_nothing_and_gives_no_nan(generator):
    delta = torch.randn(1, 2, 3, generator=generator)
    assert torch.equal(perpendicular(delta, torch.zeros(1, 3)), delta)


def test_a_negative_along_the_prompt_has_no_effect(generator):
    uncond, positive = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    negatives = (uncond + 2.5 * (positive - uncond))[:, None]
    guided = perp_neg_combination(uncond, positive, negatives, -torch.ones(2, 1), 7.0)
    torch.testing.assert_close(guided, uncond + 7.0 * (positive - uncond))


def test_combination_equals_the_formula_written_out(generator):
    u, p, n1, n2 = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    e = [n - u - torch.dot(n - u, p - u) / torch.dot(p - u, p - u) * (p - u) for n in (n1, n2)]
    expected = u + 5.0 * (p - u - 0.3 * e[0] - 1.2 * e[1])
    guided = perp_neg_combination(
        u[None], p[None], torch.stack([n1, n2])[None], torch.tensor([[-0.3, -1.2]]), 5.0
    )
    torch.testing.assert_close(guided[0], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_batch_of_three_equals_its_rows(tiny_pipelines, kind, rescale):
    prior = load_folder(tiny_pipelines[kind], torch.device("cpu"))
    prompts = build_view_prompts(CONFIG, prior, "red duck", "blurry")
    views = [(10.0, 0.0), (-120.0, 20.0), (170.0, 70.0)]
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([50, 500, 900])
    with torch.no_grad():
        together = prompts.at(_angles(*views)).guided_noise(prior, latents, t, 7.5, rescale=rescale)
        for row, view in enumerate(views):
            rows = slice(row, row + 1)
            alone = prompts.at(_angles(view)).guided_noise(
                prior, latents[rows], t[rows], 7.5, rescale=rescale
            )
            torch.testing.assert_close(together[rows], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd1", "pocket"])
def test_guided_noise_equals_four_separate_predictions(tiny_pipelines, kind):
    prior = load_folder(tiny_pipelines[kind], torch.device("cpu"))
    condition = build_view_prompts(CONFIG, prior, "red duck").at(_angles((120.0, 0.0)))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300])
    texts = [f"red duck, {VIEWS[i]} view" for i in (SIDE, BACK, SIDE, FRONT)]
    side, back, neg_side, neg_front = (prior.encode_prompt([text]) for text in texts)
    positive = back.lerp(side, torch.tensor([2 / 3]))
    with torch.no_grad():
        eps = [
            prior.predict_noise(latents, t, c)
            for c in (prior.encode_negative([""]), positive, neg_side, neg_front)
        ]
        guided = condition.guided_noise(prior, latents, t, 7.5)
        plain = prior.guided_noise(latents, t, positive, prior.encode_negative([""]), 7.5)
    r = 2 / 3
    weights = torch.tensor([[-(math.exp(-r / 2) - 0.606), -(math.exp(-r / 2) + 0.967)]])
    expected = perp_neg_combination(eps[0], eps[1], torch.stack(eps[2:], dim=1), weights, 7.5)
    torch.testing.assert_close(guided, expected, atol=2e-5, rtol=1e-4)
    assert (guided - plain).abs().max() > 1e-4, "the negatives must matter here"


def test_one_denoiser_call_serves_all_rows(tiny_pipelines):
    prior, batches = load_folder(tiny_pipelines["sd1"], torch.device("cpu")), []
    prior.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    condition = build_view_prompts(CONFIG, prior, "x").at(_angles((0.0, 0.0), (90.0, 0.0)))
    with torch.no_grad():
        condition.guided_noise(prior, torch.zeros(2, 4, 8, 8), torch.tensor([5, 6]), 7.5)
    assert batches == [8]
