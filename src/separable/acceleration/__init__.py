"""The same network, faster: `accelerate(model)` runs what it recognises natively and tells what it left alone."""

from separable.acceleration.accelerated import Accelerated, accelerate
from separable.acceleration.report import Report, Row

__all__ = ["Accelerated", "Report", "Row", "accelerate"]
