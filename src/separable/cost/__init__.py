"""What a network costs: counted before it runs (`count`), measured on this machine (`profile`)."""

from separable.cost.count import Count, LayerCount, count
from separable.cost.machine import Machine, measure_machine
from separable.cost.profile import LayerProfile, Profile, profile
from separable.cost.saving import Saving

__all__ = ["Count", "LayerCount", "LayerProfile", "Machine", "Profile", "Saving", "count", "measure_machine", "profile"]
