"""What only a GPU can show: the losses on the device itself, in graphs, on streams and devices."""

from __future__ import annotations

import itertools

import pytest
import torch

import vaekern
from vaekern import GaussianVAELoss, backends, functional, testing
from vaekern.testing import LAYOUTS, OPERATORS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

GPU_BACKENDS = [b.name for b in backends.BACKENDS if b.device == "cuda" and "losses" in b.operators]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
IMAGES = (4, 3, 8, 6)
SHAPES = [
    (3, 1, 1), (2, 1, 17), (1, 2, 392), (64, 784), (3, 5, 5500), (1100, 1, 33), (0, 2, 3),
    (5, 70_001), (2, 300_000),
]  # fmt: skip


@pytest.fixture(params=GPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    why = next(b for b in backends.BACKENDS if b.name == request.param).unavailable()
    if why:
        pytest.skip(f"backend {request.param}: {why}")
    return request.param


CUDA = torch.device("cuda")


def agrees(operator: testing.Operator, backend: str, shape, dtype: torch.dtype, layout: str):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)  # what test_conformance draws
    inputs = testing.draw(operator, shape, dtype, layout)
    if layout == "expanded" and "scale_tril" in inputs:
        inputs["scale_tril"] = inputs["scale_tril"].contiguous()
    assert testing.compare(operator, inputs, backend, CUDA) == [], (shape, dtype, layout)


#: In turn, from another start for each operator: Triton compiles for every one of them.
DTYPES_AND_LAYOUTS = list(itertools.product(DTYPES, LAYOUTS))
NUMBERED = [pytest.param(i, o, id=o.name) for i, o in enumerate(OPERATORS)]


@pytest.mark.parametrize(("number", "operator"), NUMBERED)
def test_dtypes_and_layouts(number: int, operator: testing.Operator, backend: str) -> None:
    for dtype, layout in DTYPES_AND_LAYOUTS[number % 5 :: 5]:
        agrees(operator, backend, IMAGES, dtype, layout)


@pytest.mark.parametrize(("number", "operator"), NUMBERED)
def test_shapes(number: int, operator: testing.Operator, backend: str) -> None:
    for k, shape in enumerate(SHAPES, number):
        agrees(operator, backend, shape, DTYPES[k % 2], "contiguous")


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_every_dtype_layout_and_shape(operator: testing.Operator, backend: str) -> None:
    for dtype, layout in DTYPES_AND_LAYOUTS:
        agrees(operator, backend, IMAGES, dtype, layout)
    for shape, dtype in itertools.product(SHAPES, DTYPES[:2]):
        agrees(operator, backend, shape, dtype, "contiguous")


def test_same_bits_again(backend: str) -> None:
    for operator in (o for o in OPERATORS if "L0" in o.name):
        drawn = testing.draw(operator, (64, 12, 128), torch.float32, "contiguous")
        inputs = {k: t.cuda() for k, t in drawn.items()}
        first = testing.evaluate(operator, inputs, backend)
        for _ in range(20):
            again = testing.evaluate(operator, inputs, backend)
            assert torch.equal(first.value, again.value)
            assert all(torch.equal(g, again.grads[k]) for k, g in first.grads.items())


def step(loss_fn, decoder, x, mu, logvar):  # type: ignore[no-untyped-def]
    z, _ = functional.sample_and_kl(mu, logvar)
    return loss_fn(decoder(z), x, mu, logvar)


@pytest.fixture
def batch():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    decoder = torch.nn.Linear(8, 60, device="cuda")
    x = torch.randn(32, 60, device="cuda")
    mu, logvar = (torch.randn(32, 8, device="cuda", requires_grad=True) for _ in range(2))
    return decoder, x, mu, logvar


@pytest.mark.parametrize("covariance", vaekern.ops.COVARIANCES)
def test_graphs_replay_with_fresh_noise(backend: str, batch, covariance: str) -> None:
    decoder, x, mu, logvar = batch
    loss_fn = GaussianVAELoss(covariance, "mle", x_shape=(60,)).cuda()
    inputs = [decoder.weight, mu, logvar]
    with backends.use(backend):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step(loss_fn, decoder, x, mu, logvar).backward()
        torch.cuda.current_stream().wait_stream(stream)
        for t in inputs:
            t.grad = None
        graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
        losses, grads = [], []
        for graph in graphs:  # two of them may run at the same time
            with torch.cuda.graph(graph):
                loss = step(loss_fn, decoder, x, mu, logvar)
                grads.append(torch.autograd.grad(loss, inputs))
            losses.append(loss)
    found = set()
    for _ in range(5):
        x.normal_()
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in graphs]
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        assert all(g.isfinite().all() for some in grads for g in some)
        found.update(float(loss) for loss in losses)
    assert len(found) == 10


def test_a_replay_is_the_eager_loss(backend: str, batch) -> None:
    """Eager calls in between, on the stream of the capture and on others, do not disturb it."""
    _, x, mu, logvar = batch
    x_hat = torch.randn_like(x, requires_grad=True)
    for covariance in vaekern.ops.COVARIANCES:
        loss_fn = GaussianVAELoss(covariance, "mle", x_shape=(60,)).cuda().eval()
        with backends.use(backend):
            loss_fn(x_hat, x, mu, logvar).backward()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = loss_fn(x_hat, x, mu, logvar)
                (grad,) = torch.autograd.grad(captured, x_hat)
            for _ in range(3):
                x.normal_()
                graph.replay()
                eager = loss_fn(x_hat, x, mu, logvar)
                assert torch.equal(eager, captured)
                assert torch.equal(torch.autograd.grad(eager, x_hat)[0], grad)


def test_streams(backend: str) -> None:
    """Many at once: every stream has tickets and workspaces of its own."""
    x_hat, x = (torch.randn(300, 5000, device="cuda") for _ in range(2))
    with backends.use(backend):
        expected = functional.mle_nll(x_hat, x, "iso-i")
        torch.cuda.synchronize()
        found = []
        for _ in range(200):
            with torch.cuda.stream(torch.cuda.Stream()):
                found.append(functional.mle_nll(x_hat, x, "iso-i"))
        torch.cuda.synchronize()
    assert all(torch.equal(value, expected) for value in found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_the_second_device(backend: str) -> None:
    x_hat, x = torch.randn(64, 784), torch.randn(64, 784)
    found = []
    with backends.use(backend):
        for name in ("cuda:0", "cuda:1"):
            leaf = x_hat.to(name).requires_grad_()
            loss = functional.mle_nll(leaf, x.to(name), "diag-i")
            loss.backward()
            found.append((loss.cpu(), leaf.grad.cpu()))
            assert torch.cuda.current_device() == 0
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("covariance", vaekern.ops.COVARIANCES)
def test_compiled(backend: str, batch, covariance: str) -> None:
    _, x, mu, logvar = batch
    x_hat = torch.randn_like(x, requires_grad=True)
    loss_fn = GaussianVAELoss(covariance, "mle", x_shape=(60,)).cuda().eval()
    with backends.use(backend):
        expected = loss_fn(x_hat, x, mu, logvar)
        found = torch.compile(loss_fn, fullgraph=True)(x_hat, x, mu, logvar)
        torch.testing.assert_close(found, expected)
        for one, other in zip(
            *(torch.autograd.grad(v, (x_hat, mu, logvar)) for v in (found, expected)), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_autocast_and_grad_scaler(backend: str, batch) -> None:
    """The scale of half precision reaches the gradients before they are rounded."""
    decoder, x, mu, logvar = batch
    loss_fn = GaussianVAELoss("iso-i", "fixed", reduction="mean").cuda()
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**16)
    before = decoder.weight.detach().clone()
    with backends.use(backend):
        with torch.autocast("cuda", torch.float16):
            loss = step(loss_fn, decoder, x, mu, logvar)
        assert loss.dtype is torch.float32
        scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert not torch.equal(before, decoder.weight)
    assert decoder.weight.isfinite().all()


def test_tensors_on_two_devices() -> None:
    x = torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"x must be on the device of x_hat, got cpu and cuda:0"):
        functional.mle_nll(x.cuda(), x)
    loss_fn = GaussianVAELoss("iso-i", "mle")  # its buffers stay on the CPU
    mu = torch.randn(4, 2, device="cuda")
    with pytest.raises(ValueError, match=r"move it with loss_fn\.to"):
        loss_fn(x.cuda(), x.cuda(), mu, mu)
