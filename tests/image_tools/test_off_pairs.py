"""Every tool at strength zero, alone and with every other one: the plain prior bit for bit.

And around every tool that acts: that tool alone, bit for bit. Each test has one tool innermost and
tries all others around it, one by one and all at once.
"""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.prior import PriorParts
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior
from image_tools.personalization.consistency import ConsistencyPrior, Student
from renderers.errors import StudioError
from tests.image_tools import tool_bench
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.tiny_unets import tiny_multiview_unet
from tests.image_tools.tool_bench import (
    ATTACHED,
    ON_BARE_PRIORS,
    OUTER,
    OUTER_BY_ADDITION,
    SOURCE,
    TARGET,
    Bench,
    Tool,
)

OFF, ON = 0.0, 1.0
INNER = (*OUTER, *ATTACHED, *ON_BARE_PRIORS, tool_bench.pictures_in_words)
NEVER_ACT = (tool_bench.control_window, tool_bench.words)


def named(tool: Tool) -> str:
    return tool.__name__


def around(inner: Tool) -> tuple[Tool, ...]:
    """What may stand around a tool."""
    return OUTER_BY_ADDITION if inner is tool_bench.pictures_in_words else OUTER


@pytest.fixture(scope="module")
def tools(tiny_pipelines, tmp_path_factory):
    return Bench(load_tiny(tiny_pipelines, "sd2_v"), tmp_path_factory.mktemp("off"))


@pytest.fixture
def bench(tools):
    with tools.undo:
        yield tools


@pytest.fixture(scope="module")
def expected(tools):
    return predictions(tools.plain)


@torch.no_grad()
def texts(prior, cameras=None) -> tuple[Condition, Condition]:
    told = prior.encode_prompt([SOURCE, TARGET]), prior.encode_negative([""])
    return tuple(Condition(text.expand(2), cameras) for text in told)


@torch.no_grad()
def guided(prior, told):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return prior.guided_noise(latents, torch.tensor([501, 501]), *told, 4.0, rescale=0.3)


@torch.no_grad()
def predictions(prior):
    """With guidance and without, of text that the prior has read itself."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    told = texts(prior)
    return guided(prior, told), prior.predict_output(latents, torch.tensor([501, 501]), told[0])


def same(found, wanted) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def stacked(bench, prior, tools):
    """Tools around a prior, all of them off."""
    for tool in tools:
        prior = tool(bench, prior, OFF)
    return prior


def assert_others_do_nothing(bench, prior, others):
    """Tools that are off, one by one and all at once."""
    told, wanted = texts(prior), predictions(prior)
    for other in others:
        assert torch.equal(guided(other(bench, prior, OFF), told), wanted[0]), named(other)
    assert same(predictions(stacked(bench, prior, others)), wanted)


@pytest.mark.parametrize("inner", INNER, ids=named)
def test_tools_that_are_off_are_not_there(bench, expected, inner):
    prior = inner(bench, bench.plain, OFF)
    assert same(predictions(prior), expected)
    assert_others_do_nothing(bench, prior, around(inner))


@pytest.mark.parametrize("inner", [x for x in INNER if x not in NEVER_ACT], ids=named)
def test_tools_that_are_off_leave_one_that_acts_alone(bench, expected, inner):
    acting = inner(bench, bench.plain, ON)
    assert not torch.equal(guided(acting, texts(acting)), expected[0])
    assert_others_do_nothing(bench, acting, around(inner))


@pytest.mark.parametrize("outer", [x for x in OUTER if x not in NEVER_ACT], ids=named)
def test_a_tool_acts_around_tools_that_are_off_as_it_does_alone(bench, outer):
    others = [tool for tool in OUTER if tool is not outer]
    inside = stacked(bench, bench.plain, others)
    wanted = predictions(outer(bench, bench.plain, ON))
    assert same(predictions(outer(bench, inside, ON)), wanted)


def test_attached_things_that_are_off_do_not_see_each_other(bench, expected):
    for tools in (ATTACHED, ATTACHED[::-1]):
        assert same(predictions(stacked(bench, bench.plain, tools)), expected)
        bench.undo.close()


def test_words_with_pictures_that_are_off_may_stand_around(bench, expected):
    for inner in (*OUTER, *ATTACHED):
        prior = stacked(bench, bench.plain, (inner, tool_bench.pictures_in_words))
        assert same(predictions(prior), expected), named(inner)
        bench.undo.close()


def test_nothing_stays_behind(tools, expected):
    """After all pairs the prior is the one that they began with."""
    assert same(predictions(tools.plain), expected)


def test_they_are_not_there_in_the_pocket_family_either(tiny_pipelines, tmp_path):
    bench = Bench(load_tiny(tiny_pipelines, "pocket"), tmp_path)
    wanted = predictions(bench.plain)
    for tool in INNER:
        with bench.undo:
            assert same(predictions(tool(bench, bench.plain, OFF)), wanted), named(tool)
    assert same(predictions(stacked(bench, bench.plain, OUTER)), wanted)
    for tool in (tool_bench.edits, tool_bench.regions_latent, tool_bench.uni):
        acting = tool(bench, bench.plain, ON)
        found = predictions(stacked(bench, acting, OUTER))
        assert same(found, predictions(acting)), named(tool)


def test_views_that_see_each_other_do_so_inside_of_tools_that_are_off(bench):
    plain = bench.plain
    parts = PriorParts(tiny_multiview_unet(), plain.vae, plain.text, plain.scheduler_config, "mv")
    prior = MultiViewPrior(parts, views=2)
    told = texts(prior, torch.randn(2, 16, generator=torch.Generator().manual_seed(5)))
    wanted = guided(prior, told)
    for outer in OUTER:
        assert torch.equal(guided(outer(bench, prior, OFF), told), wanted), named(outer)
    assert torch.equal(guided(stacked(bench, prior, OUTER), told), wanted)
    prior.views = 1
    assert not torch.equal(guided(prior, told), wanted)


def test_what_wants_a_bare_prior_refuses_others(bench):
    """The pairs that are not tried: an edit model's denoiser replaces the prior's, and students are
    LoRAs of the prior's own."""
    for inner in (tool_bench.instructions, *OUTER):
        wrapped = inner(bench, bench.plain, OFF)
        with pytest.raises(StudioError, match=r"guidance got .* expected a plain prior"):
            ConsistencyPrior(wrapped, [Student(loras={})])
    for inner in (tool_bench.consistency, *OUTER):
        wrapped = inner(bench, bench.plain, OFF)
        with pytest.raises(StudioError, match=r"InstructPix2Pix got .* expected a plain prior"):
            InstructPix2PixPrior(wrapped, bench.editor)
