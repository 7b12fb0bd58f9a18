"""Compilation of the pipelines for a cluster."""

import shutil
import tempfile
from pathlib import Path

from kfp.compiler import Compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

import thinktwice
from components.choices import Profile
from components.step import IMAGE
from pipelines import ctr_experiment, ctr_training
from pipelines.choices import PipelineName
from pipelines.nodes import Nodes
from pipelines.profiles import DEFAULT_NODES
from thinktwice.files import atomic_file, sha256_file

#: Name in the cluster, and graph, of each pipeline.
BUILDERS = {
    "training": (ctr_training.NAME, ctr_training.build_pipeline),
    "experiment": (ctr_experiment.NAME, ctr_experiment.build_experiment_pipeline),
}


def compile_pipeline(
    profile: Profile,
    out: Path,
    *,
    kubernetes_manifest: bool = False,
    namespace: str = "kubeflow",
    image: str = IMAGE,
    pipeline: PipelineName = "training",
    nodes: Nodes = DEFAULT_NODES,
) -> None:
    """Write a pipeline for `profile` to `out`: KFP's IR, or objects for ``kubectl apply``.

    Every step runs in `image`. The objects need an API server that stores pipelines in Kubernetes. The spec of a PipelineVersion is
    immutable, so its name contains the package version and a hash of the spec: a different spec gets a different name.
    """
    name, build = BUILDERS[pipeline]
    graph = build(profile, image, nodes)
    with tempfile.TemporaryDirectory(prefix="thinktwice-compile-") as scratch:
        compiled = Path(scratch) / "pipeline.yaml"  # KFP requires this suffix
        Compiler().compile(graph, str(compiled))
        if kubernetes_manifest:
            digest = sha256_file(compiled)[:8]
            options = KubernetesManifestOptions(
                pipeline_name=name,
                pipeline_version_name=f"{name}-{thinktwice.__version__.replace('.', '-')}-{profile}-{digest}",
                namespace=namespace,
                include_pipeline_manifest=True,
            )
            Compiler().compile(
                graph, str(compiled), kubernetes_manifest_format=True, kubernetes_manifest_options=options
            )
        with atomic_file(out) as temporary:
            shutil.copyfile(compiled, temporary)
