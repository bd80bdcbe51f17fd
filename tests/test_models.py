"""Each architecture against its description: parameters, shapes, ranges, gradients, and the cards drawn from it."""

import shutil

import pytest
import torch
from torch import nn

from pneumo_lib import models
from pneumo_lib.errors import UsageError

ALL = {"autoencoder": {}, "cnn2": {"image_size": 64}, "unet_denoiser": {}}
DENOISERS = ("autoencoder", "unet_denoiser")


def build(name, seed=0, **arguments):
    torch.manual_seed(seed)
    return models.build(name, **(arguments or ALL[name]))


def films(n=2, size=64, seed=1):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_this_file_covers_every_architecture():
    assert ALL.keys() == models.MODELS.keys()


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("autoencoder", {}, 46_817),
        ("cnn2", {"image_size": 256}, 16_786_371),
        ("cnn2", {}, 16_786_371),
        ("unet_denoiser", {}, 978_692),
    ],
)
def test_parameter_counts(name, arguments, parameters):
    with torch.device("meta"):  # counts need no values
        model = models.build(name, **arguments)
    assert models.count_parameters(model) == parameters


def test_frozen_parameters_are_not_counted():
    model = build("autoencoder")
    model.encoder.requires_grad_(False)
    assert models.count_parameters(model) == 46_817 - (32 * 9 + 32) - (64 * 32 * 9 + 64)


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("size", [32, 64])
def test_a_denoiser_keeps_the_shape_and_ends_in_the_range(name, size):
    with torch.no_grad():
        clean = build(name).eval()(films(3, size))
    assert (clean.shape, clean.dtype) == ((3, 1, size, size), torch.float32)
    assert clean.min() >= 0 and clean.max() <= 1


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_takes_films_that_are_not_square(name):
    with torch.no_grad():
        assert build(name).eval()(torch.zeros(1, 1, 32, 64)).shape == (1, 1, 32, 64)


@pytest.mark.parametrize(("size", "classes"), [(32, 3), (64, 2)])
def test_the_classifier_gives_one_logit_per_class(size, classes):
    logits = build("cnn2", image_size=size, n_classes=classes)(films(5, size))
    assert logits.shape == (5, classes)
    assert logits.min() < 0, "logits, not probabilities"


@pytest.mark.parametrize("name", ALL)
def test_films_of_a_batch_do_not_influence_each_other(name):
    model, batch = build(name).eval(), films(3)
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(film[None]) for film in batch])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def source_order(model):
    """The same layers with each ReLU in front of its max pool, as the source report has them."""
    conv1, pool1, relu1, conv2, pool2, relu2 = model
    assert [type(layer) for layer in (pool1, relu1, pool2, relu2)] == [nn.MaxPool2d, nn.ReLU] * 2
    return nn.Sequential(conv1, nn.ReLU(), nn.MaxPool2d(2), conv2, nn.ReLU(), nn.MaxPool2d(2))


def test_the_autoencoder_computes_what_the_source_order_computes():
    model, batch = build("autoencoder").eval(), films()
    with torch.no_grad():
        assert torch.equal(model(batch), model.decoder(source_order(model.encoder)(batch)))


def test_the_classifier_computes_what_the_source_order_computes():
    model, batch = build("cnn2").eval(), films()
    with torch.no_grad():
        assert torch.equal(model(batch), model.classifier(source_order(model.features)(batch)))


def test_gradients_do_not_depend_on_the_order_of_relu_and_pool():
    batch, gradients = films(), []
    for encoder in (lambda model: model.encoder, lambda model: source_order(model.encoder)):
        model = build("autoencoder")
        model.decoder(encoder(model)(batch)).sub(batch).square().mean().backward()
        gradients.append(model.encoder[0].weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-5)


def test_the_autoencoder_has_the_layers_of_the_source():
    model = build("autoencoder")
    assert [str(layer).split("(")[0] for layer in model.decoder] == [
        *("ConvTranspose2d", "ReLU", "Upsample", "Conv2d", "ReLU", "Upsample", "Conv2d", "Sigmoid")
    ]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(1, 32), (32, 64), (64, 32), (32, 32), (32, 1)]
    assert {(c.kernel_size, c.stride, c.padding) for c in convolutions} == {((3, 3), (1, 1), (1, 1))}
    assert {layer.mode for layer in model.decoder if isinstance(layer, nn.Upsample)} == {"nearest"}


def test_the_unet_clamps_in_evaluation_only():
    model, batch = build("unet_denoiser"), films()
    with torch.no_grad():
        model.head[0].bias += torch.tensor([3.0, -3.0, 3.0, -3.0])
        free, clamped = model.train()(batch), model.eval()(batch)
    assert free.min() < 0 and free.max() > 1
    assert torch.equal(clamped, free.clamp(0, 1))


def test_the_unet_sees_a_pixel_through_its_finest_skip():
    model = build("unet_denoiser")
    with torch.no_grad():
        for up in model.ups:
            up.weight.zero_()
            up.bias.zero_()
        dark, spot = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
        spot[..., 7, 9] = 1.0
        changed = (model(spot) - model(dark)).abs()[0, 0].nonzero()
    assert len(changed) and (changed - torch.tensor([7, 9])).abs().max() <= 13, "local detail, with the bottom cut off"


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_finite_gradient(name):
    model = build(name).train()
    output = model(films())
    (output - 0.3).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_builds_the_same_network(name):
    first, again, other = (torch.cat([p.flatten() for p in build(name, seed).parameters()]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("autoencodr", {}, r"'autoencodr'\. Did you mean 'autoencoder'\? There are: autoencoder, cnn2"),
        ("unet_denoise", {}, r"Did you mean 'unet_denoiser'\?"),
        ("zzz", {}, r"no architecture is called 'zzz'\. There are:"),
        ("cnn2", {"classes": 3}, "'cnn2' cannot be built from {'classes': 3}: .*unexpected keyword"),
        ("cnn2", {"image_size": "64"}, "'cnn2' cannot be built"),
        ("cnn2", {"image_size": 32, "n_classes": -1}, "'cnn2' cannot be built"),
        ("unet_denoiser", {"widths": 32}, "'unet_denoiser' cannot be built"),
    ],
)
def test_what_cannot_be_built_is_refused(name, arguments, said):
    with pytest.raises(UsageError, match=said):
        models.build(name, **arguments)


@pytest.mark.parametrize(
    ("name", "layers", "parameters"), [("autoencoder", "Sigmoid-14", "46,817"), ("cnn2", "Linear-12", "1,057,731")]
)
def test_the_summary_is_text_and_leaves_the_model_alone(name, layers, parameters, capfd):
    model = build(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    text = models.summary(model, 64)
    assert f"Total params: {parameters}" in text and layers in text
    assert text == models.summary(model, 64)
    assert capfd.readouterr() == ("", "")
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {(p.device.type, p.requires_grad) for p in model.parameters()} == {("cpu", True)}


def test_the_summary_takes_any_layout_and_precision():
    model = build("autoencoder").to(torch.bfloat16).to(memory_format=torch.channels_last)
    assert "Total params: 46,817" in models.summary(model, 32)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
def test_the_graph_is_drawn_where_dot_exists():
    model = build("autoencoder").train()
    source, png = models.graph(model, 32)
    assert source.startswith("digraph") and "encoder.0.weight" in source
    assert png.startswith(b"\x89PNG\r\n")
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_graph_is_text_where_dot_is_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    source, png = models.graph(build("cnn2"), 64)
    assert png is None
    assert source.startswith("digraph") and "classifier.5.bias" in source
    assert "dot" in models.NO_DOT and "DOT" in models.NO_DOT
