"""From a finished run to `figures/`: the figures that show no patient, the numbers, and the README's table."""

import json
import shutil
from pathlib import Path
from typing import Any

from pneumo_lib import runs
from pneumo_lib.runs import Run

TITLES = {
    "test_noise": "test + noise, denoised",
    "noisy_test": "`noisy_test`, denoised",
    "clean": "clean test, denoised",
}
HEAD = ("| on test films | measured here, 95 % interval | n | reported by the source |", "|---|---|---|---|")


def publish(run: Run, target: Path) -> None:
    """Copy the figures of a run, its metrics and the results table to a folder; older ones there are replaced.

    Raises:
        DataError: a notebook of the run is missing; it is named.
    """
    metrics = {name: run.read_metrics(name) for name in runs.NOTEBOOKS}
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.png"):
        old.unlink()
    for figure in sorted(run.figures.glob("*.png")):
        shutil.copyfile(figure, target / figure.name)
    runs.write_text(target / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    runs.write_text(target / "results.md", results_table(metrics["06"]))


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
