"""What is taken over from a config.json of transformers: the fields its class declares, in range.

Fields that its base class adds to every class are not taken over: an attention kernel or a
quantizer to be fetched, code to be run, the name of a type. A model's author writes config.json,
and transformers acts on all of it. What it asks for is compared with the weights before any of it
is made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from recipe_ray.base.errors import ModelError, UserError, in_a_line, unknown
from recipe_ray.base.limits import PARAMETERS

M = TypeVar("M")
_TYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}


# parts of names: a dropout of 1 leaves nothing, and so does a division by a large number
_BELOW = {"dropout": 1, "layer_norm_eps": 0.1}


def config_of(
    kind: type[PretrainedConfig], values: Mapping[str, Any], where: Path, *, attention: str
) -> Any:
    """Return a config with the fields of `values` that `kind` itself declares.

    Raises ModelError, naming file and field, for a value that is of another type or out of range.
    """
    quantizer = values.get("quantization_config")
    if quantizer is not None:
        raise ModelError(
            f"{where}: quantization_config is {shortened(quantizer)}: transformers would "
            "quantize the weights when it opens them, and they would differ; give the model "
            "without it"
        )
    declared = kind.__annotations__  # of the class alone, not of its bases
    known = {name: value for name, value in values.items() if name in declared}
    for name, value in known.items():
        # what is declared as int is a size; rates, deviations and ids of tokens may be 0
        lowest = 1 if declared[name] is int else 0
        if isinstance(value, int | float) and value < lowest:
            raise ModelError(
                f"{where}: {name} is {shortened(value)}; it has to be {lowest} or more"
            )
        below = next((limit for part, limit in _BELOW.items() if part in name), None)
        if below is not None and isinstance(value, int | float) and value >= below:
            raise ModelError(f"{where}: {name} is {shortened(value)}; it has to be below {below}")
        if name.endswith("_act") and isinstance(value, str) and value not in ACT2FN:
            raise ModelError(f"{where}: " + unknown(f"activation ({name})", value, ACT2FN))
    with explained_by(where, f"is no {kind.__name__}"):
        return kind.from_dict(known, attn_implementation=attention)


def outline(build: Callable[[], M], where: Path | str) -> M:
    """Return what `build` makes of a config, its weights without memory, of shape alone.

    Raises ModelError, naming the file, if it cannot be built.
    """
    with explained_by(where, "no model can be built from it"), torch.device("meta"):
        return build()


def check_drawn(build: Callable[[], nn.Module], where: str) -> None:
    """Raise SpecError for a network from scratch with more parameters than the limit.

    It has no weights with which its config could be compared.
    """
    network = outline(build, where)
    PARAMETERS.check(sum(t.numel() for t in (*network.parameters(), *network.buffers())), where)


def rounded(weights: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights as transformers has them: in the type that config.json states for all.

    Without one it is the type of the first weight of floats. They are rounded, and floats of 32
    bits again when a module takes them over.
    """
    stated = values.get("dtype", values.get("torch_dtype"))
    known = _TYPES.values()
    first = next((one.dtype for one in weights.values() if one.dtype in known), None)
    kind = _TYPES.get(str(stated).removeprefix("torch.")) or first
    return {n: one.to(kind) if one.dtype in known else one for n, one in weights.items()}


def check_depth(asked: int, names: Iterable[str], starts: tuple[str, ...], where: Path) -> None:
    """Raise ModelError unless the weights are those of layers 0 to `asked` - 1.

    A layer's weights begin with one of `starts` and its number. Layers of any size cost time to
    build, and if there were too many layers, the rest would be dropped silently.
    """
    found = {
        name.removeprefix(start).partition(".")[0]
        for name in names
        for start in starts
        if name.startswith(start)
    }
    # never longer than the names, for any number asked for
    lacking = next((n for n in range(asked) if str(n) not in found), None)
    if lacking is not None:
        raise ModelError(
            f"{where}: weights missing: {starts[0]}{lacking} ...; num_hidden_layers is "
            f"{shortened(asked)}, but the weights have {len(found)} layers"
        )
    surplus = found - {str(number) for number in range(asked)}
    if surplus:
        raise ModelError(
            f"{where}: num_hidden_layers is {asked}, but the weights have more layers: "
            f"{starts[0]}[{', '.join(map(shortened, sorted(surplus)[:4]))}]"
        )


@contextmanager
def explained_by(where: Path | str, problem: str) -> Iterator[None]:
    """Turn any error that a library raises about a file into a ModelError that names it."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # a crafted file can make a library raise any error
        # a panic of a library in Rust is not an Exception, and its class cannot be imported
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{where}: {problem}: {in_a_line(error)}") from error
