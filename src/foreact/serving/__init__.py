"""Policies behind a network: one module per wire format, each a
pure function from request to reply.
"""
