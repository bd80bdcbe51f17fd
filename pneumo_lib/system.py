"""What a system is: a network, its recipe, its data, and what the source reported of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan

from pneumo_lib.recipe import Recipe, Scale


@dataclass(frozen=True)
class Reported:
    """A figure of a source report. Fractions; NaN or None where the source is silent.

    Attributes:
        protocol: how the films reached the classifier, or which they were.
        correct, n: the counts behind the accuracy, where they can be known.
        precision, recall, f1, auc: averages over classes, or of the class PNEUMONIA where there are two.
        parameters: millions. milliseconds: per film, on the source's machine.
    """

    protocol: str
    accuracy: float
    correct: int | None = None
    n: int | None = None
    precision: float = nan
    recall: float = nan
    f1: float = nan
    auc: float = nan
    parameters: float = nan
    milliseconds: float = nan


@dataclass(frozen=True)
class System:
    """One published system, rebuilt here: a network and how it is trained.

    Attributes:
        name: what `pneumo train` calls it.
        report: letter of the source report; "ours" for our own.
        title: what the source calls it.
        model: architecture in `models.MODELS`; arguments: more of its arguments than image_size and n_classes.
        image_size: side of its input in pixels.
        recipe: as the source trained it (preset "full"), but for what `corrected` says.
        datasets: cards of the data it is trained on, the first one by default.
        reported: the source's figures, by data set or protocol.
        denoiser: architecture that cleans its films first; "" for none. Its recipe is that of the preset.
        noisy: it learns from films under the run's noise, some of them under another strength (`Config.noise_share`),
            and is tested on noisy, on already noisy and on clean ones.
        pretrained: the source began with ImageNet weights (`--weights imagenet`).
        corrected: where the source's recipe is wrong or silent, and what is done here.
        source: the report, and where in it.
    """

    name: str
    report: str
    title: str
    model: str
    image_size: int
    recipe: Recipe
    datasets: tuple[str, ...]
    source: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    reported: Mapping[str, Reported] = field(default_factory=dict)
    denoiser: str = ""
    noisy: bool = False
    pretrained: bool = False
    corrected: str = ""

    def shortened(self, scale: Scale) -> "System":
        """The system no larger and no longer than a scale allows."""
        size = min(self.image_size, scale.image_size or self.image_size)
        epochs = min(self.recipe.epochs, scale.epochs or self.recipe.epochs)
        steps = {"batch_size": scale.batch_size or self.recipe.batch_size, "lr": scale.lr or self.recipe.lr}
        return replace(self, image_size=size, recipe=replace(self.recipe, epochs=epochs, **steps))
