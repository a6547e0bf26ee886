"""Everything a user can get wrong: one clear error, its exit code, and its exact words.

The words are kept in ``snapshots/bad_input.json``; after an intended change, look at what
``STUDIO_UPDATE_SNAPSHOTS=1 pytest tests/studio/test_bad_input.py`` writes there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub.constants import HF_HUB_CACHE

from studio.checkpoints import list_checkpoints, load_latest, save_checkpoint
from studio.cli import main
from studio.config import dump_yaml, load_scene
from studio.errors import StorageError
from studio.folder_lock import hold_run
from studio.run_folder import RunFolder, create_run, storage_errors, write_atomic
from studio.runner import Runner
from tests.studio.conftest import disk_full_at, start
from tests.tiny_models import write_pipeline, write_single_file

SNAPSHOTS = Path(__file__).parent / "snapshots" / "bad_input.json"
UPDATE = os.environ.get("STUDIO_UPDATE_SNAPSHOTS") == "1"

NOBODY = 65534
SCENE = "base: demo\nprompt: a duck\n"


@dataclass(frozen=True)
class Case:
    """One mistake."""

    name: str
    arguments: list[str]
    code: int
    files: dict[str, str | bytes]
    """Files to write beforehand; a name that ends in / is an empty folder."""


def case(name: str, *arguments: str, code: int = 2, **files: str | bytes) -> Case:
    """A case; a keyword ``scene_yaml`` is the file ``scene.yaml``."""
    named = {key.replace("_yaml", ".yaml"): value for key, value in files.items()}
    return Case(name, list(arguments), code, named)


CASES = [
    # --- overrides and options
    case("typo in a key", "run", "demo", "promt=a duck"),
    case("typo deep in a key", "run", "demo", "stages.0.guidance.guidnace_scale=20"),
    case("key with no neighbour", "run", "demo", "zzz=1"),
    case("wrong type: word for a number", "run", "demo", "stages.0.steps=many"),
    case("wrong type: truth for a number", "run", "demo", "seed=true"),
    case("wrong type: fraction for a count", "run", "demo", "stages.0.steps=10.5"),
    case("wrong type: number for a mapping", "run", "demo", "stages.0.field.grid=3"),
    case("wrong type: number for a kind", "run", "demo", "stages.0.background=3"),
    case("wrong type: list for text", "run", "scene.yaml", scene_yaml="base: demo\nprompt: [a]\n"),
    case("wrong choice", "run", "pocket-dreamfusion", "stages.0.cameras.azimuth_sampling=random"),
    case("unknown kind", "run", "demo", "stages.0.background.kind=neurl"),
    case("unknown kind, far from all", "run", "demo", "prior.kind=zzz"),
    case("kind that needs more", "run", "demo", "prior.kind=diffusers"),
    case("list too short", "run", "demo", "stages.0.cameras.fovy_deg_range=[40]"),
    case("range reversed", "run", "pocket-dreamfusion", "stages.0.cameras.distance_range=[3,2]"),
    case("broken schedule", "run", "demo", "stages.0.guidance.timesteps.max_t=[[0,0.9],[2,0.5]]"),
    case("schedule of words", "run", "demo", "stages.0.losses.opaque=high"),
    case("list index out of range", "run", "demo", "stages.3.steps=10"),
    case("negative list index out of range", "run", "demo", "stages.-2.steps=10"),
    case("stage name unknown", "run", "demo", "stages.colour.steps=10"),
    case("path through a number", "run", "demo", "seed.x=1"),
    case("subject of a scene without one", "run", "demo", "subject.images=photos"),
    case("edit of a scene without one", "run", "demo", "edit.run=runs/a"),
    case("key of an empty section", "run", "demo", "debias.words=[a]"),
    case("path through an empty text", "run", "demo", "prior.path.x=1"),
    case("zero steps", "run", "demo", "steps=0"),
    case("zero steps by option", "run", "demo", "--steps", "0"),
    case("negative steps of a stage", "run", "demo", "stages.0.steps=-5"),
    case("steps that are no number", "run", "demo", "steps=ten"),
    case("fewer steps than stages", "run", "pocket-magic3d", "--steps", "1"),
    case("negative resolution", "run", "demo", "stages.0.cameras.height=-64"),
    case("negative seed", "run", "demo", "seed=-1"),
    case("unknown device", "run", "demo", "--device", "gpu"),
    case("device that is not here", "run", "demo", "--device", "cuda:63"),
    case("device without its number", "run", "demo", "--device", "cpu:"),
    case("no stages", "run", "demo", "stages=[]"),
    case("eikonal without a distance", "run", "demo", "stages.0.losses.eikonal=0.1"),
    case("broken key of an override", "run", "demo", "stages..steps=1"),
    case("override without a key", "run", "demo", "=3"),
    case("unknown log", "run", "demo", "--log", "csv,wandb"),
    case("several at once", "run", "demo", "promt=x", "seed=x", "stages.0.cameras.width=0"),
    # --- prompts
    case("empty prompt", "run", "demo", "prompt="),
    case("blank prompt", "run", "   "),
    case("prompt of 5000 characters", "run", "duck " * 1000),
    case("prompt with control characters", "run", "a duck\x07\x1b[2J"),
    case("prompt without quotes", "run", "a", "small", "blue", "teapot"),
    case("prompt that is no text", "run", "a \udcff duck"),
    case("preset misspelt", "run", "dreamfusoin"),
    # --- scene files
    case("no such file", "run", "missing.yaml"),
    case("a folder", "run", "folder", **{"folder/": ""}),
    case("empty file", "run", "scene.yaml", scene_yaml=""),
    case("a text that is no scene", "run", "notes.txt", **{"notes.txt": "a duck, red\n"}),
    case("a list", "run", "scene.yaml", scene_yaml="- a\n- b\n"),
    case("unreadable YAML", "run", "scene.yaml", scene_yaml="prompt: [a, b\nseed: 1\n"),
    case("tabs in YAML", "run", "scene.yaml", scene_yaml="stages:\n\t- name: shape\n"),
    case(
        "YAML with a Python tag",
        "run",
        "scene.yaml",
        scene_yaml="prompt: !!python/object/apply:os.system ['touch boom']\n",
    ),
    case("repeated key", "run", "scene.yaml", scene_yaml=SCENE + "seed: 1\nseed: 2\n"),
    case("not text", "run", "scene.yaml", scene_yaml=b"\x80\x81\x00\x01"),
    case("number for the prompt", "run", "scene.yaml", scene_yaml="base: demo\nprompt: 7\n"),
    case("file that holds itself", "run", "scene.yaml", scene_yaml="prompt: &a [*a]\n"),
    case("unknown base", "run", "scene.yaml", scene_yaml="base: dmo\nprompt: a duck\n"),
    case("base in a circle", "run", "scene.yaml", scene_yaml="base: scene.yaml\n"),
    case(
        "duplicate stage names",
        "run",
        "scene.yaml",
        scene_yaml="prompt: a duck\nstages:\n- {name: a, steps: 3}\n"
        "- {name: a, steps: 4, field: {kind: previous}}\n",
    ),
    case(
        "stage without steps",
        "run",
        "scene.yaml",
        scene_yaml="prompt: a duck\nstages:\n- {name: shape}\n",
    ),
    case("scene without stages", "run", "scene.yaml", scene_yaml="prompt: a duck\n"),
    case("first stage without a field", "run", "demo", "stages.0.field.kind=previous"),
    case(
        "second stage with a field of its own",
        "run",
        "scene.yaml",
        scene_yaml=SCENE + "stages:\n- {name: detail, steps: 4, field: {kind: hash_sdf}}\n",
    ),
    case("mesh without a field before it", "run", "demo", "stages.0.field.kind=grid_tets"),
    case("mesh renderer on a field", "run", "demo", "stages.0.renderer.kind=mesh"),
    case("mesh loss on a field", "run", "demo", "stages.0.losses.laplacian=1"),
    case("fixed geometry of a field", "run", "demo", "stages.0.geometry=fixed"),
    case(
        "several views from a prior of one",
        "run",
        "pocket-dreamfusion",
        "stages.0.guidance.kind=multiview",
    ),
    case(
        "a critic on a prior of several views",
        "run",
        "pocket-prolificdreamer",
        "stages.0.prior={kind: pocket_mv}",
        "stages.1.guidance.critic.prior={kind: pocket_mv}",
    ),
    case(
        "a critic of lit renders",
        "run",
        "pocket-prolificdreamer",
        "stages.0.material={kind: diffuse}",
    ),
    case(
        "sets of three views",
        "run",
        "demo",
        "stages.0.cameras.n_views=3",
        "stages.0.cameras.batch_size=3",
    ),
    case("a background for each view of a set", "run", "demo", "stages.0.background.share=image"),
    case("an environment behind a set", "run", "demo", "stages.0.background={kind: neural}"),
    case(
        "timesteps that cross",
        "run",
        "pocket-dreamfusion",
        "stages.0.guidance.timesteps.max_t=[[0, 0.98], [1, 0.0]]",
    ),
    case(
        "losses of the shape where it is fixed",
        "run",
        "pocket-prolificdreamer",
        *(
            f"stages.texture.losses.{name}=1"
            for name in ("sparsity", "border", "opaque", "opacity_smoothness")
        ),
    ),
    case(
        "perpendicular negatives with consistency",
        "run",
        "pocket-dreamfusion",
        "view_prompts.kind=perp_neg",
        "prior={kind: personalized, guidance: consistency, subjects: [{loras: [{path: a}]}]}",
    ),
    case("no particles", "run", "demo", "stages.0.particles=0"),
    case("export of a particle that is not there", "run", "demo", "export.particle=2"),
    case(
        "mesh stage with the settings of a field",
        "run",
        "scene.yaml",
        scene_yaml=SCENE + "stages:\n- {name: mesh, steps: 4, field: {kind: grid_tets}, "
        "losses: {eikonal: 1, orient: 1, z_variance: 1}}\n",
    ),
    case(
        "mesh of a mesh",
        "run",
        "scene.yaml",
        scene_yaml=SCENE + "stages:\n"
        "- {name: one, steps: 4, field: {kind: grid_tets}, renderer: {kind: mesh}}\n"
        "- {name: two, steps: 4, field: {kind: grid_tets}, renderer: {kind: mesh}}\n",
    ),
    case(
        "fixed geometry with nothing to train",
        "run",
        "scene.yaml",
        scene_yaml=SCENE + "stages:\n- {name: mesh, steps: 4, field: {kind: grid_tets}, renderer: "
        "{kind: mesh}, geometry: fixed, guide_on: normals, losses: {laplacian: 1}}\n",
    ),
    case(
        "more particles than before",
        "run",
        "scene.yaml",
        scene_yaml=SCENE + "stages:\n- {name: more, steps: 4, field: {kind: previous}, "
        "particles: 2}\n",
    ),
    # --- weights
    case(
        "missing weights of a later stage",
        "run",
        "scene.yaml",
        code=3,
        scene_yaml=SCENE + "stages:\n- {name: detail, steps: 4, field: {kind: previous}, "
        "prior: {kind: diffusers, model: models/none}}\n",
    ),
    case(
        "missing weights",
        "run",
        "pocket-dreamfusion",
        "prior.kind=diffusers",
        "prior.model=models/none",
        code=3,
    ),
    case(
        "folder without a model",
        "run",
        "pocket-dreamfusion",
        "prior.kind=diffusers",
        "prior.model=folder",
        code=3,
        **{"folder/": ""},
    ),
    case(
        "one file in the place of a folder",
        "run",
        "dreamfusion",
        "prior.model=models/sd15.safetensors",
        code=3,
        **{"models/sd15.safetensors": b""},
    ),
    case(
        "missing weights of pictures",
        "run",
        "edit-dds",
        "prior={kind: diffusers, model: ./sd15}",
        code=3,
    ),
    case(
        "pickled weights refused",
        "run",
        "pocket-dreamfusion",
        "prior={kind: single_file, path: model.ckpt, config: folder}",
        code=3,
        **{"model.ckpt": b"\x80\x04.", "folder/": ""},
    ),
    # --- folders
    case("unwritable folder", "run", "demo", "--out", "file/runs", file="in the way"),
    case("resume of nothing", "run", "--resume", "runs/none"),
    case("resume of a folder that is no run", "run", "--resume", "folder", **{"folder/": ""}),
    case("run of a run folder", "run", "old", **{"old/run.json": "{}"}),
    case("resume of a damaged run", "run", "--resume", "old", **{"old/run.json": "{"}),
    # --- other verbs
    case("export of a folder that is no run", "export", "folder", **{"folder/": ""}),
    case("view of a missing file", "view", "asset.glb"),
    case("view on an impossible port", "view", "asset.glb", "--port", "0", **{"asset.glb": ""}),
    case("evaluation of nothing", "eval"),
    case(
        "evaluation of a run and a prior", "eval", "old", "--prior", "p", **{"old/run.json": "{}"}
    ),
    case("evaluation of a folder that is no run", "eval", "folder", **{"folder/": ""}),
    case("evaluation without samples", "eval", "--prior", "folder", "--samples", "0"),
    case("report of a missing folder", "report", "runs/none"),
    case("sweep of a wrong value", "sweep", "demo", "stages.0.steps=5,-1"),
    case("sweep with a value twice", "sweep", "demo", "seed=1,1"),
    case("sweep with an empty value", "sweep", "demo", "seed=1,,2"),
    case("sweep of equal scenes", "sweep", "demo", "seed=1,01"),
    case("sweep of one run", "sweep", "demo", "export.max_faces=500,900"),
    case("sweep with the seeds twice", "sweep", "demo", "seed=1,2", "--seeds", "0-1"),
    case("sweep with senseless seeds", "sweep", "demo", "--seeds", "3-1"),
    case(
        "sweep side by side of unequal lists",
        "sweep",
        "demo",
        "seed=1,2",
        "steps=1,2,3",
        "--side-by-side",
    ),
    case("sweep of too many", "sweep", "demo", "--seeds", "0-999", "stages.0.steps=1,2"),
    case("sweep without prompts", "sweep", "demo", "--prompts", "p.txt", **{"p.txt": "# none\n"}),
    case("sweep of missing prompts", "sweep", "demo", "--prompts", "none.txt"),
    case("sweep without workers", "sweep", "demo", "seed=1,2", "--workers", "0"),
    case("training without its text model", "train", "pocket", "--out", "weights", code=3),
    case("training without steps", "train", "judge", "--out", "j.safetensors", "--steps", "0"),
    case("training into the wrong kind of file", "train", "judge", "--out", "weights"),
    case("training with an unknown preset", "train", "judge", "--out", "j", "--preset", "tpu"),
    case("training of something else", "train", "unet", "--out", "weights"),
    case("unknown preset", "new", "dreamfuson"),
    case("unknown key to explain", "explain", "guidence_scale"),
]


@pytest.mark.parametrize("entry", CASES, ids=lambda entry: entry.name)
def test_mistake_is_one_clear_error(entry, tmp_path, monkeypatch, capsys):
    for name, content in entry.files.items():
        _write(tmp_path / name, content, folder=name.endswith("/"))
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(entry.arguments, monkeypatch, capsys)
    message = err[err.index("error:") :]
    assert code == entry.code
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "boom").exists()
    assert not (tmp_path / "runs").exists()  # nothing is left of what never began
    check_snapshot(entry.name, message, tmp_path)


# --- mistakes around a run that exists


@dataclass(frozen=True)
class RunCase:
    """Something that is wrong with a run folder, or with how it is continued."""

    name: str
    prepare: Callable[[RunFolder], None]
    code: int
    arguments: tuple[str, ...] = ()
    verb: tuple[str, ...] = ("run", "--resume")


def nothing(run: RunFolder) -> None:
    """The run folder is sound."""


def damage_all(run: RunFolder) -> None:
    """Cut every checkpoint short."""
    for path in list_checkpoints(run.checkpoints_dir):
        (path / "scene.safetensors").write_bytes(b"cut")


def put_pickles(run: RunFolder) -> None:
    """Replace every checkpoint by a pickle."""
    for path in list_checkpoints(run.checkpoints_dir):
        shutil.rmtree(path)
        torch.save({"step": torch.ones(1)}, path.with_suffix(".ckpt"))
        path.with_suffix(".ckpt").rename(path)


def inject_nan(run: RunFolder) -> None:
    """One NaN in the network of the newest checkpoint, two steps before the end."""
    shutil.rmtree(list_checkpoints(run.checkpoints_dir)[-1])
    checkpoint = load_latest(run.checkpoints_dir, warn=pytest.fail)
    name = next(key for key in checkpoint.scene if "potential_head" in key)
    checkpoint.scene[name][0] = torch.nan
    save_checkpoint(run.checkpoints_dir, checkpoint)


def drop_resolved(run: RunFolder) -> None:
    """Lose the record of the settings."""
    run.resolved_path.unlink()


def drop_all(run: RunFolder) -> None:
    """A run that stopped before its first checkpoint."""
    shutil.rmtree(run.checkpoints_dir)
    run.checkpoints_dir.mkdir()


def block_asset(run: RunFolder) -> None:
    """A file where the asset's folder should be."""
    shutil.rmtree(run.asset_dir)
    run.asset_dir.write_text("in the way")


RUN_CASES = [
    RunCase("corrupt checkpoints only", damage_all, 2),
    RunCase("pickles in place of checkpoints", put_pickles, 2),
    RunCase("NaN injected", inject_nan, 4),
    RunCase("resume with another prompt", nothing, 2, ("prompt=a blue cup",)),
    RunCase("resume with other steps", nothing, 2, ("--steps", "9", "--seed", "4")),
    RunCase("resume with another scene", nothing, 2, ("dreamfusion",)),
    RunCase("resume with a typo", nothing, 2, ("export.texure_size=64",)),
    RunCase("empty surface", nothing, 4, ("export.threshold=1000",)),
    RunCase("settings lost", drop_resolved, 2),
    RunCase("asset folder blocked", block_asset, 2),
    RunCase("unknown format", nothing, 2, ("--format", "glb,stl"), ("export",)),
    RunCase("threshold that is no number", nothing, 2, ("--threshold", "high"), ("export",)),
    RunCase("no triangles", nothing, 2, ("--faces", "0"), ("export",)),
    RunCase("export without a checkpoint", drop_all, 2, (), ("export",)),
    RunCase("evaluation without a checkpoint", drop_all, 2, (), ("eval",)),
    RunCase("film of nothing", nothing, 2, ("--video", ""), ("render",)),
    RunCase("film of size 0", nothing, 2, ("--size", "0"), ("render",)),
    RunCase("unknown picture", nothing, 2, ("--outputs", "comp_rgb,albedo"), ("render",)),
    RunCase("missing camera path", nothing, 2, ("--camera", "path.json"), ("render",)),
    RunCase("film of an asset that is not there", nothing, 2, ("--source", "asset"), ("render",)),
    RunCase("view without an asset", nothing, 2, (), ("view",)),
]


@pytest.fixture(scope="module")
def finished_run(tiny_scene, tmp_path_factory) -> Path:
    """A run folder with its last two checkpoints."""
    scene, run = start(tiny_scene, tmp_path_factory.mktemp("finished"))
    Runner(scene, run).optimise()
    return run.path


@pytest.mark.parametrize("entry", RUN_CASES, ids=lambda entry: entry.name)
def test_mistake_with_a_run_is_one_clear_error(
    entry, finished_run, tiny_prior, tmp_path, monkeypatch, capsys
):
    run = RunFolder(tmp_path / "old" / "tiny-s0-20260101-000000")
    shutil.copytree(finished_run, run.path)
    entry.prepare(run)
    arguments = [*entry.verb, str(run.path), *entry.arguments]
    code, out, err = run_main(arguments, monkeypatch, capsys)
    assert code == entry.code, err
    assert out == ""
    assert "Traceback" not in err
    check_snapshot(
        entry.name, err[err.rindex("error:") :].replace(str(tiny_prior), "<prior>"), tmp_path
    )


def cut_newest(run: RunFolder) -> None:
    """The machine went down while the newest checkpoint was on its way to the disk."""
    tensors = list_checkpoints(run.checkpoints_dir)[-1] / "scene.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])


def leave_partial(run: RunFolder) -> None:
    """Killed while the newest checkpoint was being written aside."""
    newest = list_checkpoints(run.checkpoints_dir)[-1]
    newest.rename(newest.with_name(f".{newest.name}.99.tmp"))


@pytest.mark.parametrize(
    ("name", "prepare"),
    [("power lost during save", cut_newest), ("killed during save", leave_partial)],
)
def test_a_kill_during_save_costs_two_steps(
    name, prepare, finished_run, tmp_path, monkeypatch, capsys
):
    """The run goes on from the checkpoint before, tells so, and ends well."""
    run = RunFolder(tmp_path / "old" / "tiny-s0-20260101-000000")
    shutil.copytree(finished_run, run.path)
    prepare(run)
    code, _, err = run_main(["run", "--resume", str(run.path)], monkeypatch, capsys)
    assert code == 0, err
    told = [line for line in err.splitlines() if "step-" in line or "Going on" in line]
    check_snapshot(name, "\n".join(told), tmp_path)
    assert load_latest(run.checkpoints_dir, warn=pytest.fail).step == 6


@pytest.mark.parametrize("name", ["damaged weights", "damaged weights in one file"])
def test_weights_that_were_cut_short_are_one_clear_error(
    name, tiny_prior, tmp_path, monkeypatch, capsys
):
    """The settings are sound; a download of the tensors ended too early."""
    monkeypatch.chdir(tmp_path)
    if name == "damaged weights":
        shutil.copytree(tiny_prior, "model")
        cut(Path("model/unet/diffusion_pytorch_model.safetensors"))
        prior = "prior={kind: pocket, path: model}"
    else:
        cut(write_single_file(write_pipeline(Path("model"), "sd1"), Path("model.safetensors")))
        prior = "prior={kind: single_file, path: model.safetensors, config: model}"
    code, out, err = run_main(["run", "pocket-dreamfusion", prior], monkeypatch, capsys)
    assert code == 3
    assert out == ""
    assert "Traceback" not in err
    check_snapshot(name, err[err.index("error:") :], tmp_path)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's power to write anywhere."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_without_permission_is_one_clear_error(tmp_path):
    place = tmp_path / "runs"
    place.mkdir(mode=0o555)
    with as_nobody(), pytest.raises(StorageError) as error:
        create_run(place, prompt="a duck", method="demo", seed=0, info={})
    check_snapshot("no permission", str(error.value), tmp_path)


def test_disk_full_during_save_keeps_the_checkpoint_before(
    finished_run, tmp_path, monkeypatch, capsys
):
    """The checkpoint does not fit any more; what is small does."""
    run = RunFolder(tmp_path / "old" / "tiny-s0-20260101-000000")
    shutil.copytree(finished_run, run.path)
    shutil.rmtree(list_checkpoints(run.checkpoints_dir)[-1])
    with disk_full_at(8000):
        code, _, err = run_main(["run", "--resume", str(run.path)], monkeypatch, capsys)
    assert code == 2
    check_snapshot("disk full during save", err[err.rindex("error:") :], tmp_path)
    assert load_latest(run.checkpoints_dir, warn=pytest.fail).step == 4


def test_a_disk_that_fills_up_is_one_clear_error(finished_run, tmp_path, monkeypatch, capsys):
    """Nothing can be written any more, not even the row that is still in memory."""
    run = RunFolder(tmp_path / "old" / "tiny-s0-20260101-000000")
    shutil.copytree(finished_run, run.path)
    shutil.rmtree(list_checkpoints(run.checkpoints_dir)[-1])
    step = Runner.step
    with contextlib.ExitStack() as disk:

        def step_and_fill(self: Runner) -> dict[str, float]:
            """Another program takes the rest of the disk during the last but one step."""
            metrics = step(self)
            if self.steps_done == 5:
                disk.enter_context(disk_full_at(64))
            return metrics

        monkeypatch.setattr(Runner, "step", step_and_fill)
        code, out, err = run_main(["run", "--resume", str(run.path)], monkeypatch, capsys)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert "Logging error" not in err
    check_snapshot("disk full during save", err[err.rindex("error:") :], tmp_path)
    assert load_latest(run.checkpoints_dir, warn=pytest.fail).step == 4


def test_a_run_that_another_process_works_on_is_one_clear_error(
    finished_run, tmp_path, monkeypatch, capsys
):
    run = RunFolder(tmp_path / "old" / "tiny-s0-20260101-000000")
    shutil.copytree(finished_run, run.path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with hold_run(run):
        code, out, err = run_main(["run", "--resume", str(run.path)], monkeypatch, capsys)
    assert (code, out) == (2, "")
    check_snapshot("resume of a run that goes on", err, tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_a_full_disk_says_what_to_do(tmp_path):
    """The device that is always full gives the system's own error."""
    with pytest.raises(StorageError) as error, storage_errors(Path("runs/x"), "save in"):
        Path("/dev/full").write_text("x" * 10, encoding="utf-8")
    check_snapshot("disk full", str(error.value), tmp_path)


ODD_PROMPTS = {
    "赤いキノコ 🍄": r"prompt-[0-9a-f]{8}",
    "un château d'été": "un-chateau-d-ete",
    "../../etc/passwd": "etc-passwd",
    "/tmp/a duck": "tmp-a-duck",
    "C:\\duck\\con": "c-duck-con",
    "a duck; rm -rf ~ | $(boom) `boom`": "a-duck-rm-rf-boom-boom",
    "--help me": "help-me",
    "a duck = a bird": "a-duck-a-bird",
    "\u202ekcud a": "kcud-a",
}


@pytest.mark.parametrize(("prompt", "folder"), ODD_PROMPTS.items())
def test_odd_prompts_are_prompts_and_stay_in_their_folder(prompt, folder, tmp_path, monkeypatch):
    """What looks like a path, a command or another script is still only a prompt."""
    monkeypatch.chdir(tmp_path)
    scene = load_scene(prompt)
    assert scene.config.prompt == prompt
    run = create_run("runs", prompt=prompt, method=scene.name, seed=0, info={})
    assert re.fullmatch(folder, run.path.parent.name)
    assert run.path.resolve().parents[1] == tmp_path / "runs"
    write_atomic(run.resolved_path, dump_yaml(scene.config))
    assert load_scene(run.resolved_path).config == scene.config


def test_missing_tensorboard_names_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.chdir(tmp_path)
    code, _, err = run_main(["run", "demo", "--log", "tensorboard"], monkeypatch, capsys)
    assert code == 3
    check_snapshot("missing tensorboard", err, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_missing_extra_names_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "viser", None)  # what Python does for a package not there
    (tmp_path / "asset.glb").write_bytes(b"")
    code, _, err = run_main(["view", str(tmp_path / "asset.glb")], monkeypatch, capsys)
    assert code == 3
    check_snapshot("missing extra", err, tmp_path)


def test_there_is_no_snapshot_without_a_case():
    """Names of removed cases must not stay behind."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in read_snapshots() if f'"{name}"' not in source] == []


def run_main(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    """Run the command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["studio", *arguments])
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def read_snapshots() -> dict[str, str]:
    """The kept words by case."""
    return json.loads(SNAPSHOTS.read_text(encoding="utf-8")) if SNAPSHOTS.exists() else {}


def check_snapshot(name: str, message: str, folder: Path) -> None:
    """Compare with the kept words, or keep them when asked to."""
    repo = Path(__file__).parents[2]
    places = {folder: "<tmp>", sys.executable: "<python>", repo: "<repo>", HF_HUB_CACHE: "<cache>"}
    text = message
    for place, word in places.items():
        text = text.replace(str(place), word)
    if "No surface" in text:  # densities differ in their last digits between machines
        text = re.sub(r"\d+\.?\d*(e[-+]\d+)?", "<n>", text)
    text = re.sub(r"Known keys: [\w, -]+\.", "Known keys: <all>.", text)  # they grow
    text = re.sub(r"-s\d+-\d{8}-\d{6}", "-s0-<time>", text).strip()
    kept = read_snapshots()
    if UPDATE:
        SNAPSHOTS.parent.mkdir(exist_ok=True)
        kept[name] = text
        SNAPSHOTS.write_text(
            json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
    assert text == kept.get(name)


def _write(path: Path, content: str | bytes, *, folder: bool) -> None:
    """Write a file, or make a folder."""
    if folder:
        path.mkdir(parents=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
