"""Which backend runs the kernels, and what is said when one is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from renderers import backends
from renderers.errors import BackendMissing

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STUDIO_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends._import_failure.cache_clear()
    backends._log_fallback.cache_clear()
    backends._triton_failure.cache_clear()
    yield
    backends._import_failure.cache_clear()
    backends._triton_failure.cache_clear()


def test_cpu_tensors_go_to_numba():
    assert backends.resolve(CPU) == "numba"


def test_float64_goes_to_the_reference_even_when_a_kernel_is_demanded():
    assert backends.resolve(CPU, dtype=torch.float64) == "torch"
    assert backends.resolve(CPU, dtype=torch.float64, prefer="numba") == "torch"


def test_other_devices_go_to_the_reference():
    assert backends.resolve(torch.device("mps")) == "torch"
    assert backends.resolve(torch.device("meta")) == "torch"


def test_a_demanded_backend_is_used_and_auto_is_no_demand():
    assert backends.resolve(CPU, prefer="torch") == "torch"
    assert backends.resolve(CPU, prefer="auto") == "numba"


def test_environment_states_a_preference_for_the_devices_the_backend_supports(monkeypatch):
    monkeypatch.setenv("STUDIO_BACKEND", "torch")
    assert backends.resolve(CPU) == "torch"
    monkeypatch.setenv("STUDIO_BACKEND", "triton")
    assert backends.resolve(CPU) == "numba"
    monkeypatch.setenv("STUDIO_BACKEND", "torch")
    assert backends.resolve(CPU, prefer="numba") == "numba"


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        ("nunba", CPU, "unknown backend 'nunba'"),
        ("numba", CUDA, "numba kernels take CPU tensors only"),
        ("triton", CPU, "Triton kernels take CUDA tensors only"),
        ("triton", torch.device("mps"), "Triton kernels take CUDA tensors only"),
    ],
)
def test_a_demand_that_cannot_be_met_names_the_cause(name, device, words):
    with pytest.raises(BackendMissing, match=words) as caught:
        backends.resolve(device, prefer=name)
    assert caught.value.exit_code == 3


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("STUDIO_BACKEND", "cupy")
    with pytest.raises(BackendMissing, match="STUDIO_BACKEND: unknown backend 'cupy'"):
        backends.resolve(CPU)


def test_without_numba_the_reference_takes_over_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)  # makes `import numba` raise ImportError
    with caplog.at_level("WARNING"):
        assert backends.resolve(CPU) == "torch"
        assert backends.resolve(CPU) == "torch"
    assert len(caplog.records) == 1
    assert "pip install numba" in caplog.text
    with pytest.raises(BackendMissing, match="pip install numba"):
        backends.resolve(CPU, prefer="numba")


def test_where_nothing_can_be_kept_kernels_are_compiled_for_this_process(monkeypatch):
    """Code and home of a container can both be read-only, and numba then refuses."""
    numba = pytest.importorskip("numba")
    before = numba.config.CACHE_DIR
    refused = RuntimeError("cannot cache function: no locator available")

    def njit(**_: object) -> object:
        def decorate(function: object) -> object:
            raise refused

        return decorate

    monkeypatch.setattr(numba, "njit", njit)
    monkeypatch.setattr(numba.config, "CACHE_DIR", before)
    assert backends.resolve(CPU) == "numba"
    folder = Path(numba.config.CACHE_DIR)
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o077 == 0, "nobody else can put kernels there"


@pytest.mark.parametrize("compiles", [True, False])
def test_triton_without_a_compiler_leaves_the_work_to_the_reference(monkeypatch, caplog, compiles):
    def get_current_device() -> int:
        if not compiles:
            raise RuntimeError("Failed to find C compiler. Please specify via CC.")
        return 0

    active = SimpleNamespace(get_current_device=get_current_device)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", ModuleType("triton.runtime"))
    driver = ModuleType("triton.runtime.driver")
    driver.driver = SimpleNamespace(active=active)
    monkeypatch.setitem(sys.modules, "triton.runtime.driver", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level("WARNING"):
        assert backends.resolve(torch.device("cuda")) == ("triton" if compiles else "torch")
    assert ("apt install gcc" in caplog.text) is not compiles


def test_status_lists_every_backend_with_licence_and_hint():
    lines = {line.name: line for line in backends.status()}
    assert list(lines) == ["torch", "numba", "triton", "tinycudann", "nerfacc", "nvdiffrast"]
    assert lines["torch"].available
    assert lines["numba"].available
    assert "non-commercial" in lines["nvdiffrast"].licence
    assert all(line.reason and line.install_hint for line in lines.values())
    if not torch.cuda.is_available():
        assert not lines["triton"].available
        assert not any(lines[name].available for name in ("tinycudann", "nerfacc", "nvdiffrast"))


@pytest.mark.parametrize("name", ["tinycudann", "nerfacc", "nvdiffrast"])
def test_a_missing_adapter_is_one_clear_error(name):
    if importlib.util.find_spec(name) is not None and torch.cuda.is_available():
        pytest.skip(f"{name} is installed and usable here")
    with pytest.raises(BackendMissing) as caught:
        backends.require_adapter(name, "hash grid")
    message = str(caught.value)
    assert name in message
    assert backends.install_hint(name) in message
    assert caught.value.exit_code == 3
