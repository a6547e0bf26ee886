"""The report: whole, self-contained, safe, and of use even when a run failed."""

from __future__ import annotations

import base64
import html
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from studio.config import dump_yaml, load_scene
from studio.errors import ConfigError
from studio.export.gltf import glb_bytes
from studio.export.shading import FlatMesh
from studio.metrics_log import MetricsLog
from studio.previews import save_png
from studio.report import VIEWER_SCRIPT, write_gallery, write_report
from studio.report_charts import line_chart, nice_number
from studio.run_folder import RunFolder, create_run, open_run, write_atomic
from studio.video import write_mp4

PROMPT = 'a "small" blue teapot & <b>lid</b></script><script>alert(1)</script>'
EVALUATION = {
    "source": "glb",
    "kind": "teapot",
    "color": "blue",
    "seen_kinds": {"teapot": 7, "ice_cream": 1},
    "seen_colors": {"blue": 8},
    "kind_accuracy": 0.875,
    "color_accuracy": 1.0,
    "janus": None,
    "silhouette_iou": 0.714,
    "chamfer": 0.0812,
    "view_consistency": 0.93,
    "chroma": 0.41,
    "saturation_error": -0.05,
    "yaw_deg": 15.0,
}
VOID = {"meta", "img", "br", "link", "input", "path", "circle"}


def tetrahedron() -> bytes:
    """A small GLB."""
    position = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    normal = np.tile(np.array([[0, 1, 0]], dtype=np.float32), (4, 1))
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    red = np.tile(np.array([[0.9, 0.1, 0.1]]), (4, 1))
    return glb_bytes(FlatMesh(position, normal, faces, rgb=red), texture_png=None, name="t")


@pytest.fixture
def bare_run(tmp_path) -> RunFolder:
    """A run that has just begun."""
    return create_run(tmp_path / "runs", prompt=PROMPT, method="demo", seed=3, info={})


@pytest.fixture
def full_run(bare_run) -> RunFolder:
    """A run with everything a finished one has."""
    return fill(bare_run)


def fill(run: RunFolder) -> RunFolder:
    """Put everything into a run that a finished one has."""
    scene = load_scene("demo", ["prompt=a small blue teapot"]).config
    write_atomic(run.resolved_path, dump_yaml(scene))
    (run.asset_dir / "asset.glb").write_bytes(tetrahedron())
    (run.asset_dir / "asset.ply").write_bytes(b"ply")
    frames = [np.full((16, 16, 3), level, np.uint8) for level in (0, 120, 240)]
    write_mp4(run.renders_dir / "turntable.mp4", frames)
    save_png(run.renders_dir / "contact_sheet.png", torch.rand(20, 20, 3))
    for step in range(50, 1001, 50):
        save_png(run.previews_dir / f"step-{step:06d}.png", torch.rand(8, 8, 3))
    log = MetricsLog(run.metrics_path)
    for step in range(1, 101):
        row = {"step": step, "stage": "shape", "seconds": 0.1, "opacity": 1.0 / step}
        log.write({**row, "guidance_grad_norm": 2.0})
    log.close()
    run.update_info(
        {
            "status": "done",
            "steps_done": 300,
            "seconds": {"optimise": 120.0, "finish": 5.0},
            "peak_memory_bytes": 2**31,
            "version": "0.1.0",
            "packages": {"torch": "2.13.0"},
            "export": {
                "n_faces": 19999,
                "appearance": "charts",
                "silhouette_iou": 0.91,
                "problems": [],
            },
            "evaluation": EVALUATION,
        }
    )
    return run


class Page(HTMLParser):
    """Collects elements and text, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.stack: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in {"script", "style"}:
            self.words += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.stack == []
    return page


def test_report_holds_the_asset_itself(full_run):
    page = page_of(write_report(full_run))
    (viewer,) = page.all("model-viewer")
    kind, data = viewer["src"].split(",", 1)
    assert kind == "data:model/gltf-binary;base64"
    assert base64.b64decode(data) == (full_run.asset_dir / "asset.glb").read_bytes()


def test_report_needs_no_other_file(full_run):
    """Whatever the page loads by itself is inside; only download links point to files."""
    page = page_of(write_report(full_run))
    loaded = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(loaded) >= 4
    assert all(source.startswith("data:") for source in loaded)
    assert page.all("link") == []
    styles = re.sub(r"data:[^)]*", "", (Path(write_report(full_run)).read_text()))
    assert "@import" not in styles
    assert "url(http" not in styles


def test_links_point_to_files_beside_it(full_run):
    links = [attrs["href"] for attrs in page_of(write_report(full_run)).all("a")]
    assert "asset/asset.glb" in links
    for link in links:
        assert (full_run.path / link).is_file()


def test_prompt_cannot_break_out(full_run):
    page = page_of(write_report(full_run))
    assert PROMPT in page.words
    assert "alert(1)" not in "".join(
        re.findall(r"<script>(.*?)</script>", full_run.report_path.read_text(), re.DOTALL)
    )


def test_viewer_script_cannot_end_its_element(full_run):
    text = write_report(full_run).read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    longest = max(scripts, key=len)
    assert len(longest) > 0.99 * VIEWER_SCRIPT.stat().st_size
    assert "<!--" not in longest


def test_report_shows_figures_previews_curves_and_settings(full_run):
    page = page_of(write_report(full_run))
    for words in ("19,999", "2:05", "2.0", "91", "GLB is sound", "300 steps", "seed 3"):
        assert words in page.words
    assert "guidance.guidance_scale" in page.words
    assert "torch" in page.words
    captions = re.findall(r"step ([\d,]+)", page.words)
    assert captions[0] == "50"
    assert "1,000" in captions
    assert len(page.all("img")) <= 9
    assert len(page.all("svg")) == 2


def test_the_evaluation_is_shown_in_words(full_run):
    words = page_of(write_report(full_run)).words
    assert "the judge reads teapot in 7 views, ice cream in 1; blue in 8 views." in words
    for figure in ("7 of 8 views", "8 of 8 views", "71 %", "0.08 ", "0.93 ", "-0.05 "):
        assert figure in words
    assert "Janus" not in words  # a teapot has no face
    assert "colourfulness" not in words.replace("colourfulness minus", "")
    assert "yaw" not in words


def test_a_prompt_without_a_true_object_is_evaluated_as_far_as_it_can_be(full_run):
    known = ("seen_kinds", "seen_colors", "source", "view_consistency", "chroma")
    full_run.update_info({"evaluation": {key: EVALUATION[key] for key in known} | {"kind": None}})
    words = page_of(write_report(full_run)).words
    assert "there is no true object to compare with" in words
    assert "0.41 " in words
    assert "silhouette" not in words


def test_without_an_evaluation_there_is_no_word_of_it(full_run):
    full_run.update_info({"evaluation": None})
    assert "Evaluation" not in page_of(write_report(full_run)).words


def test_report_of_a_failed_run_shows_the_error(bare_run):
    bare_run.update_info({"status": "failed", "error": "No visible surface (density max 0.2)."})
    page = page_of(write_report(bare_run))
    assert page.all("model-viewer") == []
    assert "No visible surface (density max 0.2)." in page.words
    assert bare_run.report_path.stat().st_size < 60_000


def test_problems_of_the_glb_are_shown(full_run):
    export = full_run.read_info()["export"] | {"problems": ["3 normals are not of unit length"]}
    full_run.update_info({"export": export})
    assert "GLB: 1 problems" in page_of(write_report(full_run)).words


def command_of(run: RunFolder) -> str:
    """What the report says to type to make the run again."""
    (block,) = re.findall(r"<pre>(.*?)</pre>", write_report(run).read_text(), re.DOTALL)
    comment, line = html.unescape(block).splitlines()
    assert comment == "# in the folder in which this run was started"
    return line


def test_make_it_again_works_where_the_run_was_started(tmp_path, monkeypatch):
    """A scene's relative paths count from there, and the method keeps its name."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    made = fill(create_run("my runs", prompt="a duck", method="mine", seed=3, info={}))
    words = shlex.split(command_of(made))
    assert words == ["studio", "run", str(made.resolved_path)]
    assert load_scene(words[2]).name == "mine"
    made = RunFolder(made.path.resolve())
    monkeypatch.chdir(made.path)  # whoever looks at the report may stand anywhere
    assert shlex.split(command_of(open_run("."))) == words
    moved = RunFolder(made.path.rename(tmp_path / made.path.name))
    assert shlex.split(command_of(moved))[2] == str(moved.resolved_path)


def test_a_run_that_does_not_know_where_it_was_started_is_named_as_it_was_given(full_run):
    full_run.update_info({}, drop=("cwd",))
    assert shlex.split(command_of(full_run))[2] == str(full_run.resolved_path)


def test_only_files_of_the_last_export_are_shown(full_run):
    """An older GLB that a later export did not write again is another asset."""
    export = full_run.read_info()["export"]
    full_run.update_info({"export": {**export, "files": {"ply": "asset.ply"}}})
    page = page_of(write_report(full_run))
    assert page.all("model-viewer") == []
    links = [attrs["href"] for attrs in page.all("a")]
    assert "asset/asset.ply" in links
    assert "asset/asset.glb" not in links


def test_report_elsewhere_links_back(full_run, tmp_path):
    out = tmp_path / "shared" / "page.html"
    links = [attrs["href"] for attrs in page_of(write_report(full_run, out)).all("a")]
    assert links
    for link in links:
        assert (out.parent / link).is_file()


def test_folder_without_run_json_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        write_report(RunFolder(tmp_path))


def test_gallery_shows_every_run_and_links_to_reports(full_run, tmp_path):
    other = create_run(tmp_path / "runs", prompt="a red duck", method="demo", seed=0, info={})
    write_report(full_run)
    out = tmp_path / "gallery.html"
    page = page_of(write_gallery([full_run, other], out))
    assert len(page.all("article")) == 2
    assert len(page.all("video")) == 1
    (link,) = page.all("a")
    assert (out.parent / link["href"]).resolve() == full_run.report_path.resolve()
    assert "a red duck" in page.words


def test_gallery_shows_sheets_of_pictures_and_samples_of_trainings(tmp_path):
    pictures, training = (
        create_run(tmp_path / "runs", prompt="a duck", method=name, seed=0, info={})
        for name in ("text-to-image", "dco")
    )
    save_png(pictures.path / "sheet.png", torch.zeros(4, 4, 3), {})
    save_png(training.previews_dir / "step-000009.png", torch.ones(4, 4, 3), {})
    page = page_of(write_gallery([pictures, training], tmp_path / "gallery.html"))
    assert len({attrs["src"] for attrs in page.all("img")}) == 2


def test_chart_reaches_from_first_to_last_step():
    svg = line_chart([10, 20, 30], [1.0, 5.0, 3.0], title="a <b>")
    assert "a &lt;b&gt;" in svg
    line = re.search(r'class="line" d="M([^"]+)"', svg)
    assert line is not None
    points = [tuple(map(float, point.split())) for point in line[1].split("L")]
    assert len(points) == 3
    assert points[0][0] == 46.0
    assert points[2][0] == 348.0
    assert points[1][1] == min(y for _, y in points)
    assert "step 30" in svg


def test_long_curves_get_a_running_mean():
    steps = list(range(100))
    svg = line_chart(steps, [float(step % 2) for step in steps], title="noisy")
    assert 'class="raw"' in svg
    assert 'class="line"' in svg


def test_curves_leave_out_what_is_not_finite():
    svg = line_chart([1, 2, 3], [1.0, float("nan"), 2.0], title="x")
    assert "nan" not in svg
    assert "no data" in line_chart([1, 2], [float("inf"), float("nan")], title="x")


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-1e-9, -1e-9], [1e12, 1e12]])
def test_flat_curves_have_a_scale(values):
    svg = line_chart([1, 2], values, title="flat")
    assert svg.count("<text") >= 4


NUMBERS = {0.0: "0", 0.01234: "0.0123", 1.5: "1.5", 1234.5: "1,234", 4.5e6: "4.5e6", 2e-5: "2.0e-5"}


@pytest.mark.parametrize(("value", "text"), NUMBERS.items())
def test_numbers_are_short(value, text):
    assert nice_number(value) == text
