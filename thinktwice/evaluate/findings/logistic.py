"""One-hot logistic regression: a weight for every value of every field, by L-BFGS on a sparse matrix.

scikit-learn's ``LogisticRegression`` is no dependency of the library; equal to it by test. Shapes: R rows, D weights.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from thinktwice.data.encoded import EncodedRows, num_bytes, table_offsets
from thinktwice.evaluate import STAGE
from thinktwice.models.fields import FieldSpace
from thinktwice.progress import track
from thinktwice.schema.weights import SMALLEST
from thinktwice.stats.metrics import logloss
from thinktwice.train.beside import Training, beside

PRIORS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # variances of a weight, the strongest L2 first
MAX_ENTRIES = 30_000_000  # of the matrix: some 400 MB
CHUNK = 100_000  # rows of a matrix that is only scored


@dataclass(frozen=True)
class Fitted:
    """Weights [D + 1], the bias last, and the prior variance that validation chose."""

    fields: FieldSpace
    weights: np.ndarray
    prior: float

    def logits(self, rows: EncodedRows) -> np.ndarray:
        """Log-odds [R]."""
        chunks = (rows.take(slice(at, at + CHUNK)) for at in range(0, max(len(rows), 1), CHUNK))
        parts = [design(chunk, self.fields) @ self.weights[:-1] + self.weights[-1] for chunk in chunks]
        return np.concatenate(parts)


class Weights(nn.Module):
    """Weights and prior variance of a :class:`Fitted`, as a module."""

    def __init__(self, fields: FieldSpace) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num_weights(fields) + 1, dtype=torch.float64))
        self.register_buffer("prior", torch.zeros((), dtype=torch.float64))
        self.weights: Tensor
        self.prior: Tensor


def fitting(train: EncodedRows, valid: EncodedRows, fields: FieldSpace) -> AbstractContextManager[Training[Weights]]:
    """:func:`fit` beside this process if a core is idle; :func:`fitted` takes the result."""

    def keep(module: Weights) -> None:
        found = fit(train, valid, fields)
        module.weights.copy_(torch.from_numpy(found.weights))
        module.prior.fill_(found.prior)

    return beside(lambda: Weights(fields), keep, num_bytes(train))


def fitted(training: Training[Weights], fields: FieldSpace) -> Fitted:
    """The result of a :func:`fitting`; waits for it."""
    module = training.model()
    return Fitted(fields, module.weights.numpy(), float(module.prior))


def num_weights(fields: FieldSpace) -> int:
    """Number of weights without the bias."""
    return sum(fields.num_values) + sum(fields.values_of_sequences) + sum(fields.vector_dims)


def affordable_rows(fields: FieldSpace) -> int:
    """Number of rows whose matrix is small enough."""
    return MAX_ENTRIES // max(1, len(fields.columns) + sum(fields.sequence_lengths) + sum(fields.vector_dims))


def fit(train: EncodedRows, valid: EncodedRows, fields: FieldSpace) -> Fitted:
    """Fit with ever weaker L2, each from the weights of the last, for as long as the validation logloss falls."""
    matrix, label = design(train, fields), train.label.astype(np.float64)
    best: tuple[float, Fitted] | None = None
    weights = np.zeros(matrix.shape[1] + 1)
    for prior in track(PRIORS, stage=STAGE, total=len(PRIORS), label="logistic regression"):
        weights = minimised(matrix, label, prior, weights)
        found = Fitted(fields, weights, prior)
        loss = logloss(valid.label, found.logits(valid))
        if best is not None and loss >= best[0]:
            break
        best = loss, found
    assert best is not None
    return best[1]


def minimised(matrix: sparse.csr_matrix, label: np.ndarray, prior: float, start: np.ndarray) -> np.ndarray:
    """Weights [D + 1] that minimise the sum of the loglosses plus |w|² / (2 prior); the bias is free.

    They are searched in units of their curvature at 0, which differs by orders of magnitude between common and rare values: about a
    third of the iterations.
    """
    rows = len(label)
    transposed = matrix.T
    squares = np.bincount(matrix.indices, np.square(matrix.data), matrix.shape[1])
    scale = np.sqrt(np.append(squares / 4 + 1 / prior, rows / 4) / rows)

    def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        weights = scaled / scale
        z = matrix @ weights[:-1] + weights[-1]
        error = (expit(z) - label) / rows
        pull = weights[:-1] / (prior * rows)
        value = float(np.mean(np.logaddexp(0.0, z) - label * z) + 0.5 * pull @ weights[:-1])
        return value, np.append(transposed @ error + pull, error.sum()) / scale

    found = minimize(
        objective, start * scale, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-7, "gtol": 1e-5}
    )
    return np.asarray(found.x / scale)


def design(rows: EncodedRows, fields: FieldSpace) -> sparse.csr_matrix:
    """The rows [R, D]: 1 for the value of a column, 1 / n for each of the n values of a sequence (of a list with weights its share of
    them), the numbers of a vector over its length; a missing vector is 0."""
    number, columns = rows.ids.shape
    blocks = [_one_hot(rows.ids + table_offsets(fields.num_values), sum(fields.num_values))] if columns else []
    for name, size in zip(fields.sequences, fields.values_of_sequences, strict=True):
        blocks.append(_shares(rows.sequences[name], size, rows.weights.get(name)))
    for name in fields.vectors:
        values = np.nan_to_num(rows.vectors[name].astype(np.float64))
        blocks.append(sparse.csr_matrix(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)))
    return sparse.csr_matrix(sparse.hstack(blocks, format="csr")) if blocks else sparse.csr_matrix((number, 0))


def _one_hot(positions: np.ndarray, size: int) -> sparse.csr_matrix:
    rows, columns = positions.shape
    starts = np.arange(0, rows * columns + 1, columns)
    return sparse.csr_matrix((np.ones(rows * columns), positions.ravel(), starts), shape=(rows, size))


def _shares(values: np.ndarray, size: int, weights: np.ndarray | None) -> sparse.csr_matrix:
    known = values > 0
    weight = known.astype(np.float64) if weights is None else np.where(known, weights.astype(np.float64), 0.0)
    starts = np.append(0, np.cumsum(known.sum(axis=1)))
    share = weight / np.maximum(weight.sum(axis=1, keepdims=True), SMALLEST)
    return sparse.csr_matrix((share[known], values[known], starts), shape=(len(values), size))
