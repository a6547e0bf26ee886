"""`studio view`: look at an asset in the browser, served from this machine to this machine only."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import ConfigError, require
from studio.progress import say
from studio.run_folder import glb_command, open_run

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["HOST", "find_asset", "run", "serve"]

HOST = "127.0.0.1"
"""Only this machine can connect; others go through ssh -L."""
POLL_S = 0.5


def run(path: Path, *, port: int = 7007, as_json: bool = False) -> None:
    """Serve until Ctrl-C.

    Args:
        path: a run folder or a GLB file.
        port: TCP port on 127.0.0.1.
        as_json: print address and asset as one JSON object.

    Raises:
        BackendMissing: viser is not installed.
        ConfigError: there is no asset, or the port makes no sense.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port is {port} - expected 1 to 65535.")
    asset = find_asset(path)
    viser = require("viser", extra="view", why="the viewer (reports need nothing)")
    server = serve(viser, asset, port=port)
    port = server.get_port()  # another one where the wanted port is taken
    address = f"http://{HOST}:{port}"
    result = json.dumps({"address": address, "asset": str(asset)}) if as_json else address
    sys.stdout.write(f"{result}\n")
    sys.stdout.flush()
    say(f"Showing {asset}. From another machine: ssh -L {port}:{HOST}:{port} THIS_MACHINE")
    say("Ctrl-C ends it.")
    try:
        while True:
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        server.stop()


def find_asset(path: Path) -> Path:
    """The GLB of a run folder, or the file itself.

    Raises:
        ConfigError: there is none.
    """
    if path.suffix.lower() == ".glb":
        if not path.is_file():
            raise ConfigError(f"{path}: no such file - expected a GLB or a run folder.")
        return path
    from studio.evaluation.assets import asset_glb  # torch, which a wrong path must not wait for

    run = open_run(path)
    asset = asset_glb(run)
    if asset is None:
        raise ConfigError(
            f"{path} has no GLB - expected an exported asset. Make it with: {glb_command(run)}"
        )
    return asset


def serve(viser: ModuleType, asset: Path, *, port: int) -> Any:
    """Start a server that shows one GLB on a ground grid; returns the running server."""
    with contextlib.redirect_stdout(sys.stderr):  # its banner is no result
        server = viser.ViserServer(host=HOST, port=port, verbose=False)
    server.scene.set_up_direction("+y")
    server.scene.add_glb("/asset", asset.read_bytes())
    server.scene.add_grid("/ground", width=4.0, height=4.0, plane="xz", cell_size=0.25)

    @server.on_client_connect
    def _(client: Any) -> None:
        """Look at the front, a little from above."""
        client.camera.position = (0.9, 1.1, 1.9)
        client.camera.look_at = (0.0, 0.5, 0.0)

    return server
