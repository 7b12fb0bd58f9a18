"""Rendered files are read back rule by rule: whatever is changed in one is refused, or changes nothing that matters."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.experiment.files import coverages, experiment, grouped, repeatable
from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.bootstrap import bootstrap
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig
from thinktwice.experiment.route_check import TrafficSplit, check_growth, check_routes, read_split
from thinktwice.experiment.routes import Rendered, cluster_of, render

SECRET = "a-secret-of-twenty-one"
HERE = [Endpoint(host="127.0.0.1", port=9)]
FILE = experiment("exp1", arms=3, coverage=0.1, testers={"t1": ["me", "you"]})


def rendered(*files: Any, **fields: Any) -> Rendered:
    endpoints = {cluster_of(f.name, a.name): HERE for f in files for a in f.arms}
    return render(files, endpoints, GatewayConfig(**fields), 1, SECRET)


GOOD = rendered(FILE, shadow=("exp1/t1",))
#: Keys under which a change is the operator's business: waiting, names of statistics, and the like.
HARMLESS = (
    "request_body_buffer_limit",
    "timeout",
    "retry_policy",
    "stat_prefix",
    "include_request_attempt_count",
    "@type",
    "version_info",
)


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value, inner ones too."""
    yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from leaves(content[key], (*path, key))


ROUTES = GOOD.routes["resources"][0]["virtual_hosts"][0]["routes"]
INGRESS = sum("direct_response" in route for route in ROUTES)
PATHS = [p for p in leaves(GOOD.routes) if p]


def changed(content: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return content


def _delete(place: Any, key: Any) -> None:
    del place[key]


def _set(value: Any) -> Callable[[Any, Any], None]:
    def change(place: Any, key: Any) -> None:
        place[key] = value

    return change


def _repeat(place: Any, key: Any) -> None:
    if isinstance(place, list):
        place.insert(key, copy.deepcopy(place[key]))
    else:
        del place[key]


def _swap(place: Any, key: Any) -> None:
    if isinstance(place, list) and len(place) > 1:
        place[key], place[key - 1] = place[key - 1], place[key]
    else:
        del place[key]


values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 20_000), st.text(max_size=8), st.just([]), st.just({}), st.floats()
)
changes = st.one_of(st.sampled_from([_delete, _repeat, _swap]), values.map(_set))


def harmless(path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bool:
    """Whether a change may pass: it is the operator's business, or the order of a set."""
    if any(key in HARMLESS for key in path) or path[2:4] == ("request_headers_to_add", 0):  # x-request-start
        return True
    if path[2:3] == ("response_headers_to_add",):  # what an answer says besides
        return True
    if path[-1] == "name" and path[-2] != "header" and "headers" not in path and "clusters" not in path:
        return True  # the name of a route or of the virtual host
    if change in (_swap, _repeat) and path[-2:-1] == ("request_headers_to_add",):
        return True
    if "request_mirror_policies" in path:  # how much is mirrored; where to is checked
        return True
    if path[4:5] == ("routes",) and len(path) > 5 and path[5] < INGRESS:
        # Ingress rules: checked by what they do to requests; their words, and which of two comes first, are the operator's business.
        if len(path) == 6:
            return change in (_repeat, _swap)
        words = path[6] in ("name", "typed_per_filter_config", "response_headers_to_add") or path[7:8] == ("body",)
        # Requests of the method that this rule leaves out are answered by the rules before it.
        words |= path[-1] == "exact" and ROUTES[path[5]]["name"] == "ingress-method-known"
        return words or "range_match" in path or (change in (_repeat, _swap) and path[-2] == "headers")
    if path[4:5] == ("routes",) and len(path) > 5 and path[5] < len(ROUTES) - 3:
        # Which request an override or a tester's route takes is the operator's business; what it sets is not.
        return len(path) == 6 or path[6] in ("match", "request_headers_to_remove")
    return False


@settings(repeatable, max_examples=600)
@given(st.sampled_from(PATHS), changes)
def test_a_change_is_refused_or_changes_nothing(path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> None:
    file = changed(GOOD.routes, path, change)
    try:
        found = check_routes(file, GOOD.clusters, [FILE])
    except ExperimentError:
        return
    same = json.dumps(file, sort_keys=True) == json.dumps(GOOD.routes, sort_keys=True)
    assert same or harmless(path, change), path
    assert found == check_routes(GOOD.routes, GOOD.clusters, [FILE])


@pytest.mark.parametrize("value", [None, True, 1, 1.5, [], {}])
def test_what_a_header_must_equal_is_text(value: Any) -> None:
    exact = [path for path in PATHS if path[-1] == "exact" and ":method" in str(ROUTES[path[5]])]
    assert exact
    for path in exact:
        with pytest.raises(ExperimentError, match="routes refused"):
            check_routes(changed(GOOD.routes, path, _set(value)), GOOD.clusters, [FILE])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1.5, True, None, [], "", "1.5", "inf", "9" * 5000])
def test_the_bounds_of_a_range_are_integers(value: Any) -> None:
    bounds = [path for path in PATHS if "range_match" in path]
    assert bounds
    for path in bounds:
        with pytest.raises(ExperimentError, match="routes refused"):
            check_routes(changed(GOOD.routes, path, _set(value)), GOOD.clusters, [FILE])


SPLIT = ("resources", 0, "virtual_hosts", 0, "routes", -1)
ENTRIES = (*SPLIT, "route", "weighted_clusters", "clusters")


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ((*SPLIT, "route", "hash_policy"), _delete, "assignment is random"),
        ((*SPLIT, "route", "hash_policy"), _set([]), "assignment is random"),
        (
            (*SPLIT, "route", "hash_policy", 0, "header", "regex_rewrite", "substitution"),
            _set("exp1:\\2"),
            "hash policy",
        ),
        (
            (*SPLIT, "route", "hash_policy", 0, "header", "regex_rewrite", "substitution"),
            _set("exp2:\\1"),
            "hash policy",
        ),
        ((*SPLIT, "route", "hash_policy", 0, "header", "header_name"), _set("x-experiment-unit"), "hash policy"),
        ((*SPLIT, "route", "weighted_clusters", "use_hash_policy"), _set(False), "would be random"),
        ((*SPLIT, "route", "weighted_clusters", "runtime_key_prefix"), _set("x"), "Extra inputs"),
        ((*SPLIT, "route", "weighted_clusters", "total_weight"), _set(7500), "Extra inputs"),
        ((*ENTRIES, 0, "weight"), _set(332), "sum to 9,999"),
        ((*ENTRIES, 0, "weight"), _set(0), "greater than 0"),
        ((*ENTRIES, 0, "weight"), _set(True), "valid integer"),
        ((*ENTRIES, 0), _delete, "sum to"),
        ((*ENTRIES, 2, "name"), _set("nowhere"), "goes to 'nowhere'"),
        ((*ENTRIES, 2, "name"), _set("control"), "goes to 'control'"),
        ((*ENTRIES, 2, "request_headers_to_add", 2), _delete, "a client's own value would pass"),
        ((*ENTRIES, 2, "request_headers_to_add", 2, "append_action"), _set("ADD_IF_ABSENT"), "must overwrite"),
        ((*ENTRIES, 1, "request_headers_to_add", 2, "header", "value"), _set("1"), "enrolled ranges are"),
        ((*ENTRIES, 1, "request_headers_to_add", 2, "header", "value"), _set("evil"), "not 0 or 1"),
        ((*SPLIT, "match"), _set({"prefix": "/v1"}), "match every request"),
        ((*SPLIT, "metadata", "filter_metadata", "thinktwice", "format"), _set(9), "of version 9"),
        ((*SPLIT, "metadata"), _delete, "of version None"),
        (("resources", 0, "validate_clusters"), _delete, "validate_clusters"),
        (("resources", 0, "request_headers_to_remove"), _set(["x-arm"]), "should be 'authorization'"),
        ((*SPLIT[:-1], -3), _delete, "no-unit"),
        ((*SPLIT[:-1], -2), _delete, "no-unit must match"),
        (("version_info",), _set("9-1-abc"), "of version '9-1-abc'"),
        (("version_info",), _delete, "of version None"),
        (("resources",), _set([]), "configurations []"),
    ],
)
def test_what_the_proxy_would_accept_without_a_word(path: tuple[Any, ...], change: Any, words: str) -> None:
    with pytest.raises(ExperimentError) as error:
        check_routes(changed(GOOD.routes, path, change), GOOD.clusters, [FILE])
    assert words in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'"x"', b"\xff", b"[" * 100_000, b'{"resources": 1}']
)
def test_what_is_no_route_file(content: bytes) -> None:
    for routes, clusters in ((content, GOOD.clusters), (GOOD.routes, content)):
        with pytest.raises(ExperimentError):
            check_routes(routes, clusters, [FILE])


def test_a_cluster_that_is_not_defined() -> None:
    for number in range(len(GOOD.clusters["resources"])):
        clusters = copy.deepcopy(GOOD.clusters)
        name = clusters["resources"].pop(number)["name"]
        with pytest.raises(ExperimentError, match=r"not defined|not a shadow"):
            check_routes(GOOD.routes, clusters, [FILE])
        assert name
    with pytest.raises(ExperimentError, match="repeated"):
        check_routes(GOOD.routes, {**GOOD.clusters, "resources": GOOD.clusters["resources"] * 2}, [FILE])


@repeatable
@given(coverages, coverages)
def test_ranges_only_grow_or_stop(old: float, new: float) -> None:
    before, after = (experiment(coverage=c) if c > 0.0003 else experiment() for c in (old, new))
    live = read_split(rendered(before).routes, rendered(before).clusters)
    files = rendered(after)
    if after.enrolled_width and after.enrolled_width < before.enrolled_width:
        with pytest.raises(ExperimentError, match="leave the arm"):
            check_routes(files.routes, files.clusters, [after], live)
    else:
        check_routes(files.routes, files.clusters, [after], live)


def test_what_may_not_replace_a_live_split() -> None:
    live = TrafficSplit("exp1", layout_of([experiment(coverage=0.5)]).ranges)
    for new, words in [
        (experiment(coverage=0.5, salt="exp2"), "salt changes"),
        (experiment(coverage=0.5, arms=3), "arms change"),
        (experiment("exp2", salt="exp1", coverage=0.5), "exp1 has enrolled under the same salt"),
    ]:
        with pytest.raises(ExperimentError, match=words):
            check_growth(live, TrafficSplit(new.salt, layout_of([new]).ranges))
    check_growth(live, TrafficSplit("exp1", layout_of([experiment()]).ranges))  # a stop
    check_growth(
        TrafficSplit("exp1", layout_of([experiment()]).ranges),
        TrafficSplit("exp2", layout_of([experiment("exp2")]).ranges),
    )
    group = [grouped("one", 0, 4000, coverage=0.5), grouped("two", 4000, 8000, coverage=1.0)]
    check_growth(TrafficSplit("g-1", layout_of(group[:1]).ranges), TrafficSplit("g-1", layout_of(group).ranges))
    stopped = [group[0].model_copy(update={"coverage": 0.0}), group[1]]
    check_growth(TrafficSplit("g-1", layout_of(group).ranges), TrafficSplit("g-1", layout_of(stopped).ranges))


def test_another_file_than_the_declared_one_is_refused() -> None:
    for other, words in [
        (experiment("exp1", arms=3, coverage=0.2), "enrolled ranges"),
        (experiment("exp1", arms=2, coverage=0.1), "enrolled ranges"),
        (experiment("exp9", arms=3, coverage=0.1, salt="exp1"), "not the experiments"),
        (experiment("exp1", arms=3, coverage=0.1, salt="exp9"), "the salt is"),
        (experiment("exp1", arms=3, coverage=0.1, holdout=100), "must own"),
    ]:
        with pytest.raises(ExperimentError, match=words):
            check_routes(GOOD.routes, GOOD.clusters, [other])


def test_rendering_refuses() -> None:
    config = GatewayConfig()
    with pytest.raises(ExperimentError, match="no endpoint for the cluster 'exp1_t2'"):
        render([FILE], {"control": HERE, "exp1_t1": HERE, "exp1_t2": []}, config, 1)
    with pytest.raises(ExperimentError, match="is not a cluster"):
        render([FILE], {"control": HERE, "exp1_t1": HERE, "exp1_t2": HERE, "exp1_t3": HERE}, config, 1)
    with pytest.raises(ExperimentError, match="not a treatment"):
        rendered(FILE, shadow=("exp1/control",))
    with pytest.raises(ExperimentError, match="16 to 200"):
        render([FILE], {"control": HERE, "exp1_t1": HERE, "exp1_t2": HERE}, config, 1, secret="short")
    with pytest.raises(ValueError, match="set by the gateway"):
        GatewayConfig(unit_header="x-arm")
    with pytest.raises(ValueError, match="longer than timeout"):
        GatewayConfig(timeout=0.2)


def test_files_are_stable_and_clusters_come_first() -> None:
    again = rendered(FILE, shadow=("exp1/t1",))
    assert again.files() == GOOD.files() and [name for name, _ in GOOD.files()] == ["cds.json", "rds.json"]
    later = rendered(experiment("exp1", arms=3, coverage=0.2, testers={"t1": ["me", "you"]}), shadow=("exp1/t1",))
    assert later.version != GOOD.version
    assert later.clusters["resources"] == GOOD.clusters["resources"]
    assert "a-secret" not in json.dumps(FILE.model_dump(mode="json")) + json.dumps(bootstrap(GatewayConfig()))
