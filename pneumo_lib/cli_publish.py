"""`pneumo publish` and `pneumo cards`: a trained network put into figures/ with its papers."""

from pathlib import Path
from typing import Annotated

import typer

from pneumo_lib import answers, comparison, data_card, model_card, publish, release, robustness, runs, runtime
from pneumo_lib.cli_data import CACHE, CacheOption
from pneumo_lib.data import scan
from pneumo_lib.data.inventory import inventory
from pneumo_lib.data.licences import FREE, SPOKEN
from pneumo_lib.diagnosis import PUBLISHED, list_models
from pneumo_lib.errors import DataError, UsageError

DataOption = Annotated[str, typer.Option("--data", help="Folder of its films; by default the one in its model.json.")]
LicenceOption = Annotated[
    list[str] | None, typer.Option(help=f"Terms that its films may have; by default {SPOKEN}, in any version.")
]


def publish_model(
    run: Annotated[
        str,
        typer.Argument(help="Run folder with a trained system (`pneumo train NAME`); figures, to add --corruptions."),
    ],
    model: Annotated[str, typer.Option(help="Which one, systems/DATA/NAME; by default the only one.")] = "",
    data_dir: DataOption = "",
    licence: LicenceOption = None,
    corruptions: Annotated[bool, typer.Option(help="Also show it its test films under every corruption.")] = False,
    cache: CacheOption = CACHE,
) -> None:
    """Put a trained network into figures/, where `pneumo diagnose` and `pneumo serve` find it: small enough for git.

    Its weights are rounded to float16, and the test films are answered again by the rounded network.
    """
    path = runtime.locate(run)
    name, target = _chosen(path, model), runtime.locate(PUBLISHED)
    card, again = answers.read_card(path / name), path.resolve() == target.resolve()
    _check_again(again, corruptions, data_dir)
    images = comparison.reopen(card | ({"root": str(runtime.locate(data_dir))} if data_dir else {}), cache)
    if again:
        done = answers.read(target / name)
    else:
        done = release.release(path / name, target / name, images, names=licence or FREE)
    if corruptions:
        robustness.corrupted(done.folder, images, runs.load_model(done.folder), progress=runtime.progress)
    publish.publish_systems(target, [done], target)
    typer.echo(publish.systems_table([done]))
    size = (done.folder / release.WEIGHTS).stat().st_size / 1e6
    typer.echo(f"{PUBLISHED / name}: {size:.1f} MB, rounding turned {done.card['rounding']['turned']} answers")
    _written(model_card.write(target))


def make_cards(
    data_dir: Annotated[
        str, typer.Option("--data", help="Count the films of this folder anew; by default the stored counts are kept.")
    ] = "",
) -> None:
    """Write figures/model_card.md and figures/data_card.md again, from what is stored in figures/."""
    target = runtime.locate(PUBLISHED)
    if data_dir:
        data_card.store(target, inventory(scan(runtime.locate(data_dir)), progress=runtime.progress))
    written = [*data_card.write(target), *model_card.write(target)]
    if not written:
        raise DataError(
            f"{target} holds no {data_card.FACTS} and no network, so there is nothing to write a card of. Count the "
            "films with --data FOLDER, or publish a network with `pneumo publish RUN`."
        )
    _written(written)


def _chosen(path: Path, model: str) -> str:
    names = [name for name in list_models(path) if name.startswith("systems/")]
    if model in names or (not model and len(names) == 1):
        return model or names[0]
    raise UsageError(
        f"{path} has {'no system ' + repr(model) if model else f'{len(names)} trained systems with weights'}; "
        f"choose one with --model: {', '.join(names) or 'there is none, `pneumo train NAME` makes one'}."
    )


def _check_again(again: bool, corruptions: bool, data_dir: str) -> None:
    """A network that is published already can only be measured further, on films that its card no longer names."""
    if again and not (corruptions and data_dir):
        raise UsageError(
            f"{PUBLISHED} holds what is published already. `pneumo publish {PUBLISHED} --corruptions --data FOLDER` "
            "shows its network worse films of its folder; to publish another, name the run folder of that."
        )


def _written(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"written: {path}")
