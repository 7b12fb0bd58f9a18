"""Pipeline step: the champion's weights with another test-time mode become a challenger."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.step import step


@step
def challenge(
    training_set: Input[Dataset],
    plain: Input[Model],
    pretrained: Input[Model],
    bundle: Input[Model],
    feature_store: Input[Artifact],
    deployment: Input[Artifact],
    recipe: str,
    mode: str,
    state_dir: str,
    code_version: str,
    challenger: Output[Artifact],
) -> None:
    """Fit ``mode`` on validation and package it, whether or not the acceptance test would let it ship.

    Args:
        bundle: the deployed bundle, with the same weights.
        deployment: of that bundle; the challenger comes after it.
        state_dir: folder of the champion; the challenger is stored beside it.
        challenger: ``challenger.json`` with the hash that an experiment names.
    """
    import shutil

    from components.deployment.challenge.challenger import make_challenger
    from thinktwice.release.challenger import CHALLENGER_FILE

    version = make_challenger(
        state_dir,
        mode=mode,
        recipe=recipe,
        bundle_dir=bundle.path,
        training_set_dir=training_set.path,
        plain_dir=plain.path,
        pretrained_dir=pretrained.path,
        feature_store_dir=feature_store.path,
    )
    shutil.copyfile(version.folder / CHALLENGER_FILE, challenger.path)
    challenger.metadata.update(bundle_hash=version.bundle_hash, mode=mode)
