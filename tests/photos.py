"""Pictures that are no films of a patient and that nobody has to download: those which scikit-image brings along."""

import functools
from pathlib import Path

import numpy as np
import skimage.data

from pneumo_lib import images

# A cat, people and things, textures, pages, and what medicine and science make under other lamps. All of them are in
# the wheel; scikit-image would have to download the rest of its collection.
NAMES = (
    *("chelsea", "astronaut", "camera", "coffee", "rocket", "coins", "clock_motion", "motorcycle_left", "horse"),
    *("page", "text", "logo", "chessboard_GRAY", "color", "brick", "grass", "gravel"),
    *("retina", "ihc", "cell", "microaneurysms", "moon", "hubble_deep_field", "phantom"),
)


@functools.cache
def shipped() -> dict[str, np.ndarray]:
    """Each as the service would read it: (H, W) uint8."""
    folder = Path(skimage.data.data_dir)
    files = {name: next(folder.glob(f"{name}.[jp][pn]g")) for name in NAMES}
    return {f"photo {name}": images.to_uint8(images.read(path)) for name, path in files.items()}
