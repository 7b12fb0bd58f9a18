"""YAML as a configuration file may hold it: every key once, no aliases, no objects."""

from __future__ import annotations

from typing import Any

import yaml

from thinktwice.errors import ExperimentError

MAX_BYTES = 1 << 20


class _Strict(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool) or key in seen:
                what = (
                    f"key {key!r} is there twice" if isinstance(key, str | int | float | bool) else "a key is no text"
                )
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Raises:
        ExperimentError: it is no YAML, has a key twice or an alias, or is longer than 1 MiB.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ExperimentError(f"{where} is longer than 1 MiB, too long for a configuration file")
    try:
        return yaml.load(text, Loader=_Strict)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ExperimentError(f"{where}{line}: {error.problem or error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ExperimentError(f"{where} cannot be read as YAML: {str(error).splitlines()[0]}") from None
