"""A small training for `torchrun` and `accelerate launch`: python training_script.py FOLDER [EPOCH TO STOP IN].

Each process is given a folder of its own, FOLDER/rank_N, so that whatever it writes can be told apart, and reports
in FOLDER/report_N.json the films that its means stand on.
"""

import json
import os
import sys
from pathlib import Path

import torch
from tiny import films, network, stop_in_epoch, task
from torchmetrics import MeanMetric

from pneumo_lib import training, training_machinery
from pneumo_lib.steps import ClassificationStep


class CountedMean(MeanMetric):
    """A mean that notes how many films this process put into it."""

    counts: list[float] = []  # noqa: RUF012 - one list for all means of the process

    def compute(self) -> torch.Tensor:
        CountedMean.counts.append(float(self.weight))
        return super().compute()


def main(folder: Path, stop: int = 0) -> None:
    """Train three epochs on 13 films in batches of 4, so that the last batch is one film and a process idles."""
    torch.set_num_threads(1)
    training_machinery.MeanMetric = CountedMean
    rank = int(os.environ.get("RANK", "0"))
    denoiser = network("autoencoder", seed=1)
    step = ClassificationStep(denoiser)
    job = task(step, train=films(13), val=films(65, seed=1), epochs=3, batch_size=4, schedule="cosine")
    fitted = training.fit(network(), stop_in_epoch(job, stop) if stop else job, folder / f"rank_{rank}")
    report = {"curve": fitted.history.drop(columns="seconds").to_dict("list"), "counts": CountedMean.counts}
    report["weights"] = {name: value.flatten().tolist()[:500] for name, value in fitted.model.state_dict().items()}
    (folder / f"report_{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
