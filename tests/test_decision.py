"""Accept, abstain or refuse: every way that an answer can be told."""

import pytest

from pneumo_lib.decision import Answer, Decision, Likeness, decide

LIKE, UNLIKE = Likeness(0.5, "B"), Likeness(1.01, "B")


def answer(likeness: Likeness | None = LIKE, **probabilities: float) -> Answer:
    return Answer(probabilities, likeness)


@pytest.mark.parametrize(
    ("said", "threshold", "told"),
    [
        (answer(A=0.1, B=0.7, C=0.2), 0.6, Decision("ok", ("B",), 0.7)),
        (answer(A=0.1, B=0.7, C=0.2), 0.7, Decision("ok", ("B",), 0.7)),
        (answer(A=0.1, B=0.7, C=0.2), 0.71, Decision("undecided", ("B", "C"), 0.7)),
        (answer(A=0.1, B=0.7, C=0.2), 0.0, Decision("ok", ("B",), 0.7)),
        (answer(UNLIKE, A=0.0, B=1.0), 0.0, Decision("refused")),
        (answer(Likeness(1.0, "B"), A=0.0, B=1.0), 0.0, Decision("ok", ("B",), 1.0)),
        (answer(None, A=0.1, B=0.9), 0.5, Decision("unchecked", ("B",), 0.9)),
        (answer(None, A=0.4, B=0.6), 0.8, Decision("unchecked", ("B", "A"), 0.6)),
        (answer(A=0.5, B=0.5), 0.5, Decision("ok", ("A",), 0.5)),
    ],
)
def test_a_film_is_decided_by_its_confidence(said, threshold, told):
    assert decide(said, threshold) == told


@pytest.mark.parametrize(
    ("finding", "status", "first"),
    [(0.2, "ok", "N"), (0.49, "ok", "N"), (0.6, "undecided", "P"), (0.89, "undecided", "P"), (0.9, "ok", "P")],
)
def test_between_even_odds_and_the_cut_a_finding_stays_undecided(finding, status, first):
    told = decide(answer(N=round(1 - finding, 4), P=finding), 0.0, cut=0.9, positive="P")
    assert (told.status, told.candidates[0]) == (status, first)


@pytest.mark.parametrize(("finding", "status"), [(0.05, "ok"), (0.2, "undecided"), (0.3, "undecided"), (0.6, "ok")])
def test_a_cut_below_even_odds_works_the_other_way(finding, status):
    assert decide(answer(N=round(1 - finding, 4), P=finding), 0.0, cut=0.2, positive="P").status == status
