"""Data as people keep it: path in, tensors out, errors counted."""

from separable.data.images import ImageSet, open_images
from separable.data.preparation import Preparation

__all__ = ["ImageSet", "Preparation", "open_images"]
