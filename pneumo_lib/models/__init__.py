"""One file per architecture, one registry: `build(name, **arguments)` makes any network of this project.

A module in this folder, or in one appended to `__path__`, offers its networks in a dict `NETWORKS` from names to what
builds them; `DENOISES = True` beside it says that they are denoisers. Nothing else has to be told about a new file.
Classifiers take `image_size` and `n_classes`, films (B, 1, H, W) in [0, 1], and give logits (B, n_classes).
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection

from torch import nn

from pneumo_lib.errors import UsageError
from pneumo_lib.models.inspection import (
    NO_DOT,
    count_flops,
    count_parameters,
    graph,
    smallest_side,
    stages,
    summary,
    takes,
)
from pneumo_lib.models.weights import PUBLISHED, find_published, load_imagenet

__all__ = [
    "CLASSIFIERS",
    "DENOISERS",
    "MODELS",
    "NO_DOT",
    "PRETRAINED",
    "WEIGHTS",
    "build",
    "count_flops",
    "count_parameters",
    "discover",
    "graph",
    "load_imagenet",
    "smallest_input",
    "stages",
    "summary",
]

MODELS: dict[str, Callable[..., nn.Module]] = {}
CLASSIFIERS: tuple[str, ...] = ()
DENOISERS: tuple[str, ...] = ()
PRETRAINED = tuple(PUBLISHED)
WEIGHTS = ("none", "imagenet")
CHECKED_BELOW = 128  # pixels; larger films fit every network, and trying one takes a quarter of a second


def discover() -> None:
    """Fill `MODELS`, `CLASSIFIERS` and `DENOISERS` from every module in this package's `__path__`.

    Raises:
        UsageError: two modules offer a network of the same name.
    """
    global CLASSIFIERS, DENOISERS
    importlib.invalidate_caches()
    found: dict[str, Callable[..., nn.Module]] = {}
    denoisers: list[str] = []
    for name in sorted({module.name for module in pkgutil.iter_modules(__path__)}):
        module = importlib.import_module(f"{__name__}.{name}")
        networks = getattr(module, "NETWORKS", {})
        if twice := sorted(found.keys() & networks):
            raise UsageError(f"{module.__file__} offers {', '.join(twice)}, as another module does: rename one.")
        found |= networks
        denoisers += networks if getattr(module, "DENOISES", False) else []
    MODELS.clear()
    MODELS.update(sorted(found.items()))
    DENOISERS = tuple(sorted(denoisers))
    CLASSIFIERS = tuple(name for name in MODELS if name not in DENOISERS)


def build(name: str, *, weights: str = "none", **arguments: object) -> nn.Module:
    """Make a network with fresh weights from torch's global generator.

    Args:
        weights: "imagenet" replaces all but the last layers by published weights (see `load_imagenet`).
        arguments: of the architecture; classifiers take `image_size` and `n_classes`.

    Raises:
        UsageError: no architecture of that name, an argument that it does not take or cannot use, films that are too
            small for it, or weights that nobody publishes.
        DataError: the published weights cannot be had.
    """
    make = _find(name)
    if weights not in WEIGHTS:
        raise UsageError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.{_near(weights, WEIGHTS)}")
    if weights == "imagenet":
        find_published(name)  # before a large network is built in vain
    for argument in arguments.keys() & {"image_size", "n_classes"}:
        value = arguments[argument]
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"architecture {name!r} cannot be built with {argument}={value!r}: expected 1 or more.")
    try:
        _check_side(name, arguments.get("image_size", CHECKED_BELOW))
        model = make(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"architecture {name!r} cannot be built from {arguments}: {error}") from error
    return load_imagenet(model, name) if weights == "imagenet" else model


def smallest_input(name: str) -> int:
    """Side in pixels of the smallest square film that a classifier takes.

    Raises:
        UsageError: no classifier of that name.
    """
    make = _find(name)
    if name not in CLASSIFIERS:
        raise UsageError(f"{name!r} is a denoiser; the classifiers are {', '.join(CLASSIFIERS)}.")
    return smallest_side(make)


def _find(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise UsageError(f"no architecture is called {name!r}.{_near(name, MODELS)} There are: {', '.join(MODELS)}.")
    return MODELS[name]


def _near(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name), names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _check_side(name: str, side: int) -> None:
    if side < CHECKED_BELOW and not takes(MODELS[name], side):
        raise UsageError(
            f"{name} cannot take films of {side} x {side} pixels; it needs at least {smallest_input(name)}."
        )


discover()
