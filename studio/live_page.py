"""A page about a run while it goes on: newest preview, curves, time left; nothing to install.

A small HTTP server of the standard library on 127.0.0.1 shows what lies in the run folder. It only
reads, it answers only requests for this machine by name, and it ends with the run.

    with live_page(run):          # http://127.0.0.1:7007
        ...
"""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from studio.errors import ConfigError
from studio.metrics_log import read_metrics
from studio.progress import format_seconds, say
from studio.report_charts import line_chart
from studio.report_page import fill_page
from studio.run_folder import RunFolder
from studio.scene_file import read_yaml

__all__ = ["HOST", "live_page", "live_state", "serve"]

HOST = "127.0.0.1"
"""Only this machine can connect; others go through ssh -L."""
PORT, TRIES = 7007, 20
SHOWN = ("opacity", "guidance_grad_norm", "loss", "grad_norm", "t", "occupied")
MAX_POINTS = 400
STALLED_S = 120.0
SCRIPT = """<script>
var shown = "";
function refresh() {
  fetch("state.json").then(function (answer) { return answer.json(); }).then(function (state) {
    document.getElementById("status").textContent = state.text;
    document.getElementById("bar").value = state.share;
    document.getElementById("curves").innerHTML = state.curves;
    if (state.preview && state.preview !== shown) {
      shown = state.preview;
      document.getElementById("preview").src = "previews/" + shown;
      document.getElementById("caption").textContent = state.caption;
      document.getElementById("picture").hidden = false;
    }
    setTimeout(refresh, 2000);
  }).catch(function () {
    document.getElementById("status").textContent =
      "The run has ended, and this page with it. See report.html in its folder.";
  });
}
refresh();
</script>"""
BODY = """<p class="kicker">{method} · seed {seed}</p><h1>{prompt}</h1>
<p id="status" role="status">Loading the prior …</p>
<progress id="bar" max="1" value="0" style="width: 100%"></progress>
<figure id="picture" class="card" style="max-width: 720px; margin-top: 18px" hidden>
<img id="preview" alt="Newest preview"><figcaption id="caption"></figcaption></figure>
<h2>Curves</h2><section id="curves" class="charts"></section>"""


@contextmanager
def live_page(run: RunFolder, port: int = PORT) -> Iterator[str]:
    """Serve the page of a run while inside; says and gives its address.

    Raises:
        ConfigError: no port is free.
    """
    server = serve(run, port)
    used = server.server_address[1]
    address = f"http://{HOST}:{used}"
    thread = threading.Thread(target=server.serve_forever, name="live page", daemon=True)
    thread.start()
    say(f"Live: {address}  (from another machine: ssh -L {used}:{HOST}:{used} THIS_MACHINE)")
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


def serve(run: RunFolder, port: int = PORT) -> ThreadingHTTPServer:
    """A server for ``run`` on ``port`` or one of the next ones; 0 takes any that is free.

    Raises:
        ConfigError: none of them is free.
    """
    handler = type("RunHandler", (_Handler,), {"run": run})
    for candidate in range(port, port + (TRIES if port else 1)):
        try:
            server = ThreadingHTTPServer((HOST, candidate), handler)
        except OSError:
            continue
        server.daemon_threads = True
        return server
    raise ConfigError(
        f"--view: no free port between {port} and {port + TRIES - 1} - end one of the programs "
        "that use them, or run without --view and look at the folder previews."
    )


def live_state(run: RunFolder) -> dict[str, Any]:
    """What the page shows, as JSON values."""
    info, rows = run.read_info(), []
    if run.metrics_path.is_file():
        rows = read_metrics(run.metrics_path)
    total = _total_steps(run)
    done = int(rows[-1]["step"]) if rows else 0
    previews = sorted(run.previews_dir.glob("step-*.png"))
    newest = previews[-1] if previews else None
    return {
        "status": info.get("status"),
        "text": _text(run, info, rows, total),
        "share": done / total if total else 0.0,
        "preview": newest.name if newest else None,
        "caption": f"Step {int(newest.stem.split('-')[-1]):,}: four views; colour, normal, depth, "
        "opacity, and what the prior sees" if newest else "",
        "curves": _curves(rows),
    }  # fmt: skip


def _total_steps(run: RunFolder) -> int:
    """Steps of all stages, 0 before they are known."""
    if not run.resolved_path.is_file():
        return 0
    tree, _ = read_yaml(run.resolved_path)
    return sum(stage.get("steps", 0) for stage in tree.get("stages", ()))


def _text(run: RunFolder, info: dict[str, Any], rows: list[dict[str, str]], total: int) -> str:
    """One line about where the run is."""
    status = info.get("status")
    if status not in ("started", "running"):
        return f"The run is {status}." if status != "optimised" else "Optimised; making the asset."
    if not rows:
        return "Loading the prior …"
    last = rows[-1]
    done, seconds = int(last["step"]), float(last.get("seconds") or 0.0)
    text = f"Step {done:,} of {total:,}, stage {last.get('stage', '')}"
    rate = _rate(rows)
    if rate and total > done:
        text += f", {rate:.2f} steps a second, {format_seconds((total - done) / rate)} left"
    elif seconds:
        text += f", {format_seconds(seconds)} so far"
    age = time.time() - run.metrics_path.stat().st_mtime
    if age > STALLED_S:
        text += f". No step for {format_seconds(age)}."
    return text


def _rate(rows: list[dict[str, str]]) -> float | None:
    """Steps a second over the last rows of this process."""
    recent = rows[-50:]
    first, last = recent[0], recent[-1]
    seconds = float(last["seconds"]) - float(first["seconds"])
    steps = int(last["step"]) - int(first["step"])
    return steps / seconds if seconds > 0 and steps > 0 else None


def _curves(rows: list[dict[str, str]]) -> str:
    """Charts of the chief metrics, thinned to what a screen shows."""
    stride = max(1, len(rows) // MAX_POINTS)
    kept = [*rows[:-1:stride], *rows[-1:]]
    charts = []
    for name in SHOWN:
        pairs = [(float(row["step"]), float(row[name])) for row in kept if row.get(name)]
        if len(pairs) > 1:
            steps, values = zip(*pairs, strict=True)
            charts.append(line_chart(steps, values, title=name.replace("_", " ")))
    return "".join(charts)


class _Handler(BaseHTTPRequestHandler):
    """Four addresses, reading only."""

    run: RunFolder
    server_version = "studio"

    def do_GET(self) -> None:
        """The page, its state, its pictures."""
        name = self.headers.get("Host", "").rpartition(":")[0]
        if name not in (HOST, "localhost"):  # another site's name that leads here
            self.send_error(403, "Only for this machine")
            return
        path = self.path.partition("?")[0]
        try:
            answer = self._answer(path)
        except (OSError, ValueError, KeyError, ConfigError):  # a file that is being written
            self.send_error(503, "Not ready")
            return
        if answer is None:
            self.send_error(404)
            return
        kind, body = answer
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, path: str) -> tuple[str, bytes] | None:
        """Content type and body, or None for an unknown address."""
        if path == "/":
            return "text/html; charset=utf-8", _page(self.run).encode("utf-8")
        if path == "/state.json":
            return "application/json", json.dumps(live_state(self.run)).encode("utf-8")
        pictures: dict[str, Path] = {
            f"/previews/{found.name}": found for found in self.run.previews_dir.glob("step-*.png")
        }
        return ("image/png", pictures[path].read_bytes()) if path in pictures else None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: stderr belongs to the run."""


def _page(run: RunFolder) -> str:
    """The page; all that changes comes by the script."""
    info = run.read_info()
    body = BODY.format(
        method=html.escape(str(info.get("method", "run"))),
        seed=html.escape(str(info.get("seed", "?"))),
        prompt=html.escape(str(info.get("prompt", ""))),
    )
    title = str(info.get("prompt") or run.path.name)
    return fill_page(title=title, subtitle=run.path.name, body=body, footer="", script=SCRIPT)
