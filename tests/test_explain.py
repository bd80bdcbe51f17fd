"""Grad-CAM against captum, and everything a hook can leave behind."""

import gc

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from pneumo_lib.errors import DataError, UsageError
from pneumo_lib.explain import feature_maps, grad_cam, upsample


class Net(nn.Module):
    """Two stages, dropout and batch norm; ``inplace`` overwrites the outputs of the convolutions."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2)
        self.relu, self.drop, self.head = nn.ReLU(inplace), nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.conv1(x)))
        x = self.relu(self.conv2(x))
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images():
    return torch.rand(4, 1, 20, 24, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 1, 2, 1])


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules())


@pytest.mark.parametrize("layer", ["conv1", "norm", "conv2"])
def test_agrees_with_captum(net, images, layer):
    net.eval()
    stage = getattr(net, layer)
    expected = LayerGradCam(net, stage).attribute(images, TARGETS, relu_attributions=True)[:, 0].detach()
    result = grad_cam(net, images, TARGETS, layer=stage)
    assert expected.max() > 0 and result.layer == layer and result.maps.dtype == torch.float32
    torch.testing.assert_close(result.maps, expected, rtol=0, atol=1e-5)


def test_agrees_with_the_definition_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        model[3].weight.copy_(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))
    film = torch.tensor([[[[1.0, 0.0], [0.0, -1.0]]]])
    # Slope of score 0 per pixel: 3/4 and -1/4; the map is relu(3/4 * film - 1/4 * 2 * film).
    assert grad_cam(model, film, [0]).maps.tolist() == [[[0.25, 0.0], [0.0, 0.0]]]


def test_default_is_the_last_convolution(net, images):
    assert grad_cam(net, images, TARGETS).layer == "conv2"
    assert grad_cam(net, images, TARGETS).maps.shape == (4, 8, 10)


def test_inplace_activations_change_nothing(net, images):
    other = Net(inplace=True)
    other.load_state_dict(net.state_dict())
    for layer in ("conv1", "norm", "conv2"):
        plain, inplace = (grad_cam(m, images, TARGETS, layer=getattr(m, layer)).maps for m in (net, other))
        assert torch.equal(plain, inplace) and plain.max() > 0
    for (name, plain), inplace in zip(
        feature_maps(net, images).items(), feature_maps(other, images).values(), strict=True
    ):
        assert torch.equal(plain, inplace) and plain.min() < 0, name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_wants_no_gradient(net, images, mode):
    expected = grad_cam(net, images, TARGETS).maps
    with mode():
        inner = grad_cam(net, images + 0, TARGETS)
        assert not torch.is_grad_enabled()
    assert torch.equal(inner.maps, expected) and not inner.maps.requires_grad


def test_works_on_a_frozen_network(net, images):
    expected = grad_cam(net, images, TARGETS).maps
    net.requires_grad_(False)
    assert torch.equal(grad_cam(net, images, TARGETS).maps, expected)


def test_autocast_is_off(net, images):
    expected = grad_cam(net, images, TARGETS).maps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(grad_cam(net, images, TARGETS).maps, expected)
        assert feature_maps(net, images)["conv1"].dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")


def test_images_take_the_type_of_the_model(net, images):
    expected = grad_cam(net, images, TARGETS).maps
    result = grad_cam(net.double(), images, TARGETS)
    assert result.maps.dtype == torch.float32
    torch.testing.assert_close(result.maps, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("explain", [lambda m, x: grad_cam(m, x, TARGETS), feature_maps])
def test_leaves_the_model_as_it_was(net, images, explain):
    net.train()
    net.norm.eval()  # a mixed mode has to come back too
    net(images).sum().backward()
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    slopes = [parameter.grad.clone() for parameter in net.parameters()]
    images.requires_grad_(True)
    explain(net, images)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(p.grad, slope) for p, slope in zip(net.parameters(), slopes, strict=True))
    assert images.grad is None and hooks(net) == 0


@pytest.mark.parametrize("explain", [lambda m, x: grad_cam(m, x, TARGETS), feature_maps])
def test_hooks_go_after_an_exception(net, images, explain):
    def fail(*_):
        raise RuntimeError("planted")

    net.train()
    net.head.forward = fail
    with pytest.raises(RuntimeError, match="planted"):
        explain(net, images)
    assert hooks(net) == 0 and all(module.training for module in net.modules())


def test_two_hundred_calls_leave_nothing(net, images):
    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    grad_cam(net, images, TARGETS), feature_maps(net, images)
    before = tensors()
    for _ in range(200):
        grad_cam(net, images, TARGETS)
        feature_maps(net, images)
    assert tensors() == before and hooks(net) == 0


def test_batch_equals_single_images_in_any_order(net, images):
    whole = grad_cam(net, images, TARGETS).maps
    single = torch.cat([grad_cam(net, images[i : i + 1], TARGETS[i : i + 1]).maps for i in range(4)])
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.flip(0), grad_cam(net, images.flip(0), TARGETS.flip(0)).maps, rtol=0, atol=1e-6)


def test_no_positive_evidence_is_said(net, images):
    with torch.no_grad():
        net.head.weight[0] = 0.0
    result = grad_cam(net, images, [0, 1, 2, 1])
    assert result.positive.tolist() == [False, *(result.maps[1:].amax((1, 2)) > 0).tolist()]
    assert result.maps[0].max() == 0 and result.positive[1:].any() and (result.maps >= 0).all()


def test_maps_are_not_normalised(net, images):
    expected = grad_cam(net, images, TARGETS).maps
    with torch.no_grad():
        net.head.weight *= 3
    torch.testing.assert_close(grad_cam(net, images, TARGETS).maps, 3 * expected)


def test_feature_maps_are_the_outputs_of_the_layers(net, images):
    maps = feature_maps(net, images)
    assert list(maps) == ["conv1", "conv2"] and maps["conv2"].shape == (4, 6, 8, 10)
    torch.testing.assert_close(maps["conv1"], net.conv1(images).detach())
    named = feature_maps(net, images, {"after norm": net.norm})
    torch.testing.assert_close(named["after norm"], net.eval().norm(net.conv1(images)).detach())
    assert not any(tensor.requires_grad for tensor in (*maps.values(), *named.values()))


def test_upsample_fits_the_image_and_keeps_the_range(net, images):
    maps = grad_cam(net, images, TARGETS).maps
    large = upsample(maps, (20, 24))
    assert large.shape == (4, 20, 24) and large.min() >= 0 and large.max() <= maps.max() + 1e-6
    torch.testing.assert_close(upsample(torch.full((1, 2, 2), 0.5), (7, 5)), torch.full((1, 7, 5), 0.5))


@pytest.mark.parametrize("targets", [[0, 1], [0, 1, 2, 3], [-1, 0, 0, 0], [0.0, 1.0, 2.0, 1.0]])
def test_targets_that_do_not_fit_are_refused(net, images, targets):
    with pytest.raises(UsageError, match="targets"):
        grad_cam(net, images, targets)
    assert hooks(net) == 0


def test_layers_that_cannot_be_explained_are_refused(net, images):
    with pytest.raises(UsageError, match="no part of Net"):
        grad_cam(net, images, TARGETS, layer=nn.Conv2d(1, 1, 1))
    with pytest.raises(UsageError, match="'head' gives shape"):
        grad_cam(net, images, TARGETS, layer=net.head)
    with pytest.raises(UsageError, match="no convolution"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(480, 3)), images, TARGETS)
    with pytest.raises(UsageError, match="did not run"):
        feature_maps(net, images, {"stranger": nn.Conv2d(1, 1, 1)})
    with pytest.raises(UsageError, match="expected \\(B, 1, H, W\\)"):
        grad_cam(net, images[0], TARGETS)
    assert hooks(net) == 0


def test_a_layer_beside_the_scores_is_refused(images):
    class Beside(Net):
        def forward(self, x):
            self.conv2(self.conv1(x))
            return torch.zeros(len(x), 3)

    with pytest.raises(UsageError, match="does not lead to the class scores"):
        grad_cam(Beside(), images, TARGETS)


def test_broken_weights_give_no_map(net, images):
    with torch.no_grad():
        net.head.weight[1, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        grad_cam(net, images, TARGETS)
