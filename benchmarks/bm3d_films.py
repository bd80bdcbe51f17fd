"""BM3D beside the denoisers of a run, on the same noisy validation films, its clipping bias taken out as ours is.

    pip install bm3d                     # for non-commercial use only, so no dependency of this project
    python benchmarks/bm3d_films.py --run RUN --films 40

BM3D is told the standard deviation that clipping leaves of the noise. It is given the best of several, found on the
first eight films, so that it cannot be said to be held back.
"""

import argparse
import sys
import time
from pathlib import Path

import bm3d
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from pneumo_lib import evaluation, metrics, noise, pipeline, runs  # noqa: E402

STRENGTHS = (0.45, 0.5, 0.6, 0.75)
TUNED_ON = 8


def restored(films: np.ndarray, strength: float, sigma: float) -> np.ndarray:
    """(N, H, W) float32 noisy to the same denoised, the bias of clipping taken out."""
    smoothed = np.stack([bm3d.bm3d(film, sigma_psd=strength) for film in films])
    return noise.unclip(np.clip(smoothed, 0, 1).astype(np.float32), sigma)


def main() -> None:
    """Print mean PSNR and SSIM of each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="run folder with denoisers")
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--cache", default="cache")
    given = parser.parse_args()
    run = runs.load_run(given.run)
    images, sigma = pipeline.open_data(run.config, given.cache), run.config.sigma
    films = pipeline.films(images, "val").draw(given.films, seed=0)
    noisy, clean = evaluation.corrupted(films, pipeline.view(run.config)), films.images.astype(np.float32) / 255
    few = slice(0, TUNED_ON)
    gains = {s: metrics.psnr(restored(noisy[few], s, sigma), clean[few]).mean() for s in STRENGTHS}
    print({s: round(float(gain), 2) for s, gain in gains.items()}, flush=True)
    best = max(gains, key=gains.get)
    start = time.perf_counter()
    found = {f"BM3D, strength {best:g}, unclipped": restored(noisy, best, sigma)}
    seconds = (time.perf_counter() - start) / len(films)
    for folder in sorted((run.path / "denoiser").glob("*/model.json")):
        found[folder.parent.name] = evaluation.restore(runs.load_model(folder.parent).model, noisy)
    for name, pictures in found.items():
        psnr = metrics.mean_interval(metrics.psnr(pictures, clean), seed=0)
        ssim = metrics.mean_interval(metrics.ssim(pictures, clean), seed=0)
        print(f"{name}: {psnr.text(2, unit='dB')}, SSIM {ssim.text()}, n = {len(films)}")
    print(f"BM3D: {seconds:.1f} s per film")


if __name__ == "__main__":
    main()
