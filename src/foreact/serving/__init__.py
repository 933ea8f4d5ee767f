"""Policies behind a network: one module per wire format, a pure function request -> reply."""
