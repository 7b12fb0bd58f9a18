"""FuxiCTR: DeepFM and DCNv2 of its layers, trained by the ``fit`` of its base model: early stopping, best weights, and a tenth of the rate
where validation stands still. Its wheel has no ranking models, so they are put together here.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import fuxictr
import job as jobs
import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything


class Model(BaseModel):
    """``deepfm`` or ``dcnv2``, the latter with both parts side by side."""

    def __init__(self, features: FeatureMap, job: jobs.Job, folder: str) -> None:
        super().__init__(
            features,
            model_id=job.model,
            monitor={"AUC": 1, "logloss": -1},
            early_stop_patience=job.patience,
            embedding_regularizer=job.table_l2,
            verbose=0,
            model_root=folder,
            metrics=["AUC", "logloss"],
        )
        width = job.dim * features.num_fields
        self.deepfm = job.model == "deepfm"
        self.embedding_layer = FeatureEmbedding(features, job.dim)
        if self.deepfm:
            self.fm = FactorizationMachine(features)
            self.mlp = MLP_Block(width, hidden_units=list(job.hidden), output_dim=1)
        else:
            self.cross = CrossNetV2(width, 2)
            self.mlp = MLP_Block(width, hidden_units=list(job.hidden))
            self.out = torch.nn.Linear(width + job.hidden[-1], 1)
        self.compile("adam", "binary_crossentropy", job.rate)
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.get_inputs(inputs)
        embedded = self.embedding_layer(x)
        flat = embedded.flatten(start_dim=1)
        if self.deepfm:
            logit = self.fm(x, embedded) + self.mlp(flat)
        else:
            logit = self.out(torch.cat([self.cross(flat), self.mlp(flat)], dim=-1))
        return {"y_pred": self.output_activation(logit)}


def loader_class() -> type:
    """Its loader of arrays in memory, from its file: the package of its loaders imports ray, which nothing here needs."""
    file = Path(fuxictr.__file__).parent / "pytorch" / "dataloaders" / "npz_dataloader.py"
    spec = importlib.util.spec_from_file_location("npz_dataloader", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NpzDataLoader


def main() -> None:
    job = jobs.read()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    seed_everything(job.seed)
    with tempfile.TemporaryDirectory() as folder:
        features = FeatureMap("rows", folder)
        features.features = OrderedDict(
            (name, {"type": "categorical", "source": "", "vocab_size": size}) for name, size in job.sizes().items()
        )
        features.labels, features.num_fields = [jobs.LABEL], len(features.features)
        features.set_column_index()
        loaders, npz_loader = {}, loader_class()
        for part in ("train", "valid", "test"):
            frame = job.part(part)
            np.savez(Path(folder) / f"{part}.npz", **{name: frame[name].to_numpy() for name in frame})
            size = job.batch_size if part == "train" else 8192
            path = str(Path(folder) / f"{part}.npz")
            loaders[part] = npz_loader(features, path, batch_size=size, shuffle=part == "train", num_workers=0)
        (Path(folder) / "rows").mkdir()
        model = Model(features, job, folder)
        model.model_to_device()
        spent, epochs = 0.0, 0
        evaluate = model.eval_step
        began = time.process_time()

        def eval_step() -> None:
            """Its evaluation of an epoch, without its time."""
            nonlocal spent, epochs, began
            spent, epochs = spent + time.process_time() - began, epochs + 1
            evaluate()
            began = time.process_time()

        model.eval_step = eval_step
        model.fit(loaders["train"], epochs=job.epochs, validation_data=loaders["valid"])
        rows = epochs * len(loaders["train"].dataset)
        jobs.write(jobs.Trained(model.predict(loaders["valid"]), model.predict(loaders["test"]), spent, rows, epochs))


if __name__ == "__main__":
    main()
