"""`pneumo serve` without --run: the published model, else that of `make report`, each named as what it is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pneumo_lib import cli_serve, runtime
from pneumo_lib.service import server

SAID = "no --run given: demo, the model of `make report`, made on drawings."
PUBLISHED = "no --run given: figures, the published model; figures/model_card.md says what it is and what it is not."


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """The working directory, which looks like a clone of the project: the two folders by which it is known."""
    for name in ("pneumo_lib", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PNEUMO_HISTORY", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "weights", "folders", "said"),
    [
        (None, False, ["runs/demo"], f"{SAID}\n"),
        (None, True, ["figures"], f"{PUBLISHED}\n"),
        (["runs/mine"], True, ["runs/mine"], ""),
    ],
)
def test_only_who_names_no_run_is_told_what_is_taken(clone, monkeypatch, capsys, given, weights, folders, said):
    asked = []
    if weights:
        (clone / "figures" / "systems" / "films" / "cnn3").mkdir(parents=True)
        (clone / "figures" / "systems" / "films" / "cnn3" / "model.safetensors").touch()
    monkeypatch.setattr(server, "serve", lambda folders, *_, **options: asked.append((folders, options["port"])))
    monkeypatch.setattr(cli_serve, "_hush", lambda: None)
    monkeypatch.setattr(cli_serve.os, "_exit", asked.append)
    cli_serve.serve(run=given, host="127.0.0.1", port=8000, history="", token="", proxy=False, upgrade=False)
    assert asked == [(folders, 8000), 0]
    assert capsys.readouterr().err == said


def test_the_demo_is_found_wherever_in_the_project_one_stands(clone, monkeypatch):
    (clone / "notebooks" / "deep").mkdir()
    monkeypatch.chdir(clone / "notebooks" / "deep")
    assert runtime.locate(cli_serve.told_default()) == clone / "runs" / "demo"


@pytest.mark.slow
@pytest.mark.parametrize("made", [True, False])
def test_the_server_starts_with_the_demo_or_says_how_to_make_it(clone, tiny_run, made):
    if made:
        others = shutil.ignore_patterns("checkpoints", "state_*")
        shutil.copytree(tiny_run.path, clone / "runs" / "demo", ignore=others)
    command = [sys.executable, "-m", "pneumo_lib", "serve", "--port", "0"]
    options = {"cwd": clone / "notebooks", "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    reader.start()
    try:
        address = re.search(r"http://\S+?:\d+", process.stdout.readline())[0]
        models = json.load(urllib.request.urlopen(f"{address}/api/v1/models", timeout=30))["models"]
        try:
            ready = urllib.request.urlopen(f"{address}/api/v1/ready", timeout=30).status, {}
        except urllib.error.HTTPError as error:
            ready = error.code, json.load(error)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        reader.join(30)
    assert f"{SAID}\n" in said
    assert [model["id"].partition("/")[0] for model in models] == (["demo", "demo"] if made else [])
    if made:
        assert ready == (200, {}) and (clone / "runs" / "history.sqlite3").exists()
    else:
        (problem,) = (one for one in ready[1]["problems"] if one["code"] == "model_not_loaded")
        assert ready[0] == 503 and "demo holds no trained classifier" in problem["message"]
        assert "make report" in problem["hint"]
