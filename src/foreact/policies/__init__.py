"""Policies: from observations to actions, in the environment's units. Nothing here simulates."""
