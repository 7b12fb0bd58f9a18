"""Prediction heads on a trained trunk: the expected vector of each unprotected field given the other fields of a row.

A head maps the hidden state of a row whose field is hidden to the expected vector of that field, by ridge regression in closed
form over training rows with the masks of absorbing diffusion (every row hides its own random share of fields). So any trunk can
have them, pre-trained or not, and its scores do not change. SGCTR (arXiv 2511.14403) instead trains its generator with a
sampled softmax over cosines; the conditional mean needs no negatives, no temperature and no second training, and it is the
vector that a soft redefinition mixes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from thinktwice.calibration import MAX_MAGNITUDE
from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_file
from thinktwice.models.backbone import Backbone
from thinktwice.models.store import plausible
from thinktwice.threads import reproducible

HEADS_FILE = "heads.safetensors"
RIDGE = 1e-3  # as a share of the mean square of the hidden state
MAX_ROWS = 40_000
BATCH = 4096


@dataclass(frozen=True)
class FieldHeads:
    """Heads of n unprotected fields: ``fields`` [n] their positions, ``weight`` [n, H + 1, D], the last input being 1."""

    fields: torch.Tensor
    weight: torch.Tensor

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """Expected field vectors [B, n, D] for hidden states [B, H]."""
        return torch.einsum("bh,nhd->bnd", hidden, self.weight[:, :-1]) + self.weight[:, -1]

    def save(self, folder: Path | str) -> None:
        """Write ``heads.safetensors`` into ``folder``."""
        with atomic_file(Path(folder) / HEADS_FILE) as temporary:
            save_file({"fields": self.fields, "weight": self.weight.contiguous()}, str(temporary))

    @staticmethod
    def load(folder: Path | str) -> FieldHeads:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: the file is missing or damaged.
        """
        path = Path(folder) / HEADS_FILE
        try:
            tensors = load_file(str(path))
        except (OSError, ValueError, SafetensorError) as error:
            raise BundleError(
                f"prediction heads {path} cannot be read ({reason(error)}): fit the test-time parameters again"
            ) from error
        fields, weight = tensors.get("fields"), tensors.get("weight")
        problem = ""
        if fields is None or weight is None or len(tensors) != 2:
            problem = "it must contain 'fields' and 'weight' only"
        elif (fields.dtype, fields.dim(), weight.dtype, weight.dim()) != (torch.int64, 1, torch.float32, 3):
            problem = "'fields' or 'weight' has another type or number of dimensions"
        elif len(fields) != len(weight):
            problem = f"it contains {len(weight)} heads for {len(fields)} fields"
        elif not plausible(weight):
            problem = f"'weight' contains numbers that are not finite, or above {MAX_MAGNITUDE:,.0f}"
        if fields is None or weight is None or problem:
            raise BundleError(f"prediction heads {path} are damaged ({problem}): fit the test-time parameters again")
        return FieldHeads(fields, weight)


@reproducible()
@torch.inference_mode()
def fit_heads(model: Backbone, train: EncodedRows, maskable_fields: np.ndarray, *, seed: int = 0) -> FieldHeads:
    """Fit the heads of the fields ``maskable_fields`` [n] (columns) on at most ``MAX_ROWS`` training rows, evenly spaced."""
    fields = torch.from_numpy(maskable_fields.astype(np.int64))
    rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), MAX_ROWS)).astype(np.int64))
    generator = torch.Generator().manual_seed(seed)
    width = model.hidden_width + 1
    gram = torch.zeros(len(fields), width, width, dtype=torch.float64)
    moment = torch.zeros(len(fields), width, model.dim + 1, dtype=torch.float64)
    fill = model.fill()
    for start in range(0, len(rows), BATCH):
        batch = train.batch(rows[start : start + BATCH])
        x = model.embed(batch)
        rate = torch.rand(len(batch), 1, generator=generator)
        keep = torch.rand(len(batch), model.num_fields, generator=generator) >= rate
        masked = torch.where(keep[..., None], x, fill)
        hidden = torch.cat([model.trunk(masked), x.new_ones(len(batch), 1)], dim=1).double()
        for position, field in enumerate(maskable_fields):
            known = ~keep[:, field] & (batch.ids[:, field] > 0)
            h = hidden[known]
            gram[position] += h.T @ h
            moment[position] += h.T @ x[known, field].double()
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
    gram += (RIDGE * scale)[:, None, None] * torch.eye(width, dtype=torch.float64)
    weight = torch.linalg.solve(gram, moment) if len(fields) else moment
    return FieldHeads(fields, weight.float())
