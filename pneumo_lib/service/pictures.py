"""Arrays to PNG files: films, heat maps to lay over them, feature maps."""

import zlib
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from PIL import Image

LONGEST = 1024  # pixels of a film that is shown or kept
STRONGEST = 0.5  # opacity of a heat map where it is largest; the page's slider weakens it
MOST_MAPS, COLUMNS, TILE = 32, 8, 96

Array = np.ndarray


def shown(pixels: Array) -> Array:
    """A film (H, W) float in [0, 1] as it is shown: uint8, its long side at most 1024 pixels."""
    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(image)


def png(pixels: Array) -> bytes:
    """A uint8 picture, (H, W) grey or (H, W, 4) RGBA, as a PNG file without metadata."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(
        buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE
    )  # films: smaller so, in half the time
    return buffer.getvalue()


def from_png(data: bytes) -> Array:
    """Undoes `png` of a grey picture."""
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image.convert("L"))


def fitted(pixels: Array, shape: tuple[int, int]) -> Array:
    """A float map (h, w) on the grid of a film (H, W), bilinear: float32."""
    image = Image.fromarray(np.asarray(pixels, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def heat_map(cam: Array, shape: tuple[int, int]) -> Array:
    """A Grad-CAM map (h, w) >= 0 as RGBA uint8 (H, W, 4), to be laid over the film.

    Its own maximum is the strongest colour, so that maps of two classes or films cannot be compared by eye. All
    transparent where nothing speaks for the class.
    """
    share = np.clip(fitted(cam, shape) / max(float(cam.max()), 1e-12), 0, 1)
    colours = colormaps["inferno"](share)
    colours[..., 3] = STRONGEST * share
    return np.rint(colours * 255).astype(np.uint8)


def feature_maps(maps: Array) -> Array:
    """The strongest maps (C, h, w) of a stage side by side, each on its own grey scale: uint8 (H, W)."""
    chosen = maps[np.sort(np.argsort(-maps.mean(axis=(1, 2)), kind="stable")[:MOST_MAPS])]
    low, high = (function(chosen, axis=(1, 2), keepdims=True) for function in (np.min, np.max))
    tiles = [_tile(tile) for tile in (chosen - low) / np.maximum(high - low, 1e-12)]
    tiles += [np.full((TILE, TILE), 255, np.uint8)] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[k : k + COLUMNS], axis=1) for k in range(0, len(tiles), COLUMNS)]
    return np.concatenate(rows)


def _tile(scaled: Array) -> Array:
    tile = np.full((TILE, TILE), 255, np.uint8)
    image = Image.fromarray(np.rint(scaled * 255).astype(np.uint8))
    tile[2:-2, 2:-2] = np.asarray(image.resize((TILE - 4, TILE - 4), Image.Resampling.NEAREST))
    return tile
