"""Tiny stock pipelines, written once per test process."""

from __future__ import annotations

from tests.tiny_models import tiny_pipelines

__all__ = ["tiny_pipelines"]
