"""Choosing the device, the threads and the determinism of a run."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping

import torch

from studio.errors import ConfigError

__all__ = [
    "PeakMemory",
    "configure",
    "gpu_obstacle",
    "make_generators",
    "peak_memory_bytes",
    "resolve_device",
    "thread_counts",
    "use_thread_counts",
]

_LOG = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` means here.

    Raises:
        ConfigError: unknown name, or not present on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if _has_usable_gpu() else "cpu")
    if not re.fullmatch(r"(cpu|cuda|mps)(:[0-9]+)?", name):
        raise ConfigError(f"device: unknown {name!r} - expected auto, cpu, cuda, cuda:N or mps.")
    kind, _, index = name.partition(":")
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[kind]
    if count == 0:
        raise ConfigError(
            f"device: {name!r} is not available here - expected auto or cpu. "
            "studio doctor lists the devices."
        )
    if index and int(index) >= count:
        raise ConfigError(f"device: {name!r} - this machine has {count}, counted from 0.")
    return torch.device(name)


def gpu_obstacle(index: int = 0) -> str | None:
    """Why this build of PyTorch has no kernels for a CUDA device; None when it has."""
    built = [re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[a-z]?", a) for a in torch.cuda.get_arch_list()]
    known = [(int(found[1]), int(found[2])) for found in built if found]
    capability = torch.cuda.get_device_capability(index)
    if not known or capability >= min(known):  # ROCm names its architectures otherwise
        return None
    has, wants = (".".join(map(str, pair)) for pair in (capability, min(known)))
    return (
        f"{torch.cuda.get_device_name(index)} has CUDA capability {has}, and this build of PyTorch "
        f"needs {wants}"
    )


def _has_usable_gpu() -> bool:
    if not torch.cuda.is_available():
        return False
    obstacle = gpu_obstacle()
    if obstacle is not None:
        _LOG.warning("%s; using the CPU. An older CUDA build of PyTorch may know it.", obstacle)
    return obstacle is None


def configure(device: torch.device) -> None:
    """Make this process reproducible: deterministic kernels wherever torch has them."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over each tensor
    torch.backends.cudnn.benchmark = False
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


def make_generators(
    names: tuple[str, ...], *, seed: int, device: torch.device
) -> dict[str, torch.Generator]:
    """One generator for each subsystem, seeded from (seed, name).

    A subsystem that draws more numbers than before thereby leaves the others' draws as they were.
    """
    generators = {}
    for name in names:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        number = int.from_bytes(digest[:8], "big") >> 1
        generators[name] = torch.Generator(device).manual_seed(number)
    return generators


def thread_counts() -> dict[str, int]:
    """Threads of torch and numba; sums are split among them, so the last bits depend on it."""
    import numba

    counts = {"torch": torch.get_num_threads()}
    counts["numba"] = numba.get_num_threads()
    # Starting numba's threads can set OpenMP's number, which is torch's as well.
    torch.set_num_threads(counts["torch"])
    return counts


def use_thread_counts(counts: Mapping[str, int]) -> bool:
    """Use these numbers of threads; False if this machine cannot."""
    import numba

    if counts.get("numba", 1) > numba.config.NUMBA_NUM_THREADS:
        return False
    now = thread_counts()
    numba.set_num_threads(counts.get("numba", now["numba"]))
    torch.set_num_threads(counts.get("torch", now["torch"]))
    return True


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory use so far: of the GPU on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """Highest memory use of a run, and on a GPU of each of its stages."""

    def __init__(self, device: torch.device) -> None:
        """Count from now on; a CPU process counts from its start, which cannot be changed."""
        self.device = device
        self._stages: dict[str, dict[str, int]] = {}
        self._stage: str | None = None
        self._highest = 0
        self._reset()

    def begin(self, stage: str) -> None:
        """Count for ``stage`` from now on; memory that was only kept cached is given back."""
        self._stages = self.stages()
        self._highest = self.total()
        self._stage = stage
        self._reset()

    def stages(self) -> dict[str, dict[str, int]]:
        """Bytes in use (``allocated``) and taken from the GPU (``reserved``) at most, by stage;
        nothing on other devices, which count for the whole process."""
        if self._stage is None or self.device.type != "cuda":
            return self._stages
        peak = {
            "allocated": torch.cuda.max_memory_allocated(self.device),
            "reserved": torch.cuda.max_memory_reserved(self.device),
        }
        return {**self._stages, self._stage: peak}

    def total(self) -> int:
        """Highest use of the whole run in bytes."""
        return max(self._highest, peak_memory_bytes(self.device))

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.init()  # before it, there is nothing to reset, which is an error
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
