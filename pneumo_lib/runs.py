"""The run folder: the only thing that notebooks hand to each other.

runs/<name>/config.json        the configuration; another one is refused
            denoiser/<name>/    model.safetensors + model.json, history.csv
            classifier/<name>/  the same
            metrics_NN.json     the numbers of notebook NN
            predictions.csv     one row per film and protocol
            figures/            what the notebooks drew
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pneumo_lib import __version__, models, processes, runtime
from pneumo_lib.config import Config, from_dict, make
from pneumo_lib.errors import DataError, TrainingError, UsageError

NOTEBOOKS = {
    "01": "01_data_exploration",
    "02": "02_denoiser_training",
    "03": "03_classifier_training",
    "04": "04_ablation",
    "05": "05_model_comparison",
    "06": "06_evaluation",
}


@dataclass(frozen=True)
class SavedModel:
    """A network read from its folder, in evaluation mode on the CPU, with its card (the dict of model.json)."""

    model: nn.Module
    card: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder and the configuration that it was made with."""

    path: Path
    config: Config

    def model_folder(self, role: str, name: str) -> Path:
        """Folder of one network; role is "denoiser" or "classifier"."""
        return self.path / role / name

    def load_model(self, role: str, name: str) -> SavedModel:
        """The network of that role and name, the architecture first; a DataError names the notebook that makes it."""
        maker = NOTEBOOKS["02" if role == "denoiser" else "03"]
        folder = require(self.model_folder(role, name), made_by=maker)
        return load_model(folder, architecture=name.split("_on_")[0])

    def write_metrics(self, notebook: str, values: dict[str, Any]) -> Path:
        """Store the numbers of a notebook ("01" to "06") as metrics_NN.json; NaN and infinity become null."""
        path = self.path / f"metrics_{notebook}.json"
        write_text(path, json.dumps(_plain(values), indent=1, sort_keys=True, allow_nan=False) + "\n")
        return path

    def read_metrics(self, notebook: str) -> dict[str, Any]:
        """The numbers of a notebook; a DataError names the notebook to run first."""
        path = require(self.path / f"metrics_{notebook}.json", made_by=NOTEBOOKS[notebook])
        return json.loads(path.read_text())

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Store a table as NAME.csv; its index is left out."""
        path = self.path / f"{name}.csv"
        write_text(path, table.to_csv(index=False))
        return path

    @property
    def figures(self) -> Path:
        """Folder of the figures that show no patient: curves, tables, matrices."""
        return self.path / "figures"

    @property
    def film_figures(self) -> Path:
        """Folder of the figures that show films; they are not published unless the films are phantoms."""
        return self.path / "film_figures"


def run_name(config: Config) -> str:
    """The preset's name, followed by a hash where anything but the data differs from the preset."""
    plain = make(config.preset, data_dir=config.data_dir)
    if config == plain:
        return config.preset
    fields = config.to_dict() | {"data_dir": ""}
    return f"{config.preset}-{hashlib.sha256(repr(fields).encode()).hexdigest()[:6]}"


def open_run(path: str | Path, config: Config) -> Run:
    """Open a run folder, or make it.

    Args:
        path: relative ones start at the project's folder; empty stands for runs/NAME with the name of `run_name`.

    Raises:
        TrainingError: the folder holds a run of another configuration; the differences are named.
    """
    path = runtime.locate(path or Path("runs", run_name(config)))
    record = path / "config.json"
    if processes.by_first(record.exists):
        found = load_run(path).config
        if changes := _differences(found.to_dict(), config.to_dict()):
            raise TrainingError(
                f"{path} holds a run made with another configuration ({'; '.join(changes)}). "
                "Choose another run folder, or delete this one."
            )
    else:
        write_text(record, json.dumps(config.to_dict(), indent=1) + "\n")
    return Run(path, config)


def load_run(path: str | Path) -> Run:
    """Open a run folder that exists, for reading.

    Raises:
        DataError: there is no run in that folder, or its config.json cannot be read.
    """
    path = runtime.locate(path)
    record = path / "config.json"
    if not record.exists():
        raise DataError(
            f"{path} is not a run folder: it has no config.json. `pneumo report` or `pneumo train` makes one."
        )
    try:
        return Run(path, from_dict(json.loads(record.read_text())))
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise DataError(
            f"{record} is not a configuration of this version: {error}. Delete the run and make it again."
        ) from error


def require(path: Path, *, made_by: str) -> Path:
    """The path itself if it exists.

    Raises:
        DataError: it does not; names the notebook that makes it.
    """
    if not path.exists():
        raise DataError(f"{path} is missing. It is made by notebook {made_by}: run that one first.")
    return path


def save_model(folder: Path, model: nn.Module, card: dict[str, Any]) -> None:
    """Store weights and card so that the folder alone rebuilds the network.

    Args:
        card: must hold "architecture" and "arguments"; "classes", "preprocessing", "metrics" and the like travel with
            it. The hash of the weights and the library's version are added.
    """
    save_weights(folder / "model.safetensors", model.state_dict())
    write_card(folder, {**card, "sha256": sha256(folder / "model.safetensors")})


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Store a card as model.json, with the library's version."""
    write_text(folder / "model.json", json.dumps(_plain(card | {"pneumo_lib": __version__}), indent=1) + "\n")


def load_model(folder: str | Path, *, architecture: str = "", classes: tuple[str, ...] = ()) -> SavedModel:
    """Rebuild a network from its folder.

    Args:
        architecture, classes: what the caller needs; another one is refused by name. Empty accepts any.

    Raises:
        DataError: files missing or damaged, the wrong or an unknown architecture, the wrong class list, weights whose
            hash is not the card's or that are not all finite.
    """
    folder = Path(folder)
    weights, record = folder / "model.safetensors", folder / "model.json"
    if not record.exists() or not weights.exists():
        raise DataError(f"{folder} is not a model folder: it needs model.safetensors and model.json.")
    try:
        card = json.loads(record.read_text())
        found, arguments, digest = card["architecture"], dict(card["arguments"]), card["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{record} is not a model card: {error!r}. Make the model again.") from error
    if architecture and found != architecture:
        raise DataError(f"{folder} holds the architecture {found!r}; {architecture!r} was expected.")
    if classes and tuple(card.get("classes", ())) != tuple(classes):
        raise DataError(f"{folder} was trained for the classes {card.get('classes')}; {list(classes)} were expected.")
    if sha256(weights) != digest:
        raise DataError(
            f"{weights} is not the file its card describes (SHA-256 differs): damaged or exchanged. Make it again."
        )
    try:
        model = load_weights(models.build(found, **arguments), weights)
    except UsageError as error:
        raise DataError(f"{record} describes a network that this version cannot build: {error}") from error
    if bad := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise DataError(f"{weights} holds NaN or infinity in {', '.join(bad)}: its training failed. Make it again.")
    return SavedModel(model.eval(), card)


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Store tensors as safetensors, in the precision they have, atomically. Of several processes the first does."""
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def write() -> None:
        with replacing(path) as temporary:
            save_file(plain, temporary)

    processes.by_first(write)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `save_weights`; DataError if it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged or not a safetensors file: {error}") from error


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Fill a network from a file of `save_weights`; DataError if the tensors do not fit it."""
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise DataError(f"{path} does not fit {type(model).__name__}: {str(error).splitlines()[0]}") from error
    return model


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either whole or not there. Of several processes the first does."""

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    processes.by_first(write)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of the file `path` once the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_folder(source: Path, target: Path) -> None:
    """Give a finished folder its name, its files on the disk first, so that a kill never leaves half of it there."""
    for file in source.rglob("*"):
        if file.is_file():
            _flush(file)
    os.rename(source, target)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    flat_old, flat_new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    return [
        f"{name}: {flat_old.get(name)} there, {flat_new.get(name)} now"
        for name in sorted(flat_old | flat_new)
        if flat_old.get(name) != flat_new.get(name)
    ]


def _plain(value: Any) -> Any:
    """The value in types of strict JSON: NumPy's, tensors, tables and estimates unfolded."""
    for unfold in ("to_dict", "tolist"):
        if hasattr(value, unfold):
            return _plain(getattr(value, unfold)())
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (int, str)) else str(value)
