"""Guards: what is wrong is named, and healthy runs pass."""

from __future__ import annotations

import pytest
import torch

from studio.errors import Diverged
from studio.guards import (
    PATIENCE,
    OpacityWatchdog,
    check_gradients,
    check_losses,
    check_parameters,
)


def parameter(values: list[float], grad: list[float] | None) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    tensor.grad = None if grad is None else torch.tensor(grad, dtype=torch.float32)
    return tensor


def test_gradient_norm_is_the_norm_over_all_tensors():
    tensors = {"a": parameter([0, 0], [3, 0]), "b": parameter([0], [4]), "c": parameter([1], None)}
    assert check_gradients(tensors, step=1) == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_gradient_is_named(bad):
    tensors = {"field.table": parameter([0], [1]), "field.mlp.0": parameter([0, 0], [1, bad])}
    with pytest.raises(Diverged, match=r"Step 12: the gradient of 'field\.mlp\.0' has 1 of 2"):
        check_gradients(tensors, step=12)


def test_overflow_of_the_norm_alone_is_no_error():
    """Finite gradients with an infinite norm pass; runaway parameters are caught elsewhere."""
    tensors = {"a": parameter([0.0], [3e38]), "b": parameter([0.0], [3e38])}
    check_gradients(tensors, step=1)


def test_missing_gradients_and_bad_losses():
    with pytest.raises(Diverged, match="no parameter received a gradient"):
        check_gradients({"a": parameter([1], None)}, step=1)
    with pytest.raises(Diverged, match="Step 3: the loss 'orient' is nan"):
        check_losses({"guidance": torch.ones(()), "orient": torch.tensor(torch.nan)}, step=3)


@pytest.mark.parametrize("bad", [float("nan"), 2e6, -float("inf")])
def test_runaway_parameters_are_named(bad):
    with pytest.raises(Diverged, match=r"Step 4: .*the tensor 'background\.w'"):
        check_parameters({"ok": torch.ones(3), "background.w": torch.tensor([0.0, bad])}, step=4)
    check_parameters({"ok": torch.full((2,), 100.0), "empty": torch.zeros(0)}, step=4)


@pytest.mark.parametrize(("opacity", "word"), [(0.0, "empty"), (1.0, "fog")])
def test_watchdog_waits_for_a_row_of_bad_steps(opacity, word):
    watchdog = OpacityWatchdog()
    for step in range(PATIENCE - 1):
        watchdog.check(opacity, step=step)
    watchdog.check(0.3, step=0)  # one healthy batch starts the count again
    for step in range(PATIENCE - 1):
        watchdog.check(opacity, step=step)
    with pytest.raises(Diverged, match=word):
        watchdog.check(opacity, step=99)
