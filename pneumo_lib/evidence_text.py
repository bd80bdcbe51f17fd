"""What the published answers say together, in sentences and in tables of texts; `evidence` counts it."""

from pathlib import Path

import pandas as pd

from pneumo_lib import answers, evaluation, evidence, robustness, standings

AUGMENTED = {  # tables of evidence.ROBUSTNESS, of networks that differ in this, and the first in precision: bfloat16
    "every film": "val_CC_BY_augmented",
    "half of them": "val_CC_BY",
    "none": "val_CC_BY_no_augmentation",
}
SHOWN = {"noise 0.5": ("val_0.5", "test_noise"), "clean": ("val_0", "clean")}  # protocols of validation and test


def told_reruns(table: pd.DataFrame) -> str:
    """`evidence.reruns` in a sentence, with the places where intervals of test films alone promise too much."""
    parts = []
    for (system, protocol), part in table[~table["inside"]].groupby(["system", "protocol"], sort=False):
        both = ((table["system"] == system) & (table["protocol"] == protocol)).sum()
        parts.append(f"`{system}` {protocol} {len(part)} of {both}")
    told = f"Outside: {', '.join(parts)}." if parts else "None is outside."
    inside = (
        f"{table['inside'].sum()} of {len(table)} times the accuracy of one seed lies in the 95 % interval of another"
    )
    return f"A rerun under another seed: {inside}. {told}\n"


def told_comparison(said: pd.DataFrame, source: str = evidence.SOURCE) -> str:
    """Our network against a source in a sentence: differences of the seeds' means and what the paired tests say."""
    table, parts = evidence.paired(said, evidence.OURS, source), []
    seeds = table.loc[table["seed"] != evidence.MEAN, "seed"].unique()
    for protocol, part in table.groupby("protocol", sort=False):
        mean, single = part[part["seed"] == evidence.MEAN].iloc[0], part[part["seed"] != evidence.MEAN]
        p = _chance(mean["p"])
        sure = f"; below 0.05 for {(single['p'] < 0.05).sum()} of {len(single)} single seeds" * (len(seeds) > 1)
        parts.append(f"{protocol} {mean['difference'].percent()} ({p}{sure})")
    which = "seeds averaged" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"`{evidence.OURS}` minus `{source}`, {which}, exact McNemar test: {'; '.join(parts)}.\n"


def told_errors(said: pd.DataFrame) -> str:
    """Test films that our network has wrong under every seed, and under every variant of its recipe, in a sentence.

    And how many the average of all these rows and seeds has right: an ensemble that nothing chose.
    """
    ours = said["system"] == evidence.OURS
    family, parts = ours | said["system"].isin(evidence.VARIANTS), []
    for title, protocol in (("clean", "clean"), ("noisy", "test_noise")):
        films = said["protocol"] == protocol
        mine, whole = said[films & ours], said[films & family]
        same, stubborn = evidence.always_wrong(mine), evidence.always_wrong(whole)
        seeds, n = mine["seed"].nunique(), mine["path"].nunique()
        rows = len(whole[["system", "seed"]].drop_duplicates())
        together = evidence.averaged(whole.assign(system="all of them"))
        by_class = ", ".join(f"{n} {label}" for label, n in same["label"].value_counts().sort_index().items())
        parts.append(
            f"{(~_right(mine)).sum() / seeds:.0f} of {n:,} {title} test films are wrong on average, {len(same)} of "
            f"them under all {seeds} seeds ({by_class}), so that no vote of theirs passes {1 - len(same) / n:.1%}, and "
            f"{len(stubborn)} in every row and seed of the table of variants, whose average ({rows} of them) is right "
            f"on {_right(together).mean():.1%}"
        )
    return f"Errors of `{evidence.OURS}` that no seed avoids: {'; '.join(parts)}.\n"


def readable_ablation(validation: pd.DataFrame, said: pd.DataFrame, epochs: dict[str, str]) -> pd.DataFrame:
    """`evidence.ablation` of our recipe and its variants as texts; accuracies on test films, beside it, chose nothing.

    In brackets what `evidence.differences` says.

    Args:
        epochs: as `evidence.fastest_epochs` gives them.
    """
    names = {evidence.OURS: "as it is"} | evidence.VARIANTS
    chosen = evidence.ablation(validation, list(names))
    tested = said.groupby(["system", "protocol"]).apply(lambda part: _right(part).mean(), include_groups=False)
    apart = {
        (row["system"], row["protocol"]): f" ({row['difference'].value:+z.1%}, {_chance(row['p'])})"
        for row in pd.concat(map(evidence.differences, (validation, said))).to_dict("records")
    }
    rows = []
    for name, told in names.items():
        part = chosen[chosen["system"] == name].set_index("protocol")
        if len(part):
            row = {"recipe": told, "seeds": str(part["seeds"].iloc[0])}
            for title, (protocol, _) in SHOWN.items():
                facts, told_apart = part.loc[protocol], apart.get((name, protocol), "")
                row[f"validation, {title}"] = f"{facts['accuracy']:.1%}{told_apart}, log loss {facts['loss']:.3f}"
            for title, (_, protocol) in SHOWN.items():
                row[f"test, {title}"] = f"{tested[name, protocol]:.1%}{apart.get((name, protocol), '')}"
            row["fastest epoch"] = epochs[name]
            rows.append(row)
    return pd.DataFrame(rows)


def told_variants(validation: pd.DataFrame) -> str:
    """How many of the tests behind the variants' table are below 0.05, beside how many chance alone would give."""
    p = evidence.differences(validation)["p"]
    return (
        f"Of these {len(p)} tests on validation films {(p < 0.05).sum()} have p < 0.05, where chance alone would give "
        f"{0.05 * len(p):.0f}; none is corrected for their number.\n"
    )


def readable_robustness(figures: Path) -> pd.DataFrame:
    """What augmenting more or fewer films does to the accuracy under each corruption, as texts: AUGMENTED, seed 0.

    The accuracy without corruption, then the areas under it over all levels of each, and the level at which the
    networks are furthest apart.
    """
    places = {title: figures / evidence.ROBUSTNESS / f"{name}_seed_0.csv" for title, name in AUGMENTED.items()}
    tables = {title: pd.read_csv(place) for title, place in places.items()}
    areas = pd.DataFrame({title: robustness.areas(table) for title, table in tables.items()}).map("{:.3f}".format)
    values = pd.DataFrame({title: table.set_index(["kind", "level"])["value"] for title, table in tables.items()})
    apart, told = values.max(axis=1) - values.min(axis=1), values.map("{:.1%}".format)
    widest = {kind: apart[kind].idxmax() for kind in areas.index}
    areas["furthest apart"] = [f"at {level:g}: {' / '.join(told.loc[kind, level])}" for kind, level in widest.items()]
    areas.loc["none, accuracy"] = [*told.xs(0, level="level").iloc[0], ""]
    return areas.rename_axis("corruption, area under the accuracy").reset_index()


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`evidence.over_seeds` as texts, for people."""
    cells = {
        "system": table["system"],
        "test films": table["protocol"],
        "n": [f"{cell.n:,}" for cell in table["accuracy"]],
        "accuracy": [cell.percent() for cell in table["accuracy"]],
        "of the seeds": [
            f"{row.lowest:.1%} to {row.highest:.1%} ({row.seeds})" if row.seeds > 1 else "1"
            for row in table.itertuples()
        ],
        "recall " + " / ".join(table["recall"].iloc[0]): [
            " / ".join(f"{value:.1%}" for value in recall.values()) for recall in table["recall"]
        ],
        "seeds averaged": [cell.percent() if cell else "" for cell in table["averaged"]],
        "without copies or known patients": [f"{cell.percent()} of {cell.n:,}" for cell in table["distinct"]],
    }
    return pd.DataFrame(cells)


def told_sources(target: Path) -> str:
    """What `controls.by_source` came to over its seeds, in a sentence; nothing where none was published."""
    done = [answers.read(path.parent) for path in sorted((target / evidence.SOURCES).glob("seed_*/predictions.csv"))]
    if not done:
        return ""
    found = [standings.recalls([one]).iloc[0] for one in done]
    card, names = done[0].card, done[0].classes
    shares = {name: sum(row[name].value for row in found) / len(found) for name in names}
    told = ", ".join(f"{shares[name]:.1%} of the {found[0][name].n:,} films of {name}" for name in names)
    size, mean = card["arguments"]["image_size"], sum(row["mean"] for row in found) / len(found)
    return (
        f"Asked where a film comes from instead of what it shows, `{card['architecture']}` ({size} px, "
        f"{card['train_images']:,} clean films, {card['epochs']} epochs, mean of {len(done)} seeds) "
        f"recognises {told} among the test films; mean recall {mean:.1%}, by chance {1 / len(names):.1%}.\n"
    )


def told_denoisers(target: Path) -> str:
    """How well denoisers that were trained apart restore test films, in a sentence; nothing where none was published.

    A film's PSNR and SSIM are the means over the seeds; the intervals are over films, as elsewhere.
    """
    told = []
    for folder in sorted((target / evidence.DENOISERS).glob("*")):
        places = sorted(folder.glob("seed_*"))
        card, films = answers.read_card(places[0]), pd.concat(pd.read_csv(place / evidence.QUALITY) for place in places)
        means = films.groupby(["method", "path"], as_index=False, sort=False)[["psnr", "ssim"]].mean()
        rows = {row["method"]: row for row in evaluation.summarise_quality(means).to_dict("records")}
        doubled = [rows.pop(name) for name in [*rows] if name.endswith(evidence.MIRRORED)]
        row = next(iter(rows.values()))
        told.append(
            f"`{folder.name}` ({card['parameters']:,} parameters, {card['train_images']:,} films; {card['recipe']}; "
            f"{len(places)} seed{'s' * (len(places) > 1)}) {_quality(row)} on {row['n']:,} test films with noise "
            f"{card['noise']['strength']:g}"
            + "".join(f", {_quality(both)} averaged with itself on the mirrored films" for both in doubled)
        )
    return f"Denoisers trained apart from the report: {'; '.join(told)}.\n" if told else ""


def _quality(row: dict[str, float]) -> str:
    """A row of `evaluation.summarise_quality`."""
    return (
        f"{row['psnr']:.2f} dB [{row['psnr_low']:.2f}, {row['psnr_high']:.2f}], "
        f"SSIM {row['ssim']:.3f} [{row['ssim_low']:.3f}, {row['ssim_high']:.3f}]"
    )


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.0005 else f"p = {p:.3f}"


def _right(said: pd.DataFrame) -> pd.Series:
    return said["label"] == said["predicted"]
