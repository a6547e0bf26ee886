"""Adapter for tiny-cuda-nn's hash grid (BSD-3, CUDA only): the interface of `HashGrid`.

Built by `renderers.hashgrid.build_hash_grid` when a caller says ``backend="tinycudann"``. Its
parameters are one flat vector in a layout of its own, so checkpoints do not move between it and
`HashGrid`. It is asked for float32, since its default half precision spoils normals.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renderers.backends import require_adapter
from renderers.backends.torch_hashgrid import GridLayout
from renderers.configs import HashGridConfig
from renderers.errors import BackendMissing, check_shape

__all__ = ["TinyCudaHashGrid"]


class TinyCudaHashGrid(nn.Module):
    """A multiresolution hash grid whose kernels and parameters are tiny-cuda-nn's.

    Args:
        config: sizes; features per level must be 1, 2, 4 or 8.
        generator: source of the seed; None uses the global generator.

    Raises:
        BackendMissing: the package or a CUDA device is missing.
    """

    def __init__(self, config: HashGridConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        require_adapter("tinycudann", "hash grid")
        import tinycudann

        self.layout = GridLayout.from_config(config)  # only its sizes are used; it also checks them
        seed = torch.randint(2**31, (1,), generator=generator, device=_device_of(generator))
        self.encoding = tinycudann.Encoding(
            3, _encoding_config(config), seed=int(seed), dtype=torch.float32
        )

    @property
    def n_outputs(self) -> int:
        """Features per position, L * F."""
        return self.layout.n_outputs

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n lf"]:
        """Features at ``x``; positions outside 0..1 are moved to the border."""
        check_shape("x", x, "n 3")
        _require_cuda(x)
        if x.shape[0] == 0:
            return x.new_zeros(0, self.n_outputs)
        return self.encoding(x.clamp(0.0, 1.0)).float()

    def with_jacobian(
        self, x: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "n lf"], Float[Tensor, "n 3 lf"]]:
        """Features and ``d features / d x``, both differentiable in the parameters.

        The library has no kernel for this: it costs one backward pass per feature, and training
        goes through its second backward pass.
        """
        check_shape("x", x, "n 3")
        _require_cuda(x)
        if x.shape[0] == 0:
            return x.new_zeros(0, self.n_outputs), x.new_zeros(0, 3, self.n_outputs)
        train = torch.is_grad_enabled()
        with torch.enable_grad():
            inside = x.detach().clamp(0.0, 1.0).requires_grad_()
            features = self.encoding(inside).float()
            slopes = [
                torch.autograd.grad(
                    features[:, k].sum(), inside, create_graph=train, retain_graph=True
                )[0]
                for k in range(self.n_outputs)
            ]
            jac = torch.stack(slopes, dim=2)
        return (features, jac) if train else (features.detach(), jac.detach())

    def level_mask(self, progress: float, *, start_level: int = 1) -> Float[Tensor, "lf"]:
        """Factors on the features for coarse-to-fine training, as `HashGrid.level_mask`."""
        return self.layout.level_mask(progress, start_level).to(self.encoding.params)


def _encoding_config(config: HashGridConfig) -> dict[str, object]:
    growth = 1.0
    if config.n_levels > 1:
        ratio = config.finest_resolution / config.base_resolution
        growth = math.exp(math.log(ratio) / (config.n_levels - 1))
    return {
        "otype": "HashGrid",
        "n_levels": config.n_levels,
        "n_features_per_level": config.n_features,
        "log2_hashmap_size": config.log2_hashmap_size,
        "base_resolution": config.base_resolution,
        "per_level_scale": growth,
        "interpolation": "Linear",
    }


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _require_cuda(x: Tensor) -> None:
    if not x.is_cuda:
        raise BackendMissing(
            f"backend: 'tinycudann' was asked for on device {str(x.device)!r}. Expected CUDA "
            "tensors. Move them to the GPU, or use backend: auto."
        )
