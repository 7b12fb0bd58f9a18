"""torch-rechub: its DeepFM and DCNv2 by its own trainer, one epoch at a time, as it restores no best weights itself."""

from __future__ import annotations

import tempfile

import job as jobs
import numpy as np
import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.ranking import DCNv2, DeepFM
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator


def main() -> None:
    job = jobs.read()
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    features = [SparseFeature(name, vocab_size=size, embed_dim=job.dim) for name, size in job.sizes().items()]
    layers = {"dims": list(job.hidden), "dropout": 0.0, "activation": "relu"}
    if job.model == "deepfm":
        model = DeepFM(deep_features=features, fm_features=features, mlp_params=layers)
    else:
        model = DCNv2(features=features, n_cross_layers=2, mlp_params=layers, use_low_rank_mixture=False)
    loaders = {}
    for part in ("train", "valid", "test"):
        frame = job.part(part)
        label = frame.pop(jobs.LABEL).to_numpy(np.float32)
        generator = DataGenerator({name: frame[name].to_numpy() for name in frame}, label)
        size = job.batch_size if part == "train" else 8192
        loaders[part] = torch.utils.data.DataLoader(generator.dataset, batch_size=size, shuffle=part == "train")
    with tempfile.TemporaryDirectory() as folder:
        trainer = CTRTrainer(
            model,
            optimizer_params={"lr": job.rate},
            regularization_params={"embedding_l2": job.table_l2 / 2},  # it adds l2 * sum(w^2), ours l2 / 2 * sum(w^2)
            n_epoch=1,
            device="cpu",
            model_path=folder,
        )
        jobs.write(
            jobs.by_epochs(
                job,
                lambda: trainer.train_one_epoch(loaders["train"]),
                lambda part: np.asarray(trainer.predict(model, loaders[part])),
                model.state_dict,
                model.load_state_dict,
            )
        )


if __name__ == "__main__":
    main()
