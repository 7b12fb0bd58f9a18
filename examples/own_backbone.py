"""Your own backbone: a class with two methods, trained, evaluated and packaged like the built-in ones.

    python examples/own_backbone.py OUT

A bundle contains weights and the name of the backbone but no code. Before you open it, import the class, or install a package
that declares it under the entry point group ``thinktwice.backbones``.
"""

import sys
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import thinktwice
from thinktwice.models import Backbone, BackboneConfig, FieldSpace, register_backbone
from thinktwice.models.backbone import mlp


class PooledConfig(BackboneConfig):
    """The options of every backbone, and one of its own."""

    name: Literal["pooled"] = "pooled"
    pool: Literal["mean", "max"] = "mean"


class Pooled(Backbone):
    """An MLP over the pooled field embeddings, plus the first-order weights. Hidden state: both, side by side."""

    config_class = PooledConfig

    def __init__(self, config: PooledConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        self.pool = config.pool
        self.mlp = mlp(config.dim, config.hidden, config.dropout)
        self.deep_width = config.hidden[-1] if config.hidden else config.dim
        self.out = nn.Linear(self.deep_width, 1, bias=False)
        self.hidden_width = self.deep_width + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        """Hidden states [B, H] of field vectors [B, N, D]; the last number of a field vector is its first-order weight."""
        embeddings = x_masked[..., :-1]
        deep = self.mlp(embeddings.amax(dim=1) if self.pool == "max" else embeddings.mean(dim=1))
        return torch.cat([deep, x_masked[..., -1].sum(dim=1, keepdim=True)], dim=-1)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [B] of hidden states [B, H]."""
        return self.out(hidden[:, :-1])[:, 0] + hidden[:, -1] + self.bias


def main(out: Path, rows: int = 2000) -> dict[str, float | None]:
    """AUC on test rows by backbone."""
    register_backbone("pooled", Pooled)
    thinktwice.ingest_log(None, out / "raw", source="sim", limit=rows)
    checked = thinktwice.validate_log(out / "raw", out / "checked")
    auc_by_backbone = {}
    options = {"deepfm": {}, "pooled": {"pool": "mean"}}
    for name, options_of_backbone in options.items():
        recipe = thinktwice.Recipe.model_validate(
            {
                "model": {"name": name, "dim": 8, "hidden": [32], **options_of_backbone},
                "pretrain": {"batch_size": 256, "epochs": 1},
                "finetune": {"batch_size": 256, "table_l2": [1e-3], "augmentations": ["none"], "epochs": 4},
            }
        )
        trained = thinktwice.train_model(checked.clean_dir, out / name, recipe=recipe, test_time="off")
        auc_by_backbone[name] = trained.report.metrics["plain"]["auc"]
        print(f"{name:8} AUC {auc_by_backbone[name]:.3f}")
    bundle = thinktwice.open_bundle(out / "pooled" / "bundle")
    print(f"bundle {bundle.manifest.model_version}: {type(bundle.model).__name__}")
    return auc_by_backbone


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".thinktwice/examples/own-backbone"))
