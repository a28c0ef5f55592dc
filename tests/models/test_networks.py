"""Networks: parameter counts of the papers, initial values, shapes and options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vaekern.models import networks


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_of_the_two_stage_paper() -> None:
    encoder, decoder = networks.infogan((1, 28, 28), 64)
    assert parameters(encoder) == 6_689_344
    assert parameters(decoder) == 6_642_241
    encoder, decoder = networks.second_stage(64, width=1024)
    assert parameters(encoder) == 2_305_152
    assert parameters(decoder) == 2_235_456


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 64)])
def test_infogan_maps_every_size_there_and_back(channels: int, side: int) -> None:
    encoder, decoder = networks.infogan((channels, side, side), 5)
    mu, logvar = encoder(torch.rand(2, channels, side, side))
    assert mu.shape == logvar.shape == (2, 5)
    x_hat = decoder(mu)
    assert x_hat.shape == (2, channels, side, side)
    assert x_hat.min() > 0
    assert x_hat.max() < 1


def test_infogan_starts_as_the_original() -> None:
    torch.manual_seed(0)
    encoder, decoder = networks.infogan((1, 28, 28), 64)
    convolution = encoder.layers[2].parametrizations.weight.original
    assert convolution.abs().max() <= 0.04  # two standard deviations of 0.02
    # A normal cut at two standard deviations keeps 0.8796 of its deviation.
    assert convolution.std().item() == pytest.approx(0.8796 * 0.02, rel=0.01)
    assert decoder.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert decoder.upsample[0].weight.std().item() == pytest.approx(0.02, rel=0.01)
    for module in [*encoder.modules(), *decoder.modules()]:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.eps == 1e-5
            assert module.momentum == 1e-3
            assert module.affine
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            assert not module.bias.any()
    assert not any("parametrizations" in name for name, _ in decoder.named_parameters())


def test_spectral_norm_equals_a_hand_computation() -> None:
    torch.manual_seed(1)
    encoder, _ = networks.infogan((3, 32, 32), 4)
    layer = encoder.layers[0]
    weight = layer.parametrizations.weight.original
    norm = layer.parametrizations.weight[0]
    matrix = weight.detach().flatten(1)  # [cout, cin kh kw]
    for _ in range(3):  # persisted vectors: each training forward continues where the last stopped
        before = norm._v.clone()
        normalized = layer.weight
        u = F.normalize(matrix @ before, dim=0)
        v = F.normalize(matrix.T @ u, dim=0)
        sigma = u @ matrix @ v
        torch.testing.assert_close(normalized, weight / sigma)
        torch.testing.assert_close(norm._v, v)

    # No gradient through u and v: d/dW of (W / u'Wv) . G, with u and v constants.
    gradient = torch.randn_like(weight)
    (computed,) = torch.autograd.grad(layer.weight, weight, gradient)
    u, v = norm._u, norm._v
    sigma = u @ matrix @ v
    inner = (gradient.flatten(1) * matrix).sum()
    expected = gradient.flatten(1) / sigma - inner / sigma**2 * torch.outer(u, v)
    torch.testing.assert_close(computed.flatten(1), expected)

    encoder.eval()
    before = norm._v.clone()
    _ = layer.weight
    assert torch.equal(norm._v, before)  # evaluation takes no power iteration


def test_spectral_norm_reaches_the_largest_singular_value() -> None:
    torch.manual_seed(2)
    encoder, _ = networks.infogan((1, 28, 28), 4)
    layer = encoder.layers[9]
    for _ in range(300):
        weight = layer.weight
    largest = torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2)
    assert largest.item() == pytest.approx(1.0, abs=1e-3)


def test_encoder_variance_is_softplus_with_a_floor() -> None:
    encoder, _ = networks.mlp((4,), 2, width=8)
    nn.init.zeros_(encoder.head.weight)
    with torch.no_grad():
        encoder.head.bias.copy_(torch.tensor([0.5, -0.5, 0.0, -1000.0]))
    mu, logvar = encoder(torch.randn(3, 4))
    torch.testing.assert_close(mu, torch.tensor([[0.5, -0.5]]).expand(3, 2))
    expected = torch.tensor([2 * math.log(1e-6 + math.log(2.0)), 2 * math.log(1e-6)])
    torch.testing.assert_close(logvar, expected.expand(3, 2))


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (3, 8, 8)), ("mlp", (7,)), ("infogan", (1, 8, 8))]
)
@pytest.mark.parametrize("head", ["sample", "element"])
def test_variance_heads_start_at_the_initial_variance(
    name: str, shape: tuple[int, ...], head: str
) -> None:
    _, decoder = networks.build(name, shape, 3, variance_head=head, initial_variance=0.25)
    x_hat, x_logvar = decoder(torch.randn(4, 3))
    assert x_hat.shape == (4, *shape)
    assert x_logvar.shape == ((4,) if head == "sample" else (4, *shape))
    torch.testing.assert_close(x_logvar, torch.full_like(x_logvar, math.log(0.25)))
    x_logvar.square().sum().backward()
    assert decoder.x_logvar.weight.grad.abs().sum() > 0  # zero weights still learn


def test_linear_output_is_the_logit_of_the_sigmoid_output() -> None:
    _, decoder = networks.mlp((6,), 2, width=16, output="linear")
    z = torch.randn(5, 2)
    logits = decoder(z)
    decoder.output = "sigmoid"
    torch.testing.assert_close(decoder(z), torch.sigmoid(logits))


def test_second_stage_heads_see_input_and_hidden_layers() -> None:
    torch.manual_seed(3)
    encoder, decoder = networks.second_stage(3, width=5)
    z = torch.randn(4, 3)

    def by_hand(module: nn.Module, head: nn.Linear) -> torch.Tensor:
        hidden = z
        for index in (0, 2, 4):
            hidden = (hidden @ module.hidden[index].weight.T + module.hidden[index].bias).clamp(0)
        # The first d columns multiply the input itself, the rest the last hidden layer.
        return z @ head.weight[:, :3].T + hidden @ head.weight[:, 3:].T + head.bias

    mu, logvar = encoder(z)
    torch.testing.assert_close(mu, by_hand(encoder, encoder.mu))
    torch.testing.assert_close(logvar, 2 * by_hand(encoder, encoder.log_std))
    torch.testing.assert_close(decoder(z), by_hand(decoder, decoder.z_hat))
    bound = math.sqrt(6 / (8 + 3))  # Glorot: sqrt(6 / (fan_in + fan_out))
    assert decoder.z_hat.weight.abs().max() <= bound
    assert decoder.z_hat.weight.abs().max() > 0.6 * bound
    assert not decoder.z_hat.bias.any()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("vgg", (4,), 2), {}, "network must be one of mlp, infogan, got 'vgg'"),
        (("mlp", (4,), 2), {"depth": 3}, "has no option 'depth'; its options are width, layers"),
        (("mlp", (4,), 0), {}, "latent_dim must be at least 1, got 0"),
        (("mlp", (), 2), {}, "sample_shape must hold at least one positive size"),
        (("mlp", (4,), 2), {"layers": 0}, "width and layers must be at least 1"),
        (("mlp", (4,), 2), {"output": "tanh"}, 'output must be "sigmoid" or "linear"'),
        (("mlp", (4,), 2), {"variance_head": "x"}, "variance_head must be None"),
        (("mlp", (4,), 2), {"initial_variance": 0.0}, "initial_variance must be positive"),
        (("infogan", (1, 30, 30), 2), {}, r"H and W divisible by 4, got \(1, 30, 30\); pad"),
        (("infogan", (64,), 2), {}, "or use the network 'mlp'"),
    ],
)
def test_bad_options_are_named(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.build(*arguments, **options)
