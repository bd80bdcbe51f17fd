"""What the benchmarks count and compare is what they say it is."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_trials import draw, system
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import contenders  # noqa: E402
import evidence as trainings  # noqa: E402
import recipe  # noqa: E402
import roofline  # noqa: E402
import speed  # noqa: E402
import tried  # noqa: E402

from pneumo_lib import models, trials  # noqa: E402
from pneumo_lib.data import open_folder  # noqa: E402
from pneumo_lib.systems import SYSTEMS  # noqa: E402


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (contenders.SourceAutoencoder(), models.build("autoencoder")),
        (contenders.SourceCNN2(32), models.build("cnn2", image_size=32, n_classes=contenders.CLASSES)),
    ],
    ids=["autoencoder", "cnn2"],
)
def test_the_contenders_train_the_same_network(theirs, ours):
    weights = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(weights))
    films = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(ours(films), theirs(films), atol=2e-6, rtol=1e-5)


def losses(network: nn.Module, clean: torch.Tensor, seed: int, *, fast: bool, steps: int = 40) -> torch.Tensor:
    """Of each step, under noise of that seed."""
    optimizer = torch.optim.Adam(network.parameters(), lr=contenders.LR, fused=fast)
    torch.manual_seed(seed)
    found = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            restored = network(contenders.noisy(clean)).float()
        found.append(nn.functional.mse_loss(restored, clean))
        optimizer.zero_grad()
        found[-1].backward()
        optimizer.step()
    return torch.stack(found).detach()


@pytest.mark.slow
def test_the_loops_learn_alike():
    """From the same weights on the same films: our curves lie where those of the plain loop lie."""
    torch.manual_seed(0)
    clean = nn.functional.interpolate(torch.rand(64, 1, 4, 4), size=32, mode="bilinear")
    start = contenders.SourceAutoencoder().state_dict()
    ours = models.build("autoencoder").to(memory_format=torch.channels_last)
    names = list(ours.state_dict())
    plain, fast = [], []
    for seed in range(1, 5):
        theirs = contenders.SourceAutoencoder()
        theirs.load_state_dict(start)
        plain.append(losses(theirs, clean, seed, fast=False))
        ours.load_state_dict(dict(zip(names, start.values(), strict=True)))
        fast.append(losses(ours, clean, seed, fast=True))
    plain, fast = torch.stack(plain), torch.stack(fast)
    assert plain[:, -1].max() < 0.5 * plain[:, 0].min(), "there was something to learn"
    assert (fast.mean() / plain.mean()).item() == pytest.approx(1, abs=0.04), "on the whole; measured 0.997"
    last = plain[:, -10:].mean(dim=1)  # single steps stray by a quarter from seed to seed
    assert 0.95 * last.min() < fast[:, -10:].mean() < 1.05 * last.max(), "within what another seed does"


def test_the_floor_counts_products_and_answers():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    counted = roofline.floor(network, 8, roofline.Machine(bandwidth=1e9, rate=1e12))
    assert counted["GFLOP"] == pytest.approx(3 * 2 * 9 * 4 * 64 / 1e9)
    assert counted["MB"] == pytest.approx(5 * (256 + 256) * 2 / 1e6)
    assert counted["films/s"] == pytest.approx(1e9 / 5120)
    slow = roofline.floor(network, 8, roofline.Machine(bandwidth=1e15, rate=1e6))
    assert slow["films/s"] == pytest.approx(1e6 / (3 * 2 * 9 * 4 * 64))


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_machine_is_measured_in_what_it_multiplies_fastest(monkeypatch, fast, dtype):
    monkeypatch.setattr(roofline.runtime, "fast_bf16", lambda: fast)
    machine = roofline.measure(side=128, megabytes=8)
    network = nn.Conv2d(1, 4, 3, padding=1)
    assert machine.dtype == dtype
    assert roofline.floor(network, 8, machine)["MB"] == pytest.approx(5 * 256 * dtype.itemsize / 1e6)
    assert 1e8 < machine.bandwidth < 1e14 and 1e8 < machine.rate < 1e16


@pytest.mark.slow
def test_one_command_compares_them_all(tmp_path):
    command = [sys.executable, "-m", "pneumo_lib", "benchmark", "--rounds", "1", "--films", "9", "--size", "32"]
    command += ["--only", "classifier", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "speed.json").read_text())["tables"]
    (title, ways), (_, floor) = rows.items()
    assert title in done.stdout and [row["way"] for row in ways] == list(contenders.CONTENDERS)
    there = {row["way"]: row for row in ways if "range" in row}
    assert {"ours", "plain loop", "tuned loop"} <= set(there) and there["ours"]["ours over it"] == "1.0 x"
    assert all(row["films/s"] > 0 and row["peak MB"] > 50 for row in there.values())
    assert [row["network"] for row in floor][:3] == ["autoencoder", "unet_denoiser", "cnn2"]
    assert f"| {there['plain loop']['films/s']} |" in (tmp_path / "speed.md").read_text()
    assert Image.open(tmp_path / "speed.png").width > 300


def test_an_unknown_option_is_an_error_of_the_benchmark():
    command = [sys.executable, "-m", "pneumo_lib", "benchmark", "--nonsense"]
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 2


def test_what_is_published_is_what_was_measured():
    found, text = json.loads((ROOT / "benchmarks" / "speed.json").read_text()), (ROOT / "benchmarks" / "RESULTS.md")
    for title, rows in found["tables"].items():
        assert f"## {title}\n\n{speed.table(rows)}\n" in text.read_text()
    assert found["measured"] in text.read_text()
    readme = (ROOT / "README.md").read_text()
    training, answering = found["tables"]["denoiser training"], found["tables"]["autoencoder, batches of 32"]
    best = max(row["films/s"] for row in training if not row["way"].startswith("ours"))
    for number in (training[0]["films/s"], training[1]["films/s"], best, *(row["films/s"] for row in answering)):
        assert str(number) in readme[readme.index("## Speed") :]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_films_of_an_epoch():
    """With memory kept, a small tensor left over from every step once took 5 MB each, for it splits a large block."""
    command = [sys.executable, ROOT / "benchmarks" / "films_on_disk.py", "--rounds", "0", "--films", "4000"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own = [float(line.split("|")[3]) for line in told.splitlines() if line[:2] == "| " and line[2].isdigit()]
    assert len(own) == 7 and own[-1] < own[1] + 60, told


@pytest.mark.parametrize(
    ("only", "jobs"),
    [
        (["main:0"], ["films:0", "main:0"]),
        (["large U-Net"], ["films:0", "large U-Net:0"]),
        (["behind"], ["films:0", "large U-Net:0", "behind the large U-Net:0"]),
        (["arms cnn2 noisy:1", "CC BY:"], ["films:0", "CC BY:0", "arms denoiser:1", "arms cnn2 noisy:1"]),
    ],
)
def test_a_training_is_run_by_name_with_those_that_it_waits_for(only, jobs):
    assert trainings.wanted(trainings.jobs(), only) == jobs


def test_without_a_name_every_training_is_run():
    assert trainings.wanted(trainings.jobs(), []) == list(trainings.jobs())


def test_a_network_is_shown_corrupted_films_of_the_set_that_it_was_made_of(tmp_path, monkeypatch):
    asked, jobs = [], tmp_path / "jobs"
    opened = lambda settings, _: (Path(settings.data_dir).name, settings.image_size)  # noqa: E731
    monkeypatch.setattr(trainings.pipeline, "open_data", opened)
    monkeypatch.setattr(trainings.runs, "load_model", lambda place: place.relative_to(jobs).as_posix())
    monkeypatch.setattr(trainings.robustness, "corrupted", lambda *given, split: asked.append((*given[1:], split)))
    places = {
        "CC_BY:0/systems/films/net": "val CC BY:0",
        "no_augmentation:0": "test no augmentation:0",
        "short_contrast:0": "val short contrast:0",
    }
    for place, job in places.items():
        (jobs / place).mkdir(parents=True)
        (jobs / place / "model.json").touch()
        work, _ = trainings.jobs()[f"robustness {job}"]
        work(trainings.Given(tmp_path, tmp_path / "cache", jobs / "robustness:0", seed=0))
    assert asked == [
        (("chest_xray_covid_free", 256), "CC_BY:0/systems/films/net", "val"),
        (("chest_xray_covid", 256), "no_augmentation:0", "test"),
        (("chest_xray_covid", 128), "short_contrast:0", "val"),
    ]


@pytest.mark.parametrize(
    ("job", "row"),
    [
        ("main", "resnet18_s2d"),
        ("short main", "resnet18_s2d_short"),
        ("small no augmentation", "resnet18_s2d_small_no_augmentation"),
        ("source", "cnn2_on_autoencoder_full"),
        ("CC BY", ""),
        ("behind the large U-Net", ""),
    ],
)
def test_a_job_is_the_row_of_its_name(job, row):
    assert trainings.row_of(job) == row


def test_every_variant_of_our_recipe_is_a_row_of_its_table():
    variants = [name for name in trainings.VARIANTS if name not in trainings.LICENSED]
    rows = {trainings.row_of(name) for name in variants}
    rows |= {trainings.row_of(f"short {name}") for name in (*trainings.SMALLER, *trainings.SHORT, "mirrored")}
    assert "" not in rows and len(rows) == len(variants) + len(trainings.SMALLER) + len(trainings.SHORT) + 1


def test_what_networks_bear_is_published_by_the_name_of_their_job(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings.publishing, "publish_evidence", lambda target: None)
    job, table = tmp_path / "jobs" / "robustness_val_CC_BY:0", pd.DataFrame({"kind": ["crop"], "level": [0.5]})
    job.mkdir(parents=True)
    table.to_csv(job / "corruptions.csv", index=False)
    trainings.publish(tmp_path, tmp_path / "figures")
    assert not (tmp_path / "figures").exists(), "it has not ended"
    (job / "DONE").touch()
    trainings.publish(tmp_path, tmp_path / "figures")
    assert pd.read_csv(tmp_path / "figures" / "robustness" / "val_CC_BY_seed_0.csv").equals(table)


def test_a_denoiser_averaged_both_ways_round_does_not_tell_left_from_right():
    torch.manual_seed(0)
    alone = models.build("unet_denoiser", widths=(4, 8)).eval()
    both, films = tried.BothWays(alone).eval(), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(both(films.flip(-1)), both(films).flip(-1))
    assert not torch.allclose(alone(films.flip(-1)), alone(films).flip(-1), atol=1e-4), "alone it does"


def test_a_classifier_that_sees_mirrored_films_says_of_them_what_it_would_say_unmirrored():
    torch.manual_seed(0)
    model, films = models.build("resnet18_s2d").eval(), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(tried.Mirrored(model)(films.flip(-1)), model(films))


def test_strides_in_place_of_averages_leave_shapes_and_weights_as_they_were():
    torch.manual_seed(0)
    model, film = models.build("resnet18_s2d").eval(), torch.rand(1, 1, 128, 128)
    before, weights = model(film), dict(model.state_dict())
    maps = [model.layer2(model.layer1(model.stem(film))).shape]
    after = tried.strided(model)(film)
    maps.append(model.layer2(model.layer1(model.stem(film))).shape)
    assert maps[0] == maps[1] and before.shape == after.shape and not torch.allclose(before, after)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_what_denoising_teaches_stays_in_the_classifier():
    torch.manual_seed(0)
    model = models.build("resnet18_s2d")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clean = nn.functional.interpolate(torch.rand(8, 1, 4, 4), size=64, mode="bilinear")
    restorer = tried.Restorer(model)
    optimizer, found = torch.optim.Adam(restorer.parameters(), lr=3e-3), []
    for _ in range(30):
        loss = nn.functional.mse_loss(restorer(contenders.noisy(clean)), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert restorer(clean).shape == clean.shape and found[-1] < 0.3 * found[0]
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {"head.3.weight", "head.3.bias"}, "its head alone learns nothing"


def test_the_job_teaches_denoising_on_the_films_of_the_trial(tmp_path):
    root = draw(tmp_path / "films", ("A", "B"), {"train": 8, "test": 2})
    images = open_folder(root, image_size=32, cache_dir=tmp_path / "cache", seed=0)
    ours = system("resnet18_s2d", epochs=2, augmentation=SYSTEMS["resnet18_s2d"].recipe.augmentation)
    trial = trials.Trial(ours, images, "films", tmp_path, sigma=0.5)
    given = trainings.Given(tmp_path, tmp_path / "cache", tmp_path, seed=0)
    taught, fresh = trainings.denoise_first(given, trial, trial.fresh()), trial.fresh()
    history = pd.read_csv(tmp_path / "denoising" / "history.csv")
    assert len(history) == 2 and (history["val_score"] > 1).all(), "decibels, not shares"
    assert not torch.equal(taught.stem[1].weight, fresh.stem[1].weight)
    assert torch.equal(taught.head[3].weight, fresh.head[3].weight)


def test_a_changed_trial_trains_the_changed_network():
    trial = trials.Trial(SYSTEMS["resnet18_s2d"], SimpleNamespace(classes=("A", "B")), "films", Path())
    plain, other = trial.fresh(), tried.changed(trial, tried.strided).fresh()
    assert other.layer2[1].conv1.stride == (2, 2) and plain.layer2[1].conv1.stride == (1, 1)
    torch.testing.assert_close(other.state_dict(), plain.state_dict())


@pytest.mark.parametrize(("graphs", "looked"), [("", 2), ("--graphs ", 4)])
def test_the_whole_recipe_tells_its_phases_and_where_their_time_goes(tmp_path, monkeypatch, capsys, graphs, looked):
    options = f"--films 24 --epochs 1 --size 32 --rounds 0 --profile {graphs}--out"
    monkeypatch.setattr(sys, "argv", ["recipe.py", *options.split(), str(tmp_path)])
    recipe.main()
    written, told = json.loads((tmp_path / "recipe.json").read_text()), capsys.readouterr().out
    rows = written["rows"]
    assert written["graphs"] == bool(graphs)
    decoding, denoiser, classifier, everything = rows
    assert "epochs" in denoiser["phase"] and 5 < float(denoiser["validation"]) < 30, "dB"
    assert 0 <= float(classifier["validation"]) <= 1 and classifier["share of the floor"].endswith("%")
    assert everything["seconds"] == pytest.approx(
        sum(row["seconds"] for row in (decoding, denoiser, classifier)), abs=0.1
    )
    profiles = re.findall(r"([\d.]+) ms a step, of which the \w+ works ([\d.]+)", told)
    assert len(profiles) == looked and all(float(clock) > 0 and float(busy) > 0 for clock, busy in profiles)
    assert "convolution_backward" in told
