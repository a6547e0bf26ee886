"""Training of Uni-ControlNet's adapters: what they see, what they start as, and resuming."""

from __future__ import annotations

import pytest
import torch

from image_tools.control.uni_adapters import GlobalAdapter, LocalAdapter
from image_tools.control.uni_configs import GlobalAdapterSettings, LocalAdapterSettings
from image_tools.control.uni_controlnet import UniControlledPrior
from image_tools.control.uni_training import (
    GlobalDenoiser,
    LocalDenoiser,
    LookBatch,
    MapBatch,
    train_global_adapter,
    train_local_adapter,
)
from image_tools.control.uni_training_configs import UniTrainingConfig
from image_tools.control.uni_weights import read_uni
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.loop import LoopHooks
from image_tools.personalization.loop_configs import TuningConfig
from renderers.errors import ShapeError, StudioError
from tests.image_tools.control.tiny_controls import tiny_global_adapter, tiny_local_adapter
from tests.image_tools.personalization.subjects import load_tiny

CONFIG = UniTrainingConfig(TuningConfig(steps=3, learning_rate=1e-3, save_every=1, log_every=3))
WIDTH = 16
ALL, NONE = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)


def maps_of(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random maps of the tiny adapter's conditions."""
    edge, depth = torch.rand(2, 2, 16, 16, 3, generator=generator)
    return {"edge": edge, "depth": depth}


def map_batches(batch: int, generator: torch.Generator) -> MapBatch:
    """Images that are the mean of their maps."""
    maps = maps_of(generator)
    return MapBatch((maps["edge"] + maps["depth"]) / 2, ("a duck", "a mushroom"), maps)


def look_batches(batch: int, generator: torch.Generator) -> LookBatch:
    """Images as bright as the embedding says."""
    embeddings = torch.rand(2, WIDTH, generator=generator)
    images = embeddings.mean(1)[:, None, None, None].expand(2, 16, 16, 3)
    return LookBatch(images, ("a duck", "a mushroom"), embeddings)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def noisy(prior):
    """Noisy latents and captions."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return draw_noisy(prior, latents, generator), encode_text(prior, ["a duck", "red"])


def new_local(prior) -> LocalAdapter:
    """An untrained local adapter, always the same."""
    settings = LocalAdapterSettings(("edge", "depth"), (4, 4, 4, 4, 4), (8, 12), image_factor=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return LocalAdapter.from_unet(prior.unet, settings)


def new_global(prior) -> GlobalAdapter:
    """An untrained global adapter, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return GlobalAdapter(GlobalAdapterSettings(width=WIDTH, tokens=2))


def test_an_untrained_local_adapter_has_the_plain_priors_loss(prior, noisy):
    denoiser = LocalDenoiser(prior, new_local(prior))
    with torch.no_grad():
        loss = denoiser.error(*noisy, maps_of(torch.Generator().manual_seed(5)), ALL)
        torch.testing.assert_close(loss, denoising_errors(prior, *noisy).mean())


def test_dropped_maps_are_zeros_row_by_row(prior, noisy):
    denoiser = LocalDenoiser(prior, tiny_local_adapter(prior))
    maps = maps_of(torch.Generator().manual_seed(5))
    kept = torch.tensor([[True, False], [False, True]])
    shown = {name: image.clone() for name, image in maps.items()}
    shown["depth"][0], shown["edge"][1] = 0.0, 0.0
    with torch.no_grad():
        assert torch.equal(denoiser.error(*noisy, maps, kept), denoiser.error(*noisy, shown, ALL))
        assert denoiser.error(*noisy, maps, ALL) != denoiser.error(*noisy, maps, NONE)


def test_a_hidden_embedding_is_the_one_of_the_unconditional_half(prior, noisy):
    """Guidance leads away from what training showed as nothing."""
    adapter = tiny_global_adapter(prior)
    denoiser = GlobalDenoiser(prior, adapter)
    assert adapter.training, "its dropout is on"
    adapter.eval()
    embeddings = torch.rand(2, WIDTH, generator=torch.Generator().manual_seed(6))
    controlled = UniControlledPrior(prior, content=adapter, embedding=torch.zeros(2, WIDTH))
    kept = torch.tensor([True, False])
    with torch.no_grad():
        hidden = denoiser.error(*noisy, embeddings, ~kept & kept, seed=0)
        torch.testing.assert_close(hidden, denoising_errors(controlled, *noisy).mean())
        controlled.show(embedding=embeddings * kept[:, None])
        partly = denoiser.error(*noisy, embeddings, kept, seed=0)
        torch.testing.assert_close(partly, denoising_errors(controlled, *noisy).mean())
    assert hidden != partly


def test_dropout_depends_on_its_seed_alone_and_leaves_no_trace(prior, noisy):
    denoiser = GlobalDenoiser(prior, tiny_global_adapter(prior))
    embeddings, kept = torch.ones(2, WIDTH), torch.ones(2, dtype=torch.bool)
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (
            denoiser.error(*noisy, embeddings, kept, seed=seed) for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


TRAININGS = {
    "local": (train_local_adapter, new_local, map_batches),
    "global": (train_global_adapter, new_global, look_batches),
}


@pytest.mark.parametrize("which", TRAININGS)
def test_an_interrupted_training_goes_on_bit_for_bit(prior, tmp_path, which):
    train, new, batches = TRAININGS[which]
    before = {name: p.clone() for name, p in prior.unet.named_parameters()}
    whole, parts, again = new(prior), new(prior), new(prior)
    start = {name: t.clone() for name, t in whole.state_dict().items()}
    result = train(prior, whole, batches, CONFIG, tmp_path / "whole", identity="maps")
    assert (result.finished, result.step) == (True, 3)
    folder, stop = tmp_path / "parts", LoopHooks(should_stop=lambda: True)
    first = train(prior, parts, batches, CONFIG, folder, identity="maps", hooks=stop)
    assert (first.finished, first.step, first.files) == (False, 1, ())
    train(prior, again, batches, CONFIG, folder, identity="maps")
    assert any(not torch.equal(t, start[name]) for name, t in whole.state_dict().items())
    assert all(torch.equal(t, whole.state_dict()[name]) for name, t in again.state_dict().items())
    assert all(torch.equal(p, before[name]) for name, p in prior.unet.named_parameters())
    with pytest.raises(StudioError, match="holds a training with other settings"):
        train(prior, again, batches, CONFIG, folder, identity="others")


@pytest.mark.parametrize("which", TRAININGS)
def test_what_is_written_is_read_as_it_was_trained(prior, tmp_path, which):
    train, new, batches = TRAININGS[which]
    adapter = new(prior)
    result = train(prior, adapter, batches, CONFIG, tmp_path, identity="maps")
    read = dict(zip(TRAININGS, read_uni(result.files[-1], prior.unet), strict=True))
    found = read.pop(which)
    assert list(read.values()) == [None]
    assert found.settings == adapter.settings
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert not adapter.training
    assert not any(p.requires_grad for p in adapter.parameters())


@pytest.mark.wrong_shapes
def test_batches_of_other_sizes_are_refused():
    images = torch.zeros(2, 16, 16, 3)
    with pytest.raises(ShapeError, match="2 images, 2 captions, 1 edge"):
        MapBatch(images, ("a", "b"), {"edge": images[:1]})
    with pytest.raises(ShapeError, match="2 images, 2 captions, 1 embeddings"):
        LookBatch(images, ("a", "b"), torch.zeros(1, WIDTH))
