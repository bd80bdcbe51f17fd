"""Telling films from other pictures: what is refused, what passes, and where the cut-offs come from."""

import copy
import functools
import threading
from dataclasses import fields

import numpy as np
import photos
import pytest
import tiny
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from pneumo_lib import evaluation, images, models, novelty, runs
from pneumo_lib.data import phantom
from pneumo_lib.errors import DataError
from pneumo_lib.evaluation import View
from pneumo_lib.steps import Films

SIZE = 64


@functools.cache
def chests(n: int, seed: int) -> Films:
    rng, labels = np.random.default_rng(seed), np.arange(n) % 3
    drawn = [phantom.draw(list(phantom.FINDINGS)[k], size=SIZE, rng=rng) for k in labels]
    return Films(np.stack(drawn), labels, [f"{seed}_{k}" for k in range(n)])


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return tiny.network("cnn2", size=SIZE).eval()


@pytest.fixture(scope="module")
def check(network) -> novelty.Check:
    return evaluation.fit_check(network, chests(180, 0), chests(90, 1), [View(), View(strength=0.1)])


def scores(check: novelty.Check, network: torch.nn.Module, pictures: np.ndarray) -> np.ndarray:
    films = torch.from_numpy(np.stack(pictures))[:, None].float() / 255
    return check(novelty.Tap(copy.deepcopy(network)).look(films))[0]


def text(dark: bool) -> np.ndarray:
    page = Image.new("L", (SIZE * 4, SIZE * 4), 0 if dark else 255)
    for line in range(16):
        ImageDraw.Draw(page).text((8, 8 + 15 * line), "a page of text is no film at all", fill=255 if dark else 0)
    return np.asarray(page.resize((SIZE, SIZE), Image.Resampling.BOX))


def strangers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    steps = np.tile(np.linspace(0, 255, SIZE), (SIZE, 1))
    found = {f"grey {value}": np.full((SIZE, SIZE), value) for value in (0, 60, 128, 200, 255)}
    found |= {f"noise {s}": np.clip(128 + s * rng.normal(size=(SIZE, SIZE)), 0, 255) for s in (5, 40, 120)}
    found |= {"uniform": 255 * rng.random((SIZE, SIZE)), "black and white": 255 * (rng.random((SIZE, SIZE)) > 0.5)}
    found |= {"ramp": steps, "ramp down": steps.T, "text": text(False), "white text": text(True)}
    clouds = gaussian_filter(rng.normal(size=(SIZE, SIZE)), 6)
    found |= {"clouds": 255 * (clouds - clouds.min()) / np.ptp(clouds)}
    found |= {name: images.to_uint8(images.resize(p / 255, SIZE)) for name, p in photos.shipped().items()}
    return {name: pixels.astype(np.uint8) for name, pixels in found.items()}


@pytest.mark.parametrize("name", strangers())
def test_what_is_no_film_is_refused(check, network, name):
    assert scores(check, network, [strangers()[name]])[0] > 1


def test_nearly_all_new_films_pass(check, network):
    films = chests(150, 2)
    found = scores(check, network, films.images)
    assert (found > 1).mean() <= 0.08
    assert all((found[films.labels == k] > 1).mean() <= 0.15 for k in range(3)), "of every class"


def test_films_on_their_side_or_inverted_are_refused(check, network):
    films = chests(30, 4).images
    assert (scores(check, network, np.rot90(films, axes=(1, 2)).copy()) > 1).mean() > 0.9
    assert (scores(check, network, 255 - films) > 1).mean() > 0.9


def test_each_class_has_a_cut_off_of_its_own_from_validation(network):
    train, val = chests(180, 0), chests(90, 1)
    strict = evaluation.fit_check(network, train, val, [View()])
    turned = np.where((val.labels == 1)[:, None, None], 255 - val.images, val.images)
    loose = evaluation.fit_check(network, train, Films(turned, val.labels, val.keys), [View()])
    assert (loose.scales[1] > strict.scales[1]).all() and (loose.scales[[0, 2]] == strict.scales[[0, 2]]).all()


@pytest.mark.parametrize("n", [20, 35, 300])
def test_a_cut_off_from_few_films_holds_for_new_ones_too(n):
    rng, q = np.random.default_rng(n), novelty.QUANTILE
    samples, new = np.exp(0.2 * rng.normal(size=(500, n))), np.exp(0.2 * rng.normal(size=5000))
    cuts = np.array([novelty._expected(sample, q) for sample in samples])
    own = np.quantile(samples, q, axis=1)
    kept = [np.mean(new[:, None] <= some) for some in (cuts, own)]
    assert kept[0] >= q - 0.002 and kept[0] > kept[1], "where the quantile of the sample falls short"
    assert (own <= cuts).all() and (cuts <= own * novelty.MARGIN).all()


def test_a_cut_off_of_hardly_any_films_is_their_own():
    assert novelty._expected(np.array([1.0, 3.0]), 0.5) == 2
    assert np.isnan(novelty._expected(np.empty(0), 0.98))
    assert novelty._expected(np.array([0.01, 1.0, 90.0]), 0.98) <= 90 * novelty.MARGIN


def test_a_class_without_validation_films_takes_the_widest_cut_off(network):
    train, val = chests(180, 0), chests(90, 1)
    rows = np.flatnonzero(val.labels != 2)
    some = Films(val.images[rows], val.labels[rows], [val.keys[k] for k in rows])
    fitted = evaluation.fit_check(network, train, some, [View()])
    assert np.isfinite(fitted.scales).all()
    assert (fitted.scales[2] >= fitted.scales[:2].max(axis=0) * 0.999).any()


def test_a_class_of_one_training_film_is_never_the_nearest(network):
    train, val = chests(180, 0), chests(90, 1)
    rows = np.flatnonzero((train.labels != 2) | (np.arange(180) == 2))
    some = Films(train.images[rows], train.labels[rows], [train.keys[k] for k in rows])
    fitted = evaluation.fit_check(network, some, val, [View()])
    look = novelty.Tap(copy.deepcopy(network)).look(torch.from_numpy(val.images)[:, None].float() / 255)
    score, nearest = fitted(look)
    assert np.isfinite(score).all() and 2 not in nearest


def test_fitting_leaves_the_network_as_it_was(network):
    before = copy.deepcopy(network.state_dict())
    evaluation.fit_check(network, chests(180, 0), chests(90, 1), [View()])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["cnn5", "resnet18", "aernet", "densenet121", "resnet18_x3"])
def test_every_kind_of_network_hands_out_its_features(name):
    network = models.build(name, image_size=SIZE, n_classes=2).eval()
    films = torch.rand(2, 1, SIZE, SIZE)
    logits, features, *_ = novelty.Tap(copy.deepcopy(network))(films)
    assert torch.equal(logits, network(films))
    heads = [m for m in network.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 2]
    assert features.shape[1] == sum(head.in_features for head in heads)


def test_threads_that_share_a_network_do_not_mix_their_films(network):
    tap, films = novelty.Tap(copy.deepcopy(network)), torch.from_numpy(chests(30, 4).images)[:, None].float() / 255
    alone, together = [tap.look(film[None]).features for film in films], {}

    def look(part: range) -> None:
        together.update({k: tap.look(films[k][None]).features for k in part})

    threads = [threading.Thread(target=look, args=(range(k, 30, 4),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[k], alone[k]) for k in range(30))


def test_a_check_is_stored_with_its_classifier_and_guarded_by_its_hash(check, tmp_path):
    card = {"novelty": evaluation.store_check(tmp_path, check)}
    back = evaluation.load_check(tmp_path, card)
    for field in fields(novelty.Check):
        assert np.array_equal(getattr(back, field.name), getattr(check, field.name))
    assert evaluation.load_check(tmp_path, {}) is None
    path = tmp_path / evaluation.CHECK
    runs.save_weights(path, {k: v + 1 for k, v in check.tensors().items()})
    with pytest.raises(DataError, match=r"not the file that its model\.json describes"):
        evaluation.load_check(tmp_path, card)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        evaluation.load_check(tmp_path, card)
