"""The -i estimates over several processes: the ranks' mean gradient is that of the joined batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Two gloo processes with uneven shares of one batch; each prints nothing and fails loudly.
WORKER = """
import sys
import torch
import torch.distributed as dist
from vaekern import GaussianVAELoss

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
x_hat, x = torch.randn(2, 6, 5, dtype=torch.float64)
x_hat[4:] *= 5  # one rank's residuals are larger
mu = torch.randn(6, 2, dtype=torch.float64)
mine = slice(0, 4) if rank == 0 else slice(4, 6)
for covariance in ("iso-i", "diag-i"):
    whole = GaussianVAELoss(covariance, process_group=False)
    leaf = x_hat.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(whole(leaf, x, mu, mu), leaf)
    shared = GaussianVAELoss(covariance)
    leaf = x_hat[mine].clone().requires_grad_()
    loss = shared(leaf, x[mine], mu[mine], mu[mine])
    (grad,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(grad / 2, wanted[mine], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(shared.running_variance, whole.running_variance)
    local = GaussianVAELoss(covariance, process_group=False)
    (alone,) = torch.autograd.grad(local(leaf, x[mine], mu[mine], mu[mine]), leaf)
    assert not torch.allclose(alone / 2, wanted[mine], rtol=1e-2)
    total = loss.detach() / 2
    dist.all_reduce(total)
    torch.testing.assert_close(total, whole(x_hat, x, mu, mu))
    try:
        GaussianVAELoss(covariance, reduction="none")(leaf, x[mine], mu[mine], mu[mine])
    except ValueError as error:
        assert "reduction must not be 'none'" in str(error)
    else:
        raise AssertionError("a gradient that would be wrong was not refused")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
