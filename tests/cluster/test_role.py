"""The Role has the verbs that the code uses and no other, and the objects fit their definitions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from components.deployment.rollout.gateway import GATEWAY, canary_experiment, enrolled_unit
from components.deployment.rollout.objects import (
    Version,
    arm_service,
    canary_name,
    probe_pod,
    service_patch,
    stable_predictor,
    standard_canary,
    version_at,
    workload,
)
from components.deployment.rollout.probe import SCRIPT
from components.deployment.rollout.run import canary, promote, roll_back
from tests.cluster.api_process import ROOT, Api
from tests.cluster.objects_store import Json
from tests.cluster.served import V1, V2, V3, install, session
from tests.cluster.test_rollout import FORMS
from tests.manifests import closed_schema, kserve_admission
from thinktwice.errors import RolloutError
from thinktwice.experiment.assignment import assign, layout_of
from thinktwice.experiment.file import BUCKETS, ExperimentFile

Overlay = Callable[[str], list[Json]]
CALL = re.compile(r"/(?:api/v1|apis/([^/]+)/[^/]+)/namespaces/[^/]+/([a-z]+)(?:/([^/?]+))?(?:/([a-z]+))?")
VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


def test_every_verb_is_in_the_role_and_used(api: Api, overlay: Overlay) -> None:
    role = yaml.safe_load((ROOT / "manifests/components/rollout-access/role.yaml").read_text())
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    made = {("serving.kserve.io", "inferenceservices", "create")}  # an apply that makes an arm; the server asks for it
    for name, form, _ in FORMS:
        api.control(reset=True)
        install(api, overlay(name))
        api.control(broken={V3.name: "storage"})
        with pytest.raises(RolloutError):
            canary(session(api), V3, 10)
        canary(session(api), V2, 10)
        promote(session(api))
        if form == "standard":
            roll_back(session(api))
        for method, path in api.control()["seen"]:
            match = CALL.match(path)
            if match is None:  # kubectl, which renders the overlay, asks for the version
                assert path.startswith("/version"), path
                continue
            group, plural, single, part = match.groups()
            verb = VERBS.get(method) or ("get" if single else "list")
            made.add((group or "", f"{plural}/{part}" if part else plural, verb))
    assert made == allowed


def test_the_rights_are_bound_to_the_pipeline_alone(overlay: Overlay) -> None:
    role, binding = sorted(overlay("rollout-access"), key=lambda value: value["kind"])
    for value in (role, binding):
        kubernetes_validate.validate(value, "1.34", strict=True)
        assert value["metadata"]["namespace"] == "thinktwice"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]
    assert "*" not in str(role["rules"]) and "secrets" not in str(role["rules"])


@pytest.fixture(scope="module")
def crds(shared: Path) -> Path:
    return shared / "schemas"


@pytest.mark.parametrize("name", ["standard", "standard-kserve", "evidence", "production"])
def test_a_service_with_our_canary_fits_the_definition_and_the_webhook(overlay: Overlay, crds: Path, name: str) -> None:
    if name == "production":
        pytest.skip("its image is a required value; the service is that of standard")
    (service,) = [r for r in overlay(name) if r["kind"] == "InferenceService"]
    predictor = service["spec"]["predictor"]
    patch = service_patch("ctr", stable_predictor(V1, 3), canary=standard_canary("ctr", predictor, V2, 10))
    predictor |= {
        **patch["spec"]["predictor"],
        "labels": {**predictor["labels"], **patch["spec"]["predictor"]["labels"]},
    } | {"model": {**predictor["model"], **patch["spec"]["predictor"]["model"]}}
    service["spec"]["canary"] = patch["spec"]["canary"]
    assert closed_schema.errors(service, crds) == [] and kserve_admission.refused(service) == []


def test_an_arm_differs_in_name_labels_and_model_alone(overlay: Overlay, crds: Path) -> None:
    (control,) = [r for r in overlay("experiment") if r["metadata"]["name"] == "ctr-control"]
    control["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
    arm = arm_service(control, "treatment", V2)
    assert closed_schema.errors(arm, crds) == [] and kserve_admission.refused(arm) == []
    one, two = control["spec"]["predictor"], arm["spec"]["predictor"]
    assert {k: v for k, v in one.items() if k not in ("labels", "model")} == {
        k: v for k, v in two.items() if k not in ("labels", "model")
    }
    assert {**one["model"], "storageUri": ""} == {**two["model"], "storageUri": ""}
    assert "kubectl.kubernetes.io/last-applied-configuration" not in arm["metadata"]["annotations"]
    assert {k for k in two["labels"] if two["labels"][k] != one["labels"].get(k)} == {
        "app.kubernetes.io/instance", "ctr.example.org/variant", "ctr.example.org/arm", "ctr.example.org/model-version",
    }  # fmt: skip


def test_the_probe_meets_the_restricted_standard() -> None:
    pod = probe_pod("ctr-probe-1", "x@sha256:0", [{"name": "registry"}], SCRIPT, {"PROBE_URL": "u"}, 60)
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert (
        spec["securityContext"]["runAsNonRoot"]
        and spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert spec["automountServiceAccountToken"] is False and spec["restartPolicy"] == "Never"
    assert set(container["resources"]) == {"requests", "limits"}
    compile(SCRIPT, "probe", "exec")


def test_the_policies_let_the_probe_in(overlay: Overlay) -> None:
    labels = probe_pod("p", "i", [], "", {}, 1)["metadata"]["labels"]
    for name, policy in (("standard", "ctr-predictor"), ("experiment", "ctr-predictor"), ("experiment", "ctr-gateway")):
        (found,) = [r for r in overlay(name) if r["kind"] == "NetworkPolicy" and r["metadata"]["name"] == policy]
        selectors = [
            peer["podSelector"]["matchLabels"]
            for rule in found["spec"]["ingress"]
            for peer in rule["from"]
            if "podSelector" in peer
        ]
        assert any(selector.items() <= labels.items() for selector in selectors), (name, policy)


def test_the_gateway_settings_are_those_of_the_overlay() -> None:
    declared = yaml.safe_load((ROOT / "manifests/overlays/experiment/gateway/gateway.yaml").read_text())
    assert f"{GATEWAY.listen.host}:{GATEWAY.listen.port}" == declared["listen"]
    assert {k: getattr(GATEWAY, k) for k in declared if k not in ("version", "listen", "experiments", "arms")} == {
        k: v for k, v in declared.items() if k not in ("version", "listen", "experiments", "arms")
    }


VERSIONS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", fullmatch=True)
SERVICE_NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,19}[a-z0-9]", fullmatch=True)


@given(SERVICE_NAMES, VERSIONS, VERSIONS)
def test_names_of_canaries(service: str, one: str, other: str) -> None:
    names = [canary_name(service, version) for version in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert len(f"isvc.{workload(service, name)}") <= 63


@given(
    VERSIONS,
    st.sampled_from(["s3://b/ctr/", "gs://b/", "pvc://claim/models/", "https://h.example.org/x/"]),
    st.booleans(),
)
def test_a_version_is_the_last_folder(name: str, store: str, slash: bool) -> None:
    uri = f"{store}{name}{'/' if slash else ''}"
    assert version_at(uri) == Version(name=name, uri=uri)


@given(st.integers(1, 50), VERSIONS)
def test_the_split_of_a_canary_gives_treatment_its_share(percent: int, name: str) -> None:
    file = canary_experiment(V1, Version(name=name, uri=f"s3://b/{name}"), percent)
    assert file.coverage / 2 == pytest.approx(percent / 100) and [arm.name for arm in file.arms] == [
        "control",
        "treatment",
    ]


#: Arms, and the range of an exclusive group: from one bucket an arm to all.
PARTS = st.integers(2, 5).flatmap(lambda arms: st.tuples(st.just(arms), st.integers(arms, BUCKETS)))


@given(PARTS, st.integers(1, BUCKETS), SERVICE_NAMES)
@example((2, BUCKETS), 2, "s1")
def test_a_user_of_the_last_arm_is_found_for_every_coverage_that_is_accepted(
    parts: tuple[int, int], share: int, salt: str
) -> None:
    """Of 20,000 units, none was in the one bucket of 10,000 of an arm for one salt in seven."""
    arms = [{"name": name, "bundle": "b"} for name in ("control", "a1", "a2", "a3", "a4")[: parts[0]]]
    content = {
        "version": 1, "name": "n", "salt": salt, "arms": arms, "coverage": share / BUCKETS, "horizon": {"days": 1, "looks": 1},
        "minimum": {"days": 0, "units": 2}, "exclusive_group": "g", "buckets": [0, parts[1]],
    }  # fmt: skip
    try:
        file = ExperimentFile.model_validate(content)
    except ValueError as error:
        least = float(re.search(r"enrols no users: give at least ([0-9.]+)", str(error))[1])  # type: ignore[index]
        file = ExperimentFile.model_validate({**content, "coverage": least})
        assert file.enrolled_width == 1 and share < round(least * BUCKETS)
    assert assign(layout_of([file]), enrolled_unit(file)).arm == arms[-1]["name"]
    with pytest.raises(RolloutError, match="the coverage of n is 0, so arm"):
        enrolled_unit(file.model_copy(update={"coverage": 0.0}))
