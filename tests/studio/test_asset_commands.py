"""The verbs export, render, report and view, and the end of a run, on an untrained blob."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from studio.camera_path import write_camera_path
from studio.checkpoints import save_checkpoint
from studio.commands import export, render, report, view
from studio.errors import BackendMissing, CheckpointError, ConfigError, EmptyGeometry
from studio.export.read import load_asset
from studio.finish import finish_run
from studio.run_folder import RunFolder, glb_command
from studio.stages import build_stage, load_stage
from studio.turntable import asset_render, field_render, orbit_of
from tests.studio.conftest import start


def with_checkpoint(scene_file: Path, out: Path, *overrides: str) -> RunFolder:
    """A run whose field is still the blob it starts from: nearly a ball."""
    scene, run = start(scene_file, out, *overrides)
    stage = build_stage(scene, 0, torch.device("cpu"))
    for step in range(0, 8, 2):
        stage.renderer.update_occupancy(step, stage.generators["occupancy"])
    save_checkpoint(run.checkpoints_dir, stage.to_checkpoint(6))
    return run


@pytest.fixture
def run(tiny_scene, tmp_path) -> RunFolder:
    """A run ready for export."""
    return with_checkpoint(tiny_scene, tmp_path / "runs", "export.search_resolution=24")


@pytest.fixture(scope="module")
def finished(tiny_scene, tmp_path_factory) -> RunFolder:
    """A run with asset, pictures and report."""
    out = tmp_path_factory.mktemp("finished")
    run = with_checkpoint(tiny_scene, out, "export.search_resolution=24", "export.resolution=24")
    finish_run(run)
    return run


def frames_of(path: Path) -> tuple[int, tuple[int, int]]:
    """Number and size of the frames of a film."""
    reader = imageio_ffmpeg.read_frames(str(path))
    size = next(reader)["size"]
    return sum(1 for _ in reader), size


def test_finish_writes_asset_pictures_and_report(finished):
    info = finished.read_info()
    assert info["status"] == "done"
    assert info["export"]["problems"] == []
    assert info["seconds"]["finish"] > 0.0
    names = {path.name for path in finished.renders_dir.iterdir()}
    assert names == {"turntable.mp4", "turntable.gif", "contact_sheet.png"}
    assert "data:model/gltf-binary" in finished.report_path.read_text(encoding="utf-8")


def test_field_and_asset_are_rendered_in_the_same_place(finished):
    """Their silhouettes overlap: the asset was put back where its field is."""
    stage = load_stage(finished)
    cameras = orbit_of(stage, 3, size=48)
    with torch.no_grad():
        field = field_render(stage)(cameras).opacity > 0.5
    asset = asset_render(load_asset(finished.asset_dir / "asset.glb"))(cameras).opacity > 0.5
    overlap = (field & asset).sum() / (field | asset).sum()
    assert float(overlap) > 0.85


def test_orbit_starts_in_front_at_the_training_distance(finished):
    stage = load_stage(finished)
    cameras = orbit_of(stage, 4, size=32)
    assert cameras.azimuth_deg.tolist() == [0.0, 90.0, 180.0, 270.0]
    low, high = stage.stage.cameras.distance_range
    assert low <= float(cameras.camera_distance[0]) <= high


def test_failed_export_leaves_a_report_and_the_reason(run):
    text = run.resolved_path.read_text().replace("threshold: auto", "threshold: 1000000.0")
    run.resolved_path.write_text(text)
    with pytest.raises(EmptyGeometry):
        finish_run(run)
    assert run.read_info()["status"] == "failed"
    assert "No surface at threshold" in run.report_path.read_text(encoding="utf-8")


def test_export_takes_its_options(run, capsys):
    export.run(run.path, formats="ply, obj", faces=200, texture=0, up="z", as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert set(result["files"]) == {"ply", "obj", "report"}
    assert Path(result["files"]["ply"]).is_file()
    assert result["n_faces"] <= 200
    assert result["appearance"] == "vertex"
    assert run.read_info()["export"]["n_faces"] == result["n_faces"]


def test_export_prints_paths_on_stdout_and_the_rest_on_stderr(run, capsys):
    export.run(run.path, formats="glb", texture=0)
    output = capsys.readouterr()
    kinds = [line.split()[0] for line in output.out.splitlines()]
    assert kinds == ["glb", "validation", "report"]
    assert "silhouettes" in output.err


def test_pictures_and_report_show_the_asset_of_the_last_export(run, capsys):
    def shown() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in run.renders_dir.iterdir()}

    export.run(run.path, formats="glb", texture=0)
    first, report = shown(), run.report_path.read_text(encoding="utf-8")
    assert set(first) == {"turntable.mp4", "turntable.gif", "contact_sheet.png"}
    export.run(run.path, formats="glb", texture=0, faces=120)
    second = shown()
    assert all(second[name] != first[name] for name in first)
    assert run.report_path.read_text(encoding="utf-8") != report
    render.run(run.path, frames=2, size=16)
    assert shown()["turntable.mp4"] == second["turntable.mp4"]  # that of the field has its own name
    export.run(run.path, formats="ply")
    assert set(shown()) == {"turntable_field.mp4"}
    assert "Turntable of the asset" not in run.report_path.read_text(encoding="utf-8")
    capsys.readouterr()


def test_figures_of_an_asset_end_with_it(run, capsys):
    """Another asset is written: what was measured of the one before is no longer true."""
    export.run(run.path, formats="glb", texture=0)
    kept = {"metrics": {"opacity": 0.5}}
    run.update_info({**kept, "evaluation": {"chroma": 0.4}, "subject_evaluation": {"dino": 0.6}})
    with pytest.raises(ConfigError):
        export.run(run.path, formats="stl")
    assert run.read_info()["evaluation"] == {"chroma": 0.4}
    export.run(run.path, formats="ply", faces=100)
    info = run.read_info()
    assert not {"evaluation", "subject_evaluation"} & set(info)
    assert info["metrics"] == kept["metrics"]
    capsys.readouterr()


def test_the_asset_that_is_shown_is_that_of_the_last_export(run, capsys):
    export.run(run.path, formats="glb", texture=0)
    glb = run.asset_dir / "asset.glb"
    assert view.find_asset(run.path) == glb
    older = glb.read_bytes()
    export.run(run.path, formats="ply")
    glb.write_bytes(older)  # as versions before left it there
    with pytest.raises(ConfigError, match=f"studio export {run.path} --format glb"):
        view.find_asset(run.path)
    capsys.readouterr()


WRONG_EXPORTS = {
    "format": ({"formats": "glb,stl"}, "stl"),
    "no format": ({"formats": ","}, "formats is empty"),
    "threshold": ({"threshold": "high"}, "threshold"),
    "faces": ({"faces": 3}, "max_faces is 3 - expected at least 100"),
    "up": ({"up": "x"}, "up"),
    "height": ({"height_m": -1.0}, "height_m is -1.0"),
}


@pytest.mark.parametrize(("options", "words"), WRONG_EXPORTS.values(), ids=WRONG_EXPORTS.keys())
def test_wrong_export_options_are_named(run, options, words):
    with pytest.raises(ConfigError) as error:
        export.run(run.path, **options)
    assert words in str(error.value)


def test_export_without_checkpoint_says_so(tiny_scene, tmp_path):
    _, run = start(tiny_scene, tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        export.run(run.path)


def test_render_films_the_field(run, capsys):
    render.run(
        run.path, frames=3, size=16, outputs="comp_rgb,normal", video="mp4,gif", as_json=True
    )
    files = json.loads(capsys.readouterr().out)
    assert frames_of(Path(files["mp4"])) == (3, (32, 16))
    assert Path(files["gif"]).is_file()


def test_render_follows_a_camera_path_and_writes_stills(finished, tmp_path, capsys):
    cameras = orbit_of(load_stage(finished), 2, size=10)
    write_camera_path(tmp_path / "dolly.json", cameras, fps=5)
    render.run(
        finished.path,
        source="asset",
        camera=str(tmp_path / "dolly.json"),
        size=20,
        video="",
        stills=True,
        as_json=True,
    )
    folder = Path(json.loads(capsys.readouterr().out)["stills"])
    with Image.open(folder / "001.png") as image:
        assert image.size == (20, 20)
        assert json.loads(image.text["studio"])["view"] == 1
        assert np.array(image).min() < 200


WRONG_RENDERS = {
    "source": ({"source": "mesh"}, "unknown 'mesh' - expected field or asset"),
    "outputs": ({"outputs": "rgb"}, "unknown 'rgb'"),
    "video": ({"video": "avi"}, "unknown 'avi' - expected some of mp4, gif"),
    "size": ({"size": 0}, "--size is 0"),
    "frames": ({"frames": -4}, "--frames is -4"),
    "nothing": ({"video": ""}, "Nothing to write"),
    "camera": ({"camera": "none.json", "frames": None}, "cannot be read"),
    "views of a path": ({"camera": "none.json"}, "--frames is 1 with a camera path"),
}


@pytest.mark.parametrize(("options", "words"), WRONG_RENDERS.values(), ids=WRONG_RENDERS.keys())
def test_wrong_render_options_are_named(run, options, words):
    with pytest.raises(ConfigError) as error:
        render.run(run.path, **{"frames": 1, "size": 8, **options})
    assert words in str(error.value)


def test_asset_that_is_not_there_names_the_command(run):
    with pytest.raises(ConfigError, match=f"studio export {run.path} --format glb"):
        render.run(run.path, source="asset", frames=1, size=8)


def test_asset_exported_in_other_formats_is_not_there_to_render(run):
    """Nor is the GLB of the export before, which shows another surface."""
    export.run(run.path, formats="glb,ply", texture=0)
    assert (run.asset_dir / "asset.glb").is_file()
    export.run(run.path, formats="ply", texture=0)
    with pytest.raises(ConfigError, match=r"has no GLB - expected one.*--format glb"):
        render.run(run.path, source="asset", frames=1, size=8)


def test_the_glb_that_was_noted_is_rendered(run, capsys):
    export.run(run.path, formats="glb", texture=0)
    (run.asset_dir / "asset.glb").rename(run.asset_dir / "mine.glb")
    run.update_info({"export": {"files": {"glb": "mine.glb"}}})
    capsys.readouterr()
    render.run(run.path, source="asset", frames=1, size=8, video="gif", as_json=True)
    assert Path(json.loads(capsys.readouterr().out)["gif"]).is_file()


def test_report_prints_where_it_is(finished, capsys):
    report.run([finished.path])
    assert capsys.readouterr().out.strip() == str(finished.report_path)


def test_report_of_several_runs_is_a_gallery(finished, run, tmp_path, capsys):
    report.run([finished.path, run.path], out=tmp_path / "all.html", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "all.html")}
    assert (tmp_path / "all.html").read_text(encoding="utf-8").count("<article") == 2


def test_report_without_runs_says_what_it_needs():
    with pytest.raises(ConfigError, match="at least one run folder"):
        report.run([])


@pytest.mark.skipif(find_spec("viser") is not None, reason="viser is installed here")
def test_view_without_viser_names_the_extra(finished):
    with pytest.raises(BackendMissing, match=r"pip install .*\[view\]"):
        view.run(finished.path)


def test_view_looks_for_the_asset_before_the_viewer(run, tmp_path):
    with pytest.raises(ConfigError, match="has no GLB"):
        view.run(run.path)
    with pytest.raises(ConfigError, match="no such file"):
        view.run(tmp_path / "none.glb")
    with pytest.raises(ConfigError, match="--port is 0"):
        view.run(run.path, port=0)


def test_view_of_a_file_takes_the_file(finished):
    glb = finished.asset_dir / "asset.glb"
    assert view.find_asset(glb) == glb
    assert view.find_asset(finished.path) == glb


@pytest.mark.skipif(find_spec("viser") is None, reason="the extra 'view' (viser) is not installed")
def test_viewer_answers_on_this_machine_only(finished):
    import viser

    server = view.serve(viser, finished.asset_dir / "asset.glb", port=17007)
    try:
        assert server.get_host() == "127.0.0.1"
        address = f"http://127.0.0.1:{server.get_port()}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.status == 200
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("viser") is None, reason="the extra 'view' (viser) is not installed")
def test_view_prints_one_json_object_and_serves_until_it_is_interrupted(finished):
    command = [sys.executable, "-m", "studio", "view", str(finished.path), "--json"]
    process = subprocess.Popen(
        [*command, "--port", "17008"], stdout=subprocess.PIPE, preexec_fn=heed_interrupts
    )
    try:
        result = json.loads(process.stdout.readline())
        with urllib.request.urlopen(result["address"], timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()
    assert result["asset"] == str(finished.asset_dir / "asset.glb")


def heed_interrupts() -> None:
    """A test run in the background hands down a SIGINT that is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_verbs_load_no_viewer_and_start_no_thread(finished):
    """Reports and exports must not pay for the extra."""
    before = threading.active_count()
    report.run([finished.path])
    assert "viser" not in sys.modules or find_spec("viser") is not None
    assert threading.active_count() == before


def test_a_good_export_heals_a_run_whose_own_one_failed(run, capsys):
    run.update_info({"status": "failed", "error": "No surface at threshold 9"})
    export.run(run.path, formats="glb,ply", texture=0)
    info = run.read_info()
    assert (info["status"], info["error"]) == ("done", None)
    index = (run.path.parents[1] / "index.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(index[-1])["status"] == "done"
    assert "Gone" not in capsys.readouterr().err
    export.run(run.path, formats="ply", texture=0)
    assert "Gone with the export before: asset.glb" in capsys.readouterr().err
    assert glb_command(run).endswith("--format glb,ply")


def test_stills_are_those_of_one_film(run, capsys):
    for frames in (2, 1):
        render.run(run.path, frames=frames, size=8, video="", stills=True)
    views = run.renders_dir / "turntable_field_views"
    assert [path.name for path in views.iterdir()] == ["000.png"]
    capsys.readouterr()
