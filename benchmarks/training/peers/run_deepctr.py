"""DeepCTR-Torch: its DeepFM and DCN (matrix form) by its own ``fit``, one epoch at a time, as it restores no best weights itself."""

from __future__ import annotations

import job as jobs
import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DCN, DeepFM


def main() -> None:
    job = jobs.read()
    torch.set_num_threads(1)
    columns = [SparseFeat(name, size, job.dim) for name, size in job.sizes().items()]
    names = [column.name for column in columns]
    options = {
        "dnn_hidden_units": tuple(job.hidden),
        "l2_reg_embedding": job.table_l2
        / 2,  # it adds l2 * sum(w^2): half of what a decay of the gradient by l2 * w is
        "l2_reg_linear": job.table_l2 / 2,
        "seed": job.seed,
        "device": "cpu",
    }
    if job.model == "deepfm":
        model = DeepFM(columns, columns, **options)
    else:
        model = DCN(columns, columns, cross_num=2, cross_parameterization="matrix", **options)
    model.compile(torch.optim.Adam(model.parameters(), lr=job.rate), "binary_crossentropy", metrics=[])
    inputs, labels = {}, {}
    for part in ("train", "valid", "test"):
        frame = job.part(part)
        inputs[part] = {name: frame[name].to_numpy() for name in names}
        labels[part] = frame[jobs.LABEL].to_numpy(np.float32)

    def epoch() -> None:
        model.fit(inputs["train"], labels["train"], batch_size=job.batch_size, epochs=1, verbose=0)

    jobs.write(
        jobs.by_epochs(
            job, epoch, lambda part: model.predict(inputs[part], 8192), model.state_dict, model.load_state_dict
        )
    )


if __name__ == "__main__":
    main()
