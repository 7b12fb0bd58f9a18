"""Values of platform-specific pipeline parameters; those of the library are in :mod:`thinktwice.choices`."""

from __future__ import annotations

from typing import Literal

DeployTarget = Literal["local", "manifest"]
Profile = Literal["local", "cpu-pool", "gpu-single", "gpu-trainjob"]
Platform = Literal["pool", "nvidia", "gke", "eks", "aks"]
TrainingStep = Literal["pretrain", "finetune"]
