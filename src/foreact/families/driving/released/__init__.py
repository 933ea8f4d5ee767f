"""Checkpoints and trajectories of the VaViM and VaVAM release."""
