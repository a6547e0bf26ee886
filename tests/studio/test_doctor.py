"""The doctor: finds what is there, says what is missing, and exits accordingly."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from studio.commands import doctor
from tests.tiny_models import write_pipeline, write_refiner


def test_sound_machine_has_no_problems(tiny_scene, capsys):
    doctor.run(str(tiny_scene), as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is True
    by_name = {check["name"]: check for check in result["checks"]}
    assert by_name["torch"]["state"] == "ok"
    assert by_name["cpu"]["state"] == "ok"
    assert "numba on cpu" in by_name["chosen"]["detail"] or "cuda" in by_name["chosen"]["detail"]
    assert by_name["prior"]["detail"].startswith("pocket, 3 files")
    assert {"nvdiffrast", "tinycudann", "nerfacc"} <= set(by_name)
    assert not {"ray", "submitit"} & set(by_name)


def test_missing_weights_are_a_problem_with_exit_code_3(tiny_scene, tmp_path, capsys):
    text = tiny_scene.read_text(encoding="utf-8")
    scene = tmp_path / "scene.yaml"
    scene.write_text(text.replace("/pocket}", "/nothing}"), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        doctor.run(str(scene))
    assert stop.value.code == 3
    captured = capsys.readouterr()
    (line,) = [line for line in captured.out.splitlines() if "PROBLEM" in line]
    assert "prior " in line
    assert "1 problem(s) found" in captured.err


MODELS = """
stages:
  - name: shape
    steps: 2
    guidance: {{kind: vsd, critic: {{prior: {{kind: diffusers, model: {critic}}}}}}}
  - name: detail
    steps: 2
    field: {{kind: previous}}
    prior: {{kind: diffusers, model: {refiner}}}
debias: {{model: {debias}}}
"""


def weights_of(scene: Path, capsys) -> dict[str, dict]:
    """What the doctor says of a scene's models, by key."""
    with contextlib.suppress(SystemExit):
        doctor.run(str(scene), as_json=True)
    found = json.loads(capsys.readouterr().out)["checks"]
    return {check["name"]: check for check in found if check["group"] == "weights"}


def test_all_models_of_all_stages_are_listed_without_loading_one(tiny_prior, tmp_path, capsys):
    names = {"critic": "sd1", "refiner": "refiner", "debias": "bert"}
    paths = {name: tmp_path / folder for name, folder in names.items()}
    scene = tmp_path / "scene.yaml"
    text = f"prompt: a red duck\nprior: {{kind: pocket, path: {tiny_prior}}}\n"
    scene.write_text(text + MODELS.format(**paths), encoding="utf-8")
    keys = ["prior", "stages.detail.prior", "stages.shape.guidance.critic.prior", "debias"]
    found = weights_of(scene, capsys)
    assert list(found) == keys
    assert [found[key]["state"] for key in keys] == ["ok", "problem", "problem", "problem"]
    assert str(paths["refiner"]) in found["stages.detail.prior"]["detail"]

    write_pipeline(paths["critic"], "sd1")
    write_refiner(paths["refiner"])
    paths["debias"].mkdir()
    save_file({"weight": torch.zeros(1)}, paths["debias"] / "model.safetensors")
    assert [check["state"] for check in weights_of(scene, capsys).values()] == ["ok"] * 4


def test_a_truncated_file_and_a_missing_part_are_found(tiny_scene, tiny_prior, tmp_path, capsys):
    copy = shutil.copytree(tiny_prior, tmp_path / "pocket")
    scene = tmp_path / "scene.yaml"
    text = tiny_scene.read_text(encoding="utf-8").replace(str(tiny_prior), str(copy))
    scene.write_text(text, encoding="utf-8")
    unet = copy / "unet" / "diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:-100])
    check = weights_of(scene, capsys)["prior"]
    assert check["state"] == "problem"
    assert str(unet) in check["detail"]
    unet.unlink()
    assert "no diffusion_pytorch_model.safetensors" in weights_of(scene, capsys)["prior"]["detail"]


def test_a_model_that_the_hub_may_have_is_a_note_and_not_fetched(tmp_path, monkeypatch, capsys):
    scene = tmp_path / "scene.yaml"
    prior = "prior: {kind: diffusers, model: nobody/nothing-here}\n"
    scene.write_text("base: pocket-dreamfusion\nprompt: a duck\n" + prior, encoding="utf-8")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    check = weights_of(scene, capsys)["prior"]
    assert check["state"] == "note"
    assert "ask the hub for nobody/nothing-here" in check["detail"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = weights_of(scene, capsys)["prior"]
    assert check["state"] == "problem"
    assert "Looked in" in check["detail"]
