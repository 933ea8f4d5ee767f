"""Measuring driving models."""
