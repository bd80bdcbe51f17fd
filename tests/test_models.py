"""Each architecture against its description: parameters, shapes, ranges, gradients, and the cards drawn from it."""

import copy
import importlib
import itertools
import shutil
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import functional as tf

from pneumo_lib import explain, models, runs
from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.models import aernet, gray
from pneumo_lib.models.autoencoder import UpsampledConv2d

DENOISERS = ("autoencoder", "unet_denoiser")
CLASSIFIERS = (
    *("aernet", "alexnet", "cnn2", "cnn3", "cnn4", "cnn5", "densenet121"),
    *("googlenet", "resnet18", "resnet18_googlenet_x2", "resnet18_s2d", "resnet18_x3"),
    *("resnet34", "resnet50", "vgg16"),
)
ENSEMBLES = ("resnet18_googlenet_x2", "resnet18_x3")
ALL = {name: {} for name in DENOISERS} | {name: {"image_size": 64, "n_classes": 2} for name in CLASSIFIERS}
FROM_TORCHVISION = ("alexnet", "densenet121", "googlenet", "resnet18", "resnet34", "resnet50", "vgg16")


def marked(names):
    """The names as parameters; VGG-16 takes seconds to build."""
    return [pytest.param(name, marks=pytest.mark.slow) if name == "vgg16" else name for name in names]


def build(name, seed=0, **arguments):
    torch.manual_seed(seed)
    return models.build(name, **(arguments or ALL[name]))


def settled(model):
    """Batch normalisation as one batch leaves it; from its start, GoogLeNet's signal would die away."""
    normalising = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in normalising:
        layer.momentum = 1.0
    if normalising:
        with torch.no_grad():
            model.train()(films(4, seed=2))
    for layer in normalising:
        layer.momentum = 0.1
    return model.eval()


def on_meta(name, **arguments):
    with torch.device("meta"):  # counts and shapes need no values
        return models.build(name, **arguments)


@pytest.fixture(scope="module", params=marked(CLASSIFIERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def classifier(name):
    """Two classes at 64 pixels, in evaluation mode; tests leave it as it is."""
    return settled(build(name))


def films(n=2, size=64, seed=1):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_this_file_covers_every_architecture():
    assert ALL.keys() == models.MODELS.keys()
    assert (models.CLASSIFIERS, models.DENOISERS) == (CLASSIFIERS, DENOISERS)
    assert set(models.PRETRAINED) == {"aernet", *FROM_TORCHVISION}


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("autoencoder", {}, 46_817),
        ("cnn2", {"image_size": 256}, 16_786_371),
        ("cnn2", {}, 16_786_371),
        ("unet_denoiser", {}, 978_692),
        ("cnn3", {}, 2_424_194),
        ("cnn4", {}, 104_838_274),
        ("cnn5", {}, 6_638_818),
        ("resnet34", {"n_classes": 1000}, 21_797_672),
        ("resnet18", {"n_classes": 1000}, 11_689_512),
        ("resnet18_x3", {"n_classes": 1000}, 3 * 11_689_512),
        ("resnet18_googlenet_x2", {"n_classes": 1000}, 2 * (11_689_512 + 6_624_904)),
        ("resnet18_s2d", {}, 1_576_659),
        ("aernet", {}, 25_255_371),
        ("aernet", {"n_classes": 1000}, 25_766_832),
    ],
)
def test_parameter_counts(name, arguments, parameters):
    assert models.count_parameters(on_meta(name, **arguments)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("alexnet", 61.1), ("vgg16", 138.4), ("googlenet", 6.6), ("resnet50", 25.6), ("densenet121", 8.0)],
)
def test_parameter_counts_that_the_source_reports_in_millions(name, millions):
    counted = models.count_parameters(on_meta(name, n_classes=1000))
    assert round(counted / 1e6, 1) == millions, "the source has 6.8 for GoogLeNet, all others as here"


def test_the_count_reported_for_aernet_is_that_of_resnet50_with_cbam_under_its_own_head():
    attention = sum(models.count_parameters(getattr(on_meta("aernet"), f"cbam{i}")) for i in (1, 2, 3, 4))
    assert attention == 2 * sum(c * c // 16 for c in (256, 512, 1024, 2048)) + 4 * 2 * 49
    assert models.count_parameters(on_meta("resnet50", n_classes=1000)) + attention == 26_253_744


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


def assert_films_independent(model):
    batch = films(3)
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(film[None]) for film in batch])
    torch.testing.assert_close(together, alone, atol=2e-5 * max(1, together.abs().max().item()), rtol=1e-5)


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_films_of_a_batch_do_not_influence_each_other(denoiser):
    assert_films_independent(build(denoiser).eval())


def test_films_of_a_batch_do_not_influence_each_other_in_a_classifier(classifier):
    assert_films_independent(classifier)


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
        *("ConvTranspose2d", "ReLU", "UpsampledConv2d", "ReLU", "UpsampledConv2d", "Sigmoid")
    ]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(1, 32), (32, 64), (64, 32), (32, 32), (32, 1)]
    assert {(c.kernel_size, c.stride, c.padding) for c in convolutions} == {((3, 3), (1, 1), (1, 1))}


def plainly(layer: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """What the source writes as two layers."""
    large = nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    return nn.functional.conv2d(large, layer.weight, layer.bias, padding=1)


@pytest.mark.parametrize("side", [1, 2, 7, 32])
@pytest.mark.parametrize("channels", [(32, 32), (32, 1), (3, 5)])
def test_upsampling_and_convolution_are_one_with_the_same_numbers(channels, side):
    torch.manual_seed(0)
    layer, images = UpsampledConv2d(*channels), torch.randn(2, channels[0], side, side + 1, requires_grad=True)
    answers, gradients = [], []
    for forward in (layer, lambda x: plainly(layer, x)):
        answers.append(forward(images))
        gradients.append(torch.autograd.grad(answers[-1].square().mean(), [images, *layer.parameters()]))
    torch.testing.assert_close(*answers, atol=2e-6, rtol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)


def test_sums_of_weights_are_made_in_float32():
    torch.manual_seed(0)
    layer, images = UpsampledConv2d(32, 32), torch.randn(1, 32, 16, 16)
    seen = []
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "conv_transpose2d", lambda x, weight, *rest, **options: seen.append(weight) or x)
        layer(images)
    assert seen[0].dtype == torch.float32


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


def test_the_folded_stem_is_a_strided_convolution():
    """Each patch of pixels becomes channels: nothing of a film is lost before the first convolution."""
    stem = build("resnet18_s2d").stem[:2]
    weight = nn.functional.pixel_shuffle(stem[1].weight, 4)  # (24, 1, 12, 12)
    with torch.no_grad():
        expected = nn.functional.conv2d(films(), weight, stride=4, padding=4)
        torch.testing.assert_close(stem(films()), expected, atol=1e-5, rtol=1e-5)


def test_a_side_that_is_no_multiple_of_the_patch_gets_a_gray_margin():
    model = settled(build("resnet18_s2d"))
    small = films(2, 61)
    padded = nn.functional.pad(small, (0, 3, 0, 3), value=0.5)
    with torch.no_grad():
        assert torch.equal(model(small), model(padded))


def assert_gradients_everywhere(model):
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad((model(films()) - 0.3).square().mean(), parameters.values(), allow_unused=True)
    for key, gradient in zip(parameters, gradients, strict=True):
        assert gradient is not None and gradient.isfinite().all(), key
        assert gradient.abs().max() > 0, key


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_every_parameter_gets_a_finite_gradient(denoiser):
    assert_gradients_everywhere(build(denoiser).train())


def test_every_parameter_of_a_classifier_gets_a_finite_gradient(classifier):
    assert_gradients_everywhere(classifier)


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_the_same_seed_builds_the_same_network(denoiser):
    first, again = (build(denoiser).parameters() for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_the_same_seed_builds_the_same_classifier(name, classifier):
    assert all(map(torch.equal, classifier.parameters(), build(name).parameters()))


@pytest.mark.parametrize("name", ["autoencoder", "cnn5", "aernet", "googlenet"])
def test_another_seed_builds_another_network(name):
    first, other = (build(name, seed).parameters() for seed in (0, 1))
    assert not any(map(torch.equal, *([p for p in ps if p.ndim > 1] for ps in (first, other))))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("autoencodr", {}, r"'autoencodr'\. Did you mean 'autoencoder'\? There are: aernet, alexnet, autoencoder"),
        ("unet_denoise", {}, r"Did you mean 'unet_denoiser'\?"),
        ("zzz", {}, r"no architecture is called 'zzz'\. There are:"),
        ("resnet43", {}, r"Did you mean 'resnet34'\?"),
        ("resnet34", {"image_size": 0}, "'resnet34' cannot be built with image_size=0: expected 1 or more"),
        ("alexnet", {"image_size": 64.5}, "image_size=64.5"),
        ("vgg16", {"n_classes": 0}, "n_classes=0"),
        ("resnet34", {"weights": "Imagenet"}, r"must be one of none, imagenet\. Did you mean 'imagenet'\?"),
        ("cnn5", {"weights": "imagenet"}, "no ImageNet weights for 'cnn5'; there are for aernet, alexnet, densenet121"),
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
    ("name", "layers", "parameters"), [("autoencoder", "Sigmoid-12", "46,817"), ("cnn2", "Linear-12", "1,057,698")]
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


def test_a_graph_too_large_to_be_read_is_not_drawn():
    source, png = models.graph(build("densenet121"), 32)
    assert png is None and source.startswith("digraph") and "too many edges" in models.NO_DOT


def test_the_graph_is_text_where_dot_is_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    source, png = models.graph(build("cnn2"), 64)
    assert png is None
    assert source.startswith("digraph") and "classifier.5.bias" in source
    assert "dot" in models.NO_DOT and "DOT" in models.NO_DOT


# The classifiers of the five sources


def convolutions(model):
    return [(c.out_channels, c.kernel_size[0], c.padding[0], c.groups) for c in kinds(model, nn.Conv2d)]


def kinds(model, kind):
    return [layer for layer in model.modules() if isinstance(layer, kind)]


def head(model):
    """Widths of the fully connected layers and the dropouts between them."""
    linear = kinds(model.classifier, nn.Linear)
    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    return widths, [layer.p for layer in kinds(model.classifier, nn.Dropout)]


def test_the_three_convolution_cnn_has_the_layers_of_the_source():
    model = on_meta("cnn3")
    assert convolutions(model) == [(32, 3, 0, 1), (64, 3, 0, 1), (64, 3, 0, 1)]
    assert head(model) == ([64 * 17 * 17, 128, 2], [0.5])
    assert [type(layer) for layer in model.classifier][2] is nn.Sigmoid and len(kinds(model, nn.ReLU)) == 3


def test_the_four_convolution_cnn_has_the_layers_of_the_source():
    model = on_meta("cnn4")
    assert convolutions(model) == [(width, 3, 1, 1) for width in (64, 128, 256, 512)]
    assert head(model) == ([512 * 14 * 14, 1024, 512, 2], [0.5, 0.5])
    assert len(kinds(model, nn.MaxPool2d)) == 4 and len(kinds(model, nn.ReLU)) == 6


def test_the_five_block_cnn_has_the_layers_of_the_source():
    model = on_meta("cnn5")
    assert head(model) == ([12_544, 512, 128, 64, 2], [0.7, 0.5, 0.3])
    assert convolutions(model)[:2] == [(16, 3, 1, 1)] * 2
    separable = [pair for before, after in itertools.pairwise((16, 32, 64, 128, 256)) for pair in (before, after)]
    assert [
        width for width, kernel, _, groups in convolutions(model)[2:] if kernel == 3 and groups == width
    ] == separable
    assert [(c.bias is not None) for c in kinds(model, nn.Conv2d)] == [True] * 2 + [False, True] * 8
    last = [str(layer).split("(")[0] for layer in model.features[4]]
    assert last == [*["Conv2d", "Conv2d", "ReLU"] * 2, "BatchNorm2d", "MaxPool2d", "Dropout"]
    assert [layer.p for layer in kinds(model.features, nn.Dropout)] == [0.2, 0.2]
    assert not kinds(model.features[:3], nn.Dropout)


@pytest.mark.parametrize("name", ["cnn3", "cnn4"])
def test_the_other_cnns_compute_what_the_source_order_computes(name):
    model, batch = build(name).eval(), films()
    layers = list(model.features)
    for i in range(0, len(layers), 3):
        assert [type(layer) for layer in layers[i + 1 : i + 3]] == [nn.MaxPool2d, nn.ReLU]
        layers[i + 1 : i + 3] = [nn.ReLU(), nn.MaxPool2d(2)]
    with torch.no_grad():
        assert torch.equal(model(batch), model.classifier(nn.Sequential(*layers)(gray.three_channels(batch))))


def numpy_attention(x, first, second, kernel):
    """CBAM by hand: x after channel attention, and after spatial attention too."""

    def sigmoid(values):
        return 1 / (1 + np.exp(-values))

    def mlp(v):
        return np.maximum(v @ first.T, 0) @ second.T

    channel = x * sigmoid(mlp(x.mean((2, 3))) + mlp(x.max((2, 3))))[:, :, None, None]
    maps = np.pad(np.stack([channel.mean(1), channel.max(1)], 1), [(0, 0), (0, 0), (3, 3), (3, 3)])
    windows = np.lib.stride_tricks.sliding_window_view(maps, (7, 7), axis=(2, 3))
    return channel, channel * sigmoid(np.einsum("bchwij,cij->bhw", windows, kernel))[:, None]


def test_cbam_is_what_its_paper_says():
    torch.manual_seed(0)
    x, attend = torch.randn(2, 32, 5, 6), aernet.cbam(32, channel=True, spatial=True)
    first, second = (layer.weight.detach().numpy() for layer in (attend[0].mlp[0], attend[0].mlp[2]))
    assert (first.shape, second.shape) == ((2, 32), (32, 2))
    channel, both = numpy_attention(x.numpy(), first, second, attend[1].conv.weight.detach().numpy()[0])
    with torch.no_grad():
        np.testing.assert_allclose(attend[0](x).numpy(), channel, atol=1e-6)
        np.testing.assert_allclose(attend(x).numpy(), both, atol=1e-6)


def test_attention_can_be_looked_at():
    x = torch.randn(2, 8, 5, 6)
    for module, shape in ((aernet.ChannelAttention(8), (2, 8, 1, 1)), (aernet.SpatialAttention(3), (2, 1, 5, 6))):
        weights = module.attention(x)
        assert weights.shape == shape and 0 < weights.min() < weights.max() < 1
        assert torch.equal(module(x), x * weights)


def test_without_attention_aernet_is_resnet50_under_another_head():
    plain, resnet = (
        build("aernet", image_size=64, channel=False, spatial=False).eval(),
        on_meta("resnet50", n_classes=2),
    )
    body = {key: value for key, value in plain.state_dict().items() if not key.startswith("fc.")}
    assert [key for key in resnet.state_dict() if key not in body] == ["fc.weight", "fc.bias"]
    resnet.load_state_dict(body, strict=False, assign=True)
    resnet.fc = plain.fc
    with torch.no_grad():
        assert torch.equal(plain(films()), resnet.eval()(films()))


def test_the_arms_of_the_attention_ablation_start_alike():
    states = [
        build("aernet", image_size=64, channel=channel, spatial=spatial).state_dict()
        for channel, spatial in ((False, False), (True, False), (False, True), (True, True))
    ]
    added = [{key.split(".", 1)[1] for key in state.keys() - states[0].keys()} for state in states]
    mlp, kernel = {"0.mlp.0.weight", "0.mlp.2.weight"}, "conv.weight"
    assert added == [set(), mlp, {f"0.{kernel}"}, mlp | {f"1.{kernel}"}]
    assert all(torch.equal(value, state[key]) for key, value in states[0].items() for state in states)


# Films into classifiers


def sized(name, classifier, size):
    """The classifier for films of another size; only those that count pixels have to be built for it."""
    return build(name, image_size=size, n_classes=2).eval() if name.startswith("cnn") else classifier


def test_one_film_of_an_odd_size_gives_one_row_of_logits(name, classifier):
    with torch.no_grad():
        logits = sized(name, classifier, 97)(films(1, 97))
    assert (logits.shape, logits.dtype) == ((1, 2), torch.float32)
    assert logits.isfinite().all()


def test_dropout_works_in_training_only(classifier):
    twin, batch = copy.deepcopy(classifier), films()
    with torch.no_grad():
        assert torch.equal(classifier(batch), classifier(batch))
        twin.train()
        assert torch.equal(twin(batch), twin(batch)) != bool(kinds(twin, nn.Dropout))


def test_a_film_counts_as_three_equal_channels(name, classifier):
    if name in ("cnn2", "resnet18_s2d"):
        first = next(module for module in classifier.modules() if isinstance(module, nn.Conv2d))
        assert first.in_channels == {"cnn2": 1}.get(name, 16), "made for one channel, folded or not"
        return
    with torch.no_grad():
        assert torch.equal(classifier(films()), classifier(films().repeat(1, 3, 1, 1)))


def test_three_channels_share_the_memory_of_one():
    film = films()
    three = gray.three_channels(film)
    assert three.shape == (2, 3, 64, 64) and three.stride(1) == 0 and three.data_ptr() == film.data_ptr()
    assert gray.three_channels(three).data_ptr() == film.data_ptr()
    assert gray.centred(film).stride(1) == 0


def test_films_are_normalised_as_the_published_weights_expect():
    three = films().repeat(1, 3, 1, 1)
    normalised = tf.normalize(three, gray.IMAGENET_MEAN, gray.IMAGENET_STD)
    torch.testing.assert_close(gray.imagenet(films()), normalised)
    torch.testing.assert_close(gray.imagenet(three), normalised)
    weights = (torchvision.models.get_model_weights(name).DEFAULT.transforms() for name in FROM_TORCHVISION)
    assert {(tuple(t.mean), tuple(t.std)) for t in weights} == {(gray.IMAGENET_MEAN, gray.IMAGENET_STD)}
    expected = torchvision.models.googlenet(init_weights=False, transform_input=True)._transform_input(normalised)
    torch.testing.assert_close(gray.centred(films()).expand_as(three), expected)


def test_state_dicts_are_interchangeable_with_torchvision(name, classifier):
    if name not in FROM_TORCHVISION:
        assert name in ("aernet", "resnet18_s2d", *ENSEMBLES) or name.startswith("cnn")
        return
    options = {"aux_logits": False, "transform_input": True, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=2, **options)
    theirs.load_state_dict(classifier.state_dict(), assign=True)
    batch = films(2, 96)
    with torch.no_grad():
        expected = theirs.eval()(tf.normalize(batch.repeat(1, 3, 1, 1), gray.IMAGENET_MEAN, gray.IMAGENET_STD))
        torch.testing.assert_close(classifier(batch), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_a_residual_network_starts_from_kaimings_spread():
    model = build("resnet34")
    assert [key for key in model.state_dict()] == [*on_meta("resnet34").state_dict()]
    for layer in kinds(model, nn.Conv2d):
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
    assert {layer.weight.detach().min().item() for layer in kinds(model, nn.BatchNorm2d)} == {1.0}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_answers_with_the_mean_probability_of_its_members(name):
    model = settled(build(name))
    with torch.no_grad():
        answers = [member(films()).softmax(dim=1) for member in model.members]
        torch.testing.assert_close(model(films()).exp(), torch.stack(answers).mean(dim=0))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(answers, 2))


def test_a_copy_computes_the_same(classifier):
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(classifier)(films()), classifier(films()))


def test_a_classifier_is_the_same_after_saving_and_loading(name, classifier, tmp_path):
    runs.save_model(tmp_path, classifier, {"architecture": name, "arguments": ALL[name]})
    loaded = runs.load_model(tmp_path, architecture=name).model
    with torch.no_grad():
        assert torch.equal(loaded(films()), classifier(films()))


def test_training_in_several_processes_prepares_films_too(tmp_path):
    model, batch = settled(build("googlenet")), films()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        logits = DistributedDataParallel(model)(batch)
        assert torch.equal(logits, model(batch))
        logits.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Explaining and describing classifiers


def test_the_last_stage_can_be_explained(name, classifier):
    stages = models.stages(classifier)
    last = list(stages)[-1]
    found = explain.grad_cam(classifier, films(2), [0, 1], layer=stages[last])
    assert (found.layer, found.maps.shape[0], found.maps.ndim) == (last, 2, 3)
    assert found.maps.isfinite().all() and found.maps.min() >= 0
    assert found.positive.any() or "resnet" in name or name == "densenet121", "fresh weights may see nothing"
    assert not any(module._forward_hooks for module in classifier.modules())


def test_the_feature_maps_of_the_stages_grow_coarser(classifier):
    stages = models.stages(classifier)
    maps = explain.feature_maps(classifier, films(1), stages)
    assert list(maps) == list(stages), "in order of execution"
    sides = [found.shape[-1] for found in maps.values()]
    assert sides == sorted(sides, reverse=True) and len(stages) >= 2


def test_grad_cam_finds_a_layer_by_itself(classifier):
    assert explain.grad_cam(classifier, films(1), [1]).maps.isfinite().all()


def test_a_network_that_names_no_stages_shows_its_convolutions():
    assert list(models.stages(build("cnn2"))) == ["features.0", "features.3"]


def test_the_summary_of_a_classifier_is_complete(classifier):
    assert f"Trainable params: {models.count_parameters(classifier):,}" in models.summary(classifier, 64)


def test_the_graph_of_a_classifier_holds_every_parameter(classifier, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)  # drawing takes long
    source, _ = models.graph(classifier, 64)
    assert all(key in source for key, _ in classifier.named_parameters())


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_operations_are_those_torchvision_publishes(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]  # 10^9 multiply-adds
    assert models.count_flops(on_meta(name, n_classes=1000), 224) / 2e9 == pytest.approx(published, abs=6e-4)


def test_operations_of_the_two_convolution_cnn_counted_by_hand():
    model = build("cnn2").train()
    multiplications = 9 * 16 * 64**2 + 9 * 16 * 32 * 32**2 + 32 * 16**2 * 128 + 128 * 32 + 32 * 2
    assert models.count_flops(model, 64) == 2 * multiplications
    assert model.training and {p.device.type for p in model.parameters()} == {"cpu"}


# Films that are too small


SMALLEST = {
    "resnet18_s2d": 29,
    "alexnet": 63,
    "cnn2": 4,
    "cnn3": 22,
    "cnn4": 16,
    "cnn5": 32,
    "densenet121": 29,
    "googlenet": 15,
    "resnet18_googlenet_x2": 15,
    "vgg16": 32,
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_films_that_are_too_small_are_refused(name, classifier):
    least = SMALLEST.get(name, 1)
    assert models.smallest_input(name) == least
    with torch.no_grad():
        assert sized(name, classifier, least)(films(1, least)).isfinite().all()
    if least > 1:
        with pytest.raises(UsageError) as error:
            models.build(name, image_size=least - 1, n_classes=2)
        message = f"{name} cannot take films of {least - 1} x {least - 1} pixels; it needs at least {least}."
        assert str(error.value) == message


def test_smallest_input_is_a_question_about_classifiers():
    with pytest.raises(UsageError, match="'autoencoder' is a denoiser; the classifiers are aernet"):
        models.smallest_input("autoencoder")
    with pytest.raises(UsageError, match="Did you mean 'vgg16'"):
        models.smallest_input("vgg17")


def test_asking_for_sizes_draws_no_random_numbers():
    before = torch.get_rng_state()
    models.inspection.takes.cache_clear()
    models.inspection.smallest_side.cache_clear()
    models.smallest_input("resnet18")
    models.count_flops(on_meta("googlenet"), 64)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_that_takes_nothing_is_named_as_faulty():
    with pytest.raises(UsageError, match="takes no film of 1 to 1024 pixels"):
        models.inspection.smallest_side(lambda image_size: nn.Linear(3, 2))


# New networks


TOY = """
from torch import nn

class Toy(nn.Module):
    def __init__(self, image_size=8, n_classes=3):
        super().__init__()
        self.fc = nn.Linear(image_size ** 2, n_classes)

    def forward(self, images):
        return self.fc(images.flatten(1))

"""


@pytest.fixture
def extend(tmp_path, monkeypatch):
    """Adds a module to a folder appended to the package's path; all is as before in the end."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    yield lambda name, source: (tmp_path / f"{name}.py").write_text(TOY + source)
    monkeypatch.undo()
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"pneumo_lib.models.{file.stem}", None)
        models.__dict__.pop(file.stem, None)
    importlib.invalidate_caches()
    models.discover()
    assert models.MODELS.keys() == ALL.keys()


def test_a_new_file_is_a_new_network(extend):
    extend("toy_classifier", 'NETWORKS = {"toy": Toy}')
    extend("toy_denoiser", 'NETWORKS = {"toy_denoiser": Toy}\nDENOISES = True')
    extend("no_network", "")
    models.discover()
    assert set(models.CLASSIFIERS) - set(CLASSIFIERS) == {"toy"}
    assert set(models.DENOISERS) - set(DENOISERS) == {"toy_denoiser"}
    assert build("toy", image_size=9, n_classes=4)(films(2, 9)).shape == (2, 4)
    assert models.smallest_input("toy") == 1
    assert models.build("aernet", image_size=32) is not None


def test_two_networks_of_one_name_are_refused(extend):
    extend("toy_classifier", 'NETWORKS = {"cnn2": Toy}')
    with pytest.raises(UsageError, match=r"toy_classifier\.py offers cnn2, as another module does"):
        models.discover()
    assert models.build("cnn2", image_size=32).features is not None, "the registry is as it was"


# Published weights, of which these files stand in for the real ones


def stand_in(source, folder, state=None):
    """Writes a file like torchvision's, tiny on the disk: the i-th tensor is filled with i. Returns the tensors."""
    with torch.device("meta"):
        options = {"aux_logits": True, "init_weights": False} if source == "googlenet" else {}
        shapes = torchvision.models.get_model(source, **options).state_dict() if state is None else state
    tensors = {
        key: torch.tensor(float(i)).expand(value.shape)
        for i, (key, value) in enumerate(shapes.items())
        if not key.endswith("num_batches_tracked")  # the published files are older than that
    }
    path = Path(folder, "hub", "checkpoints", Path(torchvision.models.get_model_weights(source).DEFAULT.url).name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({old_name(source, key): value for key, value in tensors.items()}, path)
    return tensors


def old_name(source, key):
    """DenseNet's file has norm.1 where the network has norm1."""
    if source != "densenet121" or "denselayer" not in key:
        return key
    for layer in ("norm", "conv"):
        key = key.replace(f".{layer}1.", f".{layer}.1.").replace(f".{layer}2.", f".{layer}.2.")
    return key


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty TORCH_HOME, and no network."""

    def refuse(url, *_, **__):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


HEADS = {"alexnet": "classifier.6.", "vgg16": "classifier.6.", "densenet121": "classifier.", "aernet": ("fc.", "cbam")}


def test_published_weights_fill_all_but_the_last_layers(name, classifier, home):
    if name not in models.PRETRAINED:
        with pytest.raises(UsageError, match=f"no ImageNet weights for '{name}'; there are for aernet, alexnet"):
            models.build(name, weights="imagenet")
        return
    tensors = stand_in("resnet50" if name == "aernet" else name, home)
    model, plain = build(name, n_classes=2, weights="imagenet"), dict(classifier.named_parameters())
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            fresh = key.startswith(HEADS.get(name, "fc."))
            assert torch.equal(value, plain[key] if fresh else tensors[key].expand_as(value)), key


def test_published_weights_fill_the_last_layer_too_when_it_fits(home):
    tensors = stand_in("resnet18", home)
    model = models.build("resnet18", n_classes=1000, weights="imagenet")
    assert torch.equal(model.fc.weight, tensors["fc.weight"]) and torch.equal(model.fc.bias, tensors["fc.bias"])


def test_every_published_file_has_its_hash_in_its_name():
    for name in FROM_TORCHVISION:
        assert torch.hub.HASH_REGEX.search(Path(torchvision.models.get_model_weights(name).DEFAULT.url).name)


def test_without_a_network_the_error_says_which_file_goes_where(home):
    with pytest.raises(DataError) as error:
        models.build("aernet", weights="imagenet")
    url = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    for said in (
        "unreachable",
        f"file {url.rsplit('/')[-1]} from {url}",
        str(home / "hub/checkpoints"),
        "--weights none",
    ):
        assert said in str(error.value)


def test_a_download_that_fails_its_hash_is_refused(home, monkeypatch):
    def damaged(*_, **__):
        raise RuntimeError('invalid hash value (expected "f37072fd", got "00")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", damaged)
    with pytest.raises(DataError, match="could not be downloaded: invalid hash value"):
        models.build("resnet18", weights="imagenet")


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", b"PK\x03\x04 cut off"])
def test_a_damaged_file_of_weights_is_named(home, content):
    stand_in("resnet18", home)
    (file,) = (home / "hub" / "checkpoints").iterdir()
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file.name} cannot be read.*Delete it"):
        models.build("resnet18", weights="imagenet")


def test_the_weights_of_another_network_are_refused(home):
    stand_in("resnet34", home, on_meta("resnet18", n_classes=1000).state_dict())
    with pytest.raises(DataError, match=r"resnet34 does not fit it: it lacks layer1\.2\.conv1\.weight"):
        models.build("resnet34", weights="imagenet")


def test_weights_are_never_unpickled_as_code(home):
    stand_in("resnet18", home)
    (file,) = (home / "hub" / "checkpoints").iterdir()
    torch.save(nn.Linear(1, 1), file)
    with pytest.raises(DataError, match="cannot be read"):
        models.build("resnet18", weights="imagenet")
