"""The order of the house: who may import whom, how long a module may be, and that importing does nothing else."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pneumo_lib

HOUSE = Path(pneumo_lib.__file__).parent
MAX_LINES = 300

# A module imports only from lines above its own, never sideways or down. A package counts as one module here, and has
# an order of its own inside; "__init__" there is the package's face.
LAYERS = [
    ["errors", "forks", "replay"],
    ["recipe", "guards", "processes", "workers"],
    ["dicom", "system"],
    ["runtime"],
    ["config"],
    ["metrics", "display", "images"],
    ["calibration", "plots", "novelty", "decision", "chosen", "augmentation"],
    ["noise", "models", "engine", "plots_panels"],
    ["steps"],
    ["runs", "data"],
    ["systems", "controls"],
    ["training_machinery"],
    ["training"],
    ["evaluation", "explain", "answers"],
    ["pipeline"],
    ["ablation", "diagnosis", "trials"],
    ["comparison", "standings", "robustness", "evidence"],
    ["arms", "claims", "confidence", "evidence_text"],
    ["findings"],
    ["report_language", "kernels"],
    ["report_chapter"],
    ["report_html"],
    ["report", "publish"],
    ["data_card", "release"],
    ["model_card"],
    ["service"],
    ["cli_data", "cli_serve"],
    ["cli_train", "cli_publish"],
    ["cli"],
    ["__main__"],
]
INSIDE = {
    "data": [
        ["cards", "anatomy", "picked", "registration"],
        ["layout", "phantom"],
        ["folder"],
        ["mnist"],
        ["cache", "download"],
        ["split", "audit", "explore", "licences"],
        ["duplicates", "inventory"],
        ["__init__"],
    ],
    "models": [
        ["autoencoder", "cnn2", "unet_denoiser", "gray", "inspection"],
        ["cnn3", "cnn4", "cnn5", "resnet34", "torchvision_models", "aernet"],
        ["resnet18_s2d"],
        ["weights", "ensemble"],
        ["__init__"],
    ],
    "service": [
        ["settings", "faults", "pictures", "recent", "migrations", "tables", "together", "spool"],
        ["search"],
        ["history", "catalog", "security"],
        ["records"],
        ["worker", "forms"],
        ["cases", "openapi"],
        ["export"],
        ["api", "pages"],
        ["__init__"],
        ["server"],
    ],
}
ERRORS_ONLY = ("guards", "processes")


def module_name(path):
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts if len(parts) == 1 or parts[-1] != "__init__" else parts[:-1])


RUN_BY_ALEMBIC = HOUSE / "service" / "migrations"  # its scripts are no modules: only the package's face is
SCRIPTS = set(RUN_BY_ALEMBIC.rglob("*.py")) - {RUN_BY_ALEMBIC / "__init__.py"}
FILES = {module_name(path): path for path in sorted(set(HOUSE.rglob("*.py")) - SCRIPTS)}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def resolve(dotted):
    """The module of this house that `pneumo_lib.x.y` leads to, "" for the package itself, None for a stranger."""
    first, _, rest = dotted.partition(".")
    if first != "pneumo_lib":
        return None
    while rest and rest not in FILES:
        rest = rest.rpartition(".")[0]
    return rest


def imports(tree):
    """The modules of this house that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {resolve(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {resolve(f"{node.module}.{alias.name}") for alias in node.names}
    return found - {None, ""}


def strangers():
    """Every module from outside that the house imports at the top of a file."""
    found = set()
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
    return sorted(name for name in found if resolve(name) is None)


def places(layers):
    return {name: place for place, line in enumerate(layers) for name in line}


def forbidden(importer, imported):
    """Whether the order forbids this import."""
    (here, _, inner), (there, _, other) = importer.partition("."), imported.partition(".")
    if here != there:
        return places(LAYERS)[there] >= places(LAYERS)[here]
    order = places(INSIDE[here])
    return order[other or "__init__"] >= order[inner or "__init__"]


def test_the_rule_itself_can_fail():
    assert forbidden("metrics", "calibration") and not forbidden("calibration", "metrics")
    assert forbidden("noise", "models.cnn2"), "sideways"
    assert forbidden("data.cache", "runs") and forbidden("runs", "data"), "sideways, between a package and a module"
    assert forbidden("data.cards", "data.folder") and not forbidden("data.folder", "data.cards")
    assert forbidden("data.cache", "data"), "a part does not import its package's face"
    assert forbidden("data.cache", "training") and not forbidden("training", "data.cache")
    tree = ast.parse("from pneumo_lib import cli, __version__\ndef f():\n    import pneumo_lib.data.cache as c")
    assert imports(tree) == {"cli", "data.cache"}
    assert imports(ast.parse("from pneumo_lib.data import ImageSet, audit\nimport numpy")) == {"data", "data.audit"}


def test_every_module_has_its_place_and_every_place_its_module():
    listed = [name for line in LAYERS for name in line if name not in INSIDE]
    listed += [p if n == "__init__" else f"{p}.{n}" for p, lines in INSIDE.items() for line in lines for n in line]
    assert sorted(listed) == sorted(FILES.keys() - {"__init__"})


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"__init__"}))
def test_imports_point_upwards(name):
    wrong = sorted(other for other in imports(TREES[name]) if forbidden(name, other))
    assert not wrong, f"{name} imports {', '.join(wrong)}, which stand beside or below it"


def test_the_package_itself_imports_nothing():
    assert not imports(TREES["__init__"])


@pytest.mark.parametrize("name", ERRORS_ONLY)
def test_the_foundations_need_errors_at_most(name):
    assert imports(TREES[name]) <= {"errors"}


@pytest.mark.parametrize("name", FILES)
def test_imports_are_absolute_and_without_stars(name):
    froms = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom)]
    assert not [node.lineno for node in froms if node.level], "relative imports hide where a name comes from"
    assert not [node.lineno for node in froms if any(alias.name == "*" for alias in node.names)]


@pytest.mark.parametrize("name", FILES)
def test_no_module_is_long(name):
    lines = FILES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES


def test_there_is_no_drawer_for_everything():
    assert not {"utils", "util", "helpers", "common", "misc"} & {name.rpartition(".")[2] for name in FILES}


@pytest.mark.parametrize("name", [name for name in FILES if name != "cli_serve"])  # that is a program
def test_the_library_does_not_print_or_touch_logging_and_warnings(name):
    mute = {"print", "basicConfig", "addHandler", "setLevel", "filterwarnings", "simplefilter"}
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    found = [(c.lineno, n) for c in calls if (n := getattr(c.func, "id", getattr(c.func, "attr", ""))) in mute]
    assert not found


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is_for(name):
    said = ast.get_docstring(TREES[name])
    assert said and said.splitlines()[0].endswith((".", ":", "?"))


PROBE = """
import importlib, json, logging, os, sys, warnings

def state():
    loggers = [logging.root, *(l for l in logging.root.manager.loggerDict.values() if isinstance(l, logging.Logger))]
    return {
        "filters": [str(f) for f in warnings.filters],
        "handlers": sorted(f"{l.name}: {h}" for l in loggers for h in l.handlers),
        "level": logging.root.level,
        "style": {k: str(v) for k, v in sys.modules["matplotlib"].rcParams.items()},
        "draws": sys.modules["torch"].get_rng_state().tolist(),
        "environment": dict(os.environ),
        "threads": sys.modules["torch"].get_num_threads(),
        "files": sorted(os.path.join(folder, f) for folder, _, files in os.walk(os.getcwd()) for f in files),
    }

for name in STRANGERS:
    importlib.import_module(name)
before = state()
for name in MODULES:
    importlib.import_module(name)
after = state()
json.dump({key: [before[key], after[key]] for key in before if before[key] != after[key]}, sys.stderr)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A fresh interpreter that imports what others wrote, looks around, imports the house, and looks again."""
    home = tmp_path_factory.mktemp("home")
    (home / "work").mkdir()
    house = sorted(
        f"pneumo_lib.{name}" for name in FILES.keys() - {"__init__", "__main__"}
    )  # that one runs the program
    probe = f"STRANGERS = {strangers()!r}\nMODULES = {house!r}\n{PROBE}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE"))}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(HOUSE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=home / "work", env=environment, capture_output=True, text=True, timeout=120
    )
    return done, home


def test_importing_changes_nothing_around_it(imported):
    done, home = imported
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert json.loads(done.stderr.splitlines()[-1]) == {}
    assert list((home / "work").iterdir()) == [], "no folder either"
