"""What an engine is made of belongs together: model, counts, configuration, and extras."""

from __future__ import annotations

from thinktwice.errors import BundleError
from thinktwice.models.backbone import Backbone
from thinktwice.testtime.base_pass import Gate
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import Retrieve
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.triggers import Predicted


def check(model: Backbone, reliability: Reliability, config: TestTimeConfig, extras: Extras) -> None:
    again = "fit the test-time parameters for this model"
    if reliability.num_values != model.fields.num_values:
        raise BundleError(
            f"counts describe {sum(reliability.num_values)} values and the model has {model.fields.num_rows}: "
            "counts and weights must come from the same bundle, fit the test-time parameters again"
        )
    by_field: dict[str, tuple[float, ...]] = {"test-time importance": config.importance}
    if isinstance(config.base, Gate):
        by_field |= {name: getattr(config.base, name) for name in ("field_strengths", "field_shares")}
    for name, numbers in by_field.items():
        if numbers and len(numbers) != model.num_fields:
            raise BundleError(f"{name} names {len(numbers)} fields and the model has {model.num_fields}: {again}")
    _check_extras(model, reliability, extras)
    if config.correction is not None and extras.correction is None:
        raise BundleError(
            f"mode {config.mode!r} needs a correction network, which is missing: fit the test-time parameters again"
        )
    if config.second_look is None:
        return
    trigger = config.second_look.trigger
    if isinstance(trigger, Predicted) and extras.correction is not None:
        width = 4 + 2 * extras.correction.num_counters
        if len(trigger.weights) != width:
            raise BundleError(
                f"the trigger 'predicted' has {len(trigger.weights)} weights instead of {width}: fit the test-time parameters again"
            )
    opinion = config.second_look.opinion
    if isinstance(opinion, Retrieve) and extras.retrieval is not None:
        _check_retrieval(model, opinion, extras)
    if opinion.num_members > len(extras.members):
        raise BundleError(
            f"the configuration needs {opinion.num_members} further trunks but {len(extras.members)} are available: "
            "package the members with the model, or fit the test-time parameters without them"
        )
    for description, needed, extra in (
        ("prediction heads", opinion.needs_heads, extras.heads),
        ("combination counts", opinion.needs_combinations, extras.combinations),
        ("neighbours of items", opinion.needs_retrieval, extras.retrieval),
    ):
        if needed and extra is None:
            raise BundleError(
                f"mode {config.mode!r} needs {description}, which are missing: fit the test-time parameters again"
            )


def _check_retrieval(model: Backbone, opinion: Retrieve, extras: Extras) -> None:
    """Refuse neighbours and networks that do not belong to this model and to each other."""
    retrieval, correction = extras.retrieval, extras.correction
    assert retrieval is not None and correction is not None
    fields, again = model.fields, "fit the test-time parameters for this model"
    if opinion.item_field not in fields.columns:
        raise BundleError(
            f"retrieved evidence is of the field {opinion.item_field!r}, which the model does not have: {again}"
        )
    items = fields.num_values[fields.columns.index(opinion.item_field)]
    if items != len(retrieval.neighbours.rates):
        raise BundleError(
            f"neighbours describe {len(retrieval.neighbours.rates)} items and the model has {items}: {again}"
        )
    width = 1 + 2 * correction.num_counters + len(retrieval.standard.means)
    if retrieval.network.width != width:
        raise BundleError(f"the retrieval network has {retrieval.network.width} inputs instead of {width}: {again}")


def _check_extras(model: Backbone, reliability: Reliability, extras: Extras) -> None:
    """Refuse extras that do not belong to this model."""
    again = "fit the test-time parameters for this model"
    for position, member in enumerate(extras.members):
        if member.fields != model.fields:
            raise BundleError(
                f"member {position} has other fields or vocabularies than the model: train it on the same data"
            )
    heads, combinations, maskable_fields = extras.heads, extras.combinations, reliability.maskable_fields.tolist()
    if heads is not None and (
        heads.fields.tolist() != maskable_fields or heads.weight.shape[1:] != (model.hidden_width + 1, model.dim + 1)
    ):
        raise BundleError(f"prediction heads are of another model: {again}")
    if combinations is None:
        return
    if combinations.num_values != model.fields.num_values:
        raise BundleError(
            f"combination counts describe {sum(combinations.num_values)} values and the model has "
            f"{model.fields.num_rows}: {again}"
        )
    for triple in combinations.triples:
        if not set(triple) <= set(maskable_fields):
            raise BundleError(f"combination counts name the columns {triple}, and not all of them are open: {again}")
