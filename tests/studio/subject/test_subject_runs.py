"""DreamBooth-to-3D from photos to the last step: what it leaves, skips, resumes and starts from."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from image_tools.diffusion.loading import load_folder
from image_tools.personalization import class_images
from studio.checkpoints import list_checkpoints
from studio.errors import Interrupted, StorageError
from studio.metrics_log import read_metrics
from studio.report_subject import subject_section
from studio.resuming import is_resumable
from studio.run_folder import RunFolder
from studio.runner import Runner
from studio.subject.folder import SubjectFolder, read_images
from studio.subject.preparation import SubjectPreparation
from studio.subject.training import EXTRACTED_RANK
from studio.subject.views import view_cameras
from tests.file_bits import bits_of
from tests.studio.conftest import start
from tests.studio.subject.conftest import DCO, LORA
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

ROOT = Path(__file__).parents[3]
STAGES = ("partial", "full", "multiview")


@pytest.fixture(scope="module")
def whole(subject_scene, tmp_path_factory) -> RunFolder:
    """A run from beginning to end."""
    scene, run = start(subject_scene, tmp_path_factory.mktemp("whole"))
    Runner(scene, run).optimise()
    return run


def folder_of(run: RunFolder) -> SubjectFolder:
    return SubjectFolder(run.subject_dir)


def weights_of(run: RunFolder, name: str) -> dict[str, torch.Tensor]:
    """Trained tensors by name."""
    return load_file(folder_of(run).weights(name, is_lora=False))


def results(run: RunFolder) -> dict[str, object]:
    """Every tensor and image that a run made of its subject, by file.

    Not the LoRA cut out of the trained weights: its singular vectors are LAPACK's, whose last bits
    depend on where arrays lie in memory.
    """
    kinds = (".png", ".safetensors")
    return {
        str(path.relative_to(run.subject_dir)): bits_of(path)
        for path in sorted(run.subject_dir.rglob("*"))
        if path.suffix in kinds and path.parent.name != "lora"
    }


def test_all_artefacts_are_there(whole):
    folder = folder_of(whole)
    assert len(read_images(folder.photos)) == 3
    assert len(list(folder.class_images.glob("*.png"))) == 2
    for kind in ("renders", "masks", "pseudo"):
        assert read_images(folder.views(kind)).shape == (5, 32, 32, 3)
    records = json.loads(folder.views_record.read_text())
    assert [row["azimuth_deg"] for row in records] == [0.0, 72.0, 144.0, 216.0, 288.0]
    assert [row["elevation_deg"] for row in records] == [0.0, 30.0, 0.0, 30.0, 0.0]
    assert records[0]["prompt"] == "a sks duck, front view"
    assert {path.name for path in folder.samples.iterdir()} == set(STAGES)
    assert {path.stem for path in folder.sheets.iterdir()} == {"photos", "samples", "views"}
    left = [path.name for path in folder.training("training").iterdir()]
    assert left == ["log.csv"]  # a finished training's state is of no use to anyone


def test_the_three_weights_differ(whole):
    partial, full, multiview = (weights_of(whole, name) for name in STAGES)
    name = "unet.conv_in.weight"
    assert not torch.equal(partial[name], full[name])
    assert not torch.equal(partial[name], multiview[name])
    keys = {key: value["fingerprint"] for key, value in whole.read_info()["weights"].items()}
    assert set(keys) == {"stages.shape.subject", "stages.refine.subject"}
    assert len(set(keys.values())) == 2


def test_seconds_and_evaluations_are_recorded(whole):
    info = whole.read_info()
    records = info["preparations"]
    rows = {name: record["denoiser_evaluations"] for name, record in records.items()}
    assert rows == {
        "photos": 0,
        "class_images": 2 * 2 * 2,  # images x steps x guidance
        "training": 3 * (2 + 2),  # steps x rows of subject and class
        "samples": 2 * 4 * 2 * 2,
        "views": 5 * 3 * 2,  # views x 0.7 of 4 steps x guidance
        "second_training": 3 * (2 + 2),
        "second_samples": 4 * 2 * 2,
    }
    assert all(record["finished"] for record in records.values())
    assert info["seconds"]["prepare"] == pytest.approx(
        sum(record["seconds"] for record in records.values()), abs=1e-2
    )
    assert info["denoiser_evaluations"] == 5 * 2 * 2  # those of the steps


def test_the_loss_is_logged_where_it_has_a_weight(whole):
    rows = read_metrics(whole.metrics_path)
    values = [float(row["loss_reconstruction"]) for row in rows]
    assert values[:3] == [0.0, 0.0, 0.0]
    assert min(values[3:]) > 0.0


def test_the_report_shows_it(whole):
    page = subject_section(whole, whole.read_info())
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "second training" in page
    assert subject_section(RunFolder("/nowhere"), {}) == ""


def test_what_is_finished_is_skipped(whole, subject_scene, capsys):
    """Even without the photos' own folder, and although nothing of it fits any more."""
    before = {path: path.stat().st_mtime_ns for path in whole.subject_dir.rglob("*.*")}
    scene, _ = start(subject_scene, whole.path.parent / "again", "subject.images=/nowhere")
    for checkpoint in list_checkpoints(whole.checkpoints_dir):
        assert checkpoint.is_dir()
    runner = Runner(scene, whole)
    runner.subject.preparation.before(0, None, should_stop=lambda: False)
    runner.subject.preparation.before(1, runner.stage.renderer, should_stop=lambda: False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "Subject:" not in capsys.readouterr().err


class StopAfter:
    """Asks to stop at the n-th question, once."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("questions", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_stopped_preparation_goes_on_bit_for_bit(
    questions, whole, subject_scene, tmp_path, monkeypatch
):
    scene, run = start(subject_scene, tmp_path)
    import studio.subject.subject_run as module

    class Stop(module.StopRequest):
        """Ctrl-C at a known moment."""

        asked = property(lambda self: stop(), lambda self, value: None)

    stop = StopAfter(questions)
    monkeypatch.setattr(module, "StopRequest", Stop)
    with pytest.raises(Interrupted, match="studio run --resume"):
        Runner(scene, run)
    assert is_resumable(run)
    monkeypatch.undo()
    last = run_to_the_end(scene, run)
    assert_equal_bits(list_checkpoints(whole.checkpoints_dir)[-1], last)
    assert results(run) == results(whole)


NINE = "subject.training.class_images.count=9"


def test_class_images_can_be_stopped(subject_scene, tmp_path):
    scene, run = start(subject_scene, tmp_path, NINE)
    preparation = SubjectPreparation(scene, run, torch.device("cpu"))
    with pytest.raises(Interrupted, match="studio run --resume"):
        preparation.before(0, None, should_stop=StopAfter(4))  # before the second few
    assert len(list(folder_of(run).class_images.glob("*.png"))) == 8
    assert not preparation._record("class_images")["finished"]


def test_a_full_disk_is_told_in_a_line(subject_scene, tmp_path, monkeypatch):
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(class_images, "write_image", write)
    scene, run = start(subject_scene, tmp_path)
    preparation = SubjectPreparation(scene, run, torch.device("cpu"))
    with pytest.raises(StorageError, match="Free some space, then continue with studio run"):
        preparation.before(0, None, should_stop=lambda: False)


def test_stopped_between_the_stages_it_goes_on_bit_for_bit(
    whole, subject_scene, tmp_path, monkeypatch
):
    """Inside the second training, which is made of the stage that ended."""
    scene, run = start(subject_scene, tmp_path)
    runner = Runner(scene, run)
    for _ in range(3):
        assert runner.has_next()
        runner.step()
    preparation = runner.subject.preparation
    runner.save()
    with pytest.raises(Interrupted):
        preparation.before(1, runner.stage.renderer, should_stop=StopAfter(6))
    assert preparation._record("views")["finished"]
    assert not preparation._record("second_training")["finished"]
    last = run_to_the_end(scene, run)
    assert_equal_bits(list_checkpoints(whole.checkpoints_dir)[-1], last)
    assert results(run) == results(whole)


def test_the_second_training_starts_from_the_partial_weights(subject_scene, tmp_path):
    """With a learning rate of nothing they stay as they are."""
    still = "subject.second_training.loop.learning_rate=0.0"
    scene, run = start(subject_scene, tmp_path, still)
    Runner(scene, run).optimise()
    partial, multiview = weights_of(run, "partial"), weights_of(run, "multiview")
    assert all(torch.equal(partial[name], multiview[name]) for name in partial)


def test_strength_0_keeps_the_renders_exactly(subject_scene, tmp_path):
    scene, run = start(subject_scene, tmp_path, "subject.views.strength=0.0")
    runner = Runner(scene, run)
    while runner.stage.index == 0:
        runner.step()
        runner.has_next()
    folder = folder_of(run)
    renders, pseudo = (read_images(folder.views(kind)) for kind in ("renders", "pseudo"))
    assert torch.equal(renders, pseudo)
    assert renders.std() > 0.0
    record = run.read_info()["preparations"]["views"]
    assert record["denoiser_evaluations"] == 0


def test_reconstruction_alone_pulls_the_object_to_the_views(subject_scene, tmp_path):
    """With all views in each step and no other loss, every step brings it closer."""
    scene, run = start(
        subject_scene,
        tmp_path,
        "stages.refine.losses={guidance: 0.0, reconstruction: 100.0}",
        "stages.refine.steps=12",
        "stages.refine.subject.weights=full",
        "subject.views.count=2",
        "subject.reconstruction.mask_margin=null",
    )
    Runner(scene, run).optimise()
    assert "second_training" not in run.read_info()["preparations"]  # nobody needs it
    losses = [float(row["loss_reconstruction"]) for row in read_metrics(run.metrics_path)][3:]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 12


@pytest.mark.parametrize(
    "training",
    [pytest.param(LORA, id="lora", marks=pytest.mark.slow), pytest.param(DCO, id="dco")],
)
def test_a_lora_guides_consistently_and_loads_in_stock_diffusers(
    training, subject_scene, tiny_prior, tmp_path
):
    scene, run = start(
        subject_scene,
        tmp_path,
        training,
        "subject.views.subject={kind: consistency, scale: 2.0}",
        "stages.shape.subject={kind: consistency, weights: full, scale: [[0, 1], [1, 5]]}",
        "stages.refine.subject={kind: consistency, weights: multiview}",
    )
    runner = Runner(scene, run)
    runner.step()
    runner.step()
    assert runner.prior.scales == [pytest.approx(1 + 4 / 3)]
    runner.optimise()
    assert run.read_info()["preparations"]["views"]["denoiser_evaluations"] == 5 * 3 * 3
    path = folder_of(run).lora
    assert bits_of(path) == bits_of(folder_of(run).weights("full", is_lora=True))
    assert_loads_in_stock(tiny_prior, path)


def captions_file(path: Path) -> Path:
    """Full captions of the three photos, with a word of their own for the subject."""
    names, sides = ("0.png", "1.png", "2.png"), ("front", "side", "back")
    content = {
        "images": names,
        "prompts": [f"a <it> on a beach, {side} view" for side in sides],
        "base_prompts": [f"a duck on a beach, {side} view" for side in sides],
        "inserting_tokens": ["<it>"],
        "initializer_tokens": ["duck"],
    }
    path.write_text(json.dumps(content))
    return path


def test_dco_reads_the_photos_own_captions_and_draws_on_its_way(subject_scene, tmp_path):
    captions = f"subject.captions={captions_file(tmp_path / 'captions.json')}"
    grids = ("subject.training.loop.sample_every=2", "subject.samples.steps=1")
    scene, run = start(subject_scene, tmp_path, DCO, captions, *grids)
    preparation = Runner(scene, run).subject.preparation
    said = preparation._captions(3)
    assert said.prompts[1] == "a sks duck on a beach, side view"
    assert (said.base_prompts[1], said.tokens) == ("a duck on a beach, side view", ())
    pictures = sorted(path.name for path in folder_of(run).grids("training").iterdir())
    assert pictures == ["step-000000.png", "step-000002.png", "step-000003.png"]
    rows = preparation._record("training")["denoiser_evaluations"]
    assert rows == 3 * 2 * 2 + 3 * 4 * 2 * 2  # of the training; grids x prompts x noises x guidance


def assert_loads_in_stock(folder: Path, lora: Path) -> None:
    """A stock pipeline with the LoRA predicts something else than without it."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    plain = pipeline.unet.conv_in.weight.new_ones(1, 4, 8, 8)
    text = torch.ones(1, 24, pipeline.unet.config.cross_attention_dim)
    with torch.no_grad():
        before = pipeline.unet(plain, 500, text).sample
        pipeline.load_lora_weights(lora.parent)
        after = pipeline.unet(plain, 500, text).sample
    assert not torch.allclose(before, after)


def test_the_lora_cut_out_of_a_whole_denoiser_loads_and_misses_what_its_rank_must(
    whole, tiny_prior
):
    """The best approximation of a rank leaves the squares of the singular values beyond it."""
    from image_tools.diffusion.lora_files import read_lora

    assert_loads_in_stock(tiny_prior, folder_of(whole).lora)
    base = load_folder(tiny_prior, torch.device("cpu")).unet.state_dict()
    tuned = weights_of(whole, "full")
    deltas = {name: delta for _, name, delta in read_lora(folder_of(whole).lora).deltas()}
    assert len(deltas) > 20
    total = lost = 0.0
    for name, delta in deltas.items():
        change = tuned[f"unet.{name}.weight"] - base[f"{name}.weight"]
        missed = float((delta.weight() - change).double().square().sum())
        beyond = torch.linalg.svdvals(change.flatten(1).double())[EXTRACTED_RANK:]
        assert missed == pytest.approx(float(beyond.square().sum()), rel=1e-3, abs=1e-9)
        total, lost = total + float(change.double().square().sum()), lost + missed
    held = whole.read_info()["subject_lora"]
    assert (held["rank"], held["layers"]) == (EXTRACTED_RANK, len(deltas))
    assert held["kept"] == pytest.approx(1.0 - lost / total, abs=1e-4)
    assert 0.0 < held["left_out_share"] < 0.5  # norms and biases were trained too


@pytest.mark.slow
def test_a_placeholder_is_learned_first_and_its_word_guides(subject_scene, tmp_path):
    token = "subject.token={kind: placeholder, word: <my-duck>, loop: {steps: 2}}"
    scene, run = start(subject_scene, tmp_path, token)
    assert scene.prompt == "a <my-duck>"
    Runner(scene, run).optimise()
    assert folder_of(run).word.is_file()
    assert run.read_info()["preparations"]["word_training"]["denoiser_evaluations"] == 2 * 4


DREAMFLOW = "{kind: dreamflow, timesteps: 2, critic: {rank: 2}}"


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        pytest.param("{kind: vsd, critic: {rank: 2}}", "plain", id="vsd"),
        pytest.param(DREAMFLOW, "plain", id="dreamflow", marks=pytest.mark.slow),
        pytest.param(DREAMFLOW, "consistency", id="dreamflow_consistent", marks=pytest.mark.slow),
    ],
)
def test_other_rules_guide_with_a_subject_and_leave_it_as_it_is(
    rule, kind, subject_scene, tmp_path
):
    use = f"stages.shape.subject={{kind: {kind}, weights: full}}"
    scene, run = start(subject_scene, tmp_path, LORA, f"stages.shape.guidance={rule}", use)
    runner = Runner(scene, run)
    latents, t = torch.ones(1, 4, 8, 8), torch.tensor([500])
    text = runner.prior.encode_prompt([scene.prompt])
    before = runner.prior.predict_noise(latents, t, text)
    for _ in range(2):
        runner.step()
    assert torch.equal(runner.prior.predict_noise(latents, t, text), before)


def test_cameras_of_views_stand_at_the_middle_of_the_stage_s_distances(subject_scene, tmp_path):
    scene, _ = start(subject_scene, tmp_path)
    cameras = view_cameras(scene.subject.views, scene.stages[0].cameras, size=32)
    assert cameras.camera_distance.tolist() == pytest.approx([2.9] * 5)
    assert (cameras.height, cameras.width) == (32, 32)
    assert torch.linalg.det(cameras.c2w[:, :3, :3]).tolist() == pytest.approx([1.0] * 5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["training/state.safetensors", "second_training/log.csv"])
def test_killed_by_force_it_ends_with_the_same_bits(file, whole, subject_scene, tmp_path):
    """In the middle of a training; the process gets no chance to tidy up."""
    more = ["export.formats=[ply]", "export.appearance=vertex", "export.film_frames=2"]
    scene_arguments = [str(subject_scene), *more, "--out", str(tmp_path)]
    process = _studio(scene_arguments)
    until = time.monotonic() + 300
    while not list(tmp_path.glob(f"*/*/subject/{file}")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    (info,) = tmp_path.glob("*/*/run.json")
    run = RunFolder(info.parent)
    process = _studio(["--resume", str(run.path)])
    process.wait(timeout=300)
    assert results(run) == results(whole)
    assert_equal_bits(
        list_checkpoints(whole.checkpoints_dir)[-1], list_checkpoints(run.checkpoints_dir)[-1]
    )


def _studio(arguments: list[str]) -> subprocess.Popen:
    """The command in a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "studio", "run", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
