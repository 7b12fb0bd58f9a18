"""Compilation of the pipelines for a cluster."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kfp.compiler import Compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kfp.dsl.graph_component import GraphComponent

import thinktwice
from components.choices import Profile
from components.step import IMAGE
from pipelines import ctr_experiment, ctr_features, ctr_training
from pipelines.choices import PipelineName
from pipelines.nodes import Nodes
from pipelines.profiles import DEFAULT_NODES
from thinktwice.files import atomic_file, sha256_file

Builder = Callable[[Profile, str, Nodes], GraphComponent]
#: Name in the cluster, and graph, of each pipeline.
BUILDERS: Mapping[PipelineName, tuple[str, Builder]] = {
    "training": (ctr_training.NAME, ctr_training.build_pipeline),
    "experiment": (ctr_experiment.NAME, ctr_experiment.build_experiment_pipeline),
    "features": (ctr_features.NAME, ctr_features.build_features_pipeline),
}
#: Graphs of the pipelines that read a log until the time that a run is scheduled for.
SCHEDULED: Mapping[PipelineName, Builder] = {
    "training": partial(ctr_training.build_pipeline, scheduled=True),
    "features": partial(ctr_features.build_features_pipeline, scheduled=True),
}


class Compiled(NamedTuple):
    """A pipeline compiled into KFP's IR.

    ``version`` contains the package version, the profile and a hash of the file: a different spec has a different name, because the spec of
    a version can never be changed. ``parameters`` are the names that a run may set.
    """

    name: str
    version: str
    file: Path
    graph: GraphComponent

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset(self.graph.pipeline_spec.root.input_definitions.parameters)


@contextmanager
def compiled(
    profile: Profile,
    *,
    image: str = IMAGE,
    pipeline: PipelineName = "training",
    nodes: Nodes = DEFAULT_NODES,
    scheduled: bool = False,
) -> Iterator[Compiled]:
    """A pipeline for ``profile``, in a temporary file. Every step runs in ``image``.

    Args:
        scheduled: for recurring runs: the log is read until the time that a run is scheduled for.
    """
    name, build = BUILDERS[pipeline]
    if scheduled:
        build = SCHEDULED[pipeline]
    graph = build(profile, image, nodes)
    with tempfile.TemporaryDirectory(prefix="thinktwice-compile-") as scratch:
        file = Path(scratch) / "pipeline.yaml"  # KFP requires this suffix
        Compiler().compile(graph, str(file))
        version = f"{name}-{thinktwice.__version__.replace('.', '-')}-{profile}-{sha256_file(file)[:8]}"
        yield Compiled(name, version, file, graph)


def compile_pipeline(
    profile: Profile,
    out: Path,
    *,
    kubernetes_manifest: bool = False,
    namespace: str = "kubeflow",
    image: str = IMAGE,
    pipeline: PipelineName = "training",
    nodes: Nodes = DEFAULT_NODES,
    scheduled: bool = False,
) -> None:
    """Write a pipeline for `profile` to `out`: KFP's IR, or objects for ``kubectl apply`` (see :class:`Compiled` for their names).

    The objects need an API server that stores pipelines in Kubernetes.
    """
    with compiled(profile, image=image, pipeline=pipeline, nodes=nodes, scheduled=scheduled) as found:
        if kubernetes_manifest:
            options = KubernetesManifestOptions(
                pipeline_name=found.name,
                pipeline_version_name=found.version,
                namespace=namespace,
                include_pipeline_manifest=True,
            )
            Compiler().compile(
                found.graph, str(found.file), kubernetes_manifest_format=True, kubernetes_manifest_options=options
            )
        with atomic_file(out) as temporary:
            shutil.copyfile(found.file, temporary)
