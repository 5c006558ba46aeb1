"""Query, key and value of torch's MultiheadAttention: three thirds of one fused matrix."""

from torch import nn

from recipe_ray.learn.weights import WeightPart

PROJECTIONS = ("query", "key", "value")  # in the order of the rows


def projection(attention: nn.MultiheadAttention, name: str) -> WeightPart:
    """Return one of `PROJECTIONS` [H, H] as rows of `in_proj_weight` [3H, H]."""
    width, place = attention.embed_dim, PROJECTIONS.index(name)
    fused = attention.in_proj_weight
    return WeightPart(fused, place * width, (place + 1) * width, PROJECTIONS)
