"""Sylvester flows: M planar bends at once, in the span of an orthonormal basis."""

from __future__ import annotations

from typing import Literal, final, get_args

import torch
from torch import Tensor

from pyro_nfvi._math import log_tanh_slope, one_plus_a, sech2, soft_clamp, solve_tanh, tanh_slope
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import check_dim
from pyro_nfvi.flows._conditioning import ParamFlow
from pyro_nfvi.flows._recipe import BOUNDS, SIZES

Kind = Literal["qr", "householder", "triangular"]


@final
class Sylvester(ParamFlow):
    r"""One Sylvester layer: M bends along the orthonormal columns of Q.

    .. math::
        y = x + Q R \tanh(S Q^\top x + b), \qquad
        \log|\det J| = \sum_i \log(1 + a_i\,\mathrm{sech}^2 t_i), \quad a_i = R_{ii} S_{ii} > -1

    with R and S upper triangular (M, M). One layer does the work of M planar layers.

    ``kind`` says how Q is made: ``"qr"`` from a free matrix; ``"householder"`` as a product of
    reflections; ``"triangular"`` takes Q as the identity, or the reversal with
    ``reverse=True``, and M = D (stack layers with alternating ``reverse``).

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters.
        rank: Number of columns M, at most D. Default min(D, 8); D for ``"triangular"``.
        kind: How Q is parametrised.
        num_reflections: Householder reflections. Default min(D, 8).
        reverse: Reverse the order of coordinates (``"triangular"`` only).
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(DM + M^2) per row, and O(DM^2) per call for Q (per row with a context). The inverse
        solves M scalar equations in a row.

    Raises:
        OptionError: An unknown kind, or a rank that does not fit.
        ShapeError: A point or context of the wrong size.

    Source: van den Berg et al. 2018, arXiv:1803.05649, equations 8-13 and section 3. Differs:
    ``R_ii S_ii > -1`` is all that is imposed on the diagonals, instead of tanh on both, and the
    orthogonal kind takes a QR factor instead of an iteration.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Sylvester
        >>> y, ladj = Sylvester(5, rank=2)(torch.zeros(4, 5))
        >>> y.shape, ladj.shape
        (torch.Size([4, 5]), torch.Size([4]))
    """

    inverse_kind = "numeric"

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        rank: int | None = None,
        kind: Kind = "qr",
        num_reflections: int | None = None,
        reverse: bool = False,
        hidden_dim: int = 32,
    ) -> None:
        check_dim("Sylvester", dim)
        if kind not in get_args(Kind):
            raise OptionError(
                f"Sylvester needs kind to be one of {', '.join(get_args(Kind))}; got {kind!r}."
            )
        whole = kind == "triangular"
        if rank is None:
            rank = dim if whole else min(dim, SIZES.sylvester_rank)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= dim:
            raise OptionError(f"Sylvester needs a rank between 1 and dim={dim}; got {rank!r}.")
        if whole and rank != dim:
            raise OptionError(
                f"Sylvester(kind='triangular') uses all {dim} coordinates; got rank={rank}. "
                "Leave rank out, or take kind='qr'."
            )
        if reverse and not whole:
            raise OptionError("Sylvester takes reverse=True with kind='triangular' only.")
        if num_reflections is None:
            num_reflections = min(dim, SIZES.reflections)
        if not isinstance(num_reflections, int) or num_reflections < 1:
            raise OptionError(
                f"Sylvester needs num_reflections of at least 1; got {num_reflections}."
            )
        self.rank, self.kind, self.reverse = rank, kind, reverse
        self.num_reflections = num_reflections
        super().__init__(dim, context_dim, hidden_dim=hidden_dim)

    def init_params(self) -> TensorDict:
        m = self.rank
        params = {
            "alpha": torch.zeros(m),
            "log_s": torch.zeros(m),
            "r": torch.zeros(m * (m - 1) // 2),
            "s": 0.1 * torch.randn(m * (m - 1) // 2),
            "b": 0.5 * torch.randn(m),
        }
        if self.kind == "qr":
            params["q"] = torch.randn(self.dim, m)
        elif self.kind == "householder":
            params["q"] = torch.randn(self.num_reflections, self.dim)
        return params

    def _basis(self, theta: TensorDict) -> Tensor | None:
        """Orthonormal columns ``(*c, D, M)``; None for the identity."""
        if self.kind == "qr":
            q, r = torch.linalg.qr(theta["q"])
            # The sign of the diagonal makes the factor unique, hence smooth in the matrix.
            return q * torch.sign(r.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)
        if self.kind == "householder":
            # All reflections at once: I - V^T L^-1 V, L the lower triangle of V V^T with half its
            # diagonal (the compact form of a product; Schreiber and Van Loan 1989).
            v = theta["q"]
            gram = v @ v.mT
            lower = gram.tril(-1) + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
            inner = torch.linalg.solve_triangular(lower, v[..., : self.rank], upper=False)
            return torch.eye(self.dim, self.rank, dtype=v.dtype, device=v.device) - v.mT @ inner
        return None

    def _effective(self, theta: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """Return R, S and ``1 + R_ii S_ii`` (kept apart: it must not cancel)."""
        slope = one_plus_a(theta["alpha"])
        diagonal = soft_clamp(theta["log_s"], BOUNDS.sylvester_log_scale).exp()
        r = self._triangle(theta["r"]) + torch.diag_embed((slope - 1) / diagonal)
        s = self._triangle(theta["s"]) + torch.diag_embed(diagonal)
        return r, s, slope

    def _triangle(self, entries: Tensor) -> Tensor:
        """Put the entries above the diagonal, given row by row, in their places."""
        # Only they are parameters: a hyper-net would spend half its work on zeros otherwise.
        m = self.rank
        row, column = torch.triu_indices(m, m, 1, device=entries.device)
        whole = entries.new_zeros(*entries.shape[:-1], m * m)
        place = (row * m + column).expand(entries.shape)
        return whole.scatter(-1, place, entries).unflatten(-1, (m, m))

    def _down(self, x: Tensor, basis: Tensor | None) -> Tensor:
        """Coordinates along the columns of Q."""
        if basis is None:
            return x.flip(-1) if self.reverse else x
        return (x.unsqueeze(-2) @ basis).squeeze(-2)

    def _up(self, p: Tensor, basis: Tensor | None) -> Tensor:
        """The vector with these coordinates along the columns of Q."""
        if basis is None:
            return p.flip(-1) if self.reverse else p
        return (basis @ p.unsqueeze(-1)).squeeze(-1)

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        basis, (r, s, slope) = self._basis(theta), self._effective(theta)
        t = _apply(s, self._down(x, basis)) + theta["b"]
        y = x + self._up(_apply(r, torch.tanh(t)), basis)
        return y, log_tanh_slope(t, slope).sum(-1)

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        basis, (r, s, slope) = self._basis(theta), self._effective(theta)
        p = self._down(y, basis)
        diagonal = s.diagonal(dim1=-2, dim2=-1)
        # Rows from the last to the first: each is one scalar equation in w_i = (Q^T x)_i. What
        # the solved rows add to the others is taken along in two vectors.
        theta_sum = theta["b"].expand_as(p)
        rest = p
        ts: list[Tensor] = []
        for i in reversed(range(self.rank)):
            s_i, shift = diagonal[..., i], theta_sum[..., i]
            t = solve_tanh(s_i * rest[..., i] + shift, slope[..., i].expand(p.shape[:-1]))
            w = (t - shift) / s_i
            ts.append(t)
            theta_sum = theta_sum[..., :i] + w.unsqueeze(-1) * s[..., :i, i]
            rest = rest[..., :i] - torch.tanh(t).unsqueeze(-1) * r[..., :i, i]
        t = torch.stack(ts[::-1], -1)
        return y - self._up(_apply(r, torch.tanh(t)), basis), -log_tanh_slope(t, slope).sum(-1)

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        basis, (r, s, slope) = self._basis(theta), self._effective(theta)
        t = _apply(s, self._down(x, basis)) + theta["b"]
        decay = sech2(t)
        bend = (1 - slope) * 2 * torch.tanh(t) * decay / tanh_slope(t, slope)
        score = score - self._up(_apply(s.mT, bend), basis)
        inside = self._down(score, basis)
        # In the coordinates of Q the Jacobian is I + R diag(sech2) S, upper triangular.
        jacobian = (r * decay.unsqueeze(-2)) @ s
        jacobian = jacobian + torch.eye(self.rank, dtype=x.dtype, device=x.device)
        solved = torch.linalg.solve_triangular(jacobian.mT, inside.unsqueeze(-1), upper=False)
        return score + self._up(solved.squeeze(-1) - inside, basis)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", rank={self.rank}, kind={self.kind!r}"


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
