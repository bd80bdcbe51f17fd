"""Published weights: what torchvision offers for ImageNet, in the networks of this project."""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pneumo_lib.errors import DataError, UsageError


@dataclass(frozen=True)
class Published:
    """Whose weights a network takes.

    Attributes:
        source: name of the network in torchvision.
        fresh: beginnings of the names that keep fresh weights where the file has none of that shape.
    """

    source: str
    fresh: tuple[str, ...]


PUBLISHED = {
    "aernet": Published("resnet50", ("fc.", "cbam")),
    "alexnet": Published("alexnet", ("classifier.6.",)),
    "densenet121": Published("densenet121", ("classifier.",)),
    "googlenet": Published("googlenet", ("fc.",)),
    "resnet18": Published("resnet18", ("fc.",)),
    "resnet34": Published("resnet34", ("fc.",)),
    "resnet50": Published("resnet50", ("fc.",)),
    "vgg16": Published("vgg16", ("classifier.6.",)),
}


def find_published(name: str) -> Published:
    """Whose weights an architecture takes; UsageError if nobody publishes any for it."""
    if name not in PUBLISHED:
        raise UsageError(
            f"there are no ImageNet weights for {name!r}; there are for {', '.join(PUBLISHED)}. "
            "Take one of those, or train from fresh weights (--weights none)."
        )
    return PUBLISHED[name]


def load_imagenet(model: nn.Module, name: str) -> nn.Module:
    """Fill a network with torchvision's ImageNet weights; the last layer stays fresh unless it has 1000 classes.

    The file is downloaded once, its hash checked, into PyTorch's own folder (`TORCH_HOME`).

    Args:
        name: of the architecture in `models.MODELS`.

    Raises:
        UsageError: nobody publishes weights for that architecture.
        DataError: the file can be neither found nor downloaded, is damaged, or belongs to another network.
    """
    own, published = model.state_dict(), find_published(name)
    state = {key: value for key, value in _renamed(_read(published.source)).items() if _fits(own.get(key), value)}
    loose = (*published.fresh, "num_batches_tracked")  # a counter that files older than it do not have
    lost = [key for key in own if key not in state and not key.startswith(loose) and not key.endswith(loose)]
    if lost:
        raise DataError(f"the file of ImageNet weights for {name} does not fit it: it lacks {', '.join(lost[:3])}.")
    model.load_state_dict(state, strict=False)
    return model


def _read(source: str) -> dict[str, Any]:
    weights = torchvision.models.get_model_weights(source).DEFAULT
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if path.exists():
            reason = error if isinstance(error, OSError) else type(error).__name__  # torch advises to load it unsafely
            raise DataError(f"{path} cannot be read ({reason}). Delete it, and it is downloaded again.") from error
        raise DataError(
            f"the ImageNet weights of {source} could not be downloaded: {error}. Put the file {path.name} from "
            f"{weights.url} into {path.parent}, or train from fresh weights (--weights none)."
        ) from error


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    """DenseNet's file says `norm.1` where its layers are called `norm1` today."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key): value for key, value in state.items()}


def _fits(own: Tensor | None, published: Any) -> bool:
    return own is not None and isinstance(published, Tensor) and own.shape == published.shape
