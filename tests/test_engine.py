"""Compiled networks say what PyTorch says, whichever films go through beside a film, and threads may share them."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from pneumo_lib import engine, models, novelty
from pneumo_lib.engine import Engine

PARITY = 1e-4  # of the largest value that a network gives; measured: below 1e-5 for all of them


class Several(nn.Module):
    """A network whose one answer is given as the engine expects it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, films: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.network(films),)


def films(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, 1, side, side), dtype=np.float32)


def network(name: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    if name in models.DENOISERS:
        return Several(models.build(name))
    return novelty.Tap(models.build(name, image_size=side, n_classes=3))


@pytest.fixture(scope="module")
def compiled() -> Engine:
    made = Engine(network("cnn2", 32))
    made.compile(32)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_network_says_the_same_compiled(name):
    side = 64 if name in models.DENOISERS else max(32, models.smallest_input(name))
    made, seen = Engine(network(name, side)), films(5, side)
    before = made(seen)
    made.compile(side)
    after, alone = made(seen), made(seen[:1])
    assert len(before) == len(after)
    for eager, ours, one in zip(before, after, alone, strict=True):
        assert ours.shape == eager.shape and ours.dtype == np.float32
        assert np.abs(ours - eager).max() <= PARITY * max(np.abs(eager).max(), 1e-3)
        assert np.abs(ours[:1] - one).max() <= 1e-6 * max(np.abs(one).max(), 1e-3)


def test_the_films_beside_a_film_change_nothing(compiled):
    seen = films(13, 32)
    together = compiled(seen)
    for size in (1, 2, 5):
        parts = [compiled(seen[k : k + size]) for k in range(0, 13, size)]
        for whole, joined in zip(together, map(np.concatenate, zip(*parts, strict=True)), strict=True):
            assert np.array_equal(whole, joined)


def test_it_is_the_compiled_network_that_answers(compiled, monkeypatch):
    expected = compiled.plain(films(2, 32))
    monkeypatch.setattr(compiled, "plain", lambda seen: pytest.fail("asked PyTorch"))
    for ours, eager in zip(compiled(films(2, 32)), expected, strict=True):
        assert np.allclose(ours, eager, atol=1e-5)


def test_the_network_that_was_given_stays_as_it_was():
    given = network("cnn2", 32).train()
    Engine(given).compile(32)
    assert given.training and next(given.parameters()).requires_grad


def test_threads_ask_while_it_is_compiled():
    made, seen, wrong, stop = Engine(network("cnn2", 32)), films(6, 32), [], threading.Event()
    expected = [made(film[None])[0] for film in seen]

    def ask(k: int) -> None:
        while not stop.is_set():
            if not np.allclose(made(seen[k : k + 1])[0], expected[k], atol=1e-5):
                wrong.append(k)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    try:
        made.compile(32)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_the_file_can_be_used_by_others(tmp_path):
    import onnx

    (tmp_path / "cnn2.onnx").write_bytes(engine.to_onnx(network("cnn2", 32).eval(), 32))
    graph = onnx.load(tmp_path / "cnn2.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [value.name for value in graph.graph.input] == [engine.INPUT]
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param and [size.dim_value for size in shape[1:]] == [1, 32, 32]
