"""The old place of `tests.builders`, until all tests import from there."""

from tests.builders import CLASSES, tiny_image, tiny_lens

__all__ = ["CLASSES", "tiny_image", "tiny_lens"]
