"""A small set of films and a finished run on it, made once for all tests that only read them."""

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image

from pneumo_lib import config, data, pipeline, runs

pytest_plugins = ["service_app"]
SIZES = {"train": 90, "test": 24, "noisy_test": 9}
LONGEST = ("test_processes.py", "test_service_server.py", "test_service_browser.py", "test_benchmarks.py")


def pytest_configure() -> None:
    """Tests interrupt programs that they start; begun in the background, these would inherit that nobody can."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays with one worker, so the longest come first: in the end nobody waits for the last of them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def film_folder(tmp_path_factory) -> Path:
    """ROOT/SPLIT/CLASS/film.png: films that a network tells apart within seconds, unlike phantoms.

    Every film is mixed with up to as much of the one before it, so that some are ambiguous and the answers vary.
    """
    root, rows = tmp_path_factory.mktemp("films") / "spots", []
    for seed, (split, n) in enumerate(SIZES.items()):
        films, share = tiny.films(n, size=48, seed=seed), np.random.default_rng(seed).uniform(0, 0.5, (n, 1, 1))
        mixed = ((1 - share) * films.images + share * np.roll(films.images, 1, axis=0)).astype(np.uint8)
        for pixels, label, name in zip(mixed, films.labels, films.keys, strict=True):
            path = Path(split, data.CLASSES[label], name)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)
            rows.append({"path": path.as_posix(), "split": split, "label": data.CLASSES[label], "group": name})
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)
    return root


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """Where decoded films and phantoms are kept for the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_config(film_folder) -> config.Config:
    """The preset `tiny` on those films, smaller and a little longer, so that something is learned after all."""
    options = {"image_size": 32, "epochs": 6, "batch_size": 8, "sigma": 0.1, "val_fraction": 0.3}
    return config.make("tiny", data_dir=str(film_folder), precision="no", **options)


@pytest.fixture(scope="session")
def tiny_images(tiny_config, cache_dir) -> data.ImageSet:
    """The films of `tiny_run`, decoded."""
    return pipeline.open_data(tiny_config, cache_dir)


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tiny_images, tmp_path_factory) -> runs.Run:
    """A run with both denoisers and a classifier behind each. Read only: copy the folder to change it."""
    run = runs.open_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_config)
    for name in pipeline.DENOISERS:
        pipeline.train_denoiser(run, tiny_images, name)
        pipeline.train_classifier(run, tiny_images, name)
    return run
