"""The files around the code: one truth about packages, commands that exist, no paths of a machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = "jupyterlab torch torchvision torchmetrics torchsummary torchviz matplotlib seaborn papermill".split()


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0].lower()


def _pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines), "every requirement is pinned"
    return dict(line.lower().split("==") for line in lines)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def test_requirements_pin_what_the_project_declares_and_nothing_else():
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {_name(requirement) for requirement in declared} == set(_pins())


def test_pins_respect_the_floors():
    pins = _pins()
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        name, floor = requirement.lower().split(">=")
        assert _version(pins[name]) >= _version(floor), requirement


def test_every_dependency_says_why():
    lines = re.findall(r'^    "[\w-]+>=.*$', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert len(lines) > 20
    assert [line for line in lines if "# " not in line] == []


def test_the_named_packages_are_used():
    code = "\n".join(path.read_text() for path in (ROOT / "pneumo_lib").rglob("*.py")) + (ROOT / "Makefile").read_text()
    for name in NAMED:
        assert re.search(
            rf"^(import|from) {name}\b|jupyter lab" if name == "jupyterlab" else rf"(import|from) {name}\b", code, re.M
        ), name


def test_conda_installs_the_same_requirements():
    text = (ROOT / "environment.yml").read_text()
    assert "- -r requirements.txt" in text
    assert not re.search(r"^\s+- (torch|numpy|pandas)", text, re.M), "packages are pinned in one place only"
    assert "python=3.11" in text and PROJECT["requires-python"] == ">=3.11"


def test_make_targets_of_the_readme_exist_and_carry_help():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    assert {"setup", "report", "lab", "test", "test-fast", "lint", "format", "clean"} <= targets
    called = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"report", "test", "lab"} <= called <= targets


def test_readme_commands_exist():
    from typer.main import get_command

    from pneumo_lib import cli

    verbs = get_command(cli.app).commands
    called = set(re.findall(r"`pneumo ([a-z]+)", (ROOT / "README.md").read_text()))
    assert called == set(verbs)
    assert {"describe", "audit", "phantom", "select", "download"} == set(verbs["data"].commands)


def test_readme_has_no_open_places_and_its_figures_exist():
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert figures
    assert [name for name in figures if not (ROOT / name).exists()] == []


def test_ci_calls_make_test():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.M)


def test_no_path_of_a_machine_is_stored():
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout: tracked files are unknown")
    pattern = r"/(wor[k]|roo[t]|hom[e]/[a-z]+)/"
    found = subprocess.run(["git", "grep", "-nIE", pattern, "--", "."], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == ""
