"""What every guidance rule promises, and what the runner does with a rule that learns."""

from __future__ import annotations

import pytest
import torch

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.build import build_guidance
from guidance.configs import SDSConfig
from guidance.gradient import gradient_loss, gradient_norm
from guidance.sds import SDSGuidance
from studio.checkpoints import list_checkpoints, load_checkpoint
from studio.metrics_log import read_metrics
from studio.runner import Runner
from studio.stages import rule_tensors
from tests.studio.conftest import start, tiny_prior, tiny_scene  # noqa: F401 - fixtures


class MeanColour(GuidanceRule):
    """Pulls renders towards the mean colour of all renders so far, which it learns."""

    def __init__(self) -> None:
        self.mean, self.closed, self.calls = torch.full((3,), 0.5), 0, []

    def __call__(self, images, cameras, *, fraction, generator):
        self.calls.append("call")
        gradient = (images - self.mean).detach()
        none = torch.zeros((), dtype=torch.int64)
        t = torch.zeros(len(images), dtype=torch.int64)
        loss = gradient_loss(images, gradient)
        return GuidanceOutput(loss, gradient_norm(gradient), t, none, lambda: images.detach())

    def after_step(self, images, cameras, *, fraction, generator):
        assert not images.requires_grad
        assert len(cameras) == len(images)
        self.calls.append("after_step")
        noise = 1e-3 * torch.randn(3, generator=generator)
        self.mean = 0.9 * self.mean + 0.1 * images.mean((0, 1, 2)) + noise
        return {"mean_red": float(self.mean[0])}

    def metric_names(self):
        return ("mean_red",)

    def state(self):
        return {"mean": self.mean}

    def load_state(self, tensors):
        self.mean = tensors["mean"].clone()

    def close(self):
        self.closed += 1


def test_a_rule_that_learns_nothing_needs_only_its_gradient():
    class Nothing(GuidanceRule):
        def __call__(self, images, cameras, *, fraction, generator):
            raise NotImplementedError

    rule = Nothing()
    assert rule.after_step(torch.zeros(1, 2, 2, 3), None, fraction=0.0, generator=None) == {}
    assert rule.metric_names() == ()
    assert rule.state() == {}
    rule.load_state({})
    rule.close()


def test_a_rule_without_a_gradient_is_none():
    with pytest.raises(TypeError, match="__call__"):
        GuidanceRule()


def test_sds_is_built_from_its_config():
    rule = build_guidance(SDSConfig(guidance_scale=7.0), None, None, seed=3)
    assert isinstance(rule, SDSGuidance)
    assert rule.config.guidance_scale == 7.0


def test_the_runner_lets_a_rule_learn_logs_it_saves_it_and_closes_it(tiny_scene, tmp_path):  # noqa: F811
    scene, run = start(tiny_scene, tmp_path)
    runner = Runner(scene, run)
    rule = runner.replace_rule(MeanColour())
    runner.optimise()
    assert rule.calls == ["call", "after_step"] * 6
    assert rule.closed == 1
    logged = [float(row["mean_red"]) for row in read_metrics(run.metrics_path)]
    assert len(set(logged)) == 6
    newest = load_checkpoint(list_checkpoints(run.checkpoints_dir)[-1])
    assert torch.equal(rule_tensors(newest.optim)["mean"], rule.mean)


def test_a_learning_rule_resumes_bit_for_bit(tiny_scene, tmp_path):  # noqa: F811
    scene, whole = start(tiny_scene, tmp_path / "whole")
    uninterrupted = Runner(scene, whole)
    expected = uninterrupted.replace_rule(MeanColour())
    uninterrupted.optimise()
    _, parts = start(tiny_scene, tmp_path / "parts")
    first = Runner(scene, parts)
    first.replace_rule(MeanColour())
    for _ in range(3):
        first.step()
    first.save()
    second = Runner(scene, parts)
    found = second.replace_rule(MeanColour())
    saved = load_checkpoint(list_checkpoints(parts.checkpoints_dir)[-1])
    found.load_state(rule_tensors(saved.optim))
    second.optimise()
    assert torch.equal(found.mean, expected.mean)
    ends = [list_checkpoints(run.checkpoints_dir)[-1] for run in (whole, parts)]
    for name in ("scene.safetensors", "optim.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
