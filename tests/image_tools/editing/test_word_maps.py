"""Heat maps of words: range, words, batches, and the prior that they leave alone."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.editing.align import WordsError
from image_tools.editing.word_maps import word_maps

PROMPT = "a red duck"


@pytest.fixture(scope="module", params=["sd1", "pocket"])
def prior(request, tiny_pipelines):
    return load_folder(tiny_pipelines[request.param], torch.device("cpu"))


def maps_of(prior, words, *, prompt: str = PROMPT, seed: int = 0) -> torch.Tensor:
    """Maps over one random image."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    return word_maps(prior, latents, prompt, words, generator=generator)


def test_each_map_goes_from_0_to_1_at_the_latents_size(prior):
    maps = maps_of(prior, ["red", "duck"])
    assert maps.shape == (2, 1, 8, 8)
    assert maps.amin(dim=(2, 3)).tolist() == [[0.0], [0.0]]
    assert torch.allclose(maps.amax(dim=(2, 3)), torch.ones(2, 1))


def test_words_have_maps_of_their_own_whatever_else_is_asked(prior):
    both = maps_of(prior, ["red", "duck"])
    assert not torch.allclose(both[0], both[1])
    assert torch.equal(both[1], maps_of(prior, ["duck"])[0])
    assert torch.equal(both[0], maps_of(prior, [1])[0])


def test_equal_seeds_give_equal_maps(prior):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    maps = [
        word_maps(prior, latents, PROMPT, ["duck"], generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_a_word_that_is_not_there_is_refused(prior):
    with pytest.raises(WordsError, match="'cat' is not in the prompt 'a red duck'"):
        maps_of(prior, ["cat"])


def test_the_prior_is_left_as_it_was(prior):
    before = {name: type(p) for name, p in prior.unet.attn_processors.items()}
    maps_of(prior, ["duck"])
    assert {name: type(p) for name, p in prior.unet.attn_processors.items()} == before
