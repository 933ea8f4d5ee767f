"""Blocks and mathematics that several systems share."""
