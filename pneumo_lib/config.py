"""The configuration of one run: a frozen dataclass, and presets that fill it."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from pneumo_lib.errors import UsageError
from pneumo_lib.recipe import Comparison, Grid, Recipe, Scale, in_range, one_of

# Kinds of noise and the highest strength that each can take; what they do, and their levels, stand in `noise.NOISES`.
STRENGTHS: dict[str, float] = {
    "gaussian": 2.0,
    "poisson": 1.0,
    "speckle": 2.0,
    "salt_pepper": 1.0,
    "blur": 10.0,
    "low_resolution": 30.0,
    "jpeg": 99.0,
    "rotation": 180.0,
    "crop": 0.9,
    "brighter": 1.0,
    "darker": 1.0,
    "low_contrast": 1.0,
}


SCALES = ("systems", "architectures", "attention", "controls")


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run.

    Attributes:
        preset: the name it was made from.
        data_dir: image folder; empty for phantoms drawn on the spot.
        image_size: side in pixels to which films are resized.
        comparison: what notebook 05 trains, and how far it is shortened.
        noise_kind: a name in noise.NOISES.
        sigma: strength of the noise in training and testing.
        seed: drives split, weights, order and noise.
        val_fraction: share of the training patients held out for validation.
        denoiser: the architecture whose output the final classifier sees.
        noise_share: share of the films for which unet_denoiser and its classifier train on another strength, drawn
            between none and 1.2 sigma.
        target_accuracy: what the films that are not left undecided shall reach on validation; a fraction.
        bootstrap: resamples behind each bootstrap interval.
        compare_films: validation films on which denoisers are compared with slow classical ones.
        phantoms: how many are drawn where data_dir is empty, as a share of the demo's; 0 draws none.
        audit_sample: films altered on purpose to check that the audit finds copies.
        precision: "auto" (bfloat16 where the machine is fast at it), "bf16" or "no".
    """

    preset: str
    data_dir: str
    image_size: int
    autoencoder: Recipe
    unet_denoiser: Recipe
    classifier: Recipe
    ablation: Grid
    comparison: Comparison
    noise_kind: str = "gaussian"
    sigma: float = 0.5
    seed: int = 0
    val_fraction: float = 0.1
    denoiser: str = "unet_denoiser"
    precision: str = "auto"
    noise_share: float = 0.5
    target_accuracy: float = 0.98
    bootstrap: int = 1000
    audit_sample: int = 40
    compare_films: int = 120
    phantoms: float = 0.0

    def __post_init__(self) -> None:
        in_range("image_size", self.image_size, 32, 1024)
        one_of("noise_kind", self.noise_kind, tuple(STRENGTHS))
        in_range("sigma", self.sigma, 0.0, STRENGTHS[self.noise_kind])
        in_range("seed", self.seed, 0, 2**31)
        in_range("val_fraction", self.val_fraction, 0.01, 0.5)
        in_range("noise_share", self.noise_share, 0.0, 1.0)
        in_range("target_accuracy", self.target_accuracy, 0.01, 1.0)
        for name in ("bootstrap", "audit_sample", "compare_films"):
            in_range(name, getattr(self, name), 1, 100_000)
        if self.image_size % 32:
            raise UsageError(f"image_size is {self.image_size}; the networks need a multiple of 32.")
        if self.classifier.crop:
            raise UsageError(f"the classifier's crop is {self.classifier.crop}; it must be 0, for it sees whole films.")
        one_of("denoiser", self.denoiser, ("autoencoder", "unet_denoiser"))
        one_of("precision", self.precision, ("auto", "bf16", "no"))
        in_range("phantoms", self.phantoms, 0.0, 100.0)
        if not (self.data_dir or self.phantoms):
            raise UsageError(
                f"preset {self.preset!r} needs data_dir, a folder of films: `--data FOLDER`, or `make report "
                "DATA=FOLDER`. Preset 'demo' needs none: it draws phantoms."
            )

    def to_dict(self) -> dict[str, Any]:
        """Nested dict of JSON types."""
        return dataclasses.asdict(self)


def _demo() -> dict[str, Any]:
    """First contact: phantoms small and clear enough for the classifier to learn something within a minute."""
    return {
        "image_size": 64,
        "sigma": 0.25,
        "autoencoder": Recipe(epochs=3, batch_size=8, lr=2e-3, schedule="cosine", checkpoint_every=1),
        "unet_denoiser": Recipe(epochs=3, batch_size=8, lr=2e-3, schedule="cosine"),
        "classifier": Recipe(epochs=8, batch_size=8, schedule="cosine"),
        "ablation": Grid(image_size=32, train_images=600, levels=(0.1, 0.25), seeds=(0, 1), epochs=5),
        "comparison": Comparison(
            systems=Scale(image_size=64, epochs=1, train_images=32, val_images=16, test_images=32),
            architectures=Scale(image_size=64, epochs=1, train_images=24, val_images=16, test_images=24),
            attention=Scale(image_size=32, epochs=1, train_images=24, val_images=16, test_images=32),
            controls=Scale(image_size=64, epochs=1, train_images=32, val_images=16, test_images=32),
            seeds=(0, 1),
            conditions=("denoised",),
            without=("alexnet", "vgg16"),
        ),
        "bootstrap": 300,
        "audit_sample": 10,
        "compare_films": 48,
        "phantoms": 1.8,
    }


def _quick() -> dict[str, Any]:
    return {
        "image_size": 256,
        "autoencoder": Recipe(epochs=5, batch_size=8, lr=2e-3, schedule="cosine", checkpoint_every=1, crop=128),
        "unet_denoiser": Recipe(epochs=8, batch_size=8, schedule="cosine", crop=128),
        "classifier": Recipe(epochs=5, schedule="cosine"),
        "ablation": Grid(image_size=64, train_images=1500, levels=(0.1, 0.25, 0.5, 1.0), seeds=(0, 1, 2), epochs=5),
        "comparison": Comparison(
            systems=Scale(image_size=64, epochs=3, train_images=1000),
            architectures=Scale(image_size=64, epochs=4, batch_size=16, lr=5e-4, train_images=400, val_images=120),
            attention=Scale(image_size=48, epochs=4, batch_size=16, lr=5e-4, train_images=300, val_images=120),
            controls=Scale(image_size=64, epochs=6, train_images=2000, val_images=200),
            seeds=(0, 1, 2),
            without=("alexnet", "vgg16"),
        ),
    }


def _full() -> dict[str, Any]:
    return {
        "image_size": 256,
        "autoencoder": Recipe(epochs=50, checkpoint_every=10),
        "unet_denoiser": Recipe(epochs=50, schedule="cosine", checkpoint_every=10),
        "classifier": Recipe(epochs=50),
        "ablation": Grid(
            image_size=128, train_images=0, levels=(0.1, 0.25, 0.5, 0.75, 1.0), seeds=(0, 1, 2), epochs=20
        ),
        "comparison": Comparison(
            systems=Scale(), architectures=Scale(), attention=Scale(), controls=Scale(), seeds=(0, 1, 2, 3, 4)
        ),
    }


def _tiny() -> dict[str, Any]:
    """For tests: everything runs, nothing is learned."""
    return {
        "image_size": 64,
        "autoencoder": Recipe(epochs=1, batch_size=16, checkpoint_every=1),
        "unet_denoiser": Recipe(epochs=1, batch_size=16, checkpoint_every=1),
        "classifier": Recipe(epochs=1, batch_size=16, checkpoint_every=1),
        "ablation": Grid(image_size=32, train_images=60, levels=(0.5,), seeds=(0, 1), epochs=1),
        "comparison": Comparison(
            systems=Scale(image_size=64, epochs=1, train_images=16, val_images=12, test_images=12),
            architectures=Scale(image_size=64, epochs=1, train_images=8, val_images=9, test_images=9),
            attention=Scale(image_size=32, epochs=1, train_images=8, val_images=9, test_images=9),
            controls=Scale(image_size=32, epochs=1, train_images=8, val_images=9, test_images=9),
            seeds=(0, 1),
            conditions=("denoised",),
            without=("alexnet", "vgg16"),
        ),
        "bootstrap": 50,
        "audit_sample": 4,
        "compare_films": 4,
        "phantoms": 0.2,
    }


PRESETS = {"demo": _demo, "quick": _quick, "full": _full, "tiny": _tiny}


def make(preset: str = "demo", **overrides: Any) -> Config:
    """The configuration of a preset with single fields replaced.

    Args:
        overrides: fields of Config, or `epochs`, `batch_size`, which set those of all three recipes and bound those
            of the systems; image_size bounds theirs too. None leaves a field as the preset has it.

    Raises:
        UsageError: unknown preset, unknown field, or a value of the wrong type or out of range.
    """
    one_of("preset", preset, tuple(PRESETS))
    values = {"preset": preset, "data_dir": "", **PRESETS[preset]()}
    given = {name: value for name, value in overrides.items() if value is not None}
    for name in ("epochs", "batch_size"):
        if name in given:
            _set_recipes(values, name, given.pop(name))
    if "image_size" in given:
        systems = dataclasses.replace(
            values["comparison"].systems, image_size=_typed("image_size", given["image_size"], int)
        )
        values["comparison"] = dataclasses.replace(values["comparison"], systems=systems)
    known = {field.name: field.type for field in dataclasses.fields(Config)}
    for name, value in given.items():
        if name not in known:
            raise UsageError(_unknown(name, (*known, "epochs", "batch_size")))
        values[name] = _typed(name, value, known[name])
    return Config(**values)


def from_dict(stored: dict[str, Any]) -> Config:
    """Rebuild a Config from `Config.to_dict`, after JSON has turned tuples into lists."""
    values = dict(stored)
    for name in ("autoencoder", "unet_denoiser", "classifier"):
        values[name] = Recipe(**values[name])
    grid = values["ablation"]
    values["ablation"] = Grid(**{k: tuple(v) if isinstance(v, list) else v for k, v in grid.items()})
    planned = values["comparison"].items()
    values["comparison"] = Comparison(**{k: Scale(**v) if k in SCALES else tuple(v) for k, v in planned})
    return Config(**values)


def _set_recipes(values: dict[str, Any], field: str, value: int) -> None:
    value = _typed(field, value, int)
    for name in ("autoencoder", "unet_denoiser", "classifier"):
        values[name] = dataclasses.replace(values[name], **{field: value})
    planned = values["comparison"]
    scales = {name: dataclasses.replace(getattr(planned, name), **{field: value}) for name in SCALES}
    values["comparison"] = dataclasses.replace(planned, **scales)


def _typed(name: str, value: Any, wanted: type) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UsageError(f"{name} is {value!r}, a {type(value).__name__}; it must be a {wanted.__name__}.")
    return value


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no configuration field is called {name!r}.{hint} There are: {', '.join(sorted(known))}."
