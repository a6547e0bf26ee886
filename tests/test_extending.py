"""The page about extending is one script that runs: its blocks, in order, with smaller numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from renderers.cameras import orbit_cameras
from tests.studio.conftest import tiny_prior, tiny_scene  # noqa: F401 - fixtures

PAGE = Path(__file__).resolve().parents[1] / "docs/extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def smaller(code: str, *changes: tuple[str, str]) -> str:
    """The code with other values, each of which it must have."""
    for old, new in changes:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


@pytest.mark.slow
def test_the_page_is_a_script_that_runs(tiny_scene, tiny_prior, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    rule, running, finishing, prior, drawing, renderer, loop = BLOCKS
    scene = ('"pocket-dreamfusion", ["prompt=a red mushroom"]', repr(str(tiny_scene)))
    weights = ("PocketPriorConfig()", f"PocketPriorConfig(path={str(tiny_prior)!r})")
    sizes = [("Blobs(500", "Blobs(20"), ("manual_seed(0)), 300", "manual_seed(0)), 3")]
    known: dict[str, Any] = {}
    exec(rule, known)
    exec(smaller(running, scene), known)
    (folder,) = Path("runs").glob("*/*")
    assert json.loads((folder / "run.json").read_text())["status"] == "optimised"
    assert type(known["runner"].guidance) is known["ClassifierScore"]
    exec(finishing, known)
    assert (folder / "report.html").is_file()

    exec(prior, known)
    exec(smaller(drawing, weights), known)
    check_guidance_interval(known["prior"])

    exec(renderer, known)
    exec(smaller(loop, *sizes), known)
    fresh = known["Blobs"](20, torch.Generator().manual_seed(0))
    assert not torch.equal(known["blobs"].centres, fresh.centres)
    check_opaque_blob(known["Blobs"](1, torch.Generator().manual_seed(0)))


def check_guidance_interval(prior) -> None:
    """Outside it is the condition alone, inside the plain prior's guidance."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond, uncond = prior.encode_prompt(["a duck"] * 2), prior.encode_negative([""])
    with torch.no_grad():
        for t, scale in ((torch.tensor([500, 500]), 7.0), (torch.tensor([900, 100]), 1.0)):
            found = prior.guided_noise(latents, t, cond, uncond, 7.0)
            assert torch.equal(found, prior.plain.guided_noise(latents, t, cond, uncond, scale))


def check_opaque_blob(blob) -> None:
    """One dense blob at the origin: seen whole in the middle, not at all in the corner."""
    with torch.no_grad():
        blob.centres.zero_()
        blob.densities.fill_(20.0)
        cameras = orbit_cameras(
            2, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=33, width=33
        )
        output = blob.render(cameras)
    assert output.opacity[:, 16, 16] == pytest.approx(1.0)
    assert output.comp_rgb[:, 16, 16] == pytest.approx(0.5, abs=1e-4)
    assert output.depth[:, 16, 16] == pytest.approx(3.0, abs=1e-3)
    assert output.comp_rgb[:, 0, 0] == pytest.approx(1.0)
