"""`pneumo data`: look at, check, draw or download sets of films."""

from pathlib import Path
from typing import Annotated

import typer

from pneumo_lib import data, runtime
from pneumo_lib.data import audit as audits
from pneumo_lib.data import download, licences, phantom

data_app = typer.Typer(no_args_is_help=True, help="Look at, check, draw or download sets of films.")
CacheOption = Annotated[str, typer.Option("--cache", help="Where decoded films are kept between runs.")]
CACHE = "cache"


@data_app.command("describe")
def describe_data(
    folder: Annotated[str, typer.Argument(help="Image folder.")],
    size: Annotated[int, typer.Option(help="Side to which films are resized, in pixels.")] = 256,
    cache: CacheOption = CACHE,
) -> None:
    """Counts per class and split, patients, and whatever was mapped, ignored or skipped."""
    images = _opened(folder, size, cache)
    typer.echo(images.describe().to_string())
    for note in images.notes:
        typer.echo(f"- {note}")


@data_app.command("audit")
def audit_data(
    folder: Annotated[str, typer.Argument(help="Image folder.")],
    out: Annotated[str, typer.Option(help="Folder for the CSV files.")] = "audit",
    cache: CacheOption = CACHE,
) -> None:
    """Look for duplicates within and between splits, and for patients that two splits share."""
    result = audits.audit(_opened(folder, 256, cache))
    typer.echo(result.summary.to_string(index=False))
    typer.echo(result.controls.to_string(index=False))
    result.write(out)
    typer.echo(f"written: {Path(out) / 'audit_*.csv'}")


@data_app.command("select")
def select_films(
    folder: Annotated[str, typer.Argument(help="Image folder whose manifest.csv has a column 'licence'.")],
    out: Annotated[str, typer.Argument(help="Folder to make; give it the data set's name, in another place.")],
    licence: Annotated[
        list[str] | None,
        typer.Option(help="Terms to keep, any version of them where none is given; by default " + licences.SPOKEN),
    ] = None,
    every_split: Annotated[
        bool, typer.Option("--every-split", help="Filter the test splits as well; by default they stay whole.")
    ] = False,
) -> None:
    """Make an image folder of only those films whose licence allows what you want to do with the network.

    Films of unknown licence are left out. A test split teaches the network nothing and stays as it is.
    """
    chosen = licences.select(
        runtime.locate(folder), runtime.locate(out), licence or licences.FREE, every_split=every_split
    )
    typer.echo(chosen.table.to_string(index=False))
    typer.echo(f"{len(chosen.folder.table):,} of {chosen.table['films'].sum():,} films in {chosen.folder.root}")


@data_app.command("phantom")
def draw_phantoms(
    out: Annotated[str, typer.Argument(help="Folder to make.")],
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed draws other patients.")] = 0,
) -> None:
    """Draw a set of chest phantoms, split like a real one."""
    typer.echo(f"written: {phantom.write_folder(out, size=size, seed=seed, progress=runtime.progress)}")


@data_app.command("download")
def download_data(
    name: Annotated[str, typer.Argument(help="Name of a data set card.")] = "chest_xray_covid",
    out: Annotated[str, typer.Option(help="Folder to make; by default data/NAME.")] = "",
    from_zip: Annotated[str, typer.Option(help="Unpack this archive or npz, fetched by hand, instead.")] = "",
    size: Annotated[int, typer.Option(help="Side in pixels of a MedMNIST set: 28, 64, 128 or 224.")] = 28,
) -> None:
    """Fetch a public set of films from Kaggle or MedMNIST."""
    place = runtime.locate(out or Path("data", name))
    folder = download.fetch(name, out=place, from_zip=from_zip or None, size=size)
    typer.echo(f"{len(folder.table):,} films in {folder.root}")


def _opened(folder: str, size: int, cache: str) -> data.ImageSet:
    return data.open_folder(
        runtime.locate(folder), image_size=size, cache_dir=runtime.locate(cache), seed=0, progress=runtime.progress
    )
