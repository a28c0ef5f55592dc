"""The right singular vectors and the linear assignment in plain PyTorch, the whole batch in step.

Imports nothing of the package. One-sided Jacobi rotations in float64 are slow and as accurate as
the data allow: columns that are orthogonal up to their lengths keep full relative accuracy in every
singular value, however small.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Far more than was seen to be needed: 11 for 256 columns of normal numbers.
MAX_SWEEPS = 60
#: Two entries whose magnitudes differ by less are equally large when a sign is chosen, so that
#: rounding, and with it the backend, does not decide it.
SIGN_TIE = 1e-6


def right_svd(J: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """J [B, m, d] -> S [B, d] descending, V [B, d, d], sweeps [B], converged [B]; J is finite.

    J^T J = L L^T by orthogonalisation with pivoting, then rotations of pairs of columns of L until
    every pair is orthogonal: L Q = V diag(S). Both steps err in proportion to each column's own
    length, which is what keeps small singular values accurate.
    """
    batch, m, d = J.shape
    A = J.double()
    # a power of two: no rounding; squares neither overflow nor, short of 1e-150, vanish
    largest = A.abs().amax((1, 2)) if A.numel() else A.new_zeros(batch)
    _, exponent = torch.frexp(largest)
    A = torch.ldexp(A, -exponent[:, None, None])
    A = torch.linalg.qr(A, mode="r").R if m > d else A
    L, sweeps, converged = _rotate(_factor(A))
    S, order = L.square().sum(1).sqrt().sort(dim=1, descending=True, stable=True)
    V = L.gather(2, order[:, None].expand_as(L)) / torch.where(S > 0, S, 1.0)[:, None]
    basis = torch.linalg.qr(V).Q  # its columns beside zero columns of V complete them
    V = torch.where(S[:, None] > 0, V, basis)
    dtype = torch.promote_types(J.dtype, torch.float32)
    S = torch.ldexp(S, exponent[:, None])
    return S.to(dtype), fix_signs(V).to(dtype), sweeps, converged


def _factor(A: Tensor) -> Tensor:
    """A [B, n, d] -> L [B, d, d] with A^T A = L L^T and columns of L from long to short.

    Modified Gram-Schmidt, the longest remaining column first. A column of which no more than
    rounding is left depends on those before it and drops out, so that L has as many columns
    that are not zero as A has rank.
    """
    batch, _, d = A.shape
    here = torch.arange(batch, device=A.device)
    A = A.clone()
    smallest = d * torch.finfo(A.dtype).eps * A.square().sum(1).sqrt()
    L = A.new_zeros(batch, d, d)
    for k in range(d):
        length = A.square().sum(1).sqrt()
        length = torch.where(length > smallest, length, 0.0)
        pivot = length.argmax(1)
        longest = length[here, pivot]
        q = A[here, :, pivot] / torch.where(longest > 0, longest, torch.inf)[:, None]
        L[:, :, k] = (q[:, :, None] * A).sum(1)
        A -= q[:, :, None] * L[:, None, :, k]
        A[here, :, pivot] = 0
    return L


def _rotate(L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One-sided Jacobi: the columns of L made orthogonal, sweeps [B], converged [B]."""
    batch, _, d = L.shape
    tolerance = d * torch.finfo(L.dtype).eps
    sweeps = torch.zeros(batch, dtype=torch.int32, device=L.device)
    converged = torch.zeros(batch, dtype=torch.bool, device=L.device)
    rounds = [(p.to(L.device), q.to(L.device)) for p, q in round_robin(d)]
    while batch and not bool(converged.all()) and int(sweeps.max()) < MAX_SWEEPS:
        sweeps += ~converged
        rotated = torch.zeros_like(converged)
        for p, q in rounds:
            a, b = L[:, :, p], L[:, :, q]
            alpha, beta = a.square().sum(1), b.square().sum(1)
            gamma = (a * b).sum(1)
            turn = gamma.abs() > tolerance * alpha.sqrt() * beta.sqrt()
            rotated |= turn.any(1)
            # The rotation by at most 45 degrees that makes the pair orthogonal.
            zeta = (beta - alpha) / (2 * torch.where(turn, gamma, 1.0))
            t = torch.where(zeta < 0, -1.0, 1.0) / (
                zeta.abs() + torch.hypot(zeta, zeta.new_ones(()))
            )
            c = torch.where(turn, (1 + t.square()).rsqrt(), 1.0)[:, None]
            s = torch.where(turn, t, 0.0)[:, None] * c
            L[:, :, p], L[:, :, q] = c * a - s * b, s * a + c * b
        converged |= ~rotated
    return L, sweeps, converged


def round_robin(d: int) -> list[tuple[Tensor, Tensor]]:
    """Every pair of d columns once, in rounds of disjoint pairs (the circle method)."""
    players = list(range(d + d % 2))
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        real = [sorted(pair) for pair in pairs if max(pair) < d]
        p, q = ([pair[k] for pair in real] for k in (0, 1))
        rounds.append((torch.tensor(p, dtype=torch.int64), torch.tensor(q, dtype=torch.int64)))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def fix_signs(V: Tensor) -> Tensor:
    """The first of the largest entries of every column made positive."""
    size = V.abs()
    large = size >= size.amax(1, keepdim=True) * (1 - SIGN_TIE)
    lead = V.gather(1, large.int().argmax(1, keepdim=True))
    return torch.where(lead < 0, -V, V) + 0.0  # no negative zeros


def assignment(cost: Tensor) -> Tensor:
    """cost [B, d, d], finite -> columns [B, d]: row i takes column columns[b, i].

    Shortest augmenting paths (Crouse 2016). Of equally short ones the path that reaches a free
    column wins, then the order of a list of the columns, reversed at first, from which a column is
    removed by putting the last one in its place: with ties the answer is SciPy's.
    """
    batch, d = cost.shape[:2]
    C = cost.double()
    here = torch.arange(batch, device=C.device)
    u, v = C.new_zeros(batch, d), C.new_zeros(batch, d)
    row_of = torch.full((batch, d), -1, device=C.device)  # of each column; -1: free
    column_of = torch.full((batch, d), -1, device=C.device)
    for current in range(d):
        shortest = torch.full_like(v, torch.inf)
        path = torch.full_like(row_of, -1)
        place = torch.arange(d - 1, -1, -1, device=C.device).repeat(batch, 1)
        seen = torch.zeros_like(row_of, dtype=torch.bool)  # columns in the tree
        tree = torch.zeros_like(seen)  # rows in the tree
        row = torch.full_like(here, current)
        sink = torch.full_like(here, -1)
        least = C.new_zeros(batch)
        for left in range(d, 0, -1):
            open_ = sink < 0
            tree[here[open_], row[open_]] = True
            length = least[:, None] + C[here, row] - u[here, row, None] - v
            better = (length < shortest) & ~seen & open_[:, None]
            shortest = torch.where(better, length, shortest)
            path = torch.where(better, row[:, None], path)
            candidate = torch.where(seen, torch.inf, shortest)
            least = torch.where(open_, candidate.amin(1), least)
            free = row_of < 0
            rank = torch.where(free, place + d, -place)
            rank = torch.where(candidate == least[:, None], rank, -2 * d)
            column = rank.argmax(1)
            last = torch.where(seen, -1, place) == left - 1
            place = torch.where(last & open_[:, None], place[here, column, None], place)
            seen[here[open_], column[open_]] = True
            reached = open_ & free[here, column]
            sink = torch.where(reached, column, sink)
            row = torch.where(open_ & ~reached, row_of[here, column], row)
            if bool((sink >= 0).all()):
                break
        own = shortest.gather(1, column_of.clamp(min=0))
        tree[:, current] = False
        u = torch.where(tree, u + (least[:, None] - own), u)
        u[:, current] += least
        v = torch.where(seen, v - (least[:, None] - shortest), v)
        column = sink
        todo = torch.ones_like(sink, dtype=torch.bool)
        while bool(todo.any()):
            b = here[todo]
            row = path[b, column[todo]]
            row_of[b, column[todo]] = row
            previous = column_of[b, row]
            column_of[b, row] = column[todo]
            column = column.index_put((b,), previous)
            todo = todo.index_put((b,), row != current)
    return column_of
