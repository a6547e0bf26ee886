"""`studio personalize`: from a folder of photos to files, on after a stop, and clear refusals."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from PIL import Image

from image_tools.personalization import class_images
from image_tools.personalization.captions import CaptionsError
from image_tools.personalization.photos import PhotosError
from studio.commands import export, personalize, sweep
from studio.commands import run as run_command
from studio.errors import ConfigError, Interrupted, StorageError, StudioError
from studio.folder_lock import hold_run
from studio.personalize_configs import PersonalizeConfig, SubjectPhotosConfig
from studio.report import write_report
from studio.run_folder import RunFolder
from studio.subject.photos import keep_photos, kept_captions
from tests.file_bits import bits_of
from tests.studio.conftest import disk_full_at

QUICK = [
    *("method.loop.steps=3", "method.loop.save_every=1", "method.loop.sample_every=2"),
    *("samples.columns=1", "samples.sampler.steps=2", "device=cpu", "method.batch.size=1"),
]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two photos of different shapes, and a note."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(folder / "a.jpg")
    Image.radial_gradient("L").convert("RGB").resize((20, 50)).save(folder / "b.png")
    (folder / "notes.txt").write_text("holiday")
    return folder


def _run(photos, model, tmp_path, capsys, *arguments, **settings) -> dict:
    has_word = any(text.startswith("subject.word=") for text in arguments)
    given = [str(photos), *([] if has_word else ["subject.word=duck"]), *arguments]
    given += ["prior.kind=diffusers", f"prior.model={model}", *QUICK]
    personalize.run(given, out=tmp_path / "runs", as_json=True, **settings)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("dreambooth_lora", {"lora", "lora_kohya"}),
        ("dco", {"lora", "lora_kohya", "embedding"}),
        ("dreambooth", {"weights", "model"}),
        ("textual_inversion", {"embedding"}),
    ],
)
def test_every_method_ends_in_files(
    photos,
    tiny_prior,
    tmp_path,
    capsys,
    method,
    names,
):
    more = ["method.class_images.count=1", "method.class_images.sampler.steps=2"]
    more = more if method.startswith("dreambooth") else []
    result = _run(photos, tiny_prior, tmp_path, capsys, f"method.kind={method}", *more)
    assert set(result["files"]) == names
    assert all(Path(path).exists() for path in result["files"].values())
    run = Path(result["run"])
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "done"
    assert info["photos"] == ["a.jpg", "b.png"]
    assert info["skipped"] == {"notes.txt": "is not a photo"}
    grids = sorted(path.name for path in (run / "previews").iterdir())
    assert grids == ["step-000000.png", "step-000002.png", "step-000003.png"]
    assert (run / "class_images").exists() == bool(more)


class CtrlC(logging.Handler):
    """Presses Ctrl-C when something is reported."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def emit(self, record: logging.LogRecord) -> None:
        """Once, so that the run stops after the step instead of at once."""
        if record.getMessage().startswith(self.beginning):
            signal.raise_signal(signal.SIGINT)

    def __enter__(self) -> None:
        logging.getLogger("studio.progress").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("studio.progress").removeHandler(self)


def test_a_stopped_run_goes_on_by_its_folder(photos, tiny_prior, tmp_path, capsys):
    more = ["method.loop.log_every=1"]
    whole = _run(photos, tiny_prior, tmp_path / "a", capsys, *more)
    scene = tmp_path / "mine.yaml"
    model = ["prior.kind=diffusers", f"prior.model={tiny_prior}"]
    given = [str(photos), "subject.word=duck", *model, *QUICK, *more]
    personalize.run(given, out=tmp_path, dry_run=True)
    scene.write_text(capsys.readouterr().out)
    stopped = pytest.raises(StudioError, match=r"after step 1 of 3, saved\. .* --resume")
    with CtrlC("step 1/"), stopped as caught:
        run_command.run([str(scene)], out=tmp_path / "b")
    assert caught.value.exit_code == 130
    (folder,) = (path.parent for path in (tmp_path / "b").glob("*/*/run.json"))
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(ConfigError, match="other settings were given - expected none but device"):
        personalize.run(["method.loop.steps=9"], out=tmp_path, resume=folder)
    with hold_run(RunFolder(folder)), pytest.raises(StorageError, match="Another process"):
        run_command.run([], out=tmp_path / "b", resume=folder)
    capsys.readouterr()
    shutil.rmtree(photos)  # the run has its own copies from now on
    run_command.run([], out=tmp_path / "b", resume=folder, as_json=True)
    resumed = json.loads(capsys.readouterr().out)
    assert Path(resumed["run"]) == folder
    files = [bits_of(Path(result["files"]["lora"])) for result in (whole, resumed)]
    assert files[0] == files[1]


CLASSES = ["method.class_images.count=9", "method.class_images.sampler.steps=2"]


def test_ctrl_c_waits_for_a_few_class_images_and_keeps_them(photos, tiny_prior, tmp_path, capsys):
    more = ["method.kind=dreambooth", *CLASSES]
    stopped = pytest.raises(Interrupted, match=r"class images were made.* personalize --resume ")
    with CtrlC("class images: 9 to make"), stopped:
        _run(photos, tiny_prior, tmp_path, capsys, *more)
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/*/run.json"))
    made = {path: path.stat().st_mtime_ns for path in (folder / "class_images").glob("*.png")}
    assert len(made) == 8  # those of one pass through the prior
    assert not (folder / "training" / "state.safetensors").exists()
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    personalize.run([], out=tmp_path / "runs", resume=folder)
    assert len(list((folder / "class_images").glob("*.png"))) == 9
    assert {path: path.stat().st_mtime_ns for path in made} == made


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("full_at", ["class images", "training"])
def test_a_full_disk_is_told_in_a_line_and_the_run_goes_on(
    photos, tiny_prior, tmp_path, monkeypatch, full_at
):
    given = [str(photos), "subject.word=duck", "method.kind=dreambooth", *CLASSES, *QUICK]
    given += ["prior.kind=diffusers", f"prior.model={tiny_prior}"]
    told = pytest.raises(StorageError, match=r"write .*Free some")
    with monkeypatch.context() as patch, contextlib.ExitStack() as disk, told:
        if full_at == "class images":
            patch.setattr(class_images, "write_image", _no_space)
        else:  # the state of a training is larger, and all before it is smaller
            disk.enter_context(disk_full_at(50_000))
        personalize.run(given, out=tmp_path / "runs")
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/*/run.json"))
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert not list(folder.rglob("*.tmp"))
    personalize.run([], out=tmp_path / "runs", resume=folder)
    info = json.loads((folder / "run.json").read_text())
    assert (info["status"], info["error"]) == ("done", None)


def test_a_run_says_what_made_it_and_what_it_cost(photos, tiny_prior, tmp_path, capsys):
    run = Path(_run(photos, tiny_prior, tmp_path, capsys)["run"])
    info = json.loads((run / "run.json").read_text())
    assert {"argv", "version", "git", "python", "packages"} <= set(info)
    assert info["seconds"]["personalize"] > 0.0
    assert info["peak_memory_bytes"] > 0
    page = write_report(RunFolder(run)).read_text(encoding="utf-8")
    assert "No asset" not in page
    assert f"studio {info['version']}" in page
    assert "peak memory" in page
    assert "Rows are the prompts" in page
    assert "four views" not in page


def test_verbs_of_assets_say_what_a_personalization_is_for(photos, tiny_prior, tmp_path, capsys):
    words = r"task personalize .* neither an asset nor pictures .* studio run FILE"
    scene = _file(tmp_path, photos)
    with pytest.raises(ConfigError, match=words):
        sweep.run([str(scene), "method.loop.seed=0,1"], out=tmp_path / "runs")
    run = Path(_run(photos, tiny_prior, tmp_path, capsys)["run"])
    with pytest.raises(ConfigError, match=words):
        export.run(run)


def _file(folder: Path, photos: Path, **settings) -> Path:
    """A short file with `task: personalize`."""
    tree = {"task": "personalize", "subject": {"images": str(photos), "word": "duck"}, **settings}
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    return folder / "mine.yaml"


def test_a_file_that_builds_on_a_personalization_is_one(photos, tmp_path, capsys):
    _file(tmp_path, photos, method={"kind": "dco", "beta": 7.0})
    child = tmp_path / "child.yaml"
    child.write_text("base: mine.yaml\nmethod: {lora: {rank: 2}}\n")
    run_command.run([str(child)], out=tmp_path / "runs", dry_run=True, as_json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["task"] == "personalize"
    assert (made["method"]["beta"], made["method"]["lora"]["rank"]) == (7.0, 2)


@pytest.mark.parametrize("option", [{"evaluate": True}, {"view": True}, {"log": "csv,tensorboard"}])
def test_options_of_assets_are_refused(photos, tmp_path, option):
    scene = _file(tmp_path, photos)
    with pytest.raises(ConfigError, match=r"personalize makes none .* Leave the option out"):
        run_command.run([str(scene)], out=tmp_path / "runs", **option)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", [None, "edit_image"])
def test_only_personalizations_are_resumed(tmp_path, task):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({} if task is None else {"task": task}))
    with pytest.raises(ConfigError, match="is no personalization - expected a folder") as caught:
        personalize.run([], out=tmp_path, resume=run)
    assert "those of pictures are made again" in str(caught.value)


def _given(photos: Path, text: str) -> str:
    """An argument with the test's own paths."""
    return re.sub("PHOTOS", str(photos), text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["subject.word=dog"], "subject.images is empty - expected a folder with photos"),
        (["PHOTOS"], "subject.word is empty - expected what the subject is"),
        (["PHOTOS", "subject.word=dog", "method.kind=lora"], "Known kinds: textual_inversion"),
        (["PHOTOS", "subject.word=dog", "subject.template=a dog"], "template is 'a dog'"),
        (["nowhere", "subject.word=dog"], "nowhere: no such file or folder"),
        (["PHOTOS/a.jpg", "subject.word=dog"], "a.jpg is a file - expected the folder that holds"),
        (["PHOTOS/a.jpg", "PHOTOS/b.png", "subject.word=dog"], "2 files are given .* the folder"),
        (["subject.images=PHOTOS/a.jpg", "subject.word=dog"], "expected a folder"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_made(photos, tmp_path, arguments, words):
    given = [_given(photos, text) for text in arguments]
    with pytest.raises((ConfigError, PhotosError), match=words):
        personalize.run(given, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def _folder(tmp_path: Path, content: str) -> Path:
    """A photo folder with nothing that can be used in it."""
    folder = tmp_path / "bad"
    if content != "no folder":
        folder.mkdir()
    if content == "notes":
        (folder / "notes.txt").write_text("holiday")
    if content == "corrupt":
        Image.linear_gradient("L").save(folder / "a.png")
        (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no folder", "bad' is not there - expected a folder with three to six photos"),
        ("empty", "There are no photos in '.*bad': it is empty"),
        ("notes", "There are no photos in '.*bad': only 'notes.txt'"),
        ("corrupt", "No photo in '.*bad' can be used: 'a.png' is damaged"),
    ],
)
def test_photos_are_looked_at_before_anything_is_made(tmp_path, content, words):
    given = [f"subject.images={_folder(tmp_path, content)}", "subject.word=dog"]
    with pytest.raises(PhotosError, match=words) as caught:
        personalize.run(given, out=tmp_path / "runs")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


def _captions(folder: Path, *names: str) -> Path:
    """Captions of some of the photos."""
    content = {
        "images": list(names),
        "prompts": [f"{name} of <it>" for name in names],
        "base_prompts": [f"{name} of a duck" for name in names],
        "inserting_tokens": ["<it>"],
        "initializer_tokens": ["duck"],
    }
    (folder / "captions.json").write_text(json.dumps(content))
    return folder / "captions.json"


def test_captions_are_kept_with_the_photos(photos, tmp_path):
    path, kept = _captions(photos, "b.png", "a.jpg"), tmp_path / "kept"
    keep_photos(SubjectPhotosConfig(str(photos), captions=str(path)), kept, size=16)
    assert {entry.name for entry in kept.iterdir()} == {
        *("00.png", "01.png", "photos.json", "captions.json")
    }
    shutil.rmtree(photos)
    assert kept_captions(kept).prompts == ("a.jpg of <it>", "b.png of <it>")


def test_captions_that_do_not_fit_are_told_before_anything_is_made(photos, tmp_path):
    given = [str(photos), "subject.word=duck", f"subject.captions={_captions(photos, 'a.jpg')}"]
    with pytest.raises(CaptionsError, match=r"has no caption for 'b\.png'"):
        personalize.run([*given, "method.kind=dco"], out=tmp_path / "runs")
    with pytest.raises(ConfigError, match="expected none, or method"):
        personalize.run([*given, "method.kind=dreambooth"], out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("method", "words", "arguments"),
    [
        ("dreambooth", "'a duck' has no rare word in it", "subject.token=a duck"),
        ("dreambooth_lora", "'duck' has no rare word in it", "subject.token=duck"),
        ("dreambooth_lora", "has no token in the text encoder's", "subject.word=犬"),
    ],
)
def test_words_are_held_against_the_prior_s_vocabulary(
    photos, tiny_prior, tmp_path, capsys, method, words, arguments
):
    with pytest.raises(StudioError, match=words) as caught:
        _run(photos, tiny_prior, tmp_path, capsys, f"method.kind={method}", arguments)
    assert caught.value.exit_code == 2


def test_prompts_name_the_subject_as_the_method_does():
    def token(kind, **settings):
        method = {f"{m.kind}": m for m in (config.method for config in _configs())}[kind]
        subject = SubjectPhotosConfig(word="teddy bear", **settings)
        return PersonalizeConfig(subject=subject, method=method)

    assert token("dreambooth").token == "sks teddy bear"
    assert token("dco").token == "<my-teddy-bear>"
    assert token("dco", token="<ted>").token == "<ted>"
    assert token("dco").class_phrase == "a teddy bear"
    assert token("dco", template="a photo of a {}").class_phrase == "teddy bear"
    learned = token("textual_inversion").resolved_method()
    assert (learned.token, learned.init_word) == ("<my-teddy-bear>", "teddy bear")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.token=<ted>", r"method\.token is '<ted>', .* subject\.token='<ted>'"),
        ("method.init_word=bear", r"method\.init_word is 'bear', .* subject\.word='bear'"),
        ("subject.template=a toy {}", r"method\.templates=\['a toy \{\}'\]"),
    ],
)
@pytest.mark.parametrize("prior", [[], ["prior.kind=diffusers", "prior.model=nowhere"]])
def test_a_new_word_is_told_once(photos, setting, words, prior):
    given = [str(photos), "subject.word=duck", "method.kind=textual_inversion", *prior]
    with pytest.raises(ConfigError, match=words):
        personalize.run([*given, setting], out=Path("runs"), dry_run=True)
    same = ["method.token=<my-duck>", "method.init_word=duck"]
    personalize.run([*given, *same], out=Path("runs"), dry_run=True)


def _configs():
    from studio.config import validate

    kinds = ("textual_inversion", "dreambooth", "dreambooth_lora", "dco")
    return [validate(PersonalizeConfig, {"method": {"kind": kind}}) for kind in kinds]


@pytest.mark.parametrize("method", ["textual_inversion", "dreambooth", "dreambooth_lora", "dco"])
def test_pocket_has_settings_of_its_own_and_other_priors_the_papers(photos, capsys, method):
    def settings(*more: str) -> dict:
        given = [str(photos), "subject.word=duck", f"method.kind={method}", *more]
        personalize.run(given, out=Path("runs"), dry_run=True, as_json=True)
        return json.loads(capsys.readouterr().out)

    pocket = settings("method.loop.save_every=7", "subject.photos.cutout.fill=0.6")
    assert pocket["subject"]["photos"]["cutout"]["fill"] == 0.6  # a key of what pocket alone sets
    assert pocket["subject"]["photos"]["cutout"]["ground"] == "colors"
    assert pocket["subject"]["images"] == str(photos)
    assert pocket["method"]["loop"]["steps"] == 400
    assert pocket["method"]["loop"]["save_every"] == 7
    other = settings("prior.kind=diffusers", "prior.model=nowhere")
    with pytest.raises(ConfigError, match=r"leaves subject\.photos\.cutout empty"):
        settings(*("prior.kind=diffusers", "prior.model=nowhere", "subject.photos.cutout.fill=1"))
    assert other["subject"]["photos"]["cutout"] is None
    rates = [each["method"]["loop"]["learning_rate"] for each in (pocket, other)]
    assert rates[0] != rates[1]


@pytest.mark.parametrize("method", ["textual_inversion", "dreambooth", "dreambooth_lora", "dco"])
def test_pocket_has_them_in_a_file_too_below_the_file_s_own(photos, tmp_path, capsys, method):
    def settings(*given: str) -> dict:
        personalize.run(given, out=Path("runs"), dry_run=True, as_json=True)
        return json.loads(capsys.readouterr().out)

    loop = {"save_every": 7, "learning_rate": 0.25}
    scene = _file(tmp_path, photos, method={"kind": method, "loop": loop})
    own = [f"method.loop.{key}={value}" for key, value in loop.items()]
    from_folder = settings(str(photos), "subject.word=duck", f"method.kind={method}", *own)
    assert settings(str(scene)) == from_folder
    assert from_folder["method"]["loop"]["steps"] == 400
    assert from_folder["method"]["loop"]["learning_rate"] == 0.25
    other = "dco" if method != "dco" else "dreambooth"
    assert settings(str(scene), f"method.kind={other}") == settings(
        str(photos), "subject.word=duck", f"method.kind={other}"
    )
