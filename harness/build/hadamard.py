"""Orthogonal matrices that spread an outlier over all channels: Hadamard where one is known, else random."""

from __future__ import annotations

import math
from functools import cache

import torch


def rotation(order: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix [order, order] float64, the same for the same seed.

    A Hadamard matrix over √order whose rows have random signs (QuIP#, arXiv 2402.04396: every entry has the same
    size, so that no channel keeps an outlier). Where no Hadamard matrix of the order is known here, the Kronecker
    product of one of the largest divisor there is and a random orthogonal matrix, by QR, of the rest: 1152 = 1152 · 1,
    92 = 4 · 23.
    """
    generator = torch.Generator().manual_seed(seed)
    known = max(divisor for divisor in _divisors(order) if _construction(divisor))
    matrix = hadamard(known).double() / math.sqrt(known)
    if known < order:
        matrix = torch.kron(matrix, _haar(order // known, generator))
    signs = torch.randint(2, (order, 1), generator=generator) * 2.0 - 1.0
    return matrix * signs


@cache
def hadamard(order: int) -> torch.Tensor:
    """A Hadamard matrix [order, order] of ±1, float32: H Hᵀ = order · I.

    Sylvester's doubling of the constructions of Paley (1933) over prime fields; these cover every width and head of
    the models that ship.

    Raises:
        ValueError: none is known here for this order.
    """
    construction = _construction(order)
    if construction == "one":
        return torch.ones(1, 1)
    if construction == "double":
        return torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard(order // 2))
    if construction == "paley1":
        core = _conference(order - 1)
        core[1:, 0] = -1
        return core + torch.eye(order)
    if construction == "paley2":
        core = _conference(order // 2 - 1)
        return torch.kron(core, torch.tensor([[1.0, 1.0], [1.0, -1.0]])) + torch.kron(
            torch.eye(order // 2), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        )
    raise ValueError(f"no Hadamard matrix of order {order} is known here")


def _construction(order: int) -> str:
    """How a Hadamard matrix of an order is made; empty where it cannot be."""
    if order == 1:
        return "one"
    if order % 2 == 0 and _construction(order // 2):
        return "double"
    if order % 4 == 0 and _is_prime(order - 1):
        return "paley1"
    if order % 4 == 0 and _is_prime(order // 2 - 1) and order // 2 % 4 == 2:
        return "paley2"
    return ""


def _conference(prime: int) -> torch.Tensor:
    """Paley's matrix [prime + 1, prime + 1]: zero diagonal, ones at the border, else whether i − j is a square."""
    squares = {number * number % prime for number in range(1, prime)}
    character = torch.tensor([0.0, *(1.0 if number in squares else -1.0 for number in range(1, prime))])
    index = torch.arange(prime)
    matrix = torch.ones(prime + 1, prime + 1)
    matrix[0, 0] = 0
    matrix[1:, 1:] = character[(index[:, None] - index[None, :]) % prime]
    return matrix


def _haar(order: int, generator: torch.Generator) -> torch.Tensor:
    """A random orthogonal matrix, float64, uniform over all (Mezzadri, arXiv math-ph/0609050: QR with fixed signs)."""
    q, r = torch.linalg.qr(torch.randn(order, order, generator=generator, dtype=torch.float64))
    result: torch.Tensor = q * r.diagonal().sign()
    return result.contiguous()


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
