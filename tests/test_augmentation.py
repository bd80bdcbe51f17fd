"""Augmentation: every film by numbers of its own, repeatable from the generator, and each change what it says."""

import math
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.transforms.v2 import functional as TF

from pneumo_lib import augmentation
from pneumo_lib.augmentation import Changes, augment, describe, draw, move, shade
from pneumo_lib.errors import UsageError
from pneumo_lib.recipe import Augmentation

FULL = Augmentation(
    rotation=15, shift=0.1, zoom=(0.8, 1.2), shear=5, flip=True, brightness=0.2, contrast=0.2, gamma=0.3
)
ALONE = {
    "rotation": Augmentation(rotation=15),
    "shift": Augmentation(shift=0.1),
    "zoom": Augmentation(zoom=(0.5, 0.9)),
    "shear": Augmentation(shear=20),
    "flip": Augmentation(flip=True),
    "brightness": Augmentation(brightness=0.2),
    "contrast": Augmentation(contrast=0.5),
    "gamma": Augmentation(gamma=0.5),
    "all": FULL,
}
each_alone = pytest.mark.parametrize("how", ALONE.values(), ids=ALONE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def films(n=4, height=32, width=32, seed=5):
    return torch.rand((n, 1, height, width), generator=generator(seed))


def smooth(n=1, height=40, width=40):
    """Films without sharp edges or symmetry."""
    rough = ndimage.gaussian_filter(films(n, height, width).numpy(), (0, 0, 3, 3))
    return torch.from_numpy((rough - rough.min()) / (rough.max() - rough.min()))


def changes(**given):
    """The changes that change nothing, but for the numbers given, one per film."""
    n = len(next(iter(given.values())))
    nothing = {field.name: 0.0 for field in fields(Changes)} | {"zoom": 1.0, "contrast": 1.0, "gamma": 1.0}
    made = {name: torch.full((n,), value) for name, value in nothing.items()}
    made |= {name: torch.tensor(values, dtype=torch.float32) for name, values in given.items()}
    return Changes(**made | {"flip": made["flip"] > 0})


# what holds whatever is turned on


def test_the_identity_returns_the_films_themselves_and_draws_nothing():
    clean, drawn = films(), generator()
    assert augment(clean, Augmentation(), drawn) is clean
    assert torch.equal(drawn.get_state(), generator().get_state())


@each_alone
def test_equal_films_of_a_batch_come_out_different(how):
    clean = films(1).repeat(16, 1, 1, 1)
    out = augment(clean, how, generator())
    assert len({film.numpy().tobytes() for film in out}) == (2 if how == ALONE["flip"] else 16)


def test_a_share_of_the_films_is_changed_as_all_would_be_and_the_rest_left_alone():
    clean = films(400, 8, 8)
    every, some = (augment(clean, how, generator()) for how in (FULL, replace(FULL, share=0.3)))
    changed = (some != clean).flatten(1).any(dim=1)
    assert torch.equal(some[changed], every[changed]) and (every != clean).flatten(1).any(dim=1).all()
    assert 90 < changed.sum() < 150, "120 expected, binomial"


@each_alone
def test_the_result_follows_from_the_generator_alone(how):
    torch.manual_seed(1)
    first = augment(films(), how, generator(3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = augment(films(), how, generator(3))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was drawn from"
    assert not torch.equal(first, augment(films(), how, generator(4)))


@each_alone
def test_the_next_batch_of_one_generator_is_changed_differently(how):
    drawn = generator(3)
    assert not torch.equal(augment(films(8), how, drawn), augment(films(8), how, drawn))


@each_alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_layout_and_range_are_kept_and_the_films_are_not_touched(how, dtype):
    pixels = torch.randint(0, 2, (6, 1, 24, 40), generator=generator(), dtype=torch.uint8) * 255
    first = pixels.to(dtype) / 255
    last = torch.empty_like(first, memory_format=torch.channels_last).copy_(first)
    assert first.stride() != last.stride()
    wanting = first.clone().requires_grad_()
    for clean in (first, last, first[:1], last[:1], first[..., :7, :5], first[:, :, ::2], wanting):
        before = clean.clone()
        for seed in range(5):
            out = augment(clean, how, generator(seed))
            assert (out.shape, out.dtype, out.device) == (clean.shape, dtype, clean.device)
            assert out.stride() == torch.empty_like(clean).stride()
            assert out.min() >= 0 and out.max() <= 1
            assert torch.equal(clean, before) and not out.requires_grad
            assert out.data_ptr() != clean.data_ptr()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_films_stay_so_under_everything_but_brightness(value):
    clean = torch.full((8, 1, 20, 20), value)
    out = augment(clean, replace(FULL, brightness=0.0), generator())
    torch.testing.assert_close(out, clean, atol=1e-6, rtol=0)


def test_films_that_are_not_float_are_refused():
    with pytest.raises(UsageError, match=r"torch\.uint8.*floats in \[0, 1\]"):
        augment(torch.zeros((1, 1, 8, 8), dtype=torch.uint8), FULL, generator())


def test_turning_one_change_on_leaves_the_numbers_of_the_others():
    narrow, wide = draw(replace(FULL, rotation=0), 50, generator()), draw(FULL, 50, generator())
    for field in fields(Changes):
        same = torch.equal(getattr(narrow, field.name), getattr(wide, field.name))
        assert same == (field.name != "rotation"), field.name


@each_alone
def test_autocast_makes_nothing_coarser(how):
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment(films(), how, generator())
    assert torch.equal(inside, augment(films(), how, generator()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_alone
def test_on_the_gpu_the_same_changes_give_the_same_films(how):
    clean, drawn = smooth(8), draw(how, 8, generator())
    there = Changes(**{field.name: getattr(drawn, field.name).cuda() for field in fields(Changes)})
    torch.testing.assert_close(move(clean.cuda(), there).cpu(), move(clean, drawn), atol=1e-4, rtol=0)
    torch.testing.assert_close(shade(clean.cuda(), there).cpu(), shade(clean, drawn), atol=1e-5, rtol=0)
    before = torch.cuda.get_rng_state()
    first, again = (augment(clean.cuda(), how, torch.Generator("cuda").manual_seed(3)) for _ in range(2))
    assert first.is_cuda and torch.equal(first, again)
    assert torch.equal(torch.cuda.get_rng_state(), before)


# what is drawn


def test_every_number_fills_its_bounds_evenly():
    n = 20_000
    drawn = draw(FULL, n, generator())
    bounds = {
        "rotation": (-math.radians(15), math.radians(15)),
        "right": (-0.1, 0.1),
        "down": (-0.1, 0.1),
        "zoom": (0.8, 1.2),
        "shear": (-math.radians(5), math.radians(5)),
        "brightness": (-0.2, 0.2),
        "contrast": (0.8, 1.2),
    }
    for name, (low, high) in bounds.items() | {("log gamma", (-0.3, 0.3))}:
        share = (drawn.gamma.log() if name == "log gamma" else getattr(drawn, name)).sub(low) / (high - low)
        assert -1e-5 <= share.min() < 0.001 and 0.999 < share.max() <= 1 + 1e-5, name
        assert abs(share.mean() - 1 / 2) < 0.01 and abs(share.var() - 1 / 12) < 0.003, name
    assert abs(drawn.flip.float().mean() - 1 / 2) < 0.015


def test_no_two_numbers_of_a_film_go_together():
    drawn = draw(FULL, 20_000, generator())
    together = np.corrcoef([getattr(drawn, field.name).numpy() for field in fields(Changes)])
    assert np.abs(together - np.eye(len(together))).max() < 0.03


def test_the_rotation_of_films_stays_within_its_bound():
    line = torch.zeros((400, 1, 61, 61))
    line[:, :, 30, 31:] = 1.0  # from the centre to the right edge
    out = augment(line, Augmentation(rotation=20), generator())[:, 0].double()
    y, x = torch.meshgrid(torch.arange(61.0) - 30, torch.arange(61.0) - 30, indexing="ij")
    angle = torch.rad2deg(torch.atan2(-(out * y).sum((1, 2)), (out * x).sum((1, 2))))
    assert angle.abs().max() < 20.5
    assert angle.max() > 19 and angle.min() < -19
    assert abs(angle.mean()) < 2


def test_zoom_above_one_magnifies_and_below_one_shrinks():
    spot = torch.zeros((50, 1, 40, 40))
    spot[:, :, 15:25, 15:25] = 1.0
    areas = [augment(spot, Augmentation(zoom=zoom), generator()).sum((1, 2, 3)) for zoom in ((0.5, 0.8), (1.2, 2.0))]
    assert areas[0].max() < 70 and areas[1].min() > 130


def test_no_film_is_ever_turned_upside_down():
    ramp = torch.linspace(0, 1, 48)[:, None].expand(400, 1, 48, 48)
    out = augment(ramp, FULL, generator())
    assert (out[:, :, 24:].mean((1, 2, 3)) > out[:, :, :24].mean((1, 2, 3))).all()


# each change against an oracle


def test_the_flip_gives_each_film_or_its_exact_mirror_image():
    clean = films(64, 20, 31)
    out = augment(clean, Augmentation(flip=True), generator())
    kept, mirrored = (out == clean).all((1, 2, 3)), (out == clean.flip(-1)).all((1, 2, 3))
    assert (kept ^ mirrored).all() and 20 < mirrored.sum() < 44


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_rotation_by_right_angles_is_rot90(turns):
    clean = films(2, 33, 33)
    out = move(clean, changes(rotation=[turns * math.pi / 2] * 2))
    torch.testing.assert_close(out, torch.rot90(clean, turns, dims=(-2, -1)), atol=1e-4, rtol=0)


def test_rotation_is_rigid_on_films_that_are_not_square():
    wide = torch.zeros((1, 1, 41, 81))
    wide[..., 20, 40:61] = 1.0
    up = move(wide, changes(rotation=[math.pi / 2]))
    expected = torch.zeros_like(wide)
    expected[..., 0:21, 40] = 1.0
    torch.testing.assert_close(up, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (-4, 0), (0, 5), (0, -2), (3, -2)])
def test_a_shift_by_whole_pixels_is_a_roll_with_the_edge_repeated(right, down):
    clean = films(1, 20, 32)
    out = move(clean, changes(right=[right / 32], down=[down / 20]))
    rows, columns = (torch.arange(20) - down).clamp(0, 19), (torch.arange(32) - right).clamp(0, 31)
    torch.testing.assert_close(out, clean[..., rows[:, None], columns], atol=1e-5, rtol=0)
    inside = (..., slice(max(down, 0), 20 + min(down, 0)), slice(max(right, 0), 32 + min(right, 0)))
    rolled = clean.roll((down, right), dims=(-2, -1))
    torch.testing.assert_close(out[inside], rolled[inside], atol=1e-5, rtol=0)


def test_zoom_2_shows_the_middle_half_twice_as_large():
    clean = smooth(2, 40, 60)
    out = move(clean, changes(zoom=[2.0, 2.0]))
    expected = TF.resize(clean, [80, 120], antialias=False)[..., 20:60, 30:90]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_shear_slides_each_row_in_proportion_to_its_distance_from_the_middle():
    line = torch.zeros((1, 1, 41, 41))
    line[..., 20] = 1.0
    out = move(line, changes(shear=[math.atan(0.5)]))
    centre = (out * torch.arange(41.0)).sum(-1) / out.sum(-1)
    torch.testing.assert_close(centre[0, 0], 20 + 0.5 * (torch.arange(41.0) - 20), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(40, 40), (28, 50)])
def test_all_movements_together_are_one_affine_map_as_scipy_has_it(size):
    clean, drawn = smooth(12, *size), draw(replace(FULL, rotation=40, shear=20), 12, generator())
    assert 0 < drawn.flip.sum() < 12
    out, half = move(clean, drawn).numpy(), (np.array(size) - 1) / 2
    for i in range(12):
        a, k = float(drawn.rotation[i]), math.tan(drawn.shear[i])
        # forwards, in (row, column): zoom, then shear, then rotation
        turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        back = np.linalg.inv(turn @ np.array([[1, 0], [k, 1]]) * float(drawn.zoom[i]))
        shift = np.array([float(drawn.down[i]) * size[0], float(drawn.right[i]) * size[1]])
        source = half - back @ (half + shift)
        film = clean[i, 0].flip(-1) if drawn.flip[i] else clean[i, 0]
        expected = ndimage.affine_transform(film.numpy(), back, source, order=1, mode="nearest")
        np.testing.assert_allclose(out[i, 0], expected, atol=2e-5)


def test_what_comes_from_outside_is_the_nearest_edge():
    edge = torch.zeros((1, 1, 16, 16))
    edge[..., 0] = 1.0
    out = move(edge, changes(right=[0.5]))
    expected = torch.zeros_like(edge)
    expected[..., :9] = 1.0
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_brightness_adds_and_clamps():
    clean = films(2)
    out = shade(clean, changes(brightness=[0.2, -0.3]))
    expected = torch.stack([clean[0] + 0.2, clean[1] - 0.3]).clamp(0, 1)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def test_contrast_keeps_the_mean_and_scales_the_spread():
    clean = 0.4 + 0.2 * films(3)
    out = shade(clean, changes(contrast=[0.5, 1.0, 1.5]))
    torch.testing.assert_close(out.mean((1, 2, 3)), clean.mean((1, 2, 3)), atol=1e-6, rtol=0)
    factor = out.std((1, 2, 3)) / clean.std((1, 2, 3))
    torch.testing.assert_close(factor, torch.tensor([0.5, 1.0, 1.5]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("factor", "gamma"), list(product((0.6, 1.4), (0.5, 2.0))))
def test_contrast_and_gamma_are_those_of_torchvision(factor, gamma):
    clean = films(2)
    out = shade(clean, changes(contrast=[factor] * 2, gamma=[gamma] * 2))
    expected = [TF.adjust_gamma(TF.adjust_contrast(film, factor), gamma) for film in clean]
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-5, rtol=0)


# words


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Augmentation(), "none"),
        (
            Augmentation(rotation=15, zoom=(0.8, 1.0), flip=True, brightness=0.2),
            "rotation ±15°, zoom 0.8-1.0, flip, brightness ±0.2",
        ),
        (Augmentation(share=0.5), "none"),
        (Augmentation(rotation=10, share=0.5), "rotation ±10°, on 50 % of the films"),
        (Augmentation(shift=0.1, shear=2.5), "shift ±10 %, shear ±2.5°"),
        (Augmentation(zoom=(1, 2), contrast=0.1, gamma=0.3), "zoom 1.0-2.0, contrast ±0.1, gamma exp(±0.3)"),
    ],
)
def test_augmentation_in_words(how, words):
    assert describe(how) == words


def test_the_words_name_every_field():
    assert len(describe(replace(FULL, share=0.5)).split(", ")) == len(fields(augmentation.Augmentation))
