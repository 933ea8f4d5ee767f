"""What these tests share."""

from support.refusals import refused

__all__ = ["refused"]
