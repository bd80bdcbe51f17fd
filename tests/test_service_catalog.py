"""The models that a service offers: each can be chosen, whatever its run folder is called."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from service_app import API, calling, results, send

from pneumo_lib.service import catalog
from pneumo_lib.service.cases import Clinic
from pneumo_lib.service.history import History

MODEL = "cnn2_on_unet_denoiser"


@pytest.fixture
def copied(tiny_run, tmp_path):
    """Makes a run folder PARENT/NAME whose one model decides at this threshold."""
    others = shutil.ignore_patterns("checkpoints", "state_*", "cnn2_on_autoencoder")

    def copy(parent: str, name: str, threshold: float) -> Path:
        run = shutil.copytree(tiny_run.path, tmp_path / parent / name, ignore=others)
        path = run / "classifier" / MODEL / "model.json"
        card = json.loads(path.read_text())
        card["decision"]["threshold"] = threshold
        path.write_text(json.dumps(card))
        return run

    return copy


def test_run_folders_of_one_name_are_numbered_and_every_model_can_be_chosen(copied, settings, films):
    folders = [copied(parent, "demo", threshold) for parent, threshold in (("a", 0.11), ("b", 0.22), ("c", 0.33))]
    loaded = catalog.load(folders)
    wanted = {f"demo/{MODEL}": 0.11, f"demo-2/{MODEL}": 0.22, f"demo-3/{MODEL}": 0.33}
    assert {offer.id: offer.threshold for offer in loaded.models} == wanted and loaded.problems == ()
    assert {id: loaded.find(id).threshold for id in wanted} == wanted
    assert [offer.id for offer in catalog.load(folders).models] == list(wanted), "the same after another start"
    assert catalog.load(folders[:1]).models[0].id == f"demo/{MODEL}", "whatever comes behind it"
    with closing(Clinic(settings, loaded, History(settings.history), threads=1)) as clinic:
        client = calling(clinic)
        assert [model["id"] for model in client.get(f"{API}/models").json["models"]] == list(wanted)
        for id, threshold in wanted.items():
            (record,) = results(send(client, films[0], model=id))
            assert (record["model"]["id"], record["threshold"]) == (id, threshold)


def test_a_model_brings_the_card_that_lies_with_it(copied):
    first, second = copied("a", "demo", 0.11), copied("b", "demo", 0.22)
    (second / "model_card.md").write_text("# Model card\n")
    assert [offer.papers for offer in catalog.load([first, second]).models] == ["", "# Model card\n"]


def test_models_of_one_title_are_told_apart(copied, tiny_run):
    loaded = catalog.load([copied("a", "demo", 0.11), copied("b", "demo", 0.22), tiny_run.path])
    titles = {offer.id: offer.title for offer in loaded.models}
    assert len(set(titles.values())) == len(titles) == 4
    assert titles[f"demo-2/{MODEL}"].endswith(f" (demo-2/{MODEL})")
    assert "(" not in titles["tiny/cnn2_on_autoencoder"], "where the title says it all"


def test_a_folder_given_twice_counts_once(copied, tmp_path):
    folder = copied("a", "demo", 0.5)
    (tmp_path / "latest").symlink_to(folder)
    for folders in ([folder, folder], [folder, f"{folder}/../demo"], [folder, tmp_path / "latest"]):
        assert [offer.id for offer in catalog.load(folders).models] == [f"demo/{MODEL}"]
    assert catalog.load([tmp_path / "latest"]).models[0].id == f"latest/{MODEL}"


def test_a_number_takes_no_name_that_a_folder_has(copied):
    folders = [copied("a", "demo", 0.11), copied("b", "demo", 0.22), copied("c", "demo-2", 0.33)]
    found = {offer.threshold: offer.id for offer in catalog.load(folders).models}
    assert found == {0.11: f"demo/{MODEL}", 0.22: f"demo-3/{MODEL}", 0.33: f"demo-2/{MODEL}"}


def test_a_problem_names_the_folder_as_ids_do_and_not_where_it_lies(copied, tmp_path):
    folders = [copied("a", "demo", 0.11), copied("b", "demo", 0.22)]
    (folders[1] / "classifier" / MODEL / "model.safetensors").unlink()
    loaded = catalog.load(folders)
    assert [offer.id for offer in loaded.models] == [f"demo/{MODEL}"]
    (problem,) = loaded.problems
    assert problem.startswith("demo-2/") and str(tmp_path) not in problem
