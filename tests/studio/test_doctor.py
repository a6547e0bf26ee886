"""The doctor: finds what is there, says what is missing, and exits accordingly."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.commands import doctor
from tests.tiny_models import write_pipeline, write_refiner


def test_sound_machine_has_no_problems(tiny_scene, capsys):
    doctor.run([str(tiny_scene)], as_json=True)
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
        doctor.run([str(scene)])
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


def weights_of(scene: Path, capsys, *overrides: str) -> dict[str, dict]:
    """What the doctor says of a scene's models, by key."""
    return checks_of(scene, capsys, "weights", *overrides)


def checks_of(scene: Path, capsys, group: str, *overrides: str) -> dict[str, dict]:
    """What the doctor says of one group, by name."""
    with contextlib.suppress(SystemExit):
        doctor.run([str(scene), *overrides], as_json=True)
    found = json.loads(capsys.readouterr().out)["checks"]
    return {check["name"]: check for check in found if check["group"] == group}


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


PAINTED = """
prompt: a blue teapot
prior: {{kind: pocket, path: {prior}}}
stages:
  - name: texture
    steps: 2
    field: {{kind: mesh_file, path: {mesh}}}
    renderer: {{kind: mesh}}
    geometry: fixed
    guidance: {{kind: control_sds, controls: [{{sees: depth, net: {{weights: {net}}}}}]}}
"""


def test_what_a_3d_scene_needs_beside_its_prior_is_looked_for(tiny_prior, tmp_path, capsys):
    scene, net, mesh = tmp_path / "scene.yaml", tmp_path / "depth", tmp_path / "teapot.obj"
    scene.write_text(PAINTED.format(prior=tiny_prior, net=net, mesh=mesh), encoding="utf-8")
    key = "stages.0.guidance.controls.0.net.weights"
    found = weights_of(scene, capsys)
    assert (found["prior"]["state"], found[key]["state"]) == ("ok", "problem")
    assert str(net) in found[key]["detail"]
    net.mkdir()
    save_file({"weight": torch.zeros(1)}, net / "diffusion_pytorch_model.safetensors")
    assert weights_of(scene, capsys)[key]["state"] == "ok"
    (said,) = checks_of(scene, capsys, "files").values()
    assert (said["state"], str(mesh) in said["detail"]) == ("problem", True)
    mesh.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", encoding="utf-8")
    (said,) = checks_of(scene, capsys, "files").values()
    assert said["state"] == "ok"


def test_a_hub_model_does_not_hide_what_is_missing_beside_it(tmp_path, monkeypatch, capsys):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    absent = tmp_path / "4view.pt"
    with pytest.raises(SystemExit):
        doctor.run(["mvdream", "prior.base=nobody/nothing-here", f"prior.weights={absent}"])
    out = capsys.readouterr().out
    assert "a run will ask the hub for nobody/nothing-here" in out
    assert [line for line in out.splitlines() if "PROBLEM" in line and str(absent) in line]


def test_overrides_are_those_of_run(tiny_scene, tmp_path, capsys):
    check = weights_of(tiny_scene, capsys, f"prior.path={tmp_path / 'none'}")["prior"]
    assert check["state"] == "problem"


def test_a_personalization_has_a_prior_and_photos(tiny_prior, tmp_path, capsys):
    scene, photos = tmp_path / "mine.yaml", tmp_path / "photos"
    subject = f"subject: {{images: {photos}, word: duck}}\n"
    prior = f"prior: {{kind: pocket, path: {tiny_prior}}}\n"
    scene.write_text("task: personalize\n" + subject + prior, encoding="utf-8")
    assert weights_of(scene, capsys)["prior"]["state"] == "ok"
    (said,) = checks_of(scene, capsys, "files").values()
    assert (said["state"], "photos' is not there" in said["detail"]) == ("problem", True)
    photos.mkdir()
    Image.linear_gradient("L").save(photos / "a.png")
    (said,) = checks_of(scene, capsys, "files").values()
    assert said["state"] == "ok"
    (said,) = checks_of(scene, capsys, "files", "subject.word=").values()
    assert said["detail"].startswith("subject.word is empty")
