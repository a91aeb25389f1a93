# SPDX-License-Identifier: Apache-2.0
r"""Eigenvalues of R = X X^H + rho I from the r x r Gram matrix of its factor, in plain PyTorch.

With X = U_X S V^H, X X^H has the eigenvalues S^2 of X^H X = V S^2 V^H and N - r zeros beside them,
or, where r > N, the N largest of X^H X. Shifted by rho they are those of R:

    lambda_i = max(s_i^2, 0) + rho,    s_1 >= s_2 >= ...,    lambda_i = rho for i > N.

An eigenvalue of R moves with X by d lambda_i = 2 Re <X v_i v_i^H, dX>, so that for g = dL/dlambda

    dL/dX = 2 X V diag(g) V^H,    dL/drho = sum_i g_i.

No difference of eigenvalues is divided by, so the gradient exists where they meet. There it is
exact for a function that is symmetric in the eigenvalues that meet (their sum, an entropy, a
determinant), whatever basis of their space was found; for any other it is a generalised gradient.

Everything is accumulated in double: products of float32 numbers are exact there, and an error of
eps lambda_1 leaves singular values of X down to 1e-8 of the largest resolved.
"""

from __future__ import annotations

import torch
from torch import Tensor


def factored_spectrum_forward(factor: Tensor, rho: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues [B, r], descending, and the unit eigenvectors [B, r, r] of X^H X as columns."""
    n, r = factor.shape[1:]
    x = factor.to(torch.complex128)
    gram = x.mT.conj_physical() @ x
    finite = torch.isfinite(torch.view_as_real(gram)).flatten(1).all(1)
    # LAPACK refuses a whole batch for one matrix that is not finite.
    eye = torch.eye(r, dtype=gram.dtype, device=gram.device)
    ascending, columns = torch.linalg.eigh(torch.where(finite[:, None, None], gram, eye))
    values, vectors = ascending.flip(-1).clamp_min(0.0), columns.flip(-1)
    values = torch.where(torch.arange(r, device=values.device) < n, values, 0.0)
    if rho is not None:
        values = values + rho.to(values.dtype)[:, None]
    nan = torch.full((), torch.nan, dtype=values.dtype, device=values.device)
    return (
        torch.where(finite[:, None], values, nan).to(factor.dtype.to_real()),
        torch.where(finite[:, None, None], vectors, torch.complex(nan, nan)).to(factor.dtype),
    )


def factored_spectrum_backward(
    grad: Tensor,
    factor: Tensor,
    vectors: Tensor,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients to factor and rho; one that is not needed comes back empty."""
    wide = grad.to(torch.float64)
    grad_rho = wide.sum(-1).to(grad.dtype) if need_rho else grad.new_empty(0)
    if not need_factor:
        return factor.new_empty(0), grad_rho
    basis = vectors.to(torch.complex128)
    slope = (basis * (2 * wide)[:, None, :]) @ basis.mT.conj_physical()
    return (factor.to(torch.complex128) @ slope).to(factor.dtype), grad_rho
