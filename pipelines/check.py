"""Checks of the arguments before a run starts. The values of single parameters are checked by their types."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from thinktwice.choices import PretrainingOption
from thinktwice.errors import DataError, PipelineError, StorageError

if TYPE_CHECKING:
    from components.choices import Profile
    from pipelines.arguments import RunArguments


def chosen_split(split: str, test_days: int) -> str:
    """The split named by ``--split`` and ``--test-days`` (0: not given).

    Raises:
        DataError: it is unknown. PipelineError: both options were given.
    """
    from thinktwice.data.split_spec import parse_split

    if test_days and split not in ("time", f"days:{test_days}"):
        raise PipelineError(f"--split {split} and --test-days {test_days} exclude each other: give one of them")
    return parse_split(f"days:{test_days}" if test_days else split).text


class ChosenRecipe(TypedDict):
    """The arguments of a run that say how it trains."""

    recipe: str
    backbone: str
    pretraining: PretrainingOption


def chosen_recipe(recipe: str, backbone: str, pretraining: PretrainingOption, settings: Sequence[str]) -> ChosenRecipe:
    """What ``--recipe``, ``--backbone``, ``--pretraining`` and ``--set`` mean for a run: names as they are, a file or single
    settings as the text of the whole recipe. The steps of a local run may open a backbone of your own.

    Raises:
        PipelineError: a name, the file or a setting is unknown or wrong.
    """
    from thinktwice import recipes
    from thinktwice.models.own import trust

    path = Path(recipe)
    is_file = recipe not in recipes.RECIPES and (path.suffix != "" or len(path.parts) > 1 or path.is_file())
    named = recipes.from_file(path).model_dump_json() if is_file else recipe
    found = recipes.resolved(named, backbone=backbone, pretraining=pretraining, settings=settings)
    if ":" in backbone:
        trust(backbone)
    if settings or is_file:
        return {"recipe": found.model_dump_json(), "backbone": "", "pretraining": ""}
    return {"recipe": recipe, "backbone": backbone, "pretraining": pretraining}


def checkpoints_place(place: str) -> str:
    """``--checkpoints`` for steps that run in another folder.

    Raises:
        StorageError: it names no object store.
    """
    from thinktwice.storage.location import is_remote, parse_location

    if not place:
        return ""
    return parse_location(place).uri if is_remote(place) else str(Path(place).absolute())


def continued_bundle(place: str) -> str:
    """``--continue-from`` for steps that run in another folder.

    Raises:
        StorageError: it names no object store.
    """
    return checkpoints_place(place)


def _check_continued(arguments: RunArguments) -> None:
    """Raise early, before the log is read, if training cannot continue the bundle; the steps check it again.

    Raises:
        DataError: it is of another schema or backbone. BundleError: it is damaged.
    """
    from thinktwice.data.sources.raw_log import schema_beside
    from thinktwice.data.sources.registry import builtin_schema
    from thinktwice.models.store import described_model
    from thinktwice.recipes import resolved
    from thinktwice.release.warm_start import start_of
    from thinktwice.schema import load_schema
    from thinktwice.storage.location import is_remote
    from thinktwice.train.warm_start import check_backbone

    if not arguments.continue_from or is_remote(arguments.continue_from):
        return
    recipe = resolved(arguments.recipe, backbone=arguments.backbone, pretraining=arguments.pretraining)
    path = arguments.source_path
    file = arguments.schema_path or (schema_beside(Path(path)) if path else None)
    start = start_of(arguments.continue_from, load_schema(file) if file else builtin_schema(arguments.source))
    check_backbone(recipe.model, described_model(start.folder).backbone)


def check_arguments(arguments: RunArguments) -> None:
    """Raise if a run would fail because of its arguments: the source or the files of the log.

    Raises:
        DataError: the source is unknown, the log does not exist or cannot be split in this way, or the bundle to continue from is of another schema or backbone.
        SchemaError: the schema file is invalid. BundleError: the bundle to continue from is damaged.
        PipelineError: the address of Redis is missing.
    """
    from thinktwice.data.early_split import refuse_impossible_split
    from thinktwice.data.reading import refuse_url
    from thinktwice.data.sources.paths import SEPARATOR, expanded
    from thinktwice.data.sources.raw_log import schema_beside
    from thinktwice.data.sources.registry import source_named
    from thinktwice.data.split_spec import parse_split
    from thinktwice.data.window import window_of
    from thinktwice.release.feature_store import REDIS_ADDRESS
    from thinktwice.schema import load_schema
    from thinktwice.schema.tables import located, table_paths
    from thinktwice.storage.location import is_remote

    source = source_named(arguments.source)
    path, schema = arguments.source_path, arguments.schema_path
    if source.path == "required" and not path:
        raise DataError(f"source {source.name!r} reads your own copy: give {source.path_help} with --path")
    if source.path == "none" and path:
        raise DataError(f"source {source.name!r} takes no path, but {path} was given: leave --path out")
    if source.several:
        expanded(path)
        if SEPARATOR in path and not schema:
            raise DataError(
                f"source {source.name!r} needs a schema file that describes your log: pass it with --schema"
            )
    elif path:
        refuse_url(path, source.name)
    if path and not source.several and not Path(path).exists():
        raise DataError(f"{path} does not exist: give {source.path_help} with --path")
    if not schema and not source.has_schema and (is_remote(path) or not schema_beside(Path(path))):
        raise DataError(f"source {source.name!r} needs a schema file that describes your log: pass it with --schema")
    if schema:
        described = located(load_schema(schema), schema)
        window = window_of(arguments.since, arguments.until, described)
        for table in table_paths(described):
            expanded(table)
        if path and not source.has_schema and not arguments.limit:
            refuse_impossible_split(parse_split(arguments.split), path, described, window)
    _check_continued(arguments)
    if arguments.online_store == "redis" and not (arguments.redis_address or os.environ.get(REDIS_ADDRESS)):
        raise PipelineError(
            "--online-store redis needs the address of the server: add --redis-address host:port, or set "
            f"{REDIS_ADDRESS} (with a password: only there, it is then written nowhere)"
        )


def check_for_cluster(arguments: RunArguments, profile: Profile) -> str:
    """Raise if a run in a cluster would fail because of its arguments; a note where this machine cannot see the log.

    Raises:
        PipelineError: the profile is local, or a path is of this machine, which no step in a cluster sees.
        DataError, SchemaError, StorageError: as :func:`check_arguments`; StorageError alone if a path at ``s3://`` has a wrong form.
    """
    from thinktwice.data.sources.paths import SEPARATOR
    from thinktwice.storage.location import is_remote
    from thinktwice.storage.object_path import parse_object

    if profile == "local":
        raise PipelineError(
            "the profile local runs here: use `thinktwice pipeline run`, or give --profile of a cluster"
        )
    for option, text in (
        ("--path", arguments.source_path),
        ("--schema", arguments.schema_path),
        ("--checkpoints", arguments.checkpoints),
        ("--continue-from", arguments.continue_from),
    ):
        for part in filter(None, text.split(SEPARATOR)):
            if not is_remote(part):
                raise PipelineError(
                    f"{option} {part} is on this machine, and steps in a cluster do not see it: copy it to an object store and give its "
                    "s3:// address, a log with --source log"
                )
            parse_object(part)
    try:
        check_arguments(arguments)
    except StorageError as error:
        return f"the log cannot be checked from here ({error}); the step ingest will tell"
    return ""
