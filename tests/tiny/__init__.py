"""Tiny pipelines with random weights, one entry for each pipeline class, that tests build anew."""

from tiny.base import TINY, Tiny, build, tiny

from tiny import audio, classic_images, modern_images, video  # noqa: F401, isort: skip

__all__ = ["TINY", "Tiny", "build", "tiny"]
