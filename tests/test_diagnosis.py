"""From one file to one answer: the same every time, one by one, and the one that the evaluation gave."""

import json
import os
import shutil
from dataclasses import replace
from types import GeneratorType

import numpy as np
import pytest
import torch
from PIL import Image

from pneumo_lib import answers, calibration, evaluation, images, models, pipeline, runs
from pneumo_lib.data import CLASSES
from pneumo_lib.decision import Diagnosis
from pneumo_lib.diagnosis import TOGETHER, Diagnoser, list_films, list_models
from pneumo_lib.engine import Engine
from pneumo_lib.errors import DataError, UsageError


@pytest.fixture(scope="module")
def diagnoser(tiny_run) -> Diagnoser:
    """Never refuses, for the films of the tiny run are too few to learn what a film looks like."""
    return lenient(Diagnoser.load(tiny_run.path))


@torch.no_grad()
def logits(diagnoser: Diagnoser, pixels: np.ndarray) -> np.ndarray:
    return diagnoser.classifier(diagnoser.denoise(diagnoser.prepare(pixels)))[0].numpy()


def lenient(diagnoser: Diagnoser) -> Diagnoser:
    return replace(diagnoser, check=replace(diagnoser.check, scales=diagnoser.check.scales * 100))


@pytest.fixture(scope="module")
def paths(tiny_images) -> list:
    """The test films as files."""
    return [tiny_images.root / path for path in tiny_images.table["path"][tiny_images.table["split"] == "test"]]


@pytest.fixture
def run(tiny_run, tmp_path) -> runs.Run:
    """A copy of the finished run, to be changed."""
    return runs.Run(shutil.copytree(tiny_run.path, tmp_path / "copy"), tiny_run.config)


# ---- one answer -----------------------------------------------------------------------------------------------------


def test_the_same_file_gets_the_same_answer(diagnoser, tiny_run, paths):
    once = [diagnoser.diagnose(path) for path in paths]
    assert [diagnoser.diagnose(path) for path in paths] == once
    assert [lenient(Diagnoser.load(tiny_run.path)).diagnose(path) for path in paths] == once, "loaded anew too"
    assert len({answer.label for answer in once}) >= 3, "a network that gives one answer would make this test blind"


def test_neither_seed_nor_gradients_nor_neighbours_change_an_answer(diagnoser, paths):
    alone = diagnoser.diagnose(paths[5])
    torch.manual_seed(99)
    np.random.seed(99)
    with torch.enable_grad():
        assert diagnoser.diagnose(paths[5]) == alone
    assert list(diagnoser.diagnose_all(paths))[5] == alone
    assert list(diagnoser.diagnose_all(reversed(paths)))[-6] == alone


def test_the_name_of_a_file_changes_nothing(diagnoser, paths, tmp_path):
    copy = shutil.copyfile(paths[0], tmp_path / "肺炎 film.jpg")  # a PNG by content
    assert replace(diagnoser.diagnose(copy), file="") == replace(diagnoser.diagnose(paths[0]), file="")


def test_probabilities_sum_to_one_and_carry_the_label(diagnoser, paths):
    for answer in diagnoser.diagnose_all(paths):
        assert list(answer.probabilities) == list(CLASSES)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=2e-3), "but for rounding"
        assert answer.confidence == max(answer.probabilities.values())
        assert answer.label.startswith(max(answer.probabilities, key=answer.probabilities.get))
        assert (answer.error, answer.message) == ("", "")


def test_below_the_threshold_a_film_stays_undecided(diagnoser, paths):
    confidence = sorted(diagnoser.diagnose(path).confidence for path in paths)
    between = replace(diagnoser, threshold=(confidence[11] + confidence[12]) / 2)
    answers, below = list(between.diagnose_all(paths)), sum(c < between.threshold for c in confidence)
    assert [answer.status for answer in answers].count("undecided") == below and 6 <= below <= 18
    for answer in answers:
        assert (answer.status == "ok") == (answer.confidence >= between.threshold) == (answer.label in CLASSES)
        if answer.status == "undecided":
            best = sorted(answer.probabilities, key=answer.probabilities.get, reverse=True)
            assert answer.label == f"{best[0]} or {best[1]}"


def test_a_confidence_at_the_threshold_decides(diagnoser, paths):
    exactly = replace(diagnoser, threshold=diagnoser.diagnose(paths[0]).confidence)
    assert exactly.diagnose(paths[0]).status == "ok"


def test_the_stored_threshold_and_temperature_are_used(diagnoser, tiny_run, tiny_images, paths):
    decision = tiny_run.load_model("classifier", "cnn2_on_unet_denoiser").card["decision"]
    assert (diagnoser.threshold, diagnoser.temperature) == (decision["threshold"], decision["temperature"])
    scores = logits(diagnoser, images.read(paths[0]))
    expected = calibration.softmax(scores[None], decision["temperature"])[0]
    assert list(diagnoser.diagnose(paths[0]).probabilities.values()) == expected.round(3).tolist()


# ---- the same as data set and evaluation ----------------------------------------------------------------------------


def test_films_are_prepared_as_in_the_data_set(diagnoser, tiny_images):
    for row in (0, 40, -1):
        pixels = images.read(tiny_images.root / tiny_images.table["path"].iloc[row])
        assert pixels.shape == (48, 48) != tiny_images.images.shape[1:]
        prepared = diagnoser.prepare(pixels)
        assert (prepared.shape, prepared.dtype) == ((1, 1, 32, 32), torch.float32)
        assert np.array_equal(prepared[0, 0].mul(255).round().byte().numpy(), tiny_images.images[row])


def test_a_film_gets_the_answer_that_the_evaluation_gave(diagnoser, tiny_run, tiny_images, paths):
    clean = next(p for p in pipeline.protocols(tiny_run.config, tiny_images) if p.name == "clean")
    table = pipeline.predict(tiny_run, tiny_images, "unet_denoiser", clean)
    expected = answers.arrays(table, CLASSES, diagnoser.temperature)[1]
    found = np.array([list(diagnoser.diagnose(path).probabilities.values()) for path in paths])
    assert found == pytest.approx(expected, abs=6e-4)
    assert [CLASSES[k] for k in found.argmax(axis=1)] == table["predicted"].tolist()


def test_the_denoiser_is_part_of_the_path(diagnoser, paths):
    pixels = images.read(paths[0])
    assert not np.allclose(logits(replace(diagnoser, denoiser=None), pixels), logits(diagnoser, pixels), atol=1e-3)


def test_explain_shows_where_on_the_film_it_looked(diagnoser, paths):
    pixels = images.read(paths[0])
    before = logits(diagnoser, pixels)
    shown = diagnoser.explain(pixels, 1)
    assert shown.maps.shape == (1, 16, 16), "raw, as the last convolution has it: 16 x 16 of a film of 32 x 32"
    assert shown.maps.isfinite().all() and shown.maps.min() >= 0
    assert np.array_equal(logits(diagnoser, pixels), before), "looking changes nothing"
    other = diagnoser.explain(pixels, 0).maps
    assert not torch.equal(other, shown.maps), "each class has a map of its own"


# ---- behaviour ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_two_percent_of_brightness_keep_most_decisions(diagnoser, paths, factor):
    kept = []
    for path in paths:
        pixels = images.read(path)
        scores = [logits(diagnoser, film) for film in (pixels, np.clip(factor * pixels, 0, 1).astype(np.float32))]
        assert not np.array_equal(*scores), "the change reaches the network"
        kept.append(scores[0].argmax() == scores[1].argmax())
    assert np.mean(kept) >= 0.9


def test_a_png_and_a_fine_jpeg_of_a_film_agree(diagnoser, paths, tmp_path):
    for path in paths[:8]:
        Image.open(path).save(tmp_path / "film.jpg", quality=98)
        one, other = diagnoser.diagnose(path), diagnoser.diagnose(tmp_path / "film.jpg")
        assert other.confidence == pytest.approx(one.confidence, abs=0.1)


# ---- files that are no films ----------------------------------------------------------------------------------------


def test_a_bad_file_is_an_answer_of_its_own_and_the_rest_goes_on(diagnoser, paths, tmp_path):
    text, half, nothing = (tmp_path / name for name in ("text.png", "half.jpg", "empty.png"))
    text.write_text("not a film, however it is called")
    Image.open(paths[0]).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    nothing.touch()
    sources = [paths[0], text, half, nothing, tmp_path / "gone.png", paths[1]]
    answers = list(diagnoser.diagnose_all(sources))
    assert [answer.status == "error" for answer in answers] == [False, True, True, True, True, False]
    for answer, source in list(zip(answers, sources, strict=True))[1:5]:
        assert answer.error in images.HINTS and str(source) in answer.message
        assert (answer.label, answer.confidence, answer.probabilities) == ("", 0.0, None)
    assert answers[0] == diagnoser.diagnose(paths[0]) and answers[5] == diagnoser.diagnose(paths[1])


def test_what_was_done_to_a_file_is_told(diagnoser, paths, tmp_path):
    film = Image.open(paths[0]).convert("RGBA")
    film.save(tmp_path / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(paths[0]).save(tmp_path / "turned.jpg", exif=turned)
    assert diagnoser.diagnose(paths[0]).notes == ()
    assert diagnoser.diagnose(tmp_path / "turned.jpg").notes != ()


def test_many_files_need_no_more_memory_than_some(diagnoser, paths):
    asked = []

    def sources():
        for path in [paths[0]] * 1000:
            asked.append(path)
            yield path

    answers = diagnoser.diagnose_all(sources())
    assert isinstance(answers, GeneratorType) and asked == []
    for taken in range(1, 101):
        assert next(answers).status != "error"
        assert len(asked) <= taken + TOGETHER * 2 * (os.cpu_count() or 1), "some are read ahead, and no more"
    answers.close()


@pytest.mark.parametrize("count", [0, 1, TOGETHER - 1, TOGETHER, TOGETHER + 1, 3 * TOGETHER])
def test_answers_keep_the_order_of_the_files_whatever_their_number(diagnoser, paths, tmp_path, count):
    bad = [tmp_path / f"gone{k}.png" for k in range(count)]
    sources = [bad[k] if k % 7 == 3 else paths[k % len(paths)] for k in range(count)]
    answers = list(diagnoser.diagnose_all(sources))
    assert [answer.file for answer in answers] == [str(source) for source in sources]
    assert [answer.status == "error" for answer in answers] == [k % 7 == 3 for k in range(count)]
    for answer in answers[-3:]:
        assert answer == diagnoser.diagnose(answer.file)


# ---- rows and JSON --------------------------------------------------------------------------------------------------


def test_rows_have_the_same_columns_whatever_the_status(diagnoser, paths, tmp_path):
    good, bad = diagnoser.diagnose(paths[0]).to_row(CLASSES), diagnoser.diagnose(tmp_path / "gone").to_row(CLASSES)
    assert list(good) == list(bad)
    assert [good[f"p_{name}"] for name in CLASSES] == list(diagnoser.diagnose(paths[0]).probabilities.values())
    assert [bad[f"p_{name}"] for name in CLASSES] == ["", "", ""]


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-a.png", "@a.png", "\ta.png", "\ra.png"])
def test_a_name_that_a_spreadsheet_would_run_is_quoted(name):
    row = Diagnosis(name, "ok", label="NORMAL", confidence=0.9).to_row(CLASSES)
    assert row["file"] == f"'{name}'"[:-1]
    assert (row["label"], row["confidence"]) == ("NORMAL", 0.9)


def test_an_ordinary_name_stays_as_it_is():
    assert Diagnosis("a=b/-c.png", "ok").to_row(())["file"] == "a=b/-c.png"


def test_answers_are_json(diagnoser, paths, tmp_path):
    for source in (paths[0], tmp_path / "gone.png"):
        answer = diagnoser.diagnose(source)
        back = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
        assert Diagnosis(**back | {"notes": tuple(back["notes"])}) == answer


# ---- lists of films -------------------------------------------------------------------------------------------------


def test_list_films_gives_a_file_or_all_files_below_a_folder(tmp_path):
    for name in ("b/2.png", "b/1.png", "a.dcm", ".hidden.png", ".ipynb_checkpoints/1.png", "b/no_suffix"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_films(tmp_path / "a.dcm") == [tmp_path / "a.dcm"]
    names = [path.relative_to(tmp_path).as_posix() for path in list_films(tmp_path)]
    assert names == ["a.dcm", "b/1.png", "b/2.png", "b/no_suffix"]


def test_list_films_below_a_hidden_folder(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "1.png").touch()
    assert list_films(tmp_path / ".cache") == [tmp_path / ".cache" / "1.png"], "what was asked for is not left out"


def test_list_films_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="gone does not exist; give a JPEG, PNG or DICOM file"):
        list_films(tmp_path / "gone")
    with pytest.raises(DataError, match="holds no files"):
        list_films(tmp_path)


# ---- loading --------------------------------------------------------------------------------------------------------


def test_a_run_gives_the_pair_that_it_settled_on(tiny_run, run, diagnoser):
    assert diagnoser.card["preprocessing"]["denoiser"] == tiny_run.config.denoiser == "unet_denoiser"
    assert (diagnoser.classes, diagnoser.image_size) == (CLASSES, 32)
    record = json.loads((run.path / "config.json").read_text()) | {"denoiser": "autoencoder"}
    (run.path / "config.json").write_text(json.dumps(record))
    assert Diagnoser.load(run.path).card["preprocessing"]["denoiser"] == "autoencoder"


def test_a_classifier_behind_another_denoiser_is_refused(run):
    folder = run.model_folder("denoiser", "unet_denoiser")
    torch.manual_seed(5)
    runs.save_model(folder, models.build("unet_denoiser"), runs.load_model(folder).card)
    with pytest.raises(DataError, match=r"behind another unet_denoiser .* Run notebook 03_classifier_training again"):
        Diagnoser.load(run.path)


def test_an_exchanged_network_is_refused_by_name(run):
    folder = run.model_folder("classifier", "cnn2_on_unet_denoiser")
    shutil.rmtree(folder)
    shutil.copytree(run.model_folder("denoiser", "unet_denoiser"), folder)
    with pytest.raises(DataError, match="'unet_denoiser'; 'cnn2' was expected"):
        Diagnoser.load(run.path)


def test_damaged_weights_are_refused(run):
    weights = run.model_folder("classifier", "cnn2_on_unet_denoiser") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256 differs"):
        Diagnoser.load(run.path)


@pytest.mark.parametrize(
    ("gone", "maker"),
    [("denoiser/unet_denoiser", "02_denoiser_training"), ("classifier", "03_classifier_training")],
)
def test_what_is_missing_is_named_with_its_notebook(run, gone, maker):
    shutil.rmtree(run.path / gone)
    with pytest.raises(DataError, match=f"made by notebook {maker}"):
        Diagnoser.load(run.path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a run folder"):
        Diagnoser.load(tmp_path)


def test_inference_leaves_no_trace_in_the_networks(diagnoser, paths):
    diagnoser.explain(images.read(paths[0]), 0)
    for network in (diagnoser.denoiser, diagnoser.classifier):
        assert not network.training and not any(module._forward_hooks for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())


def test_evaluation_and_diagnosis_agree_on_what_a_clean_view_is(tiny_run, tiny_images, diagnoser):
    films = pipeline.films(tiny_images, "test")
    seen = evaluation.corrupted(films, evaluation.View("gaussian", 0.0, tiny_run.config.seed))
    assert np.array_equal(seen, films.images.astype(np.float32) / 255), "strength 0 shows the film as it is"


# ---- films side by side, and pictures that are none -----------------------------------------------------------------


def test_films_that_go_through_the_networks_together_get_the_answers_of_each_alone(tiny_run, paths):
    diagnoser = Diagnoser.load(tiny_run.path)
    films = np.stack([diagnoser.shrink(images.read(path)) for path in paths])
    alone = [diagnoser.answer(film[None])[0] for film in films]
    for size in (2, 3, 8, len(films)):
        together = [a for k in range(0, len(films), size) for a in diagnoser.answer(films[k : k + size])]
        assert together == alone, "to the last digit"


def test_numbers_close_to_where_rounding_turns_are_computed_again_alone(tiny_run, paths, monkeypatch):
    diagnoser = Diagnoser.load(tiny_run.path)
    films = np.stack([diagnoser.shrink(images.read(path)) for path in paths[:6]])
    sizes, once = [], Diagnoser._answer

    def counted(self, batch, handling, *run):
        sizes.append(len(batch))
        return once(self, batch, handling, *run)

    monkeypatch.setattr(Diagnoser, "_answer", counted)
    monkeypatch.setattr("pneumo_lib.diagnosis.DOUBT", 1.0)
    diagnoser.answer(films)
    assert sizes == [6] + [1] * 6
    monkeypatch.setattr("pneumo_lib.diagnosis.DOUBT", 0.0)
    monkeypatch.setattr("pneumo_lib.diagnosis.SCORE_DOUBT", 0.0)
    sizes.clear()
    diagnoser.answer(films)
    assert sizes == [6]


def test_compiled_networks_give_the_same_answers(tiny_run, paths, monkeypatch):
    diagnoser, compiled = Diagnoser.load(tiny_run.path), Diagnoser.load(tiny_run.path)
    films = np.stack([diagnoser.shrink(images.read(path)) for path in paths])
    expected = diagnoser.answer(films)
    compiled.compile()
    plain, asked = Engine.plain, []
    monkeypatch.setattr(Engine, "plain", lambda self, batch: asked.append(len(batch)) or plain(self, batch))
    assert compiled.answer(films) == expected, "to the last digit"
    assert set(asked) <= {1}, "PyTorch was asked for single films only"
    monkeypatch.setattr("pneumo_lib.diagnosis.DOUBT", 1.0)
    compiled.answer(films[:3])
    assert asked[-3:] == [1, 1, 1]


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_blank_picture_is_refused_and_given_no_class(tiny_run, tmp_path, level):
    Image.new("L", (300, 300), round(255 * level)).save(tmp_path / "blank.png")
    answer = Diagnoser.load(tiny_run.path).diagnose(tmp_path / "blank.png")
    assert (answer.status, answer.label, answer.probabilities, answer.confidence) == ("refused", "", None, 0.0)
    assert answer.likeness > 1


def test_a_classifier_without_a_check_answers_unchecked(run, paths):
    folder = run.path / "classifier" / "cnn2_on_unet_denoiser"
    record = json.loads((folder / "model.json").read_text())
    del record["novelty"]
    (folder / "model.json").write_text(json.dumps(record))
    answer = Diagnoser.load(run.path).diagnose(paths[0])
    assert answer.status == "unchecked" and answer.label and answer.likeness is None


def test_noise_handling_can_be_chosen_and_leaves_the_check_as_it_is(tiny_run, paths):
    diagnoser = Diagnoser.load(tiny_run.path)
    films = np.stack([diagnoser.shrink(images.read(path)) for path in paths])
    own, plain = diagnoser.answer(films), diagnoser.answer(films, "none")
    assert diagnoser.answer(films, "denoise") == own
    assert any(one.probabilities != other.probabilities for one, other in zip(own, plain, strict=True))
    assert [one.likeness for one in plain] == [one.likeness for one in own]
    with pytest.raises(UsageError, match="'blur' is not possible"):
        diagnoser.answer(films, "blur")


# ---- every model of a run -------------------------------------------------------------------------------------------


def test_every_classifier_of_a_run_is_listed_and_can_be_loaded(tiny_run, run, paths):
    pair = ["classifier/cnn2_on_autoencoder", "classifier/cnn2_on_unet_denoiser"]
    assert list_models(tiny_run.path) == pair
    system = run.path / "systems" / "chest_xray_covid" / "cnn3"
    network = models.build("cnn3", image_size=64, n_classes=2)
    steps, decision = {"image_size": 64, "denoiser": None}, {"temperature": 1.0, "threshold": 0.5, "cut": None}
    card = {"architecture": "cnn3", "arguments": {"image_size": 64, "n_classes": 2}, "classes": ["NORMAL", "PNEUMONIA"]}
    runs.save_model(system, network, card | {"preprocessing": steps, "decision": decision})
    assert list_models(run.path) == [*pair, "systems/chest_xray_covid/cnn3"]
    loaded = Diagnoser.load(run.path, "systems/chest_xray_covid/cnn3")
    assert (loaded.classes, loaded.image_size, loaded.handling) == (("NORMAL", "PNEUMONIA"), 64, "none")
    assert loaded.denoiser is not None, "the run's own, for those who ask for it"
    assert loaded.diagnose(paths[0]).status == "unchecked"
    assert Diagnoser.load(run.path).card["preprocessing"]["denoiser"] == "unet_denoiser", "the default stays the pair"
    with pytest.raises(
        UsageError, match="it has classifier/cnn2_on_autoencoder, classifier/cnn2_on_unet_denoiser, sys"
    ):
        Diagnoser.load(run.path, "cnn9")


def test_a_folder_of_systems_alone_gives_the_only_one_or_asks_which(run, tmp_path):
    for name in ("cnn3", "cnn4"):
        shutil.copytree(run.path / "classifier" / "cnn2_on_unet_denoiser", tmp_path / "systems" / "x" / name)
        card = tmp_path / "systems" / "x" / name / "model.json"
        record = json.loads(card.read_text())
        record["preprocessing"] = {"image_size": 32, "denoiser": None}
        card.write_text(json.dumps(record))
        if name == "cnn3":
            assert Diagnoser.load(tmp_path).denoiser is None
    with pytest.raises(UsageError, match="several models; choose one of systems/x/cnn3, systems/x/cnn4 with --model"):
        Diagnoser.load(tmp_path)
