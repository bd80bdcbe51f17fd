"""Recorded steps: they train like others, and nothing in a step makes Python wait for a GPU.

Without a GPU a stand-in takes the place of the recording, and tensors that only know their place that of the GPU.
"""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import network, same_weights, task
from torch import Tensor, nn

from pneumo_lib import models, replay
from pneumo_lib.steps import ClassificationStep, DenoisingStep
from pneumo_lib.training import Loop, fit

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
    monkeypatch.setenv("PNEUMO_QUIET", "1")


@pytest.fixture
def recorder(monkeypatch) -> Callable[[nn.Module], list[str]]:
    """Records on the CPU, as CUDA would: what a replay reads and fills lies where it lay at the recording."""

    def prepare(model: nn.Module) -> list[str]:
        said: list[str] = []

        def record(work: replay.Work, given: tuple[Tensor, ...]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
            said.append("recorded")
            weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
            answer = tuple(one.clone() for one in work(*given))
            grads = [parameter.grad for parameter in model.parameters()]
            model.load_state_dict(weights)  # while CUDA records, nothing is worked on
            torch.set_rng_state(state)

            def again() -> None:
                said.append("replayed")
                for kept, new in zip(answer, work(*given), strict=True):
                    kept.copy_(new)
                for grad, parameter in zip(grads, model.parameters(), strict=True):
                    grad.copy_(parameter.grad)
                    parameter.grad = None  # where it is then, only the recording knows

            return again, answer

        monkeypatch.setattr(replay, "record", record)
        monkeypatch.setattr(replay, "aside", lambda work, given: said.append("aside") or work(*given))
        return said

    return prepare


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 900, 3)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("make", "step", "options"),
    [
        (lambda: network("autoencoder"), DenoisingStep("mse"), {}),
        (network, ClassificationStep(network("autoencoder", seed=1)), {}),
        (with_batch_norm, ClassificationStep(), {"mixup": 0.4, "ema": 0.9, "schedule": "cosine"}),
    ],
    ids=["denoiser", "classifier behind it", "batch normalisation, dropout, mixup, running mean"],
)
def test_recorded_steps_train_to_the_same_weights(tmp_path, recorder, make, step, options):
    job = task(step, epochs=3, **options)  # steps of 5, 5 and 2 films
    model = make()
    torch.manual_seed(7)  # of the dropout
    plain = fit(copy.deepcopy(model), job, tmp_path / "plain")
    said = recorder(model)
    torch.manual_seed(7)
    loop = Loop(model, job, tmp_path / "recorded")
    loop.gradients = replay.Replayed(loop._gradients, model.parameters())
    while not loop.state.finished:
        loop.run_epoch()
    fitted = loop.result()
    assert said == ["aside"] * 3 + ["recorded"] + ["replayed"] * 3, "short batches are not recorded"
    assert same_weights(plain.model.state_dict(), fitted.model.state_dict())
    columns = ["train_loss", "train_score", "val_loss", "val_score"]
    assert plain.history[columns].equals(fitted.history[columns])


def test_a_recording_keeps_tensors_of_its_own(recorder):
    model = nn.Linear(2, 1, bias=False)

    def work(films: Tensor) -> tuple[Tensor]:
        model.zero_grad()
        model(films).sum().backward()
        return (films * 2,)

    said, replayed = recorder(model), replay.Replayed(work, model.parameters())
    given = [torch.full((3, 2), float(k)) for k in range(6)]
    for k, films in enumerate(given):
        answer, gradient = replayed(films), 3.0 * k
        assert torch.equal(answer[0], 2 * films) and model.weight.grad.tolist() == [[gradient, gradient]]
        assert torch.equal(films, torch.full((3, 2), float(k))), "what was given is only read"
    assert replayed(torch.ones(5, 2))[0].shape == (5, 2) and model.weight.grad.tolist() == [[5.0, 5.0]]
    assert replayed(given[1])[0].tolist() == [[2.0, 2.0]] * 3 and model.weight.grad.tolist() == [[3.0, 3.0]]
    assert said.count("recorded") == 1 and said.count("replayed") == 4


def test_without_a_gpu_nothing_is_recorded(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(replay, "record", lambda *_: pytest.fail("recorded"))
    asked, plain = (fit(network(), task(epochs=3), tmp_path / str(k), graphs=k) for k in (True, False))
    assert same_weights(asked.model.state_dict(), plain.model.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_on_a_gpu_recorded_steps_follow_the_others(tmp_path, precision):
    for name, step in (("autoencoder", DenoisingStep("mse")), ("cnn2", ClassificationStep(network("autoencoder")))):
        job = task(step, epochs=4, precision=precision)
        plain, recorded = (
            fit(network(name), job, tmp_path / f"{name}_{graphs}", graphs=graphs).history for graphs in (False, True)
        )
        assert recorded["train_loss"].tolist() == pytest.approx(plain["train_loss"].tolist(), rel=1e-2)
        assert recorded["val_loss"].tolist() == pytest.approx(plain["val_loss"].tolist(), rel=1e-2)


@pytest.mark.slow
def test_no_step_waits_for_the_gpu():
    found = subprocess.run([sys.executable, HERE / "pretend_gpu.py"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    places = json.loads(found.stdout)
    assert len(places.pop("torchmetrics")) == 6, "twice in each of three steps"
    assert places.pop("asks") == ["aten::_local_scalar_dense asked for a number"]
    assert set(models.CLASSIFIERS) | set(models.DENOISERS) | {"everything", "squares"} == set(places)
    assert not any(places.values()), places
