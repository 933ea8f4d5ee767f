"""Policies: from what was observed to the actions to play, in the
environment's units. Nothing here simulates.
"""
