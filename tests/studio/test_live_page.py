"""The page about a running run: what it tells, and whom it answers."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from urllib.error import HTTPError, URLError

import pytest
import torch

from studio.errors import ConfigError
from studio.live_page import HOST, TRIES, live_page, live_state, serve
from studio.metrics_log import MetricsLog
from studio.previews import save_png
from studio.run_folder import RunFolder
from tests.studio.test_resuming import a_run


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run of 6 steps on its way."""
    scene = tmp_path / "scene.yaml"
    scene.write_text("base: demo\nprompt: a <duck>\nstages: [{name: shape, steps: 6}]\n")
    return a_run(scene, tmp_path / "runs", "running")


def log_steps(run: RunFolder, steps: int) -> None:
    """Metrics of some steps, two a second, and a preview."""
    log = MetricsLog(run.metrics_path)
    for step in range(1, steps + 1):
        log.write({"step": step, "stage": "shape", "seconds": step / 2, "opacity": 0.1 * step})
    log.close()
    save_png(run.previews_dir / f"step-{steps:06d}.png", torch.rand(8, 8, 3))


def get(address: str, host: str | None = None) -> tuple[str, bytes]:
    """Content type and body."""
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read()


def test_the_state_tells_progress_rate_and_time_left(run):
    assert live_state(run)["text"] == "Loading the prior …"
    log_steps(run, 4)
    state = live_state(run)
    assert state["text"] == "Step 4 of 6, stage shape, 2.00 steps a second, 0:01 left"
    assert state["share"] == pytest.approx(4 / 6)
    assert state["preview"] == "step-000004.png"
    assert state["caption"].startswith("Step 4: four views")
    assert state["curves"].count("<svg") == 1
    for status, text in (
        ("optimised", "Optimised; making the asset."),
        ("failed", "The run is failed."),
    ):
        run.update_info({"status": status})
        assert live_state(run)["text"] == text


def test_long_runs_are_thinned_and_keep_their_last_step(run):
    log_steps(run, 1500)
    curves = live_state(run)["curves"]
    assert "step 1500" in curves
    assert curves.count("L") < 2500


def test_page_state_and_picture_are_served_and_nothing_else(run):
    log_steps(run, 2)
    with live_page(run, port=0) as address:
        kind, page = get(address)
        assert kind.startswith("text/html")
        assert "a &lt;duck&gt;" in page.decode()
        assert json.loads(get(f"{address}/state.json")[1])["status"] == "running"
        kind, picture = get(f"{address}/previews/step-000002.png")
        assert kind == "image/png"
        assert picture == (run.previews_dir / "step-000002.png").read_bytes()
        for path in ("/run.json", "/previews/../run.json", "/previews/step-9.png", "/previews/"):
            with pytest.raises(HTTPError) as missing:
                get(address + path)
            assert missing.value.code == 404
    with pytest.raises(URLError):
        get(address)


def test_other_names_for_this_machine_are_refused(run):
    with live_page(run, port=0) as address:
        port = address.rpartition(":")[2]
        assert get(address, host=f"localhost:{port}")[0].startswith("text/html")
        with pytest.raises(HTTPError) as refused:
            get(address, host=f"evil.example:{port}")
        assert refused.value.code == 403


def test_it_listens_on_this_machine_only_and_takes_the_next_free_port(run):
    first = serve(run, 0)
    port = first.server_address[1]
    second = serve(run, port)
    assert first.server_address[0] == second.server_address[0] == HOST
    assert port < second.server_address[1] < port + TRIES
    first.server_close()
    second.server_close()


def test_without_a_free_port_there_is_one_clear_error(run, monkeypatch):
    monkeypatch.setattr("studio.live_page.TRIES", 1)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--view: no free port between"):
            serve(run, taken.getsockname()[1])


def test_a_damaged_file_is_not_ready_instead_of_a_crash(run):
    run.info_path.write_text("{", encoding="utf-8")
    with live_page(run, port=0) as address:
        with pytest.raises(HTTPError) as broken:
            get(f"{address}/state.json")
        assert broken.value.code == 503
        assert any(thread.name == "live page" for thread in threading.enumerate())
