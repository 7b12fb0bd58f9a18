"""Compile the pipeline for a cluster."""

from pathlib import Path

from kfp.compiler import Compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

import thinktwice
from components.step import IMAGE
from pipelines.ctr_training import NAME, build_pipeline
from pipelines.profiles import Profile
from thinktwice.files import atomic_file


def compile_pipeline(
    profile: Profile,
    out: Path,
    *,
    kubernetes_manifest: bool = False,
    namespace: str = "kubeflow",
    image: str = IMAGE,
) -> None:
    """Write the pipeline for `profile` to `out`: KFP's IR, or objects for ``kubectl apply``.

    Every step runs in `image`. The objects need an API server that keeps its pipelines in Kubernetes. A PipelineVersion cannot be changed, so its
    name carries the version of the package.
    """
    options = KubernetesManifestOptions(
        pipeline_name=NAME,
        pipeline_version_name=f"{NAME}-{thinktwice.__version__.replace('.', '-')}-{profile}",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    with atomic_file(out) as temporary:
        # KFP looks at the ending of the file it writes.
        compiled = temporary.with_suffix(".yaml")
        try:
            Compiler().compile(
                build_pipeline(profile, image),
                str(compiled),
                kubernetes_manifest_format=kubernetes_manifest,
                kubernetes_manifest_options=options if kubernetes_manifest else None,
            )
            compiled.replace(temporary)
        finally:
            compiled.unlink(missing_ok=True)
