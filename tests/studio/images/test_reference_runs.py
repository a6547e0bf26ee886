"""Scenes with IP-Adapter, by the command: files, records, and what a user can get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from image_tools.configs import PocketPriorConfig, ReferencedPriorConfig
from image_tools.diffusion.layout import find_prior_files
from image_tools.personalization.ip_adapter_configs import IPAdapterConfig
from image_tools.personalization.ip_adapter_files import write_ip_adapter
from image_tools.personalization.style_aligned_configs import StyleAlignedConfig
from studio.config import load_scene
from studio.errors import ConfigError
from studio.scene_inputs import check_inputs
from tests.image_tools.personalization.tiny_ip_adapters import tiny_ip_adapter
from tests.image_tools.vision.tiny_clip import write_tiny_clip
from tests.studio.conftest import TINY
from tests.studio.images.conftest import read, write_picture


@pytest.fixture
def tool(prior, tmp_path) -> dict:
    """A tool with everything it needs, by names in the test's folder."""
    write_tiny_clip(tmp_path / "encoder", pooled=24)
    write_ip_adapter(tmp_path / "adapter.safetensors", tiny_ip_adapter(prior.unet))
    images = [write_picture(tmp_path / f"{k}.png", size=(50, 40), seed=k) for k in (1, 2)]
    return {
        "kind": "ip_adapter",
        "weights": "adapter.safetensors",
        "image_encoder": "encoder",
        "images": [Path(image).name for image in images],
    }


def test_a_run_shows_references_and_pictures_without_and_with_them(studio, scene, tool):
    settings = {"task": "reference_image", "tool": tool}
    done = studio("run", scene(**settings), "--out", "runs", "--json")
    assert done.code == 0, done.err
    run = Path(done.result["run"])
    names = {path.stem for path in (run / "images").iterdir()}
    assert names == {"plain-s0", "reference1", "reference2", "referenced-s0"}
    assert not np.array_equal(read(run, "plain-s0"), read(run, "referenced-s0"))
    rows = json.loads((run / "results.json").read_text())["pictures"]
    assert [row["difference"] is None for row in rows] == [False, True, True, False]
    assert "All pictures, by seed" in (run / "report.html").read_text()

    off = studio("run", scene(**settings), "tool.scale=0", "--out", "runs", "--json").result["run"]
    assert np.array_equal(read(Path(off), "plain-s0"), read(run, "plain-s0"))
    assert np.array_equal(read(Path(off), "referenced-s0"), read(run, "plain-s0"))

    through_prior = scene(
        task="edit_image",
        method={"kind": "dds", "prompts": ["a mushroom"], "descent": {"updates": 1}},
        prior={
            "kind": "referenced",
            "base": yaml.safe_load(Path("mine.yaml").read_text())["prior"],
            "tool": tool,
        },
    )
    again = Path(studio("run", through_prior, "--out", "runs", "--json").result["run"])
    assert np.array_equal(read(again, "source-s0"), read(run, "referenced-s0"))


def test_doctor_looks_for_the_tools_files(studio, scene, tool):
    found = studio("doctor", scene(task="reference_image", tool=tool))
    assert found.out.count("adapter, 1 files") == 2
    missing = studio("doctor", scene(task="reference_image", tool=tool | {"weights": "no.bin"}))
    assert missing.code == 3
    assert "tool.weights are missing: 'no.bin'" in missing.out


def test_what_cannot_be_read_is_told_before_anything_is_drawn(studio, scene, tool, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for change, code, message in (
        ({"images": ["absent.png"]}, 2, "tool.images.0: The image 'absent.png'"),
        ({"images": ["1.png", "broken.png"]}, 2, "tool.images.1: The image 'broken.png'"),
        ({"image_encoder": "nowhere"}, 3, "tool.image_encoder are missing: 'nowhere'"),
        ({"identities": ["a.npy", "b.npy"]}, 3, "tool.identities.0 are missing: 'a.npy'"),
    ):
        done = studio("run", scene(task="reference_image", tool=tool | change))
        assert done.code == code
        assert message in done.error
    assert not (tmp_path / "runs").exists()
    wrong = studio("run", scene(task="reference_image", tool=tool | {"structure": 1.0}))
    assert wrong.code == 2
    assert "structure is 1.0 with an adapter that is a base" in wrong.error
    empty = studio("run", scene(task="reference_image", tool=tool | {"images": []}))
    assert "images is empty - expected at least one picture" in empty.error


def test_the_preset_for_3d_is_dreamfusion_with_the_tool_in_its_prior():
    scene, plain = (load_scene(name).config for name in ("reference-3d", "dreamfusion"))
    assert (scene.prior.kind, scene.prior.tool.kind) == ("referenced", "ip_adapter")
    assert (scene.prior.tool.scale, scene.prior.tool.fade.least) == (0.6, 0.2)
    assert (scene.stages, scene.view_prompts) == (plain.stages, plain.view_prompts)
    style = "{kind: style_aligned, image: vase.png, image_prompt: a vase}"
    other = load_scene("reference-3d", [f"prior.tool={style}"]).config
    assert other.prior == ReferencedPriorConfig(
        StyleAlignedConfig(image="vase.png", image_prompt="a vase"), base=scene.prior.base
    )


def test_a_3d_scene_is_refused_before_it_begins(tiny_prior, tool, tmp_path, monkeypatch):
    from studio.config import load_task

    monkeypatch.chdir(tmp_path)
    prior = {"kind": "referenced", "base": {"kind": "pocket", "path": str(tiny_prior)}}

    def scene_of(**changes):
        path = tmp_path / "scene.yaml"
        tree = yaml.safe_load(TINY) | {"prior": prior | {"tool": tool | changes}}
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return load_task(path).config

    config = scene_of()
    check_inputs(config)
    own = find_prior_files(config.prior)
    base = find_prior_files(PocketPriorConfig(path=str(tiny_prior)))
    assert [file.name for file in own[len(base) :]] == ["adapter.safetensors", "model.safetensors"]
    assert isinstance(config.prior, ReferencedPriorConfig)
    assert isinstance(config.prior.tool, IPAdapterConfig)
    with pytest.raises(ConfigError, match=r"prior.tool.images.0: The image 'absent.png'"):
        check_inputs(scene_of(images=["absent.png"]))
