"""Pipeline step: a blessed bundle becomes a TorchServe archive."""

from kfp.dsl import Artifact, Input, Model, Output

from components.step import step


@step
def package(bundle: Input[Model], blessing: Input[Artifact], code_version: str, archive: Output[Model]) -> None:
    """Pack the bundle into ``ctr.mar``; refuses a bundle without a positive blessing of its own.

    Args:
        bundle: model bundle.
        blessing: verdict of the bless step on this bundle.
        code_version: version of the installed code; part of the cache key.
        archive: folder with ``ctr.mar``.
    """
    from components.deployment.package.archive import write_archive

    info = write_archive(bundle.path, blessing.path, archive.path)
    archive.metadata.update(info)
