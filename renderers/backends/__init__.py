"""Kernels for the discrete work of rendering, one module per backend, and the rule that picks one.

The rule: CPU tensors go to numba, CUDA tensors to Triton, everything else (other devices, float64,
a machine without the package) to plain PyTorch, which is the reference that every kernel is tested
against. A caller may demand a backend by name (``prefer``); the environment variable
``STUDIO_BACKEND`` states a preference that applies on the devices the named backend supports.
tinycudann, nerfacc and nvdiffrast are adapters: used only when a scene names them.

    name = resolve(rays_o.device, dtype=rays_o.dtype)
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import logging
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from renderers.errors import BackendMissing

__all__ = ["BackendName", "BackendStatus", "resolve", "status"]

BackendName = Literal["torch", "numba", "triton"]
ENVIRONMENT_VARIABLE = "STUDIO_BACKEND"

_LOG = logging.getLogger(__name__)
_INSTALL_HINTS = {
    "torch": "pip install torch",
    "numba": "pip install numba",
    "triton": "pip install triton (part of the CUDA builds of torch on Linux), and on Debian "
    "apt install gcc python3-dev",
    "tinycudann": "see requirements-cuda.txt (built from source with nvcc)",
    "nerfacc": "pip install nerfacc (compiles its CUDA code at first use; needs nvcc)",
    "nvdiffrast": "see requirements-cuda.txt (built from source with nvcc)",
}
_LICENCES = {
    "torch": "BSD-3-Clause",
    "numba": "BSD-2-Clause",
    "triton": "MIT",
    "tinycudann": "BSD-3-Clause",
    "nerfacc": "MIT",
    "nvdiffrast": "NVIDIA Source Code License, non-commercial use only",
}


@dataclass(frozen=True)
class BackendStatus:
    """One line of ``studio doctor``."""

    name: str
    """The backend as a scene names it."""
    available: bool
    """Whether it can be used on this machine."""
    reason: str
    """Why, or why not."""
    licence: str
    """Licence of the package that does the work."""
    install_hint: str
    """How to get it."""


def resolve(
    device: torch.device, *, dtype: torch.dtype = torch.float32, prefer: str | None = None
) -> BackendName:
    """Name the backend that runs the kernels for tensors of this device and dtype.

    Args:
        device: where the tensors live.
        dtype: anything but float32 goes to the reference, since the kernels are float32.
        prefer: ``"torch"``, ``"numba"``, ``"triton"``, or None / ``"auto"`` for the rule above.

    Raises:
        BackendMissing: ``prefer`` names an unknown backend, or one that cannot be used here.
    """
    if prefer not in (None, "auto"):
        return _demanded(prefer, device, dtype)
    if dtype != torch.float32:
        return "torch"
    wished = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if wished != "auto":
        _check_name(wished, ENVIRONMENT_VARIABLE)
        if wished == "torch" or _obstacle(wished, device) is None:
            return wished  # type: ignore[return-value]
    natural = {"cpu": "numba", "cuda": "triton"}.get(device.type, "torch")
    if natural != "torch" and (obstacle := _obstacle(natural, device)) is not None:
        _log_fallback(natural, obstacle)
        return "torch"
    return natural  # type: ignore[return-value]


def status() -> list[BackendStatus]:
    """Every backend and adapter with its availability on this machine, kernels first."""
    reasons: list[tuple[str, str | None, str]] = [("torch", None, f"version {torch.__version__}")]
    for name, device in (("numba", "cpu"), ("triton", "cuda")):
        obstacle = _obstacle(name, torch.device(device))
        if obstacle is None and device == "cuda" and not torch.cuda.is_available():
            obstacle = "no CUDA device"
        reasons.append((name, obstacle, f"default on {device.upper()}"))
    for name in ("tinycudann", "nerfacc", "nvdiffrast"):
        reasons.append((name, _adapter_obstacle(name), "used when a scene names it"))
    return [
        BackendStatus(
            name, obstacle is None, obstacle or reason, _LICENCES[name], install_hint(name)
        )
        for name, obstacle, reason in reasons
    ]


def install_hint(name: str) -> str:
    """How to install a backend or adapter; part of every `BackendMissing` message."""
    return _INSTALL_HINTS[name]


def require_adapter(name: str, why: str) -> None:
    """Raise unless the optional package ``name`` is installed and a CUDA device is there.

    Raises:
        BackendMissing: with the reason and the install hint.
    """
    obstacle = _adapter_obstacle(name)
    if obstacle is not None:
        raise BackendMissing(
            f"backend: {name!r} was asked for ({why}) and cannot be used: {obstacle}. Expected the "
            f"{name} package and a CUDA device. Install it: {install_hint(name)}; "
            "or remove the backend line to use the built-in kernels."
        )


def _demanded(name: str, device: torch.device, dtype: torch.dtype) -> BackendName:
    _check_name(name, "backend")
    obstacle = None if name == "torch" else _obstacle(name, device)
    if obstacle is not None:
        raise BackendMissing(
            f"backend: {name!r} was asked for on device {str(device)!r} and cannot be used: "
            f"{obstacle}. Expected a backend of that device. Install it: {install_hint(name)}; "
            "or use backend: auto."
        )
    return name if dtype == torch.float32 else "torch"  # type: ignore[return-value]


def _check_name(name: str, where: str) -> None:
    if name not in ("torch", "numba", "triton"):
        raise BackendMissing(
            f"{where}: unknown backend {name!r}. Expected auto, torch, numba or triton. "
            "Correct the name or leave it out."
        )


def _obstacle(name: str, device: torch.device) -> str | None:
    """Why a kernel backend cannot serve this device; None when it can."""
    if name == "numba" and device.type != "cpu":
        return "numba kernels take CPU tensors only"
    if name == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels take CUDA tensors only"
    if name == "triton" and device.type not in ("cpu", "cuda"):
        return "Triton kernels take CUDA tensors only"
    obstacle = _import_failure(name)
    if obstacle is None and name == "triton" and device.type == "cuda":
        return _triton_failure() if torch.cuda.is_available() else None
    return obstacle


def _adapter_obstacle(name: str) -> str | None:
    # The packages are not imported here: tinycudann raises without a GPU, nerfacc takes seconds.
    if importlib.util.find_spec(name) is None:
        return "not installed"
    return None if torch.cuda.is_available() else "no CUDA device"


@cache
def _import_failure(name: str) -> str | None:
    # An import is the only honest test: numba refuses NumPy versions newer than it knows.
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f"import {name} failed ({error})"
    if name == "numba":
        _find_place_for_kernels()
    return None


def _find_place_for_kernels() -> None:
    """Where numba can keep no compiled kernels, it refuses to compile those that are to be kept.

    So in a container whose code and home are read-only they live as long as this process. The
    folder is this process's own: numba would load what another user had put there.
    """
    import numba

    try:
        numba.njit(cache=True)(_kept_kernel)  # compiles nothing yet
    except RuntimeError:
        folder = tempfile.TemporaryDirectory(prefix="studio-kernels-")
        atexit.register(folder.cleanup)
        numba.config.CACHE_DIR = folder.name


def _kept_kernel(value: float) -> float:
    """Stands for the kernels of the modules beside this file."""
    return value


@cache
def _triton_failure() -> str | None:
    """Triton compiles its driver at first use, which needs a C compiler and Python's headers."""
    try:
        driver = importlib.import_module("triton.runtime.driver").driver
        driver.active.get_current_device()
    except Exception as error:  # whatever its build meets: no compiler, no headers, an old card
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"Triton cannot start ({reason}); it needs gcc or clang and Python's headers"
    return None


@cache
def _log_fallback(name: str, obstacle: str) -> None:
    _LOG.warning("%s; using the slower PyTorch kernels. To cure: %s", obstacle, install_hint(name))
