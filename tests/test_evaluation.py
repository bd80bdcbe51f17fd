"""Evaluation: the same noise for every method, the numbers of a plain loop, classical filters at their best."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.restoration import denoise_nl_means
from tiny import films, network, task
from torch import nn

from pneumo_lib import evaluation, metrics, noise, runs
from pneumo_lib.data import CLASSES, phantom
from pneumo_lib.evaluation import View, classify, corrupted, denoising_quality, restore
from pneumo_lib.steps import DenoisingStep, Films
from pneumo_lib.training import checkpoint, fit

NOISY = View("gaussian", 0.5, seed=3)


@pytest.fixture(scope="module")
def some() -> Films:
    return films(11)


@pytest.fixture(scope="module")
def chest() -> Films:
    """Two phantoms of 256 pixels, the size at which the filters were tuned."""
    rng = np.random.default_rng(0)
    drawn = [phantom.draw(CLASSES[i], size=256, rng=rng) for i in range(2)]
    return Films(np.stack(drawn), np.arange(2), [f"phantom_{i}" for i in range(2)])


class Spy(nn.Module):
    """A classifier that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images.clone())
        return images.mean((1, 2, 3))[:, None].expand(-1, 3)


# what a network is shown


def test_without_noise_the_films_are_exactly_themselves(some):
    np.testing.assert_array_equal(corrupted(some, View()), some.images.astype(np.float32) / 255)


def test_noise_is_a_function_of_the_film_and_the_view(some):
    seen = corrupted(some, NOISY)
    assert seen.dtype == np.float32 and seen.min() == 0 and seen.max() == 1
    order = np.random.default_rng(0).permutation(len(some))[:6]
    moved = Films(some.images[order], some.labels[order], [some.keys[row] for row in order])
    np.testing.assert_array_equal(corrupted(moved, NOISY), seen[order])
    for other in (replace(NOISY, seed=4), replace(NOISY, strength=0.4), replace(NOISY, kind="speckle")):
        assert not np.array_equal(corrupted(some, other), seen)


def test_every_method_meets_the_same_noise(some):
    expected, shown = corrupted(some, NOISY), []
    methods = {name: lambda noisy: shown.append(noisy.copy()) or noisy for name in ("one", "two")}
    denoising_quality(methods, some, NOISY, batch_size=4)
    np.testing.assert_array_equal(np.concatenate(shown[::2]), expected)
    np.testing.assert_array_equal(np.concatenate(shown[1::2]), expected)
    spy = Spy()
    classify(spy, some, NOISY, batch_size=5)
    np.testing.assert_array_equal(torch.cat(spy.seen)[:, 0].numpy(), expected)


# networks


@pytest.mark.parametrize("behind", [False, True])
def test_classify_equals_a_plain_loop(some, behind):
    model, denoiser = network(), network("autoencoder", seed=1) if behind else None
    expected = []
    for film in corrupted(some, NOISY):
        seen = torch.from_numpy(film)[None, None]
        with torch.no_grad():
            expected.append(model(denoiser(seen) if denoiser else seen)[0].numpy())
    logits = classify(model, some, NOISY, denoiser=denoiser)
    assert logits.shape == (11, 3) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.stack(expected), atol=1e-5)


def test_the_batch_size_does_not_matter(some):
    model, denoiser = network(), network("unet_denoiser", seed=1)
    one, all_at_once = (classify(model, some, NOISY, denoiser=denoiser, batch_size=size) for size in (1, 11))
    np.testing.assert_allclose(one, all_at_once, atol=1e-5)
    noisy = corrupted(some, NOISY)
    np.testing.assert_allclose(*(restore(denoiser, noisy, batch_size=size) for size in (1, 4)), atol=1e-5)


def test_networks_are_used_in_evaluation_mode(some):
    model = nn.Sequential(network(), nn.Dropout(0.5)).train()
    np.testing.assert_array_equal(classify(model, some, NOISY), classify(model, some, NOISY))
    assert not model.training


def test_restore_keeps_shape_and_range():
    class Loud(nn.Module):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            return 3 * noisy - 1

    noisy = np.linspace(0, 1, 5 * 8 * 12, dtype=np.float32).reshape(5, 8, 12)
    restored = restore(Loud(), noisy, batch_size=2)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, np.clip(3 * noisy - 1, 0, 1), atol=1e-6)


def test_a_network_is_a_method_of_the_comparison(some):
    denoiser = network("autoencoder")
    noisy = corrupted(some, NOISY)
    np.testing.assert_array_equal(evaluation.network_denoiser(denoiser)(noisy), restore(denoiser, noisy))


# quality of denoising


def test_denoising_quality_holds_one_row_per_film_and_method(some):
    methods = {"nothing": evaluation.do_nothing, "gray": lambda noisy: np.full_like(noisy, 0.5)}
    quality = denoising_quality(methods, some, NOISY, batch_size=4)
    assert list(quality.columns) == ["path", "label", "method", "psnr", "ssim"]
    assert len(quality) == 2 * len(some)
    clean, noisy = some.images / 255, corrupted(some, NOISY)
    for name, restored in (("nothing", noisy), ("gray", np.full_like(noisy, 0.5))):
        part = quality[quality["method"] == name]
        assert part["path"].tolist() == some.keys and part["label"].tolist() == some.labels.tolist()
        by_hand = -10 * np.log10(((restored - clean) ** 2).mean((1, 2)))
        np.testing.assert_allclose(part["psnr"], by_hand, atol=1e-4)
        np.testing.assert_allclose(part["ssim"], metrics.ssim(restored, clean.astype(np.float32)), atol=1e-6)


def test_the_summary_puts_the_best_method_last():
    psnr = {"good": [30.0, 32.0, 31.0], "bad": [9.0, 10.0, 8.0]}
    rows = [{"method": m, "psnr": p, "ssim": p / 100} for m, values in psnr.items() for p in values]
    table = evaluation.summarise_quality(pd.DataFrame(rows)).set_index("method")
    assert table.index.tolist() == ["bad", "good"]
    good = table.loc["good"]
    assert good["psnr"] == pytest.approx(31) and good["ssim"] == pytest.approx(0.31) and good["n"] == 3
    assert 30 <= good["psnr_low"] < 31 < good["psnr_high"] <= 32
    assert good["ssim_low"] < good["ssim"] < good["ssim_high"]


def test_the_summary_is_told_with_its_intervals():
    rows = {"method": ["bad", "good"], "psnr": [9.0, 31.456], "psnr_low": [8.0, 30.0], "psnr_high": [10.0, 32.0]}
    rows |= {"ssim": [0.1, 0.31], "ssim_low": [0.05, 0.3], "ssim_high": [0.15, 0.3205], "n": [3, 1200]}
    shown = evaluation.readable_quality(pd.DataFrame(rows))
    assert shown.loc["good"].tolist() == ["31.46 [30.00, 32.00]", "0.310 [0.300, 0.321]", 1200]
    assert list(shown.index) == ["bad", "good"] and list(shown) == ["PSNR (dB)", "SSIM", "films"]


def test_checkpoints_are_compared_in_the_order_of_their_epochs(tmp_path, some):
    job = task(DenoisingStep(), epochs=2, checkpoint_every=1)
    fitted = fit(network("autoencoder"), job, tmp_path)
    runs.save_model(tmp_path, fitted.model, {"architecture": "autoencoder", "arguments": {}})
    checkpoint(tmp_path, 2).rename(checkpoint(tmp_path, 100))
    runs.save_weights(checkpoint(tmp_path, 20), network("autoencoder", seed=5).state_dict())
    quality = evaluation.checkpoint_quality(tmp_path, some, NOISY)
    assert quality.table["epoch"].tolist() == [1, 20, 100]
    assert list(quality.examples) == ["epoch 1", "epoch 20", "epoch 100"]
    denoiser = network("autoencoder")
    for epoch, row in quality.table.set_index("epoch").iterrows():
        restored = restore(runs.load_weights(denoiser, checkpoint(tmp_path, epoch)), corrupted(some, NOISY))
        psnr = metrics.psnr(restored, some.images.astype(np.float32) / 255)
        assert row["psnr"] == pytest.approx(psnr.mean())
        film, first = quality.examples[f"epoch {epoch}"]
        np.testing.assert_array_equal(film, restored[0])
        assert first == pytest.approx(psnr[0])


# classical filters


@pytest.mark.parametrize("name", ["Gaussian filter", "non-local means"])
def test_classical_filters_beat_doing_nothing_and_their_uncorrected_selves(chest, monkeypatch, name):
    clean, noisy = chest.images.astype(np.float32) / 255, corrupted(chest, NOISY)
    method = evaluation.classical_denoisers(0.5)[name]
    corrected = method(noisy)
    monkeypatch.setattr(noise, "unclip", lambda mean, sigma: mean)
    biased = method(noisy)
    nothing, without, with_it = (metrics.psnr(films, clean).mean() for films in (noisy, biased, corrected))
    assert corrected.dtype == np.float32 and corrected.shape == noisy.shape
    assert corrected.min() >= 0 and corrected.max() <= 1
    assert with_it > nothing + 11
    assert with_it > without + 2


def test_the_correction_takes_out_the_clipping_bias():
    gray = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    patches = np.broadcast_to(gray[:, None, None], (9, 64, 64))
    flat = Films((patches * 255).round().astype(np.uint8), np.zeros(9, int), [f"gray_{i}" for i in range(9)])
    for name, method in evaluation.classical_denoisers(0.5).items():
        bias = np.abs(method(corrupted(flat, NOISY)).mean((1, 2)) - gray)
        assert (bias.max() > 0.1) if name == "do nothing" else (bias.max() < 0.05), name


@pytest.mark.parametrize("sigma", [0.25, 0.5])
def test_the_constants_of_the_filters_are_near_their_best(chest, sigma):
    clean, noisy = chest.images.astype(np.float32) / 255, corrupted(chest, replace(NOISY, strength=sigma))
    ours = {name: metrics.psnr(f(noisy), clean).mean() for name, f in evaluation.classical_denoisers(sigma).items()}
    widths = [metrics.psnr(noise.smooth(noisy, sigma, width=width), clean).mean() for width in (2, 3, 4, 5, 7)]
    assert ours["Gaussian filter"] > max(widths) - 0.5
    default = np.stack([denoise_nl_means(film, sigma=sigma, h=0.8 * sigma, fast_mode=True) for film in noisy])
    assert ours["non-local means"] > metrics.psnr(noise.unclip(default, sigma), clean).mean()


@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_weak_noise_needs_no_special_case(chest, sigma):
    clean, noisy = chest.images[:1].astype(np.float32) / 255, corrupted(chest, replace(NOISY, strength=sigma))[:1]
    for name, method in evaluation.classical_denoisers(sigma).items():
        restored = method(noisy)
        assert np.isfinite(restored).all(), name
        assert metrics.psnr(restored, clean)[0] > 22, name


def test_the_gaussian_filter_is_the_one_of_scipy(chest):
    noisy = corrupted(chest, NOISY)[:1]
    ours = noise.smooth(noisy, 0.0, width=3.0)[0]
    inside = (slice(12, -12), slice(12, -12))  # at the border the two pad differently
    np.testing.assert_allclose(ours[inside], gaussian_filter(noisy[0], 3.0, truncate=3.0)[inside], atol=2e-3)


# accuracies


def test_accuracies_are_counted_by_system_and_protocol():
    rows = [("A", "clean", 0, 0)] * 3 + [("A", "clean", 1, 2)] + [("A", "noisy", 2, 0)] * 2 + [("B", "clean", 1, 1)]
    table = evaluation.accuracies(pd.DataFrame(rows, columns=["system", "protocol", "label", "predicted"]))
    assert table[["system", "protocol", "value", "n"]].to_numpy().tolist() == [
        ["A", "clean", 0.75, 4],
        ["A", "noisy", 0.0, 2],
        ["B", "clean", 1.0, 1],
    ]
    first = metrics.wilson(3, 4)
    assert (table.loc[0, "low"], table.loc[0, "high"]) == (first.low, first.high)
