"""Training: it learns, it counts each film once, it survives interruptions and says what went wrong."""

import json
import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Stop, Tampered, curve, films, network, same_weights, stop_in_epoch, task
from torch import Generator, nn

from pneumo_lib import augmentation, evaluation, models, noise, training, training_machinery
from pneumo_lib.errors import TrainingError
from pneumo_lib.recipe import Augmentation, Recipe
from pneumo_lib.runs import read_weights
from pneumo_lib.steps import ClassificationStep, Corruption, DenoisingStep, Films, Outcome
from pneumo_lib.training import Task, checkpoint, fit
from pneumo_lib.training_machinery import RunningMean

QUIET = Corruption(strength=0.0)
EVERYTHING = Augmentation(
    rotation=15, shift=0.1, zoom=(0.9, 1.2), shear=5, flip=True, brightness=0.1, contrast=0.2, gamma=0.2
)


@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
    monkeypatch.setenv("PNEUMO_QUIET", "1")


def repeated(few: Films, times: int) -> Films:
    """The same few films over and over, so that one epoch has many steps."""
    rows = np.tile(np.arange(len(few)), times)
    return Films(few.images[rows], few.labels[rows], [few.keys[row] for row in rows])


class Recorded:
    """A step that keeps what it was shown: one entry per call."""

    def __init__(self) -> None:
        self.train: list[torch.Tensor] = []
        self.val: list[torch.Tensor] = []
        self.labels: list[int] = []

    def __call__(self, model: nn.Module, clean: torch.Tensor, noisy: torch.Tensor, labels: torch.Tensor) -> Outcome:
        (self.train if model.training else self.val).append(noisy.clone())
        self.labels += labels.tolist() if model.training else []
        return ClassificationStep()(model, clean, noisy, labels)


def judged(losses: list[float], scores: list[float] | None = None) -> Tampered:
    """A classification whose validation loss and score follow lists, one value per epoch."""
    left = zip(losses, scores or losses, strict=True)

    def change(model: nn.Module, calls: int, outcome: Outcome) -> Outcome:
        return outcome if model.training else Outcome(*(torch.full_like(outcome.loss, value) for value in next(left)))

    return Tampered(ClassificationStep(), change)


def failing(error: Exception) -> Tampered:
    """A classification that raises an error at its second training step."""

    def change(model: nn.Module, calls: int, outcome: Outcome) -> Outcome:
        if calls == 2:
            raise error
        return outcome

    return Tampered(ClassificationStep(), change)


def linear(n_classes: int = 3) -> nn.Module:
    """The smallest network that learns, the same every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, n_classes))


def of_classes(few: Films, counts: list[int]) -> Films:
    """So many films of each class, repeated where there are too few."""
    rows = np.concatenate([np.resize(np.flatnonzero(few.labels == k), n) for k, n in enumerate(counts)])
    return Films(few.images[rows], few.labels[rows], [f"{row:03d}_{few.keys[film]}" for row, film in enumerate(rows)])


def pixels(part: Films) -> torch.Tensor:
    return torch.from_numpy(part.images)[:, None] / 255


# it learns


def test_a_classifier_overfits_one_batch(tmp_path):
    few = films(6)
    assert len(set(few.labels)) == 3
    job = task(train=repeated(few, 40), val=few, epochs=1, batch_size=6, lr=3e-3, corruption=QUIET)
    row = fit(network(), job, tmp_path).history.iloc[-1]
    assert row["val_score"] == 1.0 and row["val_loss"] < 0.01


@pytest.mark.parametrize(("name", "gain"), [("autoencoder", 4.0), ("unet_denoiser", 6.0)])
@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_a_denoiser_overfits_one_batch(tmp_path, name, gain, loss):
    few = films(4)
    job = task(
        DenoisingStep(loss), train=repeated(few, 60), val=few, epochs=1, batch_size=4, lr=3e-3, schedule="cosine"
    )
    row = fit(network(name), job, tmp_path).history.iloc[-1]
    noisy = evaluation.corrupted(few, evaluation.View("gaussian", 0.2))
    clean = few.images / 255
    before = float((10 * np.log10(1 / ((noisy - clean) ** 2).mean((1, 2)))).mean())
    assert row["val_score"] > before + gain


def test_shuffled_labels_teach_nothing(tmp_path):
    train, val = films(90), films(90, seed=1)
    shuffled = replace(train, labels=np.random.default_rng(0).permutation(train.labels))
    options = {"val": val, "epochs": 4, "batch_size": 8, "corruption": QUIET}
    honest = fit(network(), task(train=train, **options), tmp_path / "honest").history["val_score"].iloc[-1]
    chance = fit(network(), task(train=shuffled, **options), tmp_path / "shuffled").history["val_score"].iloc[-1]
    assert honest > 0.9
    assert chance < 1 / 3 + 4 * math.sqrt(2 / 9 / len(val))  # four standard errors of guessing


def test_a_classifier_of_two_classes_learns(tmp_path):
    two = of_classes(films(12), [4, 4])
    job = task(train=repeated(two, 20), val=two, epochs=1, batch_size=8, lr=3e-3, corruption=QUIET)
    fitted = fit(models.build("cnn2", image_size=32, n_classes=2), job, tmp_path)
    assert fitted.history["val_score"].iloc[-1] == 1.0 and fitted.history["val_loss"].iloc[-1] < 0.1
    assert fitted.model(pixels(two)).shape == (8, 2)


# it counts


def test_the_mean_loss_is_that_of_the_whole_set_with_a_short_last_batch(tmp_path):
    job = task(n=12, batch_size=10, epochs=1, lr=1e-7, corruption=QUIET)
    model = network()
    with torch.no_grad():
        logits = model(pixels(job.train))
    losses = F.cross_entropy(logits, torch.from_numpy(job.train.labels), reduction="none")
    right = (logits.argmax(1).numpy() == job.train.labels).mean()
    order = np.random.default_rng([job.seed, 1]).permutation(12)
    by_batch = (losses[order[:10]].mean() + losses[order[10:]].mean()) / 2
    row = fit(model, job, tmp_path).history.iloc[0]
    assert row["train_loss"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert abs(float(by_batch) - float(losses.mean())) > 1e-3  # else the test could not tell the two apart
    assert row["train_score"] == pytest.approx(right)


def test_one_epoch_shows_every_film_once_in_a_new_order_each_time(tmp_path):
    step = Recorded()
    job = task(step, corruption=QUIET)
    fit(network(), job, tmp_path)
    half = len(step.train) // 2
    first, second = (torch.cat(part)[:, 0].mul(255).round().byte() for part in (step.train[:half], step.train[half:]))
    assert [len(batch) for batch in step.train[:half]] == [5, 5, 2]
    assert not torch.equal(first, second)
    for shown in (first, second):
        assert sorted(film.numpy().tobytes() for film in shown) == sorted(film.tobytes() for film in job.train.images)


@pytest.mark.parametrize(
    ("n", "size", "cut"),
    [
        (12, 5, [5, 5, 2]),
        (11, 5, [5, 6]),
        (6, 5, [6]),
        (10, 5, [5, 5]),
        (1, 5, [1]),
        (4, 5, [4]),
        (3, 1, [1, 1, 1]),
        (5, 2, [2, 3]),
    ],
)
def test_a_single_film_at_the_end_joins_the_batch_before_it(n, size, cut):
    order = np.random.default_rng(0).permutation(n)
    parts = training_machinery.batches(order, size)
    assert [len(part) for part in parts] == cut
    np.testing.assert_array_equal(np.concatenate(parts), order)


def test_batch_normalisation_never_meets_a_single_film(tmp_path):
    step = Recorded()
    normalised = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1024), nn.Linear(1024, 3))
    fit(normalised, task(step, n=6, batch_size=5), tmp_path)
    assert [len(batch) for batch in step.train] == [6, 6]
    normalised.train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        normalised(step.train[0][:1])  # else the test would show nothing


def test_validation_meets_the_same_noise_every_epoch_and_that_of_the_evaluation(tmp_path):
    step = Recorded()
    job = task(step, seed=4)
    fit(network(), job, tmp_path)
    first, second = step.val
    assert torch.equal(first, second)
    view = evaluation.View("gaussian", 0.2, job.seed)
    np.testing.assert_array_equal(first[:, 0].numpy(), evaluation.corrupted(job.val, view))


def test_training_meets_fresh_noise_every_time(tmp_path):
    one = films(1)
    step = Recorded()
    fit(network(), task(step, train=repeated(one, 2), batch_size=1), tmp_path)
    assert len(step.train) == 4
    assert len({noisy.numpy().tobytes() for noisy in step.train}) == 4


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_share_a_batch_without_gap_or_overlap(world, size):
    seen = []
    for rank in range(world):
        process = SimpleNamespace(process_index=rank, num_processes=world)
        rows, counted = training_machinery.share(size, process)
        mine = list(range(size))[rows]
        assert mine  # an idle process still computes a row, or the others would wait for it
        assert counted in (0, len(mine))
        seen += mine[:counted]
    assert sorted(seen) == list(range(size))


def test_memory_mapped_films_train_like_those_in_memory(tmp_path):
    job = task()
    np.save(tmp_path / "films.npy", job.train.images)
    mapped = replace(job.train, images=np.load(tmp_path / "films.npy", mmap_mode="r"))
    inside = fit(network(), job, tmp_path / "a")
    outside = fit(network(), replace(job, train=mapped), tmp_path / "b")
    assert same_weights(inside.model.state_dict(), outside.model.state_dict())


# noise of the training


def test_a_share_of_the_films_gets_another_strength(monkeypatch):
    drawn = []
    monkeypatch.setattr(noise, "corrupt", lambda images, kind, strength, generator: drawn.append(strength))
    Corruption(strength=0.5, low=0.1, share=0.25)(torch.zeros(4000, 1, 1, 1), Generator().manual_seed(0))
    other = drawn[0][drawn[0] != 0.5]
    assert len(other) == pytest.approx(1000, abs=100)
    assert 0.1 <= float(other.min()) < 0.12 and 0.58 < float(other.max()) <= 0.6
    assert float(other.mean()) == pytest.approx(0.35, abs=0.02)


def test_without_a_share_every_film_gets_the_same_strength():
    gray = torch.full((500, 1, 8, 8), 0.5)
    fixed = Corruption(strength=0.05)(gray, Generator().manual_seed(0)).std((1, 2, 3))
    mixed = Corruption(strength=0.05, share=1.0)(gray, Generator().manual_seed(0)).std((1, 2, 3))
    assert float(fixed.min()) > 0.03 and float(fixed.max()) < 0.07
    assert float(mixed.min()) < 0.01  # nearly clean films among them


# augmentation


def test_training_films_are_augmented_and_validation_films_never(tmp_path):
    step = Recorded()
    job = task(step, epochs=4, corruption=QUIET, augmentation=Augmentation(flip=True))
    fit(linear(), job, tmp_path)
    plain, mirrored = (
        {film.numpy().tobytes() for film in part} for part in (pixels(job.train), pixels(job.train).flip(-1))
    )
    shown = [film.numpy().tobytes() for batch in step.train for film in batch]
    assert len(shown) == 48 and set(shown) <= plain | mirrored
    assert 12 <= sum(film in mirrored for film in shown) <= 36  # four standard errors of a coin
    assert all(torch.equal(batch, pixels(job.val)) for batch in step.val) and len(step.val) == 4


def test_every_kind_of_augmentation_leaves_validation_alone(tmp_path):
    plain, augmented = Recorded(), Recorded()
    fit(linear(), task(plain), tmp_path / "plain")
    fit(linear(), task(augmented, augmentation=EVERYTHING), tmp_path / "augmented")
    assert all(map(torch.equal, plain.val, augmented.val)), "noise included"
    assert not any(map(torch.equal, plain.train, augmented.train))


def test_each_epoch_augments_afresh_and_the_seed_decides_how(tmp_path):
    seen = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        step = Recorded()
        job = task(
            step, train=repeated(films(1), 2), batch_size=1, corruption=QUIET, augmentation=EVERYTHING, seed=seed
        )
        fit(linear(), job, tmp_path / name)
        seen[name] = [film.numpy().tobytes() for film in step.train]
    assert len(set(seen["one"])) == 4, "one film, twice per epoch, is never the same"
    assert seen["one"] == seen["same"] and not set(seen["one"]) & set(seen["other"])


def test_squares_come_from_everywhere_in_their_own_film():
    films = torch.arange(3 * 5 * 7).view(3, 5, 7)
    places = [training_machinery.corners(3, films.shape, 3, np.random.default_rng(k)) for k in range(300)]
    drawn = [training_machinery.squares(films, 3, torch.from_numpy(place)) for place in places]
    possible = [
        {films[i, y : y + 3, x : x + 3].numpy().tobytes() for y in range(3) for x in range(5)} for i in range(3)
    ]
    for i in range(3):
        assert {square[i].numpy().tobytes() for square in drawn} == possible[i]  # of 15 places none is missed


@pytest.mark.parametrize("side", [0, 5, 6, 32])
def test_films_no_larger_than_the_square_are_taken_whole(side):
    films = torch.arange(3 * 5 * 7).view(3, 5, 7)
    places = training_machinery.corners(3, films.shape, side, np.random.default_rng(0))
    assert places.shape == (3, 2) and not places.any()
    assert training_machinery.squares(films, side, torch.from_numpy(places)) is films


def test_training_films_are_cut_and_validation_films_never(tmp_path):
    shown: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def step(model: nn.Module, clean: torch.Tensor, noisy: torch.Tensor, labels: torch.Tensor) -> Outcome:
        shown[model.training].append(clean.clone())
        return DenoisingStep()(model, clean, noisy, labels)

    large = films(4, size=64)
    fit(nn.Conv2d(1, 1, 3, padding=1), task(step, train=large, val=large, epochs=2, crop=32), tmp_path)
    assert {films.shape[-2:] for films in shown[True]} == {(32, 32)}
    assert all(torch.equal(batch, pixels(large)) for batch in shown[False]) and len(shown[False]) == 2
    first, second = shown[True][: len(shown[True]) // 2], shown[True][len(shown[True]) // 2 :]
    assert {a.numpy().tobytes() for a in first}.isdisjoint(b.numpy().tobytes() for b in second), "cut anew each epoch"


def test_a_denoiser_learns_to_give_back_the_augmented_film(tmp_path):
    pairs = []

    def step(model: nn.Module, clean: torch.Tensor, noisy: torch.Tensor, labels: torch.Tensor) -> Outcome:
        pairs.append((model.training, clean.clone(), noisy.clone()))
        return DenoisingStep()(model, clean, noisy, labels)

    job = task(step, epochs=1, corruption=Corruption(strength=0.01), augmentation=Augmentation(shift=0.5))
    fit(nn.Sequential(nn.Conv2d(1, 1, 1)), job, tmp_path)
    for in_training, clean, noisy in pairs:
        torch.testing.assert_close(clean, noisy, atol=0.1, rtol=0)
        known = {film.tobytes() for film in (job.train if in_training else job.val).images}
        shown = {film.numpy().tobytes() for film in clean[:, 0].mul(255).round().byte()}
        assert not shown & known if in_training else shown <= known


# classes of unequal size, smoothed targets


def test_weighted_losses_give_every_class_the_same_pull(tmp_path):
    unequal = of_classes(films(30), [12, 3, 1])
    job = task(train=unequal, batch_size=16, epochs=1, corruption=QUIET, imbalance="weighted")
    by_hand, model = linear(), linear()
    losses = F.cross_entropy(by_hand(pixels(unequal)), torch.from_numpy(unequal.labels), reduction="none")
    torch.stack([losses[unequal.labels == k].mean() for k in range(3)]).mean().backward()
    fit(model, job, tmp_path)  # a single step, whose gradient is still there
    torch.testing.assert_close(model[1].weight.grad, by_hand[1].weight.grad, atol=1e-6, rtol=1e-5)
    plain = linear()
    F.cross_entropy(plain(pixels(unequal)), torch.from_numpy(unequal.labels)).backward()
    assert (plain[1].weight.grad - by_hand[1].weight.grad).abs().max() > 0.01, "else the weights would not matter"


@pytest.mark.parametrize("counts", [[12, 3, 1], [5, 5, 5], [4, 0, 2], [7, 9]])
def test_class_weights_are_one_on_average_and_equal_in_sum(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = training_machinery.class_weights(labels, "weighted")
    assert weights.dtype == torch.float32 and weights[labels].mean().item() == pytest.approx(1)
    sums = [n * weight for n, weight in zip(counts, weights.tolist(), strict=True) if n]
    assert sums == pytest.approx([len(labels) / len(sums)] * len(sums))


def test_reported_losses_are_never_weighted(tmp_path):
    unequal = of_classes(films(30), [9, 2, 1])
    options = {"train": unequal, "epochs": 1, "batch_size": 12, "corruption": QUIET}
    kinds = ("none", "weighted")
    rows = [fit(linear(), task(imbalance=kind, **options), tmp_path / kind).history.iloc[0] for kind in kinds]
    assert rows[0]["train_loss"] == rows[1]["train_loss"], "one scale for all recipes"


@pytest.mark.parametrize("counts", [[900, 100], [700, 250, 50]])
def test_balanced_draws_take_every_class_equally_often(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    orders = [training_machinery.drawn_order(labels, "balanced", np.random.default_rng(seed)) for seed in (3, 3, 4)]
    expected, spread = len(labels) / len(counts), math.sqrt(len(labels) * (len(counts) - 1)) / len(counts)
    for order in orders:
        assert len(order) == len(labels)
        assert np.abs(np.bincount(labels[order]) - expected).max() < 4 * spread
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    drawn = np.bincount(np.concatenate([orders[0], orders[2]]), minlength=len(labels))
    assert drawn[labels == 0].max() < 10, "within a class every film is as likely"


@pytest.mark.parametrize("imbalance", ["none", "weighted", "balanced"])
def test_only_one_answer_to_unbalanced_classes_is_given(imbalance):
    labels = np.repeat([0, 1], [30, 10])
    weights = training_machinery.class_weights(labels, imbalance)
    order = training_machinery.drawn_order(labels, imbalance, np.random.default_rng(0))
    assert (weights.tolist() == [1.0, 1.0]) == (imbalance != "weighted")
    assert (sorted(order) == list(range(40))) == (imbalance != "balanced")


def test_a_balanced_training_sees_the_classes_equally_often_in_a_new_draw_each_epoch(tmp_path):
    step, unequal = Recorded(), of_classes(films(30), [60, 12, 8])
    job = task(step, train=unequal, batch_size=20, epochs=3, imbalance="balanced")
    fit(linear(), job, tmp_path)
    counts = np.bincount(step.labels)
    assert counts.sum() == 240 and np.abs(counts - 80).max() < 4 * math.sqrt(240 * 2) / 3
    expected = [
        training_machinery.drawn_order(unequal.labels, "balanced", np.random.default_rng([0, e])) for e in (1, 2, 3)
    ]
    assert step.labels == unequal.labels[np.concatenate(expected)].tolist()


def test_targets_are_smoothed_in_training_only(tmp_path):
    share, job = 0.3, task(ClassificationStep(smoothing=0.3), epochs=1, lr=1e-7, corruption=QUIET)
    model = linear()
    with torch.no_grad():
        logs = {
            name: F.log_softmax(model(pixels(part)), dim=1) for name, part in (("train", job.train), ("val", job.val))
        }
    exact = {name: -log[range(len(log)), getattr(job, name).labels].mean().item() for name, log in logs.items()}
    smoothed = (1 - share) * exact["train"] - share * logs["train"].mean().item()
    row = fit(model, job, tmp_path).history.iloc[0]
    assert row["train_loss"] == pytest.approx(smoothed, abs=1e-5) and abs(smoothed - exact["train"]) > 1e-3
    assert row["val_loss"] == pytest.approx(exact["val"], abs=1e-5)


# optimisers


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_torchs_own(tmp_path, name, kind, decay):
    job = task(lr=1e-2, optimizer=name, weight_decay=decay, corruption=QUIET)
    by_hand, clean, labels = linear(), pixels(job.train), torch.from_numpy(job.train.labels)
    optimizer = kind(by_hand.parameters(), lr=1e-2, weight_decay=decay, fused=False)
    for epoch in (1, 2):
        order = np.random.default_rng([job.seed, epoch]).permutation(12)
        for rows in (order[:5], order[5:10], order[10:]):
            optimizer.zero_grad()
            F.cross_entropy(by_hand(clean[rows]), labels[rows]).backward()
            optimizer.step()
    model = linear()
    fit(model, replace(job, step=judged([0.9, 0.1])), tmp_path)  # the last weights are kept
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), atol=1e-5, rtol=1e-4)


def test_adamw_decays_the_weights_and_adam_the_gradient(tmp_path):
    kinds = [(name, decay) for decay in (0.0, 0.5) for name in ("adam", "adamw")]
    states = []
    for number, (name, decay) in enumerate(kinds):
        job = task(judged([0.9, 0.1]), lr=1e-2, optimizer=name, weight_decay=decay)
        states.append(fit(linear(), job, tmp_path / str(number)).model.state_dict())
    assert same_weights(states[0], states[1])
    assert all(not same_weights(states[a], states[b]) for a, b in ((0, 2), (1, 3), (2, 3)))


# learning rate


def test_the_constant_schedule():
    assert {training.learning_rate(Recipe(epochs=3, lr=0.02), step, 60) for step in range(60)} == {0.02}


def test_the_cosine_schedule_warms_up_and_falls_to_zero():
    recipe = Recipe(epochs=1, lr=0.1, schedule="cosine")
    rates = [training.learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])  # linear over the first 5 % of the steps
    assert rates[50] == pytest.approx(0.05)
    assert np.argmax(rates) == 4 and all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 1e-4


def test_the_history_shows_the_rate_of_the_last_step(tmp_path):
    job = task(schedule="cosine", lr=1e-3)  # 3 steps per epoch
    rates = fit(network(), job, tmp_path).history["lr"]
    assert rates.tolist() == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * step / 6)) for step in (2, 5)])


# which weights come out


def test_the_best_weights_are_copies_and_not_the_last(tmp_path):
    job = task(judged([0.9, 0.1, 0.5, 0.8]), epochs=4, checkpoint_every=1)
    fitted = fit(network(), job, tmp_path)
    best, last = (read_weights(checkpoint(tmp_path, epoch)) for epoch in (2, 4))
    assert fitted.best_epoch == 2 and len(fitted.history) == 4
    assert same_weights(fitted.model.state_dict(), best)
    assert not same_weights(fitted.model.state_dict(), last)


def test_the_first_of_equal_losses_is_the_best(tmp_path):
    assert fit(network(), task(judged([0.7, 0.5, 0.5]), epochs=3), tmp_path).best_epoch == 2


@pytest.mark.parametrize(
    ("keep", "losses", "scores", "best"),
    [
        ("loss", [0.9, 0.2, 0.5], [0.5, 0.6, 0.9], 2),
        ("score", [0.9, 0.2, 0.5], [0.5, 0.6, 0.9], 3),
        ("score", [0.9, 0.2, 0.1], [0.7, 0.9, 0.9], 2),
        ("score", [0.1, 0.2, 0.3], [0.7, 0.6, 0.5], 1),
        ("last", [0.1, 0.2, 0.3], [0.7, 0.6, 0.5], 3),
    ],
)
def test_the_recipe_says_which_epoch_is_the_best(tmp_path, keep, losses, scores, best):
    job = task(judged(losses, scores), epochs=3, keep=keep, checkpoint_every=1)
    fitted = fit(linear(), job, tmp_path)
    assert fitted.best_epoch == best
    assert same_weights(fitted.model.state_dict(), read_weights(checkpoint(tmp_path, best)))


@pytest.mark.parametrize(
    ("losses", "patience", "ran", "best"),
    [
        ([0.9, 0.5, 0.6, 0.5, 0.7, 0.1], 3, 5, 2),
        ([0.9, 0.5, 0.6, 0.4, 0.7, 0.8], 3, 6, 4),
        ([0.1, 0.9, 0.9, 0.9, 0.9, 0.9], 0, 6, 1),
    ],
)
def test_patience_ends_a_training_that_stands_still(tmp_path, losses, patience, ran, best):
    fitted = fit(network(), task(judged(losses), epochs=6, patience=patience), tmp_path)
    assert len(fitted.history) == ran and fitted.best_epoch == best


def epochs_run(losses: list[float], patience: int, min_delta: float) -> int:
    """After how many epochs a training with these validation losses has finished."""
    recipe = Recipe(epochs=len(losses), patience=patience, min_delta=min_delta)
    state = training_machinery.TrainingState(Path(), recipe, "")
    while not state.finished:
        state.history.append({"val_loss": losses[len(state.history)]})
    return len(state.history)


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "ran"),
    [
        ([1.0, 0.9, 0.8, 0.7, 0.6], 2, 0.0, 5),  # it falls all the time
        ([2.0, 1.75, 1.25, 1.0, 0.5], 2, 0.5, 5),  # little by little, but half in two epochs counts
        ([1.0, 0.75, 0.75, 0.75, 0.0], 2, 0.5, 3),  # lower than before, but by too little
        ([1.0, 0.5, 0.5, 0.5, 0.5], 2, 0.5, 3),  # exactly min_delta lower is not enough
        ([1.0, 1.0, 1.0, 1.0], 1, 0.0, 2),  # equal is no gain
        ([1.0, 2.0, 0.5, 2.0, 0.25, 2.0], 2, 0.0, 6),  # each gain starts the count anew
        ([0.5, 1.0, 0.75, 0.625, 0.0], 3, 0.0, 4),  # gains are measured from the lowest, not from the epoch before
        ([1.0, 2.0, 2.0, 2.0], 0, 0.0, 4),  # no patience asked for
        ([1.0, 2.0, 2.0], 5, 0.0, 3),  # the epochs end first
    ],
)
def test_patience_counts_epochs_without_a_gain_of_min_delta(losses, patience, min_delta, ran):
    assert epochs_run(losses, patience, min_delta) == ran


def keras_runs(losses: list[float], patience: int, min_delta: float) -> int:
    """What Keras's EarlyStopping(monitor="val_loss") does: `wait` grows every epoch and a gain sets it to zero."""
    best, wait = math.inf, 0
    for epoch, loss in enumerate(losses, start=1):
        wait += 1
        if loss + min_delta < best:
            best, wait = loss, 0
        if wait >= patience:
            return epoch
    return len(losses)


@pytest.mark.parametrize("min_delta", [0.0, 0.125, 0.5])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience_stops_where_keras_stops(patience, min_delta):
    rng, ended = np.random.default_rng(patience), []
    for _ in range(50):
        losses = (rng.integers(0, 24, 12) / 8).tolist()  # eighths are exact
        ended.append(epochs_run(losses, patience, min_delta))
        assert ended[-1] == keras_runs(losses, patience, min_delta), losses
    assert len(set(ended)) > 2, "else the sequences would all say the same"


def test_what_is_kept_is_the_lowest_loss_even_where_the_gain_was_too_small_to_wait(tmp_path):
    fitted = fit(linear(), task(judged([0.5, 0.49, 0.48, 0.1]), epochs=4, patience=2, min_delta=0.1), tmp_path)
    assert len(fitted.history) == 3 and fitted.best_epoch == 3


def test_checkpoints_are_kept_every_k_epochs(tmp_path):
    job = task(epochs=5, checkpoint_every=2)
    fit(network(), job, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "epoch_02.safetensors",
        "epoch_04.safetensors",
    ]
    assert not same_weights(*(read_weights(checkpoint(tmp_path, epoch)) for epoch in (2, 4)))


def test_the_result_is_ready_for_use(tmp_path):
    fitted = fit(network(), task(name="cnn2_on_x"), tmp_path)
    assert fitted.name == "cnn2_on_x" and not fitted.model.training
    columns = ["epoch", "train_loss", "train_score", "val_loss", "val_score", "lr", "seconds"]
    assert list(fitted.history.columns) == columns and fitted.history["epoch"].tolist() == [1, 2]
    assert (tmp_path / "history.csv").read_text().splitlines()[0] == ",".join(columns)
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in fitted.model.state_dict().values())


def test_the_frozen_denoiser_stays_as_it_is(tmp_path):
    denoiser = network("autoencoder", seed=1)
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    model = network()
    fitted = fit(model, task(ClassificationStep(denoiser)), tmp_path)
    assert same_weights(denoiser.state_dict(), before)
    assert all(value.grad is None and not value.requires_grad for value in denoiser.parameters())
    assert not denoiser.training
    assert not same_weights(fitted.model.state_dict(), network().state_dict())  # while the classifier did learn


def test_the_step_itself_sends_no_gradient_into_the_denoiser():
    denoiser, model, images = network("autoencoder"), network(), torch.rand(2, 1, 32, 32)
    ClassificationStep(denoiser)(model, images, images, torch.tensor([0, 1])).loss.sum().backward()
    assert all(value.grad is None for value in denoiser.parameters())
    assert all(value.grad is not None for value in model.parameters())


def test_the_classifier_sees_denoised_films():
    seen = []
    model = nn.Module()
    model.forward = lambda images: seen.append(images) or torch.zeros(len(images), 3)
    clean, noisy, labels = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), torch.tensor([0, 2])
    outcome = ClassificationStep(lambda films: films / 4)(model, clean, noisy, labels)
    assert torch.equal(seen[0], torch.full((2, 1, 8, 8), 0.25))
    assert outcome.score.tolist() == [1.0, 0.0] and outcome.loss.tolist() == pytest.approx([math.log(3)] * 2)


@pytest.mark.parametrize(("loss", "expected"), [("mse", [0.25, 0.01]), ("l1", [0.5, 0.1])])
def test_the_denoising_step_scores_each_film(loss, expected):
    clean = torch.zeros(2, 1, 4, 4)
    restored = torch.tensor([0.5, 0.1])[:, None, None, None].expand(2, 1, 4, 4)
    outcome = DenoisingStep(loss)(lambda noisy: restored, clean, clean, torch.zeros(2))
    assert outcome.loss.tolist() == pytest.approx(expected)
    assert outcome.score.tolist() == pytest.approx([10 * math.log10(4), 20.0], abs=1e-4)


# precision


def test_bf16_and_float32_follow_each_other_in_one_process(tmp_path):
    results = {}
    for number, precision in enumerate(("bf16", "no", "bf16")):
        results[number] = fit(network(), task(precision=precision), tmp_path / str(number))
    weights = [fitted.model.state_dict() for fitted in results.values()]
    assert all(value.dtype == torch.float32 for state in weights for value in state.values())
    assert same_weights(weights[0], weights[2]) and not same_weights(weights[0], weights[1])
    losses = [fitted.history["train_loss"].iloc[-1] for fitted in results.values()]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_films_are_blended_before_the_noise_and_their_labels_alike(tmp_path, monkeypatch):
    seen = []

    def step(model, clean, noisy, targets):
        seen.append((clean, noisy, targets))
        return ClassificationStep()(model, clean, noisy, targets)

    job = task(step, epochs=1, mixup=1.0, n=10, corruption=Corruption(strength=0.0))
    fit(network(), job, tmp_path)
    for clean, noisy, targets in seen[:2]:  # the training's; validation comes after
        assert targets.shape == (5, 3) and torch.allclose(targets.sum(dim=1), torch.ones(5))
        assert torch.equal(clean, noisy)
        assert torch.equal(targets[2], targets[2].round())  # the middle one meets itself
        kept = targets.max(dim=1).values
        assert (kept[:2] < 1).any() or torch.equal(targets, targets.round())
    assert all(targets.dim() == 1 for *_, targets in seen[2:])


def test_a_blend_keeps_its_share_of_film_and_label():
    films, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 2])
    mixed, shares = augmentation.mix(films, labels, 3, kept=0.75)
    torch.testing.assert_close(mixed[0], 0.75 * films[0] + 0.25 * films[3])
    torch.testing.assert_close(shares[0], torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(shares[1], torch.tensor([0.0, 0.75, 0.25]))


def test_the_running_mean_is_what_is_kept(tmp_path):
    plain, mean = (fit(network(), task(epochs=2, keep="last", ema=ema), tmp_path / str(ema)) for ema in (0.0, 0.9))
    first, last = network().state_dict(), plain.model.state_dict()
    kept = mean.model.state_dict()
    assert plain.history["train_loss"].tolist() == mean.history["train_loss"].tolist()  # training itself stays as it is
    assert plain.history["val_loss"].tolist() != mean.history["val_loss"].tolist()
    name = "features.0.weight" if "features.0.weight" in kept else next(iter(kept))
    between = (kept[name] - first[name]).norm() / (last[name] - first[name]).norm()
    assert 0.1 < between < 1.0


def test_the_running_mean_follows_at_once_and_slowly_later():
    network = nn.BatchNorm1d(1)
    mean = RunningMean(network, 0.99)
    with torch.no_grad():
        for value, expected in ((5.0, 5.0), (16.0, 5 + 11 * 9 / 11)):  # the first is taken over as it is
            network.weight.fill_(value)
            network.num_batches_tracked.add_(7)
            mean.update_parameters(network)
            assert mean.module.weight.item() == pytest.approx(expected)
        assert mean.module.num_batches_tracked == 14, "counters are copied"
        mean.n_averaged.fill_(5000)
        network.weight.fill_(114.0)
        mean.update_parameters(network)
    assert mean.module.weight.item() == pytest.approx(14 + 0.01 * 100) and mean.n_averaged == 5001
    assert network.weight.item() == 114, "the network itself is left alone"


# interruptions


@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "step"), [("cnn2", ClassificationStep()), ("autoencoder", DenoisingStep())], ids=["cnn2", "autoencoder"]
)
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, name, step, epoch):
    job = task(step, epochs=4, schedule="cosine", checkpoint_every=3)
    whole = fit(network(name), job, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(network(name), stop_in_epoch(job, epoch), tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "history.csv").exists()
    torch.manual_seed(99)  # nothing may hang on the global generator
    resumed = fit(network(name), job, tmp_path / "stopped")
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())
    assert curve(resumed) == curve(whole)
    assert same_weights(*(read_weights(checkpoint(tmp_path / part, 3)) for part in ("whole", "stopped")))


def with_state_of_its_own() -> nn.Module:
    """A network that normalises and drops out, so that running means and the random generator count too."""
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, nn.Dropout(0.5), nn.Linear(256, 3))


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize(
    "given", [{"imbalance": "weighted"}, {"imbalance": "balanced"}, {"mixup": 0.4, "ema": 0.9}], ids=str
)
def test_an_augmented_training_goes_on_to_the_same_weights(tmp_path, given, epoch):
    options = {"optimizer": "adamw", "weight_decay": 0.1, "patience": 5, "keep": "score", "schedule": "cosine"}
    job = task(epochs=4, augmentation=EVERYTHING, **options, **given)
    whole = fit(with_state_of_its_own(), job, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(with_state_of_its_own(), stop_in_epoch(job, epoch), tmp_path / "stopped")
    assert len(list((tmp_path / "stopped").glob("state_*"))) == (epoch > 1)
    fresh = with_state_of_its_own()
    if epoch > 1:
        torch.manual_seed(99)  # the stored state brings its own
    resumed = fit(fresh, job, tmp_path / "stopped")
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())
    assert curve(resumed) == curve(whole)


def test_a_stop_within_patience_is_remembered(tmp_path):
    losses = [0.9, 0.5, 0.6, 0.7, 0.8, 0.9]
    job = task(judged(losses), epochs=6, patience=3)
    with pytest.raises(Stop):
        fit(network(), stop_in_epoch(job, 4), tmp_path)
    resumed = fit(network(), task(judged(losses[3:]), epochs=6, patience=3), tmp_path)
    assert len(resumed.history) == 5 and resumed.best_epoch == 2


def test_a_finished_folder_gives_its_result_at_once(tmp_path, monkeypatch):
    job = task(judged([0.1, 0.9]))
    first = fit(network(), job, tmp_path)
    (state,) = tmp_path.glob("state*")
    assert {path.name for path in state.iterdir()} == {"best.safetensors", "progress.json"}  # no optimiser
    monkeypatch.setattr(training.Loop, "run_epoch", lambda self: pytest.fail("trained again"))
    again = fit(network(), job, tmp_path)
    assert same_weights(again.model.state_dict(), first.model.state_dict())
    assert again.best_epoch == first.best_epoch == 1 and curve(again) == curve(first)


def other_tasks() -> dict[str, Task]:
    job = task()
    relabelled = replace(job.train, labels=(job.train.labels + 1) % 3)
    edited = replace(job.train, images=job.train.images ^ np.eye(*job.train.images.shape[1:], dtype=np.uint8))
    renamed = replace(job.val, keys=[f"other_{key}" for key in job.val.keys])
    return {
        "seed": replace(job, seed=1),
        "learning rate": replace(job, recipe=replace(job.recipe, lr=2e-3)),
        "epochs": replace(job, recipe=replace(job.recipe, epochs=3)),
        "noise": replace(job, corruption=Corruption(strength=0.3)),
        "precision": replace(job, precision="bf16"),
        "labels": replace(job, train=relabelled),
        "pixels": replace(job, train=edited),
        "films": replace(job, val=renamed),
        "fewer films": task(n=11),
        "film size": replace(job, train=films(12, size=64)),
        "denoiser": replace(job, step=ClassificationStep(network("autoencoder"))),
        "smoothing": replace(job, step=ClassificationStep(smoothing=0.1)),
        "augmentation": replace(job, recipe=replace(job.recipe, augmentation=Augmentation(flip=True))),
        "imbalance": replace(job, recipe=replace(job.recipe, imbalance="weighted")),
    }


@pytest.mark.parametrize("difference", list(other_tasks()))
def test_the_folder_of_another_task_is_refused(tmp_path, difference):
    with pytest.raises(Stop):
        fit(network(), stop_in_epoch(task(), 2), tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(TrainingError, match="other data, recipe, seed or starting weights") as error:
        fit(network(), other_tasks()[difference], tmp_path)
    assert str(tmp_path) in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == kept


def test_other_starting_weights_and_other_losses_are_refused(tmp_path):
    fit(network("autoencoder"), task(DenoisingStep("mse")), tmp_path)
    for model, step in ((network("autoencoder", seed=1), "mse"), (network("autoencoder"), "l1")):
        with pytest.raises(TrainingError, match="starting weights"):
            fit(model, task(DenoisingStep(step)), tmp_path)


def test_the_fingerprint_reads_every_kind_of_weight():
    model = nn.Sequential(nn.BatchNorm2d(1))  # counts its batches in an integer without dimensions
    before = training_machinery.fingerprint([], model)
    model[0].num_batches_tracked += 1
    assert training_machinery.fingerprint([], model) != before
    assert training_machinery.fingerprint([], model, None) == training_machinery.fingerprint([], model)


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    half = tmp_path / "state.tmp"
    half.mkdir()
    (half / ".best.safetensors.123.tmp").write_bytes(b"half")
    fit(network(), task(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "state_0002"]
    assert not list(tmp_path.rglob("*.tmp"))


# a loss that is not a number


def test_a_state_that_would_hold_up_short_epochs_is_written_more_rarely(tmp_path, monkeypatch):
    whole = fit(network(), task(epochs=4), tmp_path / "whole")
    monkeypatch.setattr(training_machinery, "CHEAP", 0)
    monkeypatch.setattr(training_machinery, "PART", 0)  # no time is long enough for a second one
    with pytest.raises(TrainingError, match=r"not a number in epoch 3, .* The state after epoch 1 is kept in"):
        fit(network(), task(epochs=4, step=broken(at=8)), tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped").glob("state*")] == ["state_0001"]
    resumed = fit(network(), task(epochs=4), tmp_path / "stopped")
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict()) and curve(resumed) == curve(whole)
    assert [path.name for path in (tmp_path / "stopped").glob("state*")] == ["state_0004"], "the last one always is"


def test_states_are_written_again_once_enough_time_has_passed(tmp_path):
    state = training_machinery.TrainingState(tmp_path, Recipe(epochs=9), "")
    state.cost, state.since = 3.0, time.perf_counter() - 70
    assert state.due
    state.since = time.perf_counter() - 50
    assert not state.due


def broken(at: int, *, training_only: bool = True) -> Tampered:
    """A classification whose loss is NaN at one training step, counted from 1, or in every validation."""
    steps = 0

    def change(model: nn.Module, calls: int, outcome: Outcome) -> Outcome:
        nonlocal steps
        steps += model.training
        bad = steps == at if model.training else not training_only
        return Outcome(outcome.loss * math.nan if bad else outcome.loss, outcome.score)

    return Tampered(ClassificationStep(), change)


def test_a_nan_names_epoch_step_and_films_and_keeps_the_last_good_state(tmp_path):
    job = task(epochs=3)  # 3 steps per epoch
    with pytest.raises(TrainingError) as error:
        fit(network(), replace(job, step=broken(at=5)), tmp_path)
    films_of_step = np.random.default_rng([0, 2]).permutation(12)[5:10]
    first = ", ".join(job.train.keys[row] for row in films_of_step[:3])
    message = str(error.value)
    assert f"epoch 2, at step 2 of 3, films {first} and 2 more" in message
    assert "learning rate 0.001" in message and f"state after epoch 1 is kept in {tmp_path}" in message
    assert [path.name for path in tmp_path.glob("state*")] == ["state_0001"]
    resumed, whole = fit(network(), job, tmp_path), fit(network(), job, tmp_path / "whole")
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())


def test_a_nan_in_the_first_epoch_stores_nothing(tmp_path):
    with pytest.raises(TrainingError) as error:
        fit(network(), task(step=broken(at=1)), tmp_path)
    assert "epoch 1, at step 1 of 3" in str(error.value) and "is kept" not in str(error.value)
    assert not list(tmp_path.glob("state*"))


def test_a_nan_in_validation_is_never_the_best(tmp_path):
    with pytest.raises(TrainingError, match="epoch 1, in validation"):
        fit(network(), task(step=broken(at=0, training_only=False)), tmp_path)
    assert not list(tmp_path.glob("state*"))


def test_weights_broken_by_the_last_step_are_caught(tmp_path):
    def change(model: nn.Module, calls: int, outcome: Outcome) -> Outcome:
        if not model.training:
            return outcome
        root = torch.sqrt(outcome.loss.sum() * 0)  # worth 0, but its gradient is not a number
        return Outcome(outcome.loss + root, outcome.score)

    job = task(Tampered(ClassificationStep(), change), n=5, batch_size=5)  # one step: every training loss is finite
    with pytest.raises(TrainingError, match="in validation"):
        fit(network(), job, tmp_path)
    assert not list(tmp_path.glob("state*"))


def test_the_stored_state_is_readable_json(tmp_path):
    fit(network(), task(), tmp_path)
    stored = json.loads((tmp_path / "state_0002" / "progress.json").read_text())
    assert [row["epoch"] for row in stored["history"]] == [1, 2] and len(stored["fingerprint"]) == 64


# a batch that does not fit


def refusal_of_this_machine() -> RuntimeError:
    """What torch says of more memory than there is."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    return error.value


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: 12 bytes."),
    "this machine": refusal_of_this_machine(),
}


@pytest.mark.parametrize(
    ("size", "advice"), [(5, "batch_size 2"), (2, "batch_size 1"), (1, "a smaller image_size")], ids=["5", "2", "1"]
)
@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=list(OUT_OF_MEMORY))
def test_a_batch_that_does_not_fit_ends_with_advice(tmp_path, error, size, advice):
    with pytest.raises(TrainingError) as said:
        fit(linear(), task(failing(error), batch_size=size, name="cnn9"), tmp_path)
    assert str(said.value) == f"cnn9: {size} films of 32 x 32 pixels do not fit in memory. Try {advice}."
    assert said.value.__cause__ is error


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, NotImplementedError])
def test_any_other_error_passes_unchanged(tmp_path, kind):
    error = kind("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(kind) as said:
        fit(linear(), task(failing(error)), tmp_path)
    assert said.value is error and str(error) == "mat1 and mat2 shapes cannot be multiplied"
    assert error.__cause__ is None


def test_what_did_fit_is_kept(tmp_path):
    job = task(batch_size=6)
    tight = Tampered(ClassificationStep(), lambda model, calls, outcome: outcome)
    tight.change = lambda model, calls, outcome: failing(OUT_OF_MEMORY["cuda"]).change(model, calls - 2, outcome)
    with pytest.raises(TrainingError, match="do not fit"):
        fit(linear(), replace(job, step=tight), tmp_path)
    assert [path.name for path in tmp_path.glob("state*")] == ["state_0001"]
    resumed, whole = fit(linear(), job, tmp_path), fit(linear(), job, tmp_path / "whole")
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())
