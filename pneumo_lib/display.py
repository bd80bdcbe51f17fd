"""Shows a figure in a notebook together with its alternative text, and stores it."""

import io
import re
from pathlib import Path

from IPython.display import display
from matplotlib.figure import Figure

from pneumo_lib.errors import UsageError

INLINE_DPI, FILE_DPI = 120, 200


def show(figure: Figure, alt: str, *, name: str, folder: Path | None = None) -> None:
    """Displays a figure with its alternative text: one sentence with the key number, for who does not see the figure.

    A ``folder`` gets ``name.png`` at 200 dpi, replaced whole or not at all. Raises ``UsageError`` for a faulty name.
    """
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise UsageError(f"{name!r} is no figure name; use letters, digits, '_' and '-' only.")
    show_png(_png(figure, INLINE_DPI), alt)
    if folder is not None:
        save(figure, folder / f"{name}.png")


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG at 200 dpi; an older file is replaced whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial")
    partial.write_bytes(_png(figure, FILE_DPI))
    partial.replace(path)


def show_png(png: bytes, alt: str) -> None:
    """Displays a picture drawn elsewhere, with its alternative text; ``UsageError`` if that is empty."""
    if not alt.strip():
        raise UsageError("A figure has no alternative text; say in one sentence what it shows.")
    display({"image/png": png, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def _png(figure: Figure, dpi: int) -> bytes:
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
