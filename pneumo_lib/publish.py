"""From a finished run to `figures/`: the figures that show no patient, the numbers, and the README's table."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from pneumo_lib import answers, arms, claims, confidence, evidence, evidence_text, robustness, runs, runtime, standings
from pneumo_lib.answers import PREDICTIONS, Finished
from pneumo_lib.evidence import PAIRS
from pneumo_lib.findings import findings
from pneumo_lib.metrics import Estimate
from pneumo_lib.robustness import CORRUPTIONS
from pneumo_lib.runs import Run

TITLES = {
    "test_noise": "test + noise, denoised",
    "noisy_test": "`noisy_test`, denoised",
    "clean": "clean test, denoised",
}
SEEDS_HEAD = "Each system over its seeds (weights, order, noise and validation split differ), test films:\n"
VARIANTS_HEAD = (
    "Variants of the recipe of `resnet18_s2d`, means over seeds, one thing changed in each; in brackets, over the "
    "seeds that both have, the difference from the recipe of the same size and length (of the rows small and short "
    "from the whole recipe) and the p of the exact McNemar test:\n"
)
ROBUSTNESS_HEAD = (
    "What augmentation is worth under corruption: three networks made of films that may be given away (12 epochs, "
    "classes drawn equally often, seed 0), with every film, half of them or none augmented in training, on their "
    "validation films, without other noise:\n"
)
CONFIDENCE_HEAD = (
    "What the confidence of `resnet18_s2d` is worth on test films, means over its seeds; temperature, threshold and "
    "cut-offs of the sets come from each seed's validation films:\n"
)
BROKEN_HEAD = (
    "Where that breaks, seed 0: up to which level of a corruption sets for 90 % hold the truth as often as that, and "
    "what the first level is like at which they do not (the whole 95 % interval lies below), or the worst one:\n"
)
ARMS_HEAD = "Accuracy on test films by the standard deviation of gaussian noise, means over seeds:\n"
SYSTEMS_HEAD = "The systems of notebook 05 at this preset, on test films, each trained as its last column says:"
HEAD = ("| on test films | measured here, 95 % interval | n | reported by the source |", "|---|---|---|---|")


def publish(run: Run, target: Path) -> None:
    """Copy a run's figures, metrics, results table, predictions and copies to a folder; older ones are replaced.

    What notebooks left there that this run did not execute stays.

    Raises:
        DataError: a notebook is missing both in the run and in the folder; it is named.
    """
    known = target / "metrics.json"
    metrics = json.loads(known.read_text()) if known.exists() else {}
    fresh = [name for name in runs.NOTEBOOKS if name not in metrics or (run.path / f"metrics_{name}.json").exists()]
    metrics |= {name: run.read_metrics(name) for name in fresh}
    target.mkdir(parents=True, exist_ok=True)
    for old in (path for name in fresh for path in target.glob(f"{name}_*.png")):
        old.unlink()
    for made in [*sorted(run.figures.glob("*.png")), run.path / PREDICTIONS, run.path / PAIRS]:
        if made.exists():
            shutil.copyfile(made, target / made.name)
    runs.write_text(target / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    runs.write_text(target / "results.md", results(metrics))


def results(metrics: dict[str, dict[str, Any]]) -> str:
    """The results of a run in Markdown, as the README shows them: a table, findings, and the systems of notebook 05.

    Args:
        metrics: what each metrics_NN.json holds, by "01", "02" and so on.
    """
    found = [_copies(metrics["01"], metrics["06"]), _classical(metrics["02"]), metrics["04"]["verdict"]]
    findings, compared = [*found, _abstention(metrics["06"]), *_surest(metrics["06"]), _conformal(metrics["06"])], ""
    if "05" in metrics:  # what was published before notebook 05 existed has none
        findings += _comparison(metrics["05"])
        compared = "\n" + SYSTEMS_HEAD + "\n\n" + markdown(_systems(metrics["05"]["systems"]))
    return results_table(metrics["06"]) + "\n" + "\n".join(f"- {line}" for line in findings) + "\n" + compared


def results_table(metrics: dict[str, Any]) -> str:
    """The accuracies and denoising qualities of metrics_06.json as a Markdown table."""
    rows = [*HEAD]
    for row in metrics["accuracy"]:
        system, protocol = row["system"].removeprefix("cnn2_on_"), TITLES[row["protocol"]]
        interval = f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
        reported = f"{row['reported']:.2%}" if row["reported"] is not None else "not measured"
        rows.append(f"| accuracy, {protocol}, `{system}` + `cnn2` | {interval} | {row['n']:,} | {reported} |")
    for row in metrics["denoising"]:
        interval = f"{row['psnr']:.2f} dB [{row['psnr_low']:.2f}, {row['psnr_high']:.2f}], SSIM {row['ssim']:.3f}"
        method = "noisy films as they are" if row["method"] == "do nothing" else f"`{row['method']}`"
        rows.append(f"| PSNR, {method} | {interval} | {row['n']:,} | not measured |")
    return "\n".join(rows) + "\n"


def _copies(exploration: dict[str, Any], evaluation: dict[str, Any]) -> str:
    splits, copies = exploration["splits"], exploration["copies"]
    told = [f"{n} of {splits[name]:,} films of `{name}`" for name, n in sorted(copies.items())]
    left = [
        f"{row['value']:.1%} of {row['n']} (`{row['system'].removeprefix('cnn2_on_')}`)"
        for row in evaluation["distinct"]
        if row["protocol"] == "noisy_test"
    ]
    rest = f" On the films of `noisy_test` without a copy or their patient there: {', '.join(left)}." if left else ""
    return f"Also in training or validation, exactly or nearly: {', '.join(told)}.{rest}"


def _classical(denoisers: dict[str, Any]) -> str:
    scores = [f"{name} {value:.2f} dB" for name, value in sorted(denoisers["psnr"].items(), key=lambda item: item[1])]
    return f"On {denoisers['films']} validation films: {', '.join(scores)}."


def _systems(records: list[dict[str, Any]]) -> pd.DataFrame:
    """The table of systems in metrics_05.json, for people."""
    table = pd.DataFrame(records).astype({"reported": float})
    for name in standings.SCORES:
        table[name] = table[name].map(Estimate.from_dict)
    return standings.readable(table)


def _comparison(compared: dict[str, Any]) -> list[str]:
    """Three sentences of notebook 05: architectures under one recipe, what attention adds, what shortcuts give."""
    rows, scale = pd.DataFrame(compared["architectures"]), compared["scales"]["architectures"]
    rows["value"] = [cell["value"] for cell in rows["accuracy"]]
    best = rows.loc[rows.groupby("condition", sort=False)["value"].idxmax()]
    tops = ", ".join(f"{row.condition} {row.value:.1%} (`{row.system}`)" for row in best.itertuples())
    means = ", ".join(
        f"{name} {value:.1%}" for name, value in rows.groupby("condition", sort=False)["value"].mean().items()
    )
    said = {"image_size": "pixels", "train_images": "films", "epochs": "epochs"}
    limits = ", ".join(f"{scale[name]} {unit}" for name, unit in said.items() if scale[name]) or "unabridged"
    controls = [f"{row['control']} {row['mean']:.1%}" for row in compared["controls"]]
    steps = [f"{row['variant']} {row['verdict']}" for row in compared["attention"] if row["verdict"]]
    seeds = compared["attention"][0]["accuracy"]["n"]
    return [
        f"{rows['system'].nunique()} architectures under one recipe ({limits}), best: {tops}; on average: {means}.",
        f"Against ResNet-50 over {seeds} seeds: {'; '.join(steps)}.",
        f"Mean recall of one small network by what it was shown, clean films, one seed: {'; '.join(controls)}.",
    ]


def _abstention(evaluation: dict[str, Any]) -> str:
    decided, right = evaluation["decided"], evaluation["decided_accuracy"]
    return (
        f'Allowed to say "undecided", it decides {decided["value"]:.1%} of the noisy test films and is right on '
        f"{right['value']:.1%} [{right['low']:.1%}, {right['high']:.1%}] of those."
    )


def _surest(evaluation: dict[str, Any]) -> list[str]:
    """Accuracy of the most confident films; nothing where the metrics are from before it was measured."""
    told: dict[str, list[str]] = {}
    for row in evaluation.get("coverage", []):
        right = row["accuracy"]
        text = f"{right['value']:.1%} [{right['low']:.1%}, {right['high']:.1%}] of the {row['share']:.0%}"
        told.setdefault(row["protocol"], []).append(text)
    texts = [f"{TITLES[protocol]}: {', '.join(shares)}" for protocol, shares in told.items()]
    return [f"Right on the films that it is surest of: {'; '.join(texts)}."] if texts else []


def _conformal(evaluation: dict[str, Any]) -> str:
    rows = [row for row in evaluation["conformal"] if row["protocol"] == "test_noise"]
    told = [
        f"for {row['wanted']:.0%} {row['all']['value']:.1%} [{row['all']['low']:.1%}, {row['all']['high']:.1%}] with "
        f"{row['size']:.2f} classes on average"
        for row in rows
    ]
    return (
        "Sets of classes made to hold the truth (class-conditional conformal prediction, cut-offs from validation), on "
        f"noisy test films: {'; '.join(told)}."
    )


def publish_systems(run: Path, done: Sequence[Finished], target: Path) -> None:
    """Copy the answers of a run's systems to a folder; systems.md and figures tell of all that it then holds.

    Card, history and predictions are copied, weights and the folder of the films are not. The target has the form of a
    run, so that `pneumo evaluate` makes the table from it again; answers of the same system there are replaced.
    """
    if run.resolve() != target.resolve():
        for part in {Path(*one.folder.relative_to(run).parts[:3]) for one in done}:
            shutil.rmtree(target / part, ignore_errors=True)  # with all its folds, of which there may be fewer now
        for one in done:
            place = target / one.folder.relative_to(run)
            runs.write_card(place, {name: value for name, value in one.card.items() if name != "root"})
            for name in (PREDICTIONS, "history.csv", CORRUPTIONS):
                if (one.folder / name).exists():
                    shutil.copyfile(one.folder / name, place / name)
    published = [answers.read(place) for place in answers.trained(target)]
    runs.write_text(target / "systems.md", systems_table(published))
    robustness.draw(published)


def systems_table(done: Sequence[Finished]) -> str:
    """What trained systems say of their test films, as Markdown: one table for splits, one for cross-validations."""
    single, folds = ([one for one in done if bool(one.card["fold"]) == folded] for folded in (False, True))
    tables = [standings.readable(standings.standings(single))] if single else []
    if folds and len(crossed := standings.cross_validated(folds)):
        tables.append(standings.readable(crossed))
    return "\n".join(map(markdown, tables))


def evidence_tables(figures: Path | None = None) -> dict[str, pd.DataFrame]:
    """What the published answers say together, as tables for people: seeds, variants and so on.

    Args:
        figures: folder with the answers; by default the project's.

    Raises:
        DataError: there are no seeds or no arms.
    """
    figures = figures or runtime.project_root() / "figures"
    said, validation = evidence.repeated(figures), evidence.repeated(figures, evidence.VALIDATION)
    main = said[~said["system"].isin(evidence.VARIANTS)]
    published = json.loads((figures / "metrics.json").read_text())
    return {
        "seeds": evidence_text.readable(evidence.over_seeds(main, evidence.known_films(figures))),
        "variants": evidence_text.readable_ablation(validation, said, evidence.fastest_epochs(figures)),
        "robustness": evidence_text.readable_robustness(figures),
        "confidence": confidence.readable(confidence.over_seeds(figures)),
        "broken": confidence.readable_broken(confidence.broken(figures)),
        "arms": arms.readable(arms.scores(arms.read(figures))),
        "claims": claims.table(claims.claims(figures, published)),
    }


def evidence_texts(target: Path) -> dict[str, str]:
    """`evidence_tables` and what follows from them, as Markdown by file name."""
    tables = {name: markdown(table) for name, table in evidence_tables(target).items()}
    said = evidence.repeated(target)
    rerun = evidence_text.told_reruns(evidence.reruns(said[~said["system"].isin(evidence.VARIANTS)]))
    seeds = said.groupby("system")["seed"].agg(set)
    sources = [name for name in (evidence.SOURCE, evidence.SOURCE_FULL) if name in seeds]
    against = [evidence_text.told_comparison(said, name) for name in sources if seeds[name] & seeds[evidence.OURS]]
    parts = [SEEDS_HEAD, tables["seeds"], rerun, *against, VARIANTS_HEAD]
    validation = evidence.repeated(target, evidence.VALIDATION)
    parts += [
        tables["variants"],
        evidence_text.told_variants(validation),
        evidence_text.told_errors(said),
        ROBUSTNESS_HEAD,
        tables["robustness"],
        CONFIDENCE_HEAD,
        tables["confidence"],
        BROKEN_HEAD,
        tables["broken"],
        ARMS_HEAD,
        tables["arms"],
        arms.verdict(arms.paired(arms.read(target))) + "\n",
    ]
    parts += [told for told in (evidence_text.told_sources(target), evidence_text.told_denoisers(target)) if told]
    return {"findings.md": findings(target), "evidence.md": "\n".join(parts), "claims.md": tables["claims"]}


def publish_evidence(target: Path) -> None:
    """Write `evidence_texts` beside the answers they come from."""
    for name, text in evidence_texts(target).items():
        runs.write_text(target / name, text)


def fill(template: str, **facts: Any) -> str:
    """A text of `report_template/` with its places filled; a place without a fact is an error of the template."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "report_template")
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    # Markdown for files in git: what stands in it comes from tables of this project, and nothing is HTML.
    environment = jinja2.Environment(loader=loader, autoescape=False, keep_trailing_newline=True, **options)
    return environment.get_template(template).render(**facts, markdown=markdown)


def markdown(table: pd.DataFrame) -> str:
    """A table of texts as Markdown, its index left out."""
    head = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in table.to_numpy())]) + "\n"
