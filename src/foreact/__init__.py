"""Foreact: video-action models that watch video, foresee what comes next, and act on it."""

__version__ = "0.1.0"
