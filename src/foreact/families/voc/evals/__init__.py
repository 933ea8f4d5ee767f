"""Measuring occupancy models."""
