"""Every kind of noise: what it promises at none, on the way up, and for the same film twice."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.util import random_noise
from torchvision.transforms.v2 import functional as TF

from pneumo_lib import config, noise, steps
from pneumo_lib.data import phantom
from pneumo_lib.errors import UsageError

KINDS = tuple(noise.NOISES)
DRAWN = ("gaussian", "poisson", "speckle", "salt_pepper")
TURNED = ("rotation",)  # to one of two sides
FIXED = ("blur", "low_resolution", "jpeg", "crop", "brighter", "darker", "low_contrast")
SIZE = 96


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def films(n=3, size=SIZE):
    rng = np.random.default_rng(5)
    labels = ("NORMAL", "PNEUMONIA", "COVID19")
    drawn = [phantom.draw(labels[i % 3], size=size, rng=rng).astype(np.float32) / 255 for i in range(n)]
    return torch.from_numpy(np.stack(drawn))[:, None]


def hill(size=SIZE):
    """A smooth film: one broad bright hill."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    film = 0.1 + 0.8 * np.exp(-((x - 0.45) ** 2 + (y - 0.55) ** 2) / 0.08)
    return torch.from_numpy(film.astype(np.float32))[None, None]


def flat(value, n=1, size=256):
    return torch.full((n, 1, size, size), value)


def middle(kind):
    return noise.NOISES[kind].levels[3]


# what holds for every kind


def test_kinds_levels_and_bounds_agree():
    assert tuple(config.STRENGTHS) == KINDS and set(KINDS) == {*DRAWN, *TURNED, *FIXED}
    for kind, entry in noise.NOISES.items():
        assert entry.levels[0] == 0 and list(entry.levels) == sorted(set(entry.levels)), kind
        assert entry.levels[-1] <= config.STRENGTHS[kind]
        assert entry.unit


@pytest.mark.parametrize("kind", KINDS)
def test_level_0_is_the_identity(kind):
    clean = films()
    level = noise.NOISES[kind].levels[0]
    assert torch.equal(noise.corrupt(clean, kind, level, generator=generator()), clean)
    assert torch.equal(noise.corrupt_each(clean, "abc", kind, level, seed=0), clean)


@pytest.mark.parametrize("film", [hill(), films(1)], ids=["smooth", "phantom"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_level_is_strictly_harder_than_the_one_below(kind, film):
    levels = noise.NOISES[kind].levels
    errors = [float((noise.corrupt_each(film, ["film"], kind, s, seed=0) - film).square().mean()) for s in levels]
    assert errors[0] == 0
    assert all(low < high for low, high in pairwise(errors)), errors


@pytest.mark.parametrize("kind", KINDS)
def test_shape_type_and_range_are_kept_and_the_input_is_not_touched(kind):
    clean = torch.cat([films(2), flat(0.0, size=SIZE), flat(1.0, size=SIZE)])
    before = clean.clone()
    for strength in (*noise.NOISES[kind].levels[1:], config.STRENGTHS[kind]):
        noisy = noise.corrupt(clean, kind, strength, generator=generator())
        assert (noisy.shape, noisy.dtype) == (clean.shape, torch.float32)
        assert noisy.isfinite().all() and noisy.min() >= 0 and noisy.max() <= 1, strength
        assert torch.equal(clean, before), strength


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_draws_the_same_noise(kind):
    clean = films(12)
    first, again, other = (noise.corrupt(clean, kind, middle(kind), generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind in FIXED)


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generator_is_left_alone(kind):
    before = torch.get_rng_state()
    noise.corrupt(films(1), kind, middle(kind), generator=generator())
    noise.corrupt_each(films(1), ["a"], kind, middle(kind), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_per_film_does_not_depend_on_the_batch(kind):
    clean, keys = films(), ["a.png", "b.png", "c.png"]
    together = noise.corrupt_each(clean, keys, kind, middle(kind), seed=3)
    assert torch.equal(noise.corrupt_each(clean, keys, kind, middle(kind), seed=3), together)
    order = [2, 0]
    picked = noise.corrupt_each(clean[order], [keys[i] for i in order], kind, middle(kind), seed=3)
    assert torch.equal(picked, together[order])


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize(
    "change", [{"key": "b"}, {"seed": 1}, {"strength": 0.2001}], ids=["another key", "another seed", "another strength"]
)
def test_noise_per_film_depends_on_key_seed_and_strength(kind, change):
    def corrupt(key="a", strength=0.2, seed=0):
        return noise.corrupt_each(films(1), [key], kind, strength, seed=seed)

    fraction = (corrupt() != corrupt(**change)).float().mean()
    assert fraction > (0.02 if kind == "salt_pepper" else 0.5), "not a few pixels pushed over an edge: other noise"


def test_noise_per_film_depends_on_the_kind():
    strength, film = 0.2, flat(0.5)
    normal = (noise.corrupt_each(film, ["a"], "gaussian", strength, seed=0) - film).flatten()
    factor = (noise.corrupt_each(film, ["a"], "speckle", strength, seed=0) - film).flatten()
    assert abs(torch.corrcoef(torch.stack([normal, factor]))[0, 1]) < 0.02


def test_every_film_needs_its_key():
    with pytest.raises(ValueError, match="shorter"):
        noise.corrupt_each(films(2), ["a"], "gaussian", 0.5, seed=0)


# what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_out_of_range_is_refused(kind):
    for strength in (-0.1, 1.01 * config.STRENGTHS[kind], float("nan"), float("inf")):
        with pytest.raises(UsageError, match=rf"{kind} noise of strength .* give 0 to {config.STRENGTHS[kind]:g} \("):
            noise.corrupt(films(1), kind, strength, generator=generator())


@pytest.mark.parametrize("strength", [0.0, 0.5, torch.full((1, 1, 1, 1), 0.5)], ids=["none", "some", "per film"])
def test_an_unknown_kind_is_refused(strength):
    with pytest.raises(UsageError, match="'gausian'"):
        noise.corrupt(films(1), "gausian", strength, generator=generator())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gaussian"])
def test_only_gaussian_noise_takes_a_strength_per_film(kind):
    with pytest.raises(UsageError, match=f"gaussian noise only, not for '{kind}'"):
        noise.corrupt(films(2), kind, torch.full((2, 1, 1, 1), 0.1), generator=generator())


# what each kind does


def test_a_strength_per_film():
    clean, sigmas = flat(0.5, n=3), torch.tensor([0.0, 0.05, 0.1]).view(3, 1, 1, 1)
    noisy = noise.corrupt(clean, "gaussian", sigmas, generator=generator())
    assert torch.equal(noisy[0], clean[0])
    assert noisy.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.0, 0.05, 0.1], rel=0.02)
    alone = noise.corrupt(clean, "gaussian", 0.1, generator=generator())
    assert torch.equal(noisy[2], alone[2]), "one draw, scaled film by film"


@pytest.mark.parametrize("brightness", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_gaussian_is_the_clipped_noise_of_scikit_image(sigma, brightness):
    ours = noise.add_noise(flat(brightness), sigma, generator=generator()).numpy()
    theirs = random_noise(flat(brightness).numpy(), "gaussian", rng=0, var=sigma**2, clip=True)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.03 * sigma)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.03)
    assert (ours == 0).mean() == pytest.approx((theirs == 0).mean(), abs=0.012)


def test_gaussian_is_0_5_unless_asked_otherwise():
    default, explicit = (noise.add_noise(films(1), *args, generator=generator()) for args in ((), (0.5,)))
    assert torch.equal(default, explicit)


@pytest.mark.parametrize(
    ("kind", "spread"),
    [("poisson", 0.1 * 0.5**0.5), ("speckle", 0.1 * 0.5)],  # of a film of brightness 0.5 at strength 0.1
)
def test_the_spread_of_poisson_and_speckle(kind, spread):
    noisy = noise.corrupt(flat(0.5), kind, 0.1, generator=generator())
    assert noisy.mean() == pytest.approx(0.5, abs=0.002)
    assert noisy.std() == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize("kind", ["poisson", "speckle"])
def test_black_has_no_photons_to_scatter(kind):
    assert not noise.corrupt(flat(0.0), kind, middle(kind), generator=generator()).any()


def test_salt_and_pepper_in_equal_shares():
    noisy = noise.corrupt(flat(0.5), "salt_pepper", 0.1, generator=generator())
    assert [(noisy == v).float().mean().item() for v in (0, 0.5, 1)] == pytest.approx([0.05, 0.9, 0.05], abs=0.004)


def test_blur_has_the_width_it_names():
    dot = torch.zeros(1, 1, 65, 65)
    dot[..., 32, 32] = 1.0
    spread = noise.corrupt(dot, "blur", 2.0, generator=generator())[0, 0]
    offset = torch.arange(65) - 32.0
    assert spread.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (spread.sum(0) * offset**2).sum().sqrt().item() == pytest.approx(2.0, rel=0.02)


def test_low_resolution_forgets_what_the_smaller_film_cannot_hold():
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64).contiguous()
    for strength in (1.0, 3.0):
        assert noise.corrupt(stripes, "low_resolution", strength, generator=generator()).std() < 0.05
    torch.testing.assert_close(noise.corrupt(flat(0.3), "low_resolution", 3.0, generator=generator()), flat(0.3))


def test_jpeg_keeps_the_mean_and_shows_its_blocks():
    film = hill()
    coded = noise.corrupt(film, "jpeg", 97, generator=generator())
    assert coded.mean() == pytest.approx(film.mean().item(), abs=0.01)
    steps = coded.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    assert steps[7::8].mean() > 3 * steps[3::8].mean(), "edges stand between the blocks of 8 pixels"


@pytest.mark.parametrize("degrees", [5.0, 20.0, 45.0])
def test_rotation_turns_each_film_by_its_angle_to_either_side(degrees):
    clean = hill().expand(40, 1, SIZE, SIZE).contiguous()
    turned = noise.corrupt(clean, "rotation", degrees, generator=generator())[:, 0].numpy()
    film, inside = clean[0, 0].numpy(), np.s_[20:-20, 20:-20]  # away from the corners, which scipy fills otherwise
    sides = [ndimage.rotate(film, angle, reshape=False, order=1, mode="nearest") for angle in (degrees, -degrees)]
    which = [[np.abs((one - side)[inside]).max() < 0.01 for side in sides] for one in turned]
    assert all(sum(pair) == 1 for pair in which), "neither, or both"
    assert 10 <= sum(pair[0] for pair in which) <= 30, "by chance"


def test_rotation_of_a_film_hangs_on_its_name():
    clean, keys = films(1).expand(30, 1, SIZE, SIZE).contiguous(), [f"{k}.png" for k in range(30)]
    turned = noise.corrupt_each(clean, keys, "rotation", 10, seed=0)
    assert len(torch.unique(turned, dim=0)) == 2
    assert torch.equal(noise.corrupt_each(clean[:3], keys[:3], "rotation", 10, seed=0), turned[:3])


def test_rotation_leaves_no_black_corners():
    for value in (0.3, 1.0):
        turned = noise.corrupt(flat(value, size=64), "rotation", 45, generator=generator())
        torch.testing.assert_close(turned, flat(value, size=64))


def test_crop_is_the_middle_of_the_film_at_full_size():
    film = hill(64)
    cropped = noise.corrupt(film, "crop", 0.5, generator=generator())
    expected = TF.resize(film[..., 16:48, 16:48], [64, 64])
    torch.testing.assert_close(cropped[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5, rtol=0)
    ramp = torch.linspace(0, 1, 200).expand(1, 1, 200, 200).contiguous()
    kept = noise.corrupt(ramp, "crop", 0.2, generator=generator())
    assert (kept.min().item(), kept.max().item()) == pytest.approx((0.1, 0.9), abs=0.003), "a tenth at either end"


def test_brighter_and_darker_add_and_take_gray_and_clip():
    film = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).view(1, 1, 1, 5)
    for kind, expected in (("brighter", [0.2, 0.3, 0.7, 1.0, 1.0]), ("darker", [0.0, 0.0, 0.3, 0.7, 0.8])):
        assert noise.corrupt(film, kind, 0.2, generator=generator()).flatten().tolist() == pytest.approx(expected)


def test_low_contrast_keeps_each_film_s_mean_and_shrinks_the_rest():
    clean = torch.cat([hill(), 0.5 * hill()])
    faint = noise.corrupt(clean, "low_contrast", 0.8, generator=generator())
    assert faint.mean(dim=(1, 2, 3)).tolist() == pytest.approx(clean.mean(dim=(1, 2, 3)).tolist(), abs=1e-4)
    assert (faint.std(dim=(1, 2, 3)) / clean.std(dim=(1, 2, 3))).tolist() == pytest.approx([0.2, 0.2], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_can_be_trained_on_every_kind(kind):
    corruption = steps.Corruption(kind, middle(kind))
    noisy = corruption(films(4, size=32), generator())
    assert noisy.shape == (4, 1, 32, 32) and noisy.isfinite().all()
    assert torch.equal(corruption(films(4, size=32), generator()), noisy)


# the bias of clipping


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_clipped_mean_against_monte_carlo(sigma):
    x = np.linspace(0, 1, 11)
    drawn = np.random.default_rng(0).standard_normal((200_000, 1))
    expected = np.clip(x + sigma * drawn, 0, 1).mean(axis=0)
    np.testing.assert_allclose(noise.clipped_mean(x, sigma), expected, atol=0.004)


def test_clipped_mean_of_black_and_white():
    np.testing.assert_allclose(noise.clipped_mean(np.array([0.0, 0.5, 1.0]), 0.5), [0.195, 0.5, 0.805], atol=0.0005)


@pytest.mark.parametrize("sigma", [0.05, 0.25, 0.5, 1.0])
def test_unclip_inverts(sigma):
    x = np.linspace(0, 1, 333)
    back = noise.unclip(noise.clipped_mean(x, sigma), sigma)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_unclip_stays_in_the_range():
    assert noise.unclip(np.array([-0.1, 0.0, 0.19, 0.81, 1.0, 1.2]), 0.5).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("brightness", [0.0, 0.25, 0.5, 1.0])
def test_smooth_takes_out_the_bias_that_a_plain_blur_keeps(brightness):
    clean = flat(brightness)
    noisy = noise.add_noise(clean, 0.5, generator=generator())[:, 0].numpy()
    smoothed, plain = noise.smooth(noisy, 0.5, width=5.0), noise.smooth(noisy, 0.0, width=5.0)
    assert smoothed.dtype == np.float32 and smoothed.shape == noisy.shape
    assert smoothed.mean() == pytest.approx(brightness, abs=0.02)
    bias = noise.clipped_mean(np.array(brightness), 0.5) - brightness
    assert plain.mean() - brightness == pytest.approx(bias, abs=0.005)
    if brightness in (0.0, 1.0):
        assert abs(plain.mean() - brightness) > 0.19


def test_smooth_without_noise_is_the_blur():
    film = hill()
    plain = noise.smooth(film[:, 0].numpy(), 0.0, width=2.0)
    assert np.array_equal(plain, noise.corrupt(film, "blur", 2.0, generator=generator())[:, 0].numpy())
