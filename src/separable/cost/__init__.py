"""What a network costs: counted before it runs (`count`), measured on this machine (`profile`).

The functions stand before the modules of their names: `separable.cost.profile` is the function, and the module
`profile` is reached by `from separable.cost.profile import ...`.
"""

from separable.cost.count import Count, LayerCount, count
from separable.cost.machine import Machine, measure_machine, processor
from separable.cost.profile import LayerProfile, Profile, profile
from separable.cost.saving import Saving
from separable.cost.subnormal import Subnormal, subnormal_activations, subnormal_weights
from separable.cost.timing import interleaved_ms

__all__ = [
    "Count",
    "LayerCount",
    "LayerProfile",
    "Machine",
    "Profile",
    "Saving",
    "Subnormal",
    "count",
    "interleaved_ms",
    "measure_machine",
    "processor",
    "profile",
    "subnormal_activations",
    "subnormal_weights",
]
