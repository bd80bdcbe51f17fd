"""Every number that the source reports claim, beside what was measured here, and what follows.

A claim is *reproduced* where the reported value lies in our 95 % interval. Where ours was trained more briefly than the
source's, or from scratch where that began with ImageNet weights, and falls short, nothing follows; where it was trained
as the source did and the value lies outside, the claim is *not reproduced*.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from pneumo_lib import answers, evidence, metrics
from pneumo_lib.metrics import Estimate
from pneumo_lib.systems import COVID, KERMANY, SYSTEMS

FULL_A = 50  # epochs of each network of system A
ABLATION = {"ResNet-50": 0.932, "+ channel attention": 0.945, "+ spatial attention": 0.941}
ABLATION |= {"+ both (CBAM)": 0.953, "+ label smoothing (AERNet)": 0.961}  # report B, accuracy
VALIDATED = {"cnn4": 0.7869, "resnet34": 0.968}  # report E: accuracy on the films it calls validation


@dataclass(frozen=True)
class Claim:
    """A reported number and ours.

    Attributes:
        report: letter of the source report. what: which number of it.
        reported: the value, a fraction.
        films: how many it stands on, as far as the source says; 0 where it does not.
        ours: measured here, with its interval; None where nothing was.
        seeds: networks behind ours.
        how: what ours was trained and tested on.
        shorter: whether that was less than the source did.
        scratch: whether ours began with fresh weights and the source's with those of ImageNet.
        unlike: why the two must not be held against each other; empty where they may.
        area: whether it is an area under a curve, not a share of films.
    """

    report: str
    what: str
    reported: float
    films: int
    ours: Estimate | None
    seeds: int
    how: str
    shorter: bool
    unlike: str = ""
    area: bool = False
    scratch: bool = False

    @property
    def verdict(self) -> str:
        """Reproduced, not reproduced, or not comparable and why."""
        if self.ours is None:
            return "not measured"
        inside = self.ours.low <= self.reported <= self.ours.high
        if self.unlike:
            return f"not comparable: {self.unlike}"
        less = [words for less, words in ((self.shorter, "with less training"), (self.scratch, "from scratch")) if less]
        if inside:
            return ", ".join(["reproduced", *less])
        if self.ours.low > self.reported:
            return "exceeded"
        if self.shorter:
            return "not comparable: ours was trained for less"
        return "not comparable: the source began with ImageNet weights" if self.scratch else "not reproduced"


def claims(figures: Path, published: dict[str, Any]) -> list[Claim]:
    """Every claim of the reports, in their order.

    Args:
        figures: folder with the published answers.
        published: metrics.json, by notebook.
    """
    return [*_report_a(figures), *_report_b(figures, published), *_kermany(figures)]


def table(found: list[Claim]) -> pd.DataFrame:
    """Claims as texts, for people."""
    rows = [
        {
            "report": one.report,
            "claim": one.what,
            "reported": _shown(one, one.reported) + (f" of {one.films:,}" if one.films else ""),
            "measured here": "" if not one.ours else one.ours.text() if one.area else one.ours.percent(),
            "n": f"{one.ours.n:,}" if one.ours and one.ours.n > one.seeds else "",
            "seeds": str(one.seeds or ""),
            "trained": one.how,
            "verdict": one.verdict,
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def _shown(claim: Claim, value: float) -> str:
    return f"{value:.3f}" if claim.area else f"{value:.1%}"


def _report_a(figures: Path) -> Iterator[Claim]:
    """System A: at its full recipe, where that was trained, and on a shorter schedule over more seeds."""
    said, known, cards = evidence.repeated(figures), evidence.known_films(figures), evidence.cards(figures)
    for system in (evidence.SOURCE_FULL, evidence.SOURCE):
        if system in cards:
            rows = evidence.over_seeds(said[said["system"] == system], known).set_index("protocol")
            histories = sorted((figures / evidence.SEEDS / system).glob("seed_*/history.csv"))
            last = [float(pd.read_csv(path)["train_score"].iloc[-1]) for path in histories]
            yield from _system_a(rows, cards[system], last)


def _system_a(rows: pd.DataFrame, cards: list[dict[str, Any]], last: list[float]) -> Iterator[Claim]:
    """Both its test figures and its training accuracy.

    Args:
        rows: of `evidence.over_seeds`, by protocol.
        cards: of the seeds.
        last: training accuracy of each seed in its last epoch, which is what the source reports.
    """
    shorter = cards[0]["epochs"] < FULL_A
    how = "; ".join(part.split(",")[0] for part in cards[0]["recipe"].split("; "))  # networks and their epochs
    facts = {"seeds": len(cards), "how": how, "shorter": shorter}
    for name, reported in SYSTEMS["cnn2"].reported.items():
        given = ("A", reported.protocol, reported.accuracy, reported.n or 0)
        yield Claim(*given, rows.loc[name, "accuracy"], **facts)
        if name == "noisy_test":
            what = f"{reported.protocol}, films without a copy or their patient in training"
            yield Claim("A", what, *given[2:], rows.loc[name, "distinct"], **facts)
    films = cards[0]["train_images"]
    if len(last) > 1:
        seen = Estimate(sum(last) / len(last), *_range(last), films)
    else:
        seen = metrics.wilson(round(last[0] * films), films)
    yield Claim("A", "accuracy on its own training films, noisy, last epoch", 0.9959, 0, seen, **facts)


def _range(values: list[float]) -> tuple[float, float]:
    interval = metrics.seeds_interval(values)
    return max(0.0, interval.low), min(1.0, interval.high)


def _report_b(figures: Path, published: dict[str, Any]) -> Iterator[Claim]:
    """AERNet on its three data sets, its ablation, and its comparison table."""
    for name in (COVID, "covid_ct", "brain_mri"):
        reported = SYSTEMS["aernet"].reported[name]
        yield _trained("B", f"AERNet, {reported.protocol}", reported.accuracy, 0, figures / "systems" / name / "aernet")
    compared = published["05"]
    scale = compared["scales"]["attention"]
    how = f"{scale['image_size']} px, {scale['train_images']} films, {scale['epochs']} epochs"
    for row in compared["attention"]:
        ours = Estimate.from_dict(row["accuracy"])
        given = ("B", f"ablation: {row['variant']}", ABLATION[row["variant"]], 0, ours, ours.n, how, True)
        yield Claim(*given, unlike="ours was trained for less")
    scale = compared["scales"]["architectures"]
    how = f"{scale['image_size']} px, {scale['train_images']} films, {scale['epochs']} epochs"
    clean = {row["system"]: row["accuracy"] for row in compared["architectures"] if row["condition"] == "clean"}
    for name in ("alexnet", "vgg16", "googlenet", "resnet50", "densenet121", "aernet"):
        known = SYSTEMS[name].reported
        reported = (known["comparison"] if name == "aernet" else known[COVID]).accuracy
        what = f"comparison: {'AERNet' if name == 'aernet' else SYSTEMS[name].title}"
        if name in clean:
            yield Claim("B", what, reported, 0, Estimate.from_dict(clean[name]), 1, how, True)
        else:  # preset quick leaves out the two with more than 50 million parameters
            yield _trained("B", what, reported, 0, figures / "systems" / COVID / name)


def _kermany(figures: Path) -> Iterator[Claim]:
    """Reports C, D and E on Kermany's films."""
    few = "16 films carry an interval of 30 points"
    for report, name, unlike in (("C", "cnn5", ""), ("D", "cnn3", ""), ("E", "cnn4", few), ("E", "resnet34", few)):
        known, place = SYSTEMS[name].reported[KERMANY], figures / "systems" / KERMANY / name
        told = f"{SYSTEMS[name].title}, {known.protocol}"
        yield _trained(report, told, known.accuracy, known.n or 0, place, unlike=unlike)
        for score, title in (("precision", "precision"), ("recall", "recall"), ("auc", "AUC")):
            if not isnan(value := getattr(known, score)):
                yield _trained(report, f"the same, {title}", value, known.n or 0, place, score=score)
        if name in VALIDATED:
            chosen = "its epoch was chosen on these films"
            yield _trained(
                report, "the same, on the 624 films it calls validation", VALIDATED[name], 624, place, unlike=chosen
            )


def _trained(
    report: str, what: str, reported: float, films: int, place: Path, *, score: str = "accuracy", unlike: str = ""
) -> Claim:
    """A claim beside a published system, which is taken to say the most probable class, as the sources do."""
    if not (place / answers.PREDICTIONS).exists():
        return Claim(report, what, reported, films, None, 0, "", True, unlike)
    done = answers.read(place)
    if score == "accuracy":
        ours = metrics.accuracy(done.y_true, done.y_prob.argmax(axis=1))
    else:  # bootstrapped, hence only where it is asked for
        table = metrics.classification_table(done.y_true, done.y_prob, done.classes, seed=0)
        ours = table.loc[done.card["positive"] or "macro average", score]
    size, epochs = done.card["arguments"]["image_size"], done.card["epochs"]
    how = f"{size} px, {done.card['train_images']:,} films, {epochs} epochs"
    shorter = any(done.card["scale"].values())
    scratch = SYSTEMS[done.card["system"]].pretrained and done.card["starting_weights"] == "none"
    return Claim(report, what, reported, films, ours, 1, how, shorter, unlike, area=score == "auc", scratch=scratch)
