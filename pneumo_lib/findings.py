"""The whole evidence in five sentences: what was claimed and found, how sure that is, what nobody should conclude."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pneumo_lib import arms, claims, evidence, pipeline, runtime
from pneumo_lib.data.audit import read_pairs

AIMS = {"test_noise": 0.965, "clean": 0.975}  # accuracies that our network was to reach
RECALLS = {"COVID19": 0.95, "NORMAL": 0.95, "PNEUMONIA": 0.96}  # and recalls, under noise
LEVEL = 0.5  # of gaussian noise, the source's


def findings(figures: Path | None = None) -> str:
    """The sentences as a list in Markdown; those whose trainings were not published are left out.

    Args:
        figures: folder with the published answers; by default the project's.

    Raises:
        DataError: there are no seeds or no arms.
    """
    figures = figures or runtime.project_root() / "figures"
    said, published = evidence.repeated(figures), json.loads((figures / "metrics.json").read_text())
    told = [*_claimed(figures, published, said), *_denoising(figures), *_ours(said), _sure(said)]
    return "".join(f"- {sentence}\n" for sentence in [*told, *_shortcuts(published.get("05", {}))])


def _claimed(figures: Path, published: dict[str, Any], said: pd.DataFrame) -> Iterator[str]:
    """Both test figures of system A, trained as its source did, and the copies behind the second."""
    found = [one for one in claims.claims(figures, published) if one.report == "A" and not one.shorter and one.films]
    if not found:
        return
    noisy, folder, _ = found
    films = said[(said["system"] == evidence.SOURCE_FULL) & (said["protocol"] == "noisy_test")]
    right = films["label"] == films["predicted"]
    copied = films["path"].isin(pipeline.copies(read_pairs(figures / evidence.PAIRS)))
    n, seeds = films["seed"].nunique(), f"{noisy.seeds} seed{'s' * (noisy.seeds > 1)}"
    yield (
        f"**Claimed and found.** The source's system A, by its report, is right on {noisy.reported:.2%} of noisy films "
        f"after denoising and on {folder.reported:.2%} of the {folder.films} of `noisy_test`. Trained in full here "
        f"({seeds}) it is right on {noisy.ours.percent()} ({noisy.verdict}) and {folder.ours.percent()} "
        f"({folder.verdict}). But {copied.sum() / n:.0f} films of `noisy_test` are copies of training films: it is "
        f"right on {right[copied].sum() / n:.0f} of those and on {right[~copied].sum() / n:.0f} of the other "
        f"{(~copied).sum() / n:.0f}."
    )


def _denoising(figures: Path) -> Iterator[str]:
    """What a denoiser is worth in front of networks that never met noise, and of those that were trained on it."""
    found = arms.read(figures)
    means = arms.scores(found).groupby(["network", "arm", "kind", "level"])["accuracy"].mean()
    tests = arms.paired(found)
    both = means.unstack("arm").loc[(slice(None), "gaussian", LEVEL), ["unprepared", "rescued"]].dropna()
    if both.empty or tests.empty:
        return
    alone, behind = (", ".join(f"{value:.1%}" for value in both[arm]) for arm in both)
    noise = tests[(tests["kind"] == "gaussian") & (tests["level"] > 0)]["difference"]
    dark = tests[(tests["kind"] == "darker") & (tests["level"] == tests.loc[tests["kind"] == "darker", "level"].max())]
    names = ", ".join(f"`{name}`" for name in both.index.get_level_values("network"))
    yield (
        f"**Does denoising help?** Networks that never met noise, yes: at {LEVEL:g} {names} are right on {alone} of "
        f"the films, behind a denoiser on {behind}. Where the choice is to train on noisy films instead, a denoiser in "
        f"front is worth {noise.min():+z.1%} to {noise.max():+z.1%} under gaussian noise and "
        f"{dark['difference'].min():+z.1%} to {dark['difference'].max():+z.1%} on films darkened by "
        f"{dark['level'].iloc[0]:g}."
    )


def _ours(said: pd.DataFrame) -> Iterator[str]:
    """Our network against what it was to reach."""
    rows = evidence.over_seeds(said[said["system"] == evidence.OURS], set()).set_index("protocol")
    if not set(AIMS) <= set(rows.index):
        return
    noisy, clean = (rows.loc[protocol] for protocol in AIMS)
    aims = " and ".join(f"{aim:.1%}" for aim in AIMS.values())
    found = " / ".join(f"{noisy['recall'][name]:.1%}" for name in RECALLS)
    wanted = " / ".join(f"{aim:.0%}" for aim in RECALLS.values())
    yield (
        f"**Better.** `{evidence.OURS}` reads noisy films without a denoiser: it is right on "
        f"{noisy['accuracy'].percent()} of them and on {clean['accuracy'].percent()} of the clean ones (mean of "
        f"{noisy['seeds']} seeds). Aimed at were {aims}. Under noise it finds {found} of "
        f"{' / '.join(RECALLS)}, where {wanted} were aimed at."
    )


def _sure(said: pd.DataFrame) -> str:
    """How often a rerun under another seed lands where the interval of the first one says."""
    table = evidence.reruns(said[~said["system"].isin(evidence.VARIANTS)])
    parts = [f"`{name}` {part['inside'].sum()} of {len(part)}" for name, part in table.groupby("system", sort=False)]
    return (
        "**How sure is that?** The intervals count test films, not trainings. Trained again under another seed, a "
        f"network lands inside the interval of the first {table['inside'].sum()} of {len(table)} times "
        f"({', '.join(parts)})."
    )


def _shortcuts(compared: dict[str, Any]) -> Iterator[str]:
    """What networks reach that were shown no lungs, or no detail."""
    means = {row["control"]: row["mean"] for row in compared.get("controls", [])}
    if {"whole film", "border only", "16 x 16 pixels"} <= set(means):
        yield (
            f"**What nobody should conclude**: that the lungs were read. A network that has a mean recall of "
            f"{means['whole film']:.1%} on whole films has {means['border only']:.1%} on their borders alone and "
            f"{means['16 x 16 pixels']:.1%} on 16 x 16 pixels. The films of COVID19 are of adults from many "
            "publications, all others of children from one hospital; no figure here says anything about another one."
        )
