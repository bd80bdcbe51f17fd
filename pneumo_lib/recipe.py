"""How networks are trained, as data: recipes, augmentation, and how far a preset shortens them."""

import difflib
from dataclasses import dataclass, field, fields

from pneumo_lib.errors import UsageError


def in_range(name: str, value: float, low: float, high: float) -> None:
    """A UsageError where a value lies outside [low, high]."""
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}; it must lie between {low:g} and {high:g}.")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """A UsageError, with the nearest allowed value, where a value is none of those allowed."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.{hint}")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training film, drawn per film and epoch; validation and test films never get them.

    There is no vertical flip: it turns chests upside down.

    Attributes:
        rotation: degrees, either way.
        shift: share of the side, either way, in both directions.
        zoom: range of the magnification.
        shear: degrees, either way.
        flip: left and right are exchanged in half of the films.
        brightness: gray added, either way, on films in [0, 1].
        contrast: factor 1 ± this, about the film's mean.
        gamma: exponent exp(± this).
        share: of the films that are changed at all, drawn anew in each epoch; the others stay as they are.
    """

    rotation: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        limits = {"rotation": 45, "shift": 0.5, "shear": 45, "brightness": 0.5, "contrast": 0.9, "gamma": 2, "share": 1}
        for name, most in limits.items():
            in_range(name, getattr(self, name), 0, most)
        if not (len(self.zoom) == 2 and 0.2 <= self.zoom[0] <= self.zoom[1] <= 5):
            raise UsageError(f"zoom is {self.zoom}; it must be a range (low, high) within 0.2 to 5.")


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: films per step, over all processes.
        lr: learning rate of Adam at its highest.
        schedule: "constant", or "cosine" (linear warm-up over 5 % of the steps, then down to zero).
        checkpoint_every: keep the weights of every k-th epoch; 0 for none.
        patience: stop after so many epochs without a lower validation loss; 0 never stops early.
        min_delta: by how much the validation loss must fall to count as lower for `patience`.
        optimizer: "adam", whose weight decay is added to the gradient, or "adamw", which decays the weights themselves.
        weight_decay: of the optimiser.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016).
        imbalance: "none"; "weighted" divides a film's loss by its class's share of the films; "balanced" draws as many
            films of each class, with repetition.
        keep: which epoch's weights are kept: "loss", the lowest on validation; "score", the highest; or "last", where
            validation films are too few to choose by and the schedule ends at rest.
        augmentation: of the training films.
        mixup: parameter of the Beta distribution by which two films and their labels are blended before the noise
            (Zhang et al. 2018); 0 blends none. For classifiers.
        ema: decay of the running mean of the weights, which is what is validated and kept; 0 keeps the weights
            themselves.
        crop: side in pixels of the square cut from each training film at a random place; smaller films, and all of them
            at 0, are taken whole. For denoisers, which judge a pixel by those around it (Zhang et al. 2017, DnCNN).
    """

    epochs: int
    batch_size: int = 32
    lr: float = 1e-3
    schedule: str = "constant"
    checkpoint_every: int = 0
    patience: int = 0
    min_delta: float = 0.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    imbalance: str = "none"
    keep: str = "loss"
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    ema: float = 0.0
    crop: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.augmentation, dict):  # as JSON has it
            given = self.augmentation | {"zoom": tuple(self.augmentation.get("zoom", (1.0, 1.0)))}
            object.__setattr__(self, "augmentation", Augmentation(**given))
        limits = {"epochs": (1, 10_000), "batch_size": (1, 4096), "lr": (1e-7, 10.0), "checkpoint_every": (0, 10_000)}
        limits |= {"patience": (0, 10_000), "min_delta": (0, 10), "weight_decay": (0, 1), "label_smoothing": (0, 0.9)}
        limits |= {"mixup": (0, 10), "ema": (0, 0.99999), "crop": (0, 1024)}
        for name, (low, high) in limits.items():
            in_range(name, getattr(self, name), low, high)
        if self.crop % 32:
            raise UsageError(f"crop is {self.crop}; the networks need a multiple of 32, or 0 for whole films.")
        one_of("schedule", self.schedule, ("constant", "cosine"))
        one_of("optimizer", self.optimizer, ("adam", "adamw"))
        one_of("imbalance", self.imbalance, ("none", "weighted", "balanced"))
        one_of("keep", self.keep, ("loss", "score", "last"))

    def text(self) -> str:
        """The recipe in one line, what is left at its default unsaid."""
        parts = [f"{self.epochs} epochs", f"batch {self.batch_size}", f"{self.optimizer} {self.lr:g}"]
        said = {"schedule": "constant", "imbalance": "none"}
        parts += [str(getattr(self, name)) for name, usual in said.items() if getattr(self, name) != usual]
        words = {
            "weight_decay": "weight decay",
            "label_smoothing": "label smoothing",
            "mixup": "mixup",
            "ema": "running mean",
            "crop": "squares of",
        }
        for name, word in words.items():
            if getattr(self, name):
                parts.append(f"{word} {getattr(self, name):g}")
        if self.patience:
            gain = f"a gain of {self.min_delta:g}" if self.min_delta else "gain"
            parts.append(f"stops after {self.patience} epochs without {gain}")
        kept = {"loss": "lowest validation loss", "score": "highest validation accuracy", "last": "last epoch"}
        parts.append(kept[self.keep])
        return ", ".join(parts)


@dataclass(frozen=True)
class Grid:
    """The ablation: every arm at every noise level, over several seeds, scored after every epoch.

    Attributes:
        image_size: side in pixels; small, since many networks are trained.
        train_images: films drawn from the training split; 0 takes all.
        levels: noise strengths.
        seeds: one repetition each.
        epochs: of each network.
    """

    image_size: int
    train_images: int
    levels: tuple[float, ...]
    seeds: tuple[int, ...]
    epochs: int


@dataclass(frozen=True)
class Scale:
    """How far a preset shortens the trainings of notebook 05. 0 leaves a number as the recipe has it.

    Attributes:
        image_size: side in pixels at most.
        epochs: passes over the training films at most.
        batch_size, lr: in place of the recipe's; few steps want larger ones.
        train_images: films drawn from the training split at most.
        val_images: films drawn from validation at most.
        test_images: films drawn from test at most; only for checks that everything runs.
    """

    image_size: int = 0
    epochs: int = 0
    batch_size: int = 0
    lr: float = 0.0
    train_images: int = 0
    val_images: int = 0
    test_images: int = 0

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            in_range(name, getattr(self, name), 0, 10_000_000)


@dataclass(frozen=True)
class Comparison:
    """What notebook 05 trains.

    Attributes:
        systems: of the systems on their sources' data.
        architectures: of the architectures on one set of films.
        attention: of the ablation of AERNet.
        seeds: of the repetitions of that ablation.
        conditions: how the architectures see the films: "clean", "noisy" (with noise), "denoised" (and a denoiser).
        without: architectures that are left out; 57 and 134 million weights take longer than all the others together.
        controls: of the films from which something was taken away.
    """

    systems: Scale
    architectures: Scale
    attention: Scale
    seeds: tuple[int, ...]
    conditions: tuple[str, ...] = ("clean", "noisy", "denoised")
    without: tuple[str, ...] = ()
    controls: Scale = field(default_factory=Scale)
