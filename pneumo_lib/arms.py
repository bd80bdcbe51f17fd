"""Does denoising help? Networks trained on clean, on noisy and on denoised films, tested under every corruption.

Each network meets four arms, as in the ablation (`ablation.ARMS`), and a fifth that needs no training of its own:

    clean         trained on clean films, shown clean films
    unprepared    trained on clean films, shown noisy ones
    rescued       trained on clean films, shown noisy films that a denoiser has cleaned
    denoised      trained on and shown noisy films cleaned by that denoiser
    noisy         trained on and shown noisy films as they are

Unlike the ablation, a network is trained for all levels at once: the strength of gaussian noise is drawn anew for every
film, and every level and every other corruption is then a test of the same weights.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

from pneumo_lib import comparison, evaluation, metrics, noise, pipeline, runs, steps
from pneumo_lib.data import ImageSet
from pneumo_lib.errors import DataError
from pneumo_lib.recipe import Augmentation, Recipe, Scale
from pneumo_lib.systems import SYSTEMS
from pneumo_lib.trials import Trial

SIDE = 128  # pixels
TOP = 1.0  # sigma up to which noise is trained on
NETWORKS = {"cnn2": 3, "resnet18_s2d": 3, "resnet34": 2, "aernet": 1}  # and seeds of each
CONDITIONS = ("clean", "noisy", "denoised")
ARMS = ("clean", "unprepared", "rescued", "denoised", "noisy")
FOLDER = "arms"
PAIRED = ("network", "kind", "level", "seeds", "difference", "p", "better", "worse")
RECIPE = Recipe(
    epochs=12,
    batch_size=64,
    schedule="cosine",
    optimizer="adamw",
    weight_decay=0.05,
    keep="last",
    augmentation=Augmentation(rotation=10, shift=0.04, zoom=(0.9, 1.15), flip=True),
)
_EVERY_LEVEL = {"sigma": TOP / 1.2, "share": 1.0}  # `steps.Corruption` draws up to 1.2 sigma


def train_denoiser(run: runs.Run, images: ImageSet, scale: Scale) -> None:
    """Train the U-Net in front of the arms on noise of every level and store it in the run's folder."""
    corruption = steps.Corruption("gaussian", _EVERY_LEVEL["sigma"], share=_EVERY_LEVEL["share"])
    recipe = Recipe(epochs=scale.epochs or 20, schedule="cosine", keep="last")
    options = {"corruption": corruption, "recipe": recipe, "folder": run.path}
    saved = comparison.train_denoiser(run, images, scale, **options)
    runs.save_model(run.path, saved.model, saved.card)


def plan(network: str, condition: str, images: ImageSet, run: runs.Run, scale: Scale, denoiser: nn.Module) -> Trial:
    """The trial of a network under a condition of CONDITIONS, all under one recipe."""
    base = replace(SYSTEMS[network], recipe=RECIPE, image_size=images.images.shape[-1], denoiser="", noisy=False)
    options = {} if condition == "clean" else dict(_EVERY_LEVEL)
    options |= {"denoiser": denoiser if condition == "denoised" else None, "protocol": condition}
    folder = run.path / FOLDER / network / condition
    return comparison.plan(base.shortened(scale), images, run, scale=scale, folder=folder, **options)


def shown(condition: str, denoiser: nn.Module) -> dict[str, nn.Module | None]:
    """The arms that the network of a condition is tested in, each with what stands in front of it."""
    return {
        "clean": {"unprepared": None, "rescued": denoiser},
        "noisy": {"noisy": None},
        "denoised": {"denoised": denoiser},
    }[condition]


def said(saved: runs.SavedModel, images: ImageSet, scale: Scale, denoiser: nn.Module | None) -> pd.DataFrame:
    """What a network calls each test film under gaussian noise of every level and under every other corruption.

    Returns:
        One row per film: path, label, and a column "KIND LEVEL" per corruption, all with indices of classes.
    """
    films = pipeline.films(images, "test").draw(scale.test_images, seed=saved.card["seed"])
    table = {"path": films.keys, "label": films.labels}
    for kind, level in _tests():
        view = evaluation.View(kind, level, saved.card["seed"])
        logits = evaluation.classify(saved.model, films, view, denoiser=denoiser)
        table[f"{kind} {level:g}"] = logits.argmax(axis=1)
    return pd.DataFrame(table)


def _tests() -> list[tuple[str, float]]:
    """Every level of gaussian noise, and of each other corruption a mild and a hard one."""
    gaussian = [("gaussian", level) for level in noise.NOISES["gaussian"].levels]
    return gaussian + [
        (kind, how.levels[k]) for kind, how in noise.NOISES.items() if kind != "gaussian" for k in (2, 4)
    ]


# ---- what was published of them --------------------------------------------------------------------------------------


def read(figures: Path) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Tables of `said` by network, arm and seed, from arms/NETWORK/ARM_seed_K.csv; a DataError where there are none."""
    found = {}
    for path in sorted((figures / FOLDER).glob("*/*_seed_*.csv")):
        arm, _, seed = path.stem.partition("_seed_")
        found[path.parent.name, arm, int(seed)] = pd.read_csv(path).set_index("path")
    if not found:
        raise DataError(
            f"{figures / FOLDER} holds no NETWORK/ARM_seed_K.csv. `benchmarks/evidence.py --publish` makes them."
        )
    return found


def scores(found: dict[tuple[str, str, int], pd.DataFrame]) -> pd.DataFrame:
    """Accuracy of every network in every arm: one row per network, arm, seed, kind and level (fractions)."""
    rows = []
    for (network, arm, seed), table in found.items():
        hit = table.drop(columns="label").eq(table["label"], axis=0).mean()
        for name, value in hit.items():
            kind, level = name.rsplit(" ", 1)
            facts = {"network": network, "arm": arm, "seed": seed, "kind": kind, "level": float(level)}
            rows.append(facts | {"accuracy": value, "n": len(table)})
    table = pd.DataFrame(rows)
    clean = table[(table["arm"] == "unprepared") & (table["level"] == 0) & (table["kind"] == "gaussian")]
    return pd.concat([table, clean.assign(arm="clean")], ignore_index=True)


def paired(
    found: dict[tuple[str, str, int], pd.DataFrame], arm: str = "denoised", other: str = "noisy"
) -> pd.DataFrame:
    """Two arms of a network on the same noisy films, seed by seed.

    Returns:
        network, kind, level, seeds; difference: accuracy of `arm` minus that of `other`, mean over seeds (fraction);
        p: the largest of the seeds' exact McNemar tests; better, worse: whether every seed says so with p < 0.05.
    """
    rows = []
    for network in dict.fromkeys(network for network, *_ in found):
        both = [(found[network, arm, seed], found[network, other, seed]) for seed in _seeds(found, network, arm, other)]
        for name in both[0][0].columns.drop("label") if both else []:
            tests = [_test(one, two.loc[one.index], name) for one, two in both]
            kind, level = name.rsplit(" ", 1)
            sure = max(test.p for test in tests)
            gains = [test.difference.value for test in tests]
            rows.append(
                {"network": network, "kind": kind, "level": float(level), "seeds": len(tests)}
                | {"difference": sum(gains) / len(gains), "p": sure}
                | {"better": sure < 0.05 and min(gains) > 0, "worse": sure < 0.05 and max(gains) < 0}
            )
    return pd.DataFrame(rows, columns=[*PAIRED])


def _seeds(found: dict[tuple[str, str, int], pd.DataFrame], network: str, *arms: str) -> list[int]:
    return sorted(
        set.intersection(*({seed for one, arm, seed in found if (one, arm) == (network, name)} for name in arms))
    )


def _test(one: pd.DataFrame, two: pd.DataFrame, name: str) -> metrics.McNemar:
    return metrics.mcnemar(one["label"].to_numpy(), one[name].to_numpy(), two[name].to_numpy())


def readable(table: pd.DataFrame, kind: str = "gaussian") -> pd.DataFrame:
    """`scores` for people: a row per network and arm, a column per level of a kind; means over seeds."""
    part = table[table["kind"] == kind]
    means = part.pivot_table(index=["network", "arm"], columns="level", values="accuracy", aggfunc="mean", sort=False)
    seeds = part.groupby(["network", "arm"])["seed"].nunique()
    texts = means.map(lambda value: "" if pd.isna(value) else f"{value:.1%}")
    texts.columns = [f"{level:g}" for level in texts.columns]
    texts.insert(0, "seeds", seeds.astype(str))
    order = {name: k for k, name in enumerate(ARMS)}
    return texts.reset_index().sort_values(["network", "arm"], key=lambda c: c.map(order) if c.name == "arm" else c)


def verdict(table: pd.DataFrame) -> str:
    """`paired` in a few sentences: where a denoiser in front helps, where it hurts, where nothing can be told."""
    told = []
    for network, part in table.groupby("network", sort=False):
        parts = []
        for word, rows in (("helps", part[part["better"]]), ("hurts", part[part["worse"]])):
            if len(rows):
                kinds = rows.groupby("kind", sort=False)["level"].agg(
                    lambda levels: " and ".join(f"{x:g}" for x in levels)
                )
                parts.append(f"{word} at " + ", ".join(f"{kind} {levels}" for kind, levels in kinds.items()))
        noise_rows = part[(part["kind"] == "gaussian") & (part["level"] > 0)]
        low, high = noise_rows["difference"].min(), noise_rows["difference"].max()
        seeds = int(part["seeds"].iloc[0])
        behind = f"({seeds} seed{'s' if seeds > 1 else ''})"
        rest = f"under gaussian noise the difference is {low:+z.1%} to {high:+z.1%} {behind}"
        found = "; it ".join(parts) or "makes no difference that every seed confirms at any level of any corruption"
        if seeds == 1:
            found = "was tried under one seed, from which nothing is concluded"
        told.append(f"For `{network}` it {found}; {rest}.")
    return "A denoiser in front of a network, rather than training that network on the noisy films. " + " ".join(told)
