"""What a network costs: counted before it runs (`count`), measured on this machine (`profile`)."""

from separable.cost.count import Count, LayerCount, count

__all__ = ["Count", "LayerCount", "count"]
