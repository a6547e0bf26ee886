"""What the kernels' `torch.autograd.Function`s share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["reference_gradients"]


def reference_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of a reference function, itself differentiable.

    A kernel's backward pass calls this when somebody will differentiate again
    (``create_graph=True``, seen as gradients being enabled during backward).

    Args:
        function: the plain PyTorch version of the kernel, called with ``inputs``.
        inputs: saved tensors; those that need no gradient get None.
        grads: gradients of all outputs.
    """
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)
