"""Networks: a family a file, and where networks and weights come from."""

from separable.models.sources import Source, import_timm, import_torchvision, read_model
from separable.models.weights import load_weights

__all__ = ["Source", "import_timm", "import_torchvision", "load_weights", "read_model"]
