"""Mutated films through the reader, as `benchmarks/fuzz_reader.py` reads them by the thousand, and through bad ones."""

import importlib
import os
import sys
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import typer

from pneumo_lib.errors import ImageError
from pneumo_lib.images import HINTS, Film

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # its workers get the same path
fuzz_reader, mutated_films = importlib.import_module("fuzz_reader"), importlib.import_module("mutated_films")

CASES = 400
SOUND = Film(np.zeros((16, 16), np.float32), "PNG", 8)


def test_mutated_films_give_a_film_or_an_image_error():
    outcomes = list(fuzz_reader.run(0, range(CASES)))
    counts = Counter(outcome.result for outcome in outcomes)
    failures = [(number, outcome) for number, outcome in enumerate(outcomes) if outcome.result.startswith("!")]
    assert not failures
    assert counts["film"] > CASES / 10 and len(counts) > 6 and set(counts) <= {"film", *HINTS}


def test_every_sample_is_a_film():
    kinds = mutated_films.samples()
    assert set(kinds) == set(mutated_films.KINDS) and all(len(films) > 5 for films in kinds.values())
    assert {fuzz_reader.verdict(film, fuzz_reader.images.open_film) for films in kinds.values() for film in films} == {
        "film"
    }


@pytest.mark.parametrize("kind", mutated_films.KINDS)
def test_pieces_are_the_file_again(kind):
    for film in mutated_films.samples()[kind]:
        parts = mutated_films.pieces(film, kind)
        assert b"".join(parts) == film and len(parts) > 2


def test_a_case_depends_on_its_seed_and_number_only():
    first = [mutated_films.make_case(3, number) for number in range(12)]
    again = [mutated_films.make_case(3, number) for number in reversed(range(12))][::-1]
    assert first == again and len({case.data for case in first}) == 12
    assert mutated_films.make_case(4, 0) != first[0]
    assert [case.kind for case in first[:3]] == list(mutated_films.KINDS)


def raise_other(data):
    raise KeyError("no film")


def give_unknown_code(data):
    raise ImageError("no film", code="nonsense")


def name_patient(data):
    raise ImageError("found Secret^Person", code="damaged")


def talk_too_long(data):
    raise ImageError("x" * 2000, code="damaged")


def give_doubles(data):
    return Film(np.zeros((16, 16)), "PNG", 8)


def give_nan(data):
    return Film(np.full((16, 16), np.nan, np.float32), "PNG", 8)


def give_bright(data):
    return Film(np.full((16, 16), 1.5, np.float32), "PNG", 8)


def write(data):
    os.write(2, b"libpng warning: bad film\n")
    return SOUND


def warn_often(data):
    for number in range(200):
        warnings.warn(f"bad film {number}", stacklevel=2)
    return SOUND


def warn_of_patient(data):
    warnings.warn("bad film of Secret^Person", stacklevel=2)
    return SOUND


def be_slow(data):
    until = time.process_time() + 0.7
    while time.process_time() < until:
        pass
    return SOUND


def want_much(data):
    np.ones(2**31, np.uint8)
    return SOUND


def hide_want(data):
    try:
        want_much(data)
    except MemoryError as error:
        raise ImageError("no film", code="too_many_pixels") from error


def give_film(data):
    return SOUND


BAD_READERS = {
    raise_other: "! KeyError",
    give_unknown_code: "! unsound ImageError",
    name_patient: "! unsound ImageError",
    talk_too_long: "! unsound ImageError",
    give_doubles: "! unusable film",
    give_nan: "! unusable film",
    give_bright: "! unusable film",
    write: "! wrote to stdout or stderr",
    warn_often: "! flood of warnings",
    warn_of_patient: "! a warning names the patient",
    be_slow: "! over 0.5 s",
    want_much: "! over the memory cap",
    hide_want: "! over the memory cap",
    give_film: "film",
}
TURNS = iter(BAD_READERS)  # a worker has its own


def next_bad_reader(data):
    return next(TURNS)(data)


def test_the_fuzzer_sees_each_failure():
    watch = fuzz_reader.Watch(limit=0.5, memory_cap=2**30)
    outcomes = fuzz_reader.run(0, range(len(BAD_READERS)), reader=next_bad_reader, watch=watch)
    assert [outcome.result for outcome in outcomes] == list(BAD_READERS.values())


def crash_or_hang(data):
    if zlib.crc32(data) % 3 == 0:
        os.abort()
    while zlib.crc32(data) % 3 == 1:
        pass
    return SOUND


def test_a_lost_worker_is_a_failure_and_the_next_goes_on():
    numbers = range(9, 13)
    sums = [zlib.crc32(mutated_films.make_case(0, number).data) % 3 for number in numbers]
    assert set(sums) == {0, 1, 2}
    outcomes = fuzz_reader.run(0, numbers, reader=crash_or_hang, watch=fuzz_reader.Watch(limit=0.3))
    assert [o.result for o in outcomes] == [("! crash (SIGABRT)", "! hang", "film")[remainder] for remainder in sums]


def wait(data):
    time.sleep(600)


def leave(data):
    os._exit(3)


@pytest.mark.parametrize(("reader", "result"), [(wait, "! hang"), (leave, "! crash (exit status 3)")])
def test_a_reader_that_waits_or_ends_everything_is_seen(reader, result):
    outcomes = fuzz_reader.run(0, range(1), reader=reader, watch=fuzz_reader.Watch(patience=1))
    assert [outcome.result for outcome in outcomes] == [result]


@pytest.mark.parametrize(("result", "status"), [("film", False), ("damaged", False), ("! hang", True)])
def test_the_command_fails_on_a_failure_and_keeps_its_file(result, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz_reader, "run", lambda seed, numbers: (fuzz_reader.Outcome(result, 0.5) for _ in numbers))
    with pytest.raises(typer.Exit) as ended:
        fuzz_reader.main(cases=3, seed=5, case=-1, keep=tmp_path / "failed")
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("failed/*")}
    assert ended.value.exit_code == status
    assert kept == ({f"5-{n}.{k}": mutated_films.make_case(5, n).data for n, k in enumerate(KINDS)} if status else {})
    assert result in capsys.readouterr().out


KINDS = ("png", "jpeg", "dicom")
