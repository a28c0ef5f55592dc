"""Decoder Jacobians against closed forms and torch.autograd.functional.jacobian in float64."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaekern.diagnostics import decoder_jacobian, decoder_jacobian_chunks, jacobian
from vaekern.diagnostics._decoders import Decoder, check_decoder
from vaekern.diagnostics.jacobian import COPIES, _plan
from vaekern.models import VAE, ModelConfig, NetworkConfig, ObjectiveConfig, TwoStageVAE

# float64 against float64: sums of a few hundred terms of order 1
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


class ConvDecoder(nn.Module):
    """Two outputs, batch norm and dropout: what a decoder looks like in the middle of training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3 * 2 * 2)
        self.norm1 = nn.BatchNorm1d(12)
        self.up = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(2)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.dropout(torch.relu(self.norm1(self.fc(z)))).unflatten(1, (3, 2, 2))
        x = self.out(self.dropout(torch.tanh(self.norm2(self.up(h)))))
        return torch.sigmoid(x), x.mean((1, 2, 3))


@pytest.fixture
def conv() -> ConvDecoder:
    """In training mode, with one frozen part, and running statistics that are not the start's."""
    decoder = ConvDecoder().double()
    for _ in range(3):
        decoder(2 * torch.randn(16, 4, dtype=torch.float64) + 1)
    decoder.norm1.eval()
    return decoder


def one_by_one(decoder: nn.Module, z: Tensor) -> Tensor:
    decoder = copy.deepcopy(decoder).eval()
    rows = [
        torch.autograd.functional.jacobian(lambda v: decoder(v[None])[0][0].flatten(), row)
        for row in z
    ]
    return torch.stack(rows)


def latents(count: int, d: int) -> Tensor:
    return torch.randn(count, d, dtype=torch.float64)


# ------------------------------------------------------------------ values


def test_linear_and_tanh_in_closed_form():
    first, second = nn.Linear(3, 5).double(), nn.Linear(5, 7).double()
    z = latents(6, 3)
    J = decoder_jacobian(first, z)
    assert torch.equal(J, first.weight.detach().expand(6, 5, 3))
    # d tanh(h) = 1 - tanh(h)^2
    slope = 1 - torch.tanh(first(z)).detach() ** 2
    expected = torch.einsum("ok,nk,kj->noj", second.weight, slope, first.weight).detach()
    for mode in ("forward", "reverse"):
        J = decoder_jacobian(nn.Sequential(first, nn.Tanh(), second), z, mode=mode)
        torch.testing.assert_close(J, expected, **CLOSE)


def test_conv_decoder_in_training_mode_matches_autograd_in_evaluation_mode(conv: ConvDecoder):
    z = latents(5, 4)
    state = copy.deepcopy(conv.state_dict())
    flags = [part.training for part in conv.modules()]
    assert True in flags
    assert False in flags
    J = decoder_jacobian(conv, z)
    torch.testing.assert_close(J, one_by_one(conv, z), **CLOSE)
    assert [part.training for part in conv.modules()] == flags
    for name, value in conv.state_dict().items():
        assert torch.equal(value, state[name]), name
    images = decoder_jacobian(conv, z, flatten=False)
    assert images.shape == (5, 2, 4, 4, 4)
    assert torch.equal(images.flatten(1, -2), J)


@pytest.mark.parametrize(
    "options",
    [{"chunk_size": 1}, {"chunk_size": 3}, {"chunk_size": 100}, {"memory_budget": 1}]
    + [{"memory_budget": budget} for budget in (20_000, 60_000)],
    ids=str,
)
def test_chunks_give_equal_values(conv: ConvDecoder, options: dict[str, int]):
    z = latents(7, 4)
    whole = decoder_jacobian(conv, z)
    torch.testing.assert_close(decoder_jacobian(conv, z, **options), whole, **CLOSE)
    chunks = list(decoder_jacobian_chunks(conv, z, **options))
    torch.testing.assert_close(torch.cat(chunks), whole, **CLOSE)
    reverse = decoder_jacobian(conv, z, mode="reverse", flatten=False, **options)
    torch.testing.assert_close(reverse.flatten(1, -2), whole, **CLOSE)


def test_layout_of_z_does_not_matter():
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    z = latents(6, 3)
    J = decoder_jacobian(decoder, z)
    strided = torch.zeros(12, 6, dtype=torch.float64)[::2, ::2].copy_(z)
    assert not strided.is_contiguous()
    for same in (strided, z.T.contiguous().T):
        torch.testing.assert_close(decoder_jacobian(decoder, same), J, **CLOSE)
    expanded = decoder_jacobian(decoder, z[:1].expand(4, 3), chunk_size=3)
    torch.testing.assert_close(expanded, J[:1].expand(4, 4, 3), **CLOSE)


def test_vae_before_and_after_its_activation():
    config = ModelConfig(ObjectiveConfig("diag-d", "learned"), NetworkConfig(latent_dim=3, width=8))
    vae = VAE.from_config(config, (1, 4, 4), value_range=(0.0, 1.0)).double()
    z = latents(5, 3)
    mean, raw = (decoder_jacobian(vae, z, output=output) for output in ("mean", "raw"))
    x_hat = vae.eval().decode(z).detach().flatten(1)
    torch.testing.assert_close(mean, (x_hat * (1 - x_hat))[:, :, None] * raw, **CLOSE)
    vae.train()
    torch.testing.assert_close(decoder_jacobian(vae.decode, z), mean, **CLOSE)
    torch.testing.assert_close(decoder_jacobian(vae.decoder, z), raw, **CLOSE)
    assert vae.training


def test_attention_has_a_forward_derivative():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double()

    def decoder(z: Tensor) -> Tensor:
        return layer.eval()(z.unflatten(1, (2, 4)))

    z = latents(3, 8)
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: decoder(v[None])[0], row) for row in z]
    )
    J = decoder_jacobian(decoder, z, mode="forward", flatten=False)
    torch.testing.assert_close(J, expected, **CLOSE)


@pytest.mark.slow
def test_a_compiled_decoder_stays_one():
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    z, compiled = latents(3, 3), []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    fast = torch.compile(decoder, backend=backend)
    assert torch.equal(decoder_jacobian(fast, z), decoder_jacobian(decoder, z))
    assert not compiled
    fast(z)  # met inside a transform, torch.compile would have given this function up for good
    assert compiled


# ------------------------------------------------------------------ what is left as it was


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_no_gradients_in_or_out(mode: str, context: Callable[[], Any]):
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    z = latents(3, 3).requires_grad_()
    expected = decoder_jacobian(decoder, z.detach())
    with context():
        J = decoder_jacobian(decoder, z, mode=mode)
    assert not J.requires_grad
    assert z.grad is None
    assert all(p.grad is None and p.requires_grad for p in decoder.parameters())
    torch.testing.assert_close(J, expected, **CLOSE)


def switches() -> list[Any]:
    backends = torch.backends
    parts = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul)
    return [
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        backends.cudnn.allow_tf32,
        backends.cuda.matmul.allow_tf32,
        *(part.fp32_precision for part in parts),
    ]


def test_full_precision_inside_and_the_users_choice_outside():
    linear = nn.Linear(3, 4)
    z = torch.randn(5, 3)
    expected = decoder_jacobian(linear, z)
    inside: list[list[Any]] = []

    def decoder(z: Tensor) -> Tensor:
        inside.append(switches())
        return linear(z)

    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(z).dtype == torch.bfloat16
            before = switches()
            assert "bf16" in before
            assert "tf32" in before
            J = decoder_jacobian(decoder, z)
            assert switches() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(J, expected)
    assert inside
    for seen in inside:
        assert seen[:4] == [False, "highest", False, False]
        assert set(seen[4:]) <= {"ieee", "none"}


@pytest.mark.parametrize("new", [True, False], ids=["new switches", "old switches"])
def test_every_way_of_allowing_tf32_is_closed_and_put_back(new: bool):
    seen: list[str] = []
    cudnn: Any = torch.backends.cudnn

    def decoder(z: Tensor) -> Tensor:
        seen.append(cudnn.conv.fp32_precision)
        return 2 * z

    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    try:
        if new:  # the old switch cannot say this, and raises when it is read
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "tf32", "ieee"
        else:
            cudnn.allow_tf32 = True
        wanted = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
        decoder_jacobian(decoder, torch.ones(2, 2))
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == wanted
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before
    assert wanted[0] == "tf32"
    assert set(seen) <= {"ieee", "none"}


def test_flags_are_the_users_between_chunks_and_after_an_error(conv: ConvDecoder):
    flags = [part.training for part in conv.modules()]
    z = latents(6, 4)
    for _ in decoder_jacobian_chunks(conv, z, chunk_size=2):
        assert [part.training for part in conv.modules()] == flags

    def broken(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert not module.training
        raise ArithmeticError("broken")

    conv.out.register_forward_pre_hook(broken)
    with pytest.raises(ArithmeticError):
        decoder_jacobian(conv, z)
    assert [part.training for part in conv.modules()] == flags
    assert torch.backends.mha.get_fastpath_enabled()


# ------------------------------------------------------------------ memory


def test_bytes_written_by_one_sample():
    # 4 values by the linear layer and 4 by tanh; views and the decoder's own constants are free
    linear = nn.Linear(2, 4)
    decoder, _ = check_decoder(
        lambda z: torch.tanh(linear(z) * torch.ones(100, 100)[0, 0]).unflatten(1, (2, 2)),
        torch.randn(5, 2),
        "mean",
    )
    assert decoder.sample_bytes == 4 * (4 + 4 + 4)  # the product writes 4 too
    assert decoder.output_bytes == 4 * 4
    assert decoder.shape == (2, 2)


def test_plans_keep_to_the_budget_and_use_it():
    for sample_bytes, output_bytes, d, count in [(10, 4, 3, 50), (999, 100, 16, 7), (8, 8, 1, 9)]:
        checked = Decoder(torch.tanh, None, torch.Size([1]), sample_bytes, output_bytes)
        z = torch.zeros(count, d)

        def cost(
            samples: int, directions: int, size: int = sample_bytes, output: int = output_bytes,
            d: int = d,
        ) -> int:  # fmt: skip
            return samples * ((1 + directions) * size + COPIES * output * d)

        for budget in (1, 100, 1000, 5000, 10_000, 100_000):
            samples, directions = _plan(checked, z, None, budget)
            assert cost(samples, directions) <= budget or (samples, directions) == (1, 1)
            if directions == d:
                assert samples == count or cost(samples + 1, d) > budget
            else:
                assert samples == 1
                assert cost(1, directions + 1) > budget
        assert _plan(checked, z, 5, 1) == (5, 1)


def test_the_decoder_never_sees_more_samples_than_a_chunk():
    seen = []

    def decoder(z: Tensor) -> Tensor:
        seen.append(len(z))
        return torch.tanh(z)

    decoder_jacobian(decoder, torch.randn(20, 2), chunk_size=3)
    assert max(seen) == 3
    seen.clear()
    # 2 values written by tanh, for itself and 2 directions, and 4 times a 2 x 2 Jacobian: 88 bytes
    decoder_jacobian(decoder, torch.randn(20, 2), memory_budget=5 * 88)
    assert max(seen) == 5


# ------------------------------------------------------------------ dtypes


def test_half_precision_latents_are_exact_in_a_wider_decoder():
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    z = torch.randn(4, 3)
    for dtype in (torch.float16, torch.bfloat16):
        J = decoder_jacobian(decoder, z.to(dtype))
        assert torch.equal(J, decoder_jacobian(decoder, z.to(dtype).float()))
    low = decoder_jacobian(copy.deepcopy(decoder).bfloat16(), z.bfloat16())
    assert low.dtype == torch.bfloat16
    # three roundings to 8 bits of values below 1
    assert (low - decoder_jacobian(decoder, z)).abs().max() < 3 * 2**-7


# ------------------------------------------------------------------ no forward derivative


class Square(torch.autograd.Function):
    """As most custom functions are written: backward only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class SquareWithVmap(torch.autograd.Function):
    """Known to functorch, but without jvp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.parametrize("function", [Square, SquareWithVmap])
def test_custom_functions_fall_back_to_reverse_mode(function: type[torch.autograd.Function]):
    linear = nn.Linear(3, 5).double()
    z = latents(4, 3)

    def decoder(z: Tensor) -> Tensor:
        return function.apply(linear(z))

    expected = 2 * linear(z)[:, :, None].detach() * linear.weight.detach()
    with pytest.warns(UserWarning, match="5 backward passes") as caught:
        J = decoder_jacobian(decoder, z, chunk_size=3)
    assert len(caught) == 1
    torch.testing.assert_close(J, expected, **CLOSE)
    torch.testing.assert_close(decoder_jacobian(decoder, z, mode="reverse"), expected, **CLOSE)
    with pytest.raises(NotImplementedError, match="mode='reverse'") as error:
        decoder_jacobian(decoder, z, mode="forward")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ bad input

Z = torch.randn(4, 3)
LINEAR = nn.Linear(3, 4)


def unbatched(z: Tensor) -> Tensor:
    return LINEAR(z).mean(0, keepdim=True)


def noisy(z: Tensor) -> Tensor:
    return LINEAR(z) + torch.randn(len(z), 4)


def two_stage() -> TwoStageVAE:
    return TwoStageVAE.from_config(ModelConfig(network=NetworkConfig(latent_dim=3, width=4)), (5,))


BAD = [
    (lambda: decoder_jacobian(LINEAR, [[0.0]]), TypeError, "z must be a tensor"),
    (lambda: decoder_jacobian(LINEAR, Z.int()), TypeError, "int32"),
    (lambda: decoder_jacobian(LINEAR, Z[0]), ValueError, "[N, d]"),
    (lambda: decoder_jacobian(LINEAR, Z[:0]), ValueError, "at least 1 sample"),
    (lambda: decoder_jacobian(LINEAR, Z / 0), ValueError, "finite"),
    (lambda: decoder_jacobian(LINEAR, Z.double()), ValueError, "decoder.to(z.dtype)"),
    (lambda: decoder_jacobian(nn.Linear(3, 4, device="meta"), Z), ValueError, "z.to('meta')"),
    (lambda: decoder_jacobian(3, Z), TypeError, "int"),
    (lambda: decoder_jacobian(two_stage(), Z), TypeError, "model.stage1"),
    (lambda: decoder_jacobian(lambda z: None, Z), TypeError, "NoneType"),
    (lambda: decoder_jacobian(lambda z: (), Z), TypeError, "tuple"),
    (lambda: decoder_jacobian(lambda z: LINEAR(z).argmax(1), Z), TypeError, "int64"),
    (lambda: decoder_jacobian(lambda z: LINEAR(z).sum(1), Z), ValueError, "batch axis"),
    (lambda: decoder_jacobian(lambda z: LINEAR(z)[:, :0], Z), ValueError, "batch axis"),
    (lambda: decoder_jacobian(unbatched, Z), ValueError, "[1, 4] for z [2, 3]"),
    (lambda: decoder_jacobian(noisy, Z), ValueError, "whatever it is batched with"),
    (lambda: decoder_jacobian(lambda z: LINEAR(z) * z.sum(), Z), ValueError, "batched with"),
    (lambda: decoder_jacobian(lambda z: LINEAR(z).detach(), Z), ValueError, "differentiable"),
    (lambda: decoder_jacobian(torch.inference_mode()(LINEAR), Z), ValueError, "inference"),
    (lambda: decoder_jacobian(lambda z: LINEAR(z * 0).detach(), Z, mode="reverse"), ValueError, ""),
    (lambda: decoder_jacobian(LINEAR, Z, output="raw"), ValueError, "got Linear"),
    (lambda: decoder_jacobian(LINEAR, Z, output="means"), ValueError, "did you mean 'mean'"),
    (lambda: decoder_jacobian(LINEAR, Z, mode="back"), ValueError, "'reverse'"),
    (lambda: decoder_jacobian(LINEAR, Z, chunk_size=0), ValueError, "chunk_size"),
    (lambda: decoder_jacobian(LINEAR, Z, chunk_size=2.0), TypeError, "samples"),
    (lambda: decoder_jacobian(LINEAR, Z, memory_budget=-1), ValueError, "memory_budget"),
    (lambda: decoder_jacobian(LINEAR, Z, memory_budget="1G"), TypeError, "bytes"),
    (lambda: decoder_jacobian_chunks(LINEAR, Z[0]), ValueError, "[N, d]"),  # at the call
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_input(call: Callable[[], Any], error: type[Exception], words: str):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert words in text
    assert ". " not in text.replace("...", "")
    assert "\n" not in text


def test_numpy_inside_a_decoder_is_refused_with_the_remedy():
    def decoder(z: Tensor) -> Tensor:
        return torch.from_numpy(LINEAR(z).detach().numpy())

    with pytest.raises(ValueError, match="NumPy"):
        decoder_jacobian(decoder, Z)


def test_examples_run():
    assert doctest.testmod(jacobian) == (0, 4)
