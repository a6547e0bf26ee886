"""`studio train`: what it refuses before any work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_tools.editing.edit_pair_folders import EditFolderError
from image_tools.pocket.paths import CONTROLS, adapter_path
from studio.commands import train as command
from studio.errors import ConfigError, WeightsMissing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"what": "jury"}, "no such training 'jury' - expected one of pocket, pocket-mv, judge"),
        ({"what": "judge", "preset": "tpu"}, "--preset is 'tpu' - expected cpu or gpu"),
        ({"what": "judge", "steps": 0}, "--steps is 0 - expected at least 1"),
        ({"what": "judge"}, "--out is out - expected a file"),
        (
            {"what": "pocket-control"},
            "did you mean pocket-control-seg.* pocket-control-depth, pocket-",
        ),
        ({"what": "image-text"}, "--out is out - expected a file"),
        (
            {"what": "judge", "objects_share": 0.5},
            "--objects-share is for pocket, not for judge",
        ),
        (
            {"what": "pocket", "start": Path("model"), "objects_share": 1.0},
            "objects_share is 1.0 - expected at least 0 and less than 1",
        ),
        ({"what": "pocket", "parts": "vae"}, "--parts is 'vae' - expected denoiser or all"),
        (
            {"what": "pocket", "parts": "all", "text_source": Path("text")},
            "--parts all needs --start",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        command.run(**arguments, out=Path("out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", [None, Path("nowhere")])
def test_pocket_needs_the_source_of_its_text_encoder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsMissing, match=r"--text-source is .* all-MiniLM-L6-v2"):
        command.run("pocket", out=Path("out"), text_source=source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", [None, Path("nowhere.pth")])
def test_the_image_text_score_needs_its_backbone(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsMissing, match=r"--start is .* efficientnet-lite0-57934424\.pth"):
        command.run("image-text", out=Path("out.safetensors"), start=start)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", command.ADAPTERS)
def test_adapters_ask_for_a_pocket_model_first(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsMissing, match=r"no model_index.json in 'nowhere'"):
        command.run(what, out=Path("out"), start=Path("nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_every_control_of_the_command_is_a_condition_of_the_recipe():
    from studio.training.buffer_views import CONDITIONS

    assert CONTROLS == CONDITIONS


def test_a_work_folder_of_another_prior_is_a_config_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "training_runs" / "pocket_ip2p"
    work.mkdir(parents=True)
    (work / "start.json").write_text('{"unet": "0123456789abcdef"}')
    with pytest.raises(ConfigError, match="began from another model"):
        command.run("pocket-ip2p", out=Path("out"), steps=1, device="cpu")


def test_a_folder_without_edit_pairs_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EditFolderError, match=r"'nowhere/seeds.json' cannot be read"):
        command.run("pocket-ip2p", out=Path("out"), images=Path("nowhere"), device="cpu")


@pytest.mark.parametrize("name", command.ADAPTERS)
def test_a_model_that_can_be_trained_is_offered_so(name, tmp_path, monkeypatch):
    monkeypatch.setattr("image_tools.pocket.paths.WEIGHTS", tmp_path)
    with pytest.raises(
        WeightsMissing, match=f"train it with: studio train {name} --out {tmp_path}"
    ):
        adapter_path(name, role="adapter")


@pytest.mark.parametrize("name", ["pocket-tryon", "pocket-control-depht"])
def test_no_training_is_offered_that_does_not_exist(name):
    with pytest.raises(WeightsMissing) as told:
        adapter_path(name, role="adapter")
    assert "studio train" not in str(told.value)
    assert ("did you mean pocket-control-depth?" in str(told.value)) == ("depht" in name)
