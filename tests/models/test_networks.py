"""Networks: parameter counts of the papers, initial values, shapes and options."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vaekern import GaussianVAELoss
from vaekern.models import VAE, networks
from vaekern.models.networks import layers


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fc(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return kernel**2 * inputs * outputs + outputs  # transposed or not


def bn(*channels: int) -> int:
    return 2 * sum(channels)


def momenta(module: nn.Module) -> set[float]:
    return {each.momentum for each in module.modules() if isinstance(each, nn.BatchNorm2d)}


class Row(NamedTuple):
    """A network at its paper's sizes, and at the smallest that it takes."""

    shape: tuple[int, ...]
    latent_dim: int
    encoder: int  # parameters, layer by layer
    decoder: int
    smallest: tuple[int, ...]


WAE_ENCODER = conv(3, 128, 5) + conv(128, 256, 5) + conv(256, 512, 5) + conv(512, 1024, 5)
WAE_ENCODER += bn(128, 256, 512, 1024)
WAE_DECODER = fc(64, 1024 * 8 * 8) + conv(1024, 512, 5) + conv(512, 256, 5) + conv(256, 128, 5)
WAE_DECODER += bn(512, 256, 128) + conv(128, 3, 5)


def residual(inputs: int, outputs: int) -> int:
    return 2 * fc(inputs, outputs) + fc(outputs, outputs)


def scale(channels: int) -> int:
    """Two residual blocks of two batch norms, two convolutions and the shortcut's."""
    return 2 * (2 * bn(channels) + 3 * conv(channels, channels, 3))


RESNET_ENCODER = conv(3, 32, 3) + scale(32) + conv(32, 64, 3) + scale(64)
RESNET_ENCODER += conv(64, 128, 3) + scale(128) + conv(128, 256, 3) + scale(256)
RESNET_ENCODER += residual(256 * 8 * 8, 512) + residual(512, 512) + fc(512, 128)
RESNET_DECODER = fc(64, 4096) + conv(1024, 512, 3) + scale(512) + conv(512, 256, 3) + scale(256)
RESNET_DECODER += conv(256, 128, 3) + scale(128) + conv(128, 64, 3) + scale(64)
RESNET_DECODER += conv(64, 32, 3) + scale(32) + conv(32, 3, 3)

FACES_ENCODER = conv(3, 128, 5) + conv(128, 256, 5) + conv(256, 512, 5) + conv(512, 1024, 5)
FACES_ENCODER += bn(256, 512, 1024) + fc(1024 * 8 * 8, 512)
FACES_DECODER = fc(256, 1024 * 16 * 16) + conv(1024, 512, 5) + conv(512, 256, 5)
FACES_DECODER += conv(256, 128, 5) + bn(256, 128) + conv(128, 3, 5)


def takida(kernel: int, latent_dim: int) -> tuple[int, int]:
    """Encoder and decoder without their batch norms."""
    encoder = conv(1, 64, kernel) + conv(64, 128, kernel) + fc(6272, 1024)
    decoder = fc(latent_dim, 1024) + fc(1024, 6272) + conv(128, 64, kernel) + conv(64, 1, kernel)
    return encoder + fc(1024, 2 * latent_dim), decoder


ROWS = {
    "mlp": Row(
        (1, 8, 8),
        16,
        fc(64, 256) + fc(256, 256) + fc(256, 32),
        fc(16, 256) + fc(256, 256) + fc(256, 64),
        (7,),
    ),
    # The counts of the two-stage paper's code.
    "infogan": Row((1, 28, 28), 64, 6_689_344, 6_642_241, (1, 8, 8)),
    "wae": Row((3, 64, 64), 64, WAE_ENCODER + fc(1024 * 8 * 8, 128), WAE_DECODER, (1, 8, 8)),
    "wae-original": Row(
        (3, 64, 64), 64, WAE_ENCODER + fc(1024 * 4 * 4, 128), WAE_DECODER, (1, 16, 16)
    ),
    "resnet": Row((3, 64, 64), 64, RESNET_ENCODER, RESNET_DECODER, (1, 4, 4)),
    "takida-mnist": Row(
        (1, 28, 28),
        16,
        takida(5, 16)[0] + bn(1024),
        takida(5, 16)[1] + bn(1024, 6272, 64),
        (1, 4, 4),
    ),
    "takida-smoothness": Row((1, 28, 28), 8, *takida(4, 8), (1, 4, 4)),
    "takida-faces": Row((3, 128, 128), 256, FACES_ENCODER, FACES_DECODER, (1, 16, 16)),
    "rolinek-conv": Row(
        (3, 64, 64),
        32,
        conv(3, 32, 4) + conv(32, 32, 4) + conv(32, 64, 4) + conv(64, 64, 4) + fc(1024, 64),
        fc(32, 64)
        + fc(64, 1024)
        + conv(64, 64, 4)
        + conv(64, 32, 4)
        + conv(32, 32, 4)
        + conv(32, 3, 4),
        (1, 16, 16),
    ),
    "rolinek-dsprites": Row(
        (1, 64, 64),
        5,
        fc(4096, 1200) + fc(1200, 1200) + fc(1200, 10),
        fc(5, 1200) + 2 * fc(1200, 1200) + fc(1200, 4096),
        (3,),
    ),
    "rolinek-mnist": Row(
        (1, 28, 28),
        6,
        fc(784, 400) + fc(400, 12),
        fc(6, 500) + fc(500, 500) + fc(500, 784),
        (3,),
    ),
    "rolinek-synth-nonlin": Row(
        (6,),
        2,
        fc(6, 60) + fc(60, 40) + fc(40, 20) + fc(20, 4),
        fc(2, 60) + fc(60, 40) + fc(40, 20) + fc(20, 6),
        (3,),
    ),
    "linear": Row((3,), 2, fc(3, 4), fc(2, 3), (3,)),
}


def test_every_network_is_in_the_table() -> None:
    assert set(ROWS) == set(networks.NETWORKS)


@pytest.mark.parametrize("name", ROWS)
def test_parameter_counts(name: str) -> None:
    row = ROWS[name]
    with torch.device("meta"):
        encoder, decoder = networks.build(name, row.shape, row.latent_dim)
    assert parameters(encoder) == row.encoder
    assert parameters(decoder) == row.decoder


def test_the_faces_of_celeba_are_half_as_wide() -> None:
    with torch.device("meta"):
        encoder, decoder = networks.takida_faces((3, 64, 64), 64)
    large = ROWS["takida-faces"]
    assert parameters(encoder) == large.encoder - fc(1024 * 8 * 8, 512) + fc(1024 * 4 * 4, 128)
    assert parameters(decoder) == large.decoder - fc(256, 1024 * 16 * 16) + fc(64, 1024 * 8 * 8)


def test_parameter_counts_of_the_second_stage() -> None:
    encoder, decoder = networks.second_stage(64, width=1024)
    assert parameters(encoder) == 2_305_152
    assert parameters(decoder) == 2_235_456


@pytest.mark.parametrize("name", ROWS)
def test_a_training_step_at_the_sizes_of_the_paper(name: str) -> None:
    """Two images there and back, and every parameter hears of the loss."""
    row = ROWS[name]
    latents = 8  # the papers' numbers cost time, and only in the layers that are counted above
    encoder, decoder = networks.build(name, row.shape, latents, output="linear")
    loss = GaussianVAELoss("iso-i", "mle", activation="sigmoid")
    vae = VAE(encoder, decoder, loss, latents)
    x = torch.rand(2, *row.shape)
    mu, logvar = vae.encode(x)
    assert mu.shape == logvar.shape == (2, latents)
    vae.components(x, mu, logvar).loss.backward()
    for parameter_name, parameter in vae.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.sub_(1e-4 * parameter.grad.sign())
    vae.eval()
    samples = vae.sample(2)
    assert samples.shape == x.shape
    assert samples.min() > 0
    assert samples.max() < 1


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 64)])
def test_infogan_maps_every_size_there_and_back(channels: int, side: int) -> None:
    encoder, decoder = networks.infogan((channels, side, side), 5)
    mu, logvar = encoder(torch.rand(2, channels, side, side))
    assert mu.shape == logvar.shape == (2, 5)
    x_hat = decoder(mu)
    assert x_hat.shape == (2, channels, side, side)
    assert x_hat.min() > 0
    assert x_hat.max() < 1


def test_the_linear_network_is_linear_and_tanh_is_tanh() -> None:
    encoder, decoder = networks.build("linear", (3,), 2, output="linear")
    x, z = torch.randn(5, 3), torch.randn(5, 2)
    mu = x @ encoder.head.weight[:2].T + encoder.head.bias[:2]
    torch.testing.assert_close(encoder(x)[0], mu)
    torch.testing.assert_close(decoder(z), z @ decoder.head.weight.T + decoder.head.bias)

    _, decoder = networks.build("rolinek-mnist", (3,), 2, output="linear")
    first, second = decoder.body[0], decoder.body[2]
    hidden = torch.tanh(z @ first.weight.T + first.bias)
    hidden = torch.tanh(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(decoder(z), hidden @ decoder.head.weight.T + decoder.head.bias)


def test_residual_blocks_by_hand() -> None:
    encoder, decoder = networks.resnet((1, 4, 4), 2, base_width=3, blocks=1, scales=1)
    encoder.eval()
    x = torch.randn(2, 1, 4, 4)
    first, block, _, dense = encoder.body
    features = first(x)
    one, two = block[0].layers[2], block[0].layers[5]
    norm = 1 / math.sqrt(1 + 1e-5)  # batch norm before training, in evaluation
    hidden = F.conv2d((norm * features).clamp(0), one.weight, one.bias, padding=1)
    hidden = F.conv2d((norm * hidden).clamp(0), two.weight, two.bias, padding=1)
    shortcut = block[0].shortcut
    features = hidden + F.conv2d(features, shortcut.weight, shortcut.bias, padding=1)
    flat = features.flatten(1)
    one, two, shortcut = dense[0].layers[1], dense[0].layers[3], dense[0].shortcut
    hidden = F.linear(F.linear(flat.clamp(0), one.weight, one.bias).clamp(0), two.weight, two.bias)
    hidden = hidden + F.linear(flat, shortcut.weight, shortcut.bias)
    mu, log_std = F.linear(hidden, encoder.head.weight, encoder.head.bias).chunk(2, 1)
    torch.testing.assert_close(encoder(x)[0], mu)
    torch.testing.assert_close(encoder(x)[1], 2 * log_std)
    assert momenta(encoder) == momenta(decoder) == {1e-3}
    bound = math.sqrt(6 / (9 * (3 + 3)))
    assert 0.9 * bound < block[0].shortcut.weight.abs().max() <= bound


def test_resnet_takes_the_papers_scales_and_pools_on_request() -> None:
    for side, strides in ((32, 2), (64, 3)):
        encoder, _ = networks.resnet((1, side, side), 2, base_width=2)
        layers = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
        assert sum(layer.stride == (2, 2) for layer in layers) == strides
    _, decoder = networks.resnet((1, 32, 32), 2)
    assert decoder.body[0].out_features == 2048  # the paper's number; 4096 for 64x64 in the table
    pooled, _ = networks.resnet((1, 8, 8), 2, base_width=2, pool=True)
    assert pooled.body[-1][0].shortcut.in_features == 8
    assert pooled(torch.rand(2, 1, 8, 8))[0].shape == (2, 2)


def test_the_variance_of_a_sample_sees_the_mean_of_the_features() -> None:
    _, decoder = networks.takida_faces((1, 16, 16), 2, variance_head="sample")
    nn.init.ones_(decoder.x_logvar.weight)
    decoder.eval()
    z = torch.randn(3, 2)
    expected = decoder.body(z).mean((2, 3)).sum(1)  # [3, 128, 16, 16], and log 1 = 0
    torch.testing.assert_close(decoder(z)[1], expected)


def test_an_image_may_be_wider_than_high() -> None:
    encoder, decoder = networks.wae((2, 8, 24), 3)
    mu, _ = encoder(torch.rand(2, 2, 8, 24))
    assert decoder(mu).shape == (2, 2, 8, 24)


@pytest.mark.parametrize(
    ("stride", "kernel", "side"), [(1, 3, 7), (1, 5, 8), (2, 3, 8), (2, 4, 8), (2, 5, 8)]
)
def test_transposed_is_the_transpose_of_convolution(stride: int, kernel: int, side: int) -> None:
    """<conv(x), y> = <x, transposed(y)> with the same weights."""
    down = layers.convolution(2, 3, kernel, stride).double()
    up = layers.transposed(3, 2, kernel, stride).double()
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.bias)
    up.weight = down.weight
    x = torch.randn(1, 2, side, side, dtype=torch.float64)
    y = torch.randn(1, 3, side // stride, side // stride, dtype=torch.float64)
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


def test_convolution_is_tensorflows_same_of_the_mirrored_image() -> None:
    layer = layers.convolution(1, 1, 5, 2).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    mirrored = F.pad(x.flip(-1, -2), (1, 2, 1, 2))  # SAME: one pixel before, two behind
    expected = F.conv2d(mirrored, layer.weight.flip(-1, -2), layer.bias, stride=2).flip(-1, -2)
    torch.testing.assert_close(layer(x), expected)


def test_wae_starts_as_either_original() -> None:
    encoder, decoder = networks.wae((3, 16, 16), 8)
    weight = encoder.body[0][3].weight  # 128 -> 256, 5x5; Glorot: sqrt(6 / (fan_in + fan_out))
    bound = math.sqrt(6 / (25 * (128 + 256)))
    assert 0.99 * bound < weight.abs().max() <= bound
    assert momenta(encoder) == momenta(decoder) == {1e-3}  # TensorFlow's decay of 0.999
    encoder, decoder = networks.wae((3, 16, 16), 8, form="tolstikhin")
    assert momenta(encoder) == momenta(decoder) == {0.1}
    assert encoder.body[0][3].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert decoder.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert [m.stride[0] for m in encoder.modules() if isinstance(m, nn.Conv2d)] == [2, 2, 2, 2]


def test_wae_forms_read_their_variance_differently() -> None:
    encoder, _ = networks.wae((1, 8, 8), 2)
    original, _ = networks.wae((1, 16, 16), 2, form="tolstikhin")
    for module in (encoder, original):
        nn.init.zeros_(module.head.weight)
        nn.init.constant_(module.head.bias, 0.25)
        module.eval()
    assert encoder(torch.rand(1, 1, 8, 8))[1].tolist() == [[0.5, 0.5]]  # log sigma
    assert original(torch.rand(1, 1, 16, 16))[1].tolist() == [[0.25, 0.25]]  # log sigma^2


def test_infogan_starts_as_the_original() -> None:
    torch.manual_seed(0)
    encoder, decoder = networks.infogan((1, 28, 28), 64)
    convolution = encoder.body[2].parametrizations.weight.original
    assert convolution.abs().max() <= 0.04  # two standard deviations of 0.02
    # A normal cut at two standard deviations keeps 0.8796 of its deviation.
    assert convolution.std().item() == pytest.approx(0.8796 * 0.02, rel=0.01)
    assert decoder.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert decoder.body[3].weight.std().item() == pytest.approx(0.02, rel=0.01)
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
    layer = encoder.body[0]
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
    layer = encoder.head
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
    ("name", "shape"), [("mlp", (3, 8, 8)), *((name, row.smallest) for name, row in ROWS.items())]
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


def test_spectral_norm_spares_a_variance_head_which_starts_at_zero() -> None:
    _, decoder = networks.build("mlp", (1, 4, 4), 3, variance_head="element", spectral_norm=True)
    x_hat, x_logvar = decoder(torch.randn(4, 3))
    assert x_hat.isfinite().all()
    assert (x_logvar == 0).all()
    assert torch.linalg.matrix_norm(decoder.head.weight, 2) < 1.5  # one step of its iteration


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
        (("vgg", (4,), 2), {}, "network must be one of mlp, infogan, .*, got 'vgg'"),
        (("mlp", (4,), 2), {"depth": 3}, "has no option 'depth'; its options are width, layers"),
        (("mlp", (4,), 0), {}, "latent_dim must be at least 1, got 0"),
        (("mlp", (), 2), {}, "sample_shape must hold at least one positive size"),
        (("mlp", (4,), 2), {"layers": 0}, "width and layers must be at least 1"),
        (("mlp", (4,), 2), {"output": "tanh"}, 'output must be "sigmoid" or "linear"'),
        (("mlp", (4,), 2), {"variance_head": "x"}, "variance_head must be None"),
        (("mlp", (4,), 2), {"initial_variance": 0.0}, "initial_variance must be positive"),
        (
            ("infogan", (1, 30, 30), 2),
            {},
            r"H and W divisible by 4, got \(1, 30, 30\); pad the images to 32 x 32 or resize",
        ),
        (("infogan", (64,), 2), {}, r"got \(64,\); use the network 'mlp'"),
        (("wae", (3, 28, 28), 2), {}, r"'wae' .* by 8, .* 32 x 32 or resize \(--image-size 32\),"),
        (("wae-original", (3, 8, 32), 2), {}, "'wae-original' .* to 16 x 32, or use"),
        (
            ("resnet", (1, 28, 28), 2),
            {},
            "'resnet' .* power of two, at least 4, .* to 32 x 32 or resize .--image-size 32.",
        ),
        (("resnet", (1, 32, 64), 2), {}, "pad the images to 64 x 64 or"),
        (("resnet", (3, 4, 4), 2), {"scales": 4}, "at least 8, got .* to 8 x 8"),
        (("resnet", (3, 4, 4), 2), {"blocks": 0}, "base_width, blocks and scales must be at least"),
        (("takida-mnist", (1, 28, 28), 2), {"kernel": 1}, "kernel must be at least 2, .* got 1"),
        (("takida-smoothness", (1, 30, 28), 2), {}, "'takida-smoothness' .* to 32 x 28, or use"),
        (("takida-faces", (3, 72, 72), 2), {}, "'takida-faces' .* by 16, .* to 80 x 80 or"),
        (("rolinek-conv", (3, 28, 28), 2), {}, "'rolinek-conv' .* to 32 x 32 or"),
        (("wae", (3, 32, 32), 2), {"form": "x"}, "form must be one of dai-wipf, tolstikhin, got"),
        (("mlp", (4,), 2), {"encoder_widths": (3, 0)}, "encoder_widths must hold sizes of at"),
        (("mlp", (4,), 2), {"decoder_activation": "x"}, "decoder_activation must be relu or tanh"),
    ],
)
def test_bad_options_are_named(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.build(*arguments, **options)
