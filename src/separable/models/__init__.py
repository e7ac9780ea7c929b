"""Networks: a family a file, and where networks and weights come from."""

from separable.models.mobilenetv1 import MobileNetV1
from separable.models.mobilenetv2 import MobileNetV2
from separable.models.mobilenetv3 import MobileNetV3Large, MobileNetV3Small
from separable.models.sources import Source, import_timm, import_torchvision, read_model
from separable.models.timm_weights import from_timm, to_timm
from separable.models.weights import load_weights
from separable.models.xception import Xception

__all__ = [
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3Large",
    "MobileNetV3Small",
    "Source",
    "Xception",
    "from_timm",
    "import_timm",
    "import_torchvision",
    "load_weights",
    "read_model",
    "to_timm",
]
