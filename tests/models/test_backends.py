"""Every backend gives the scores of eager torch, to its tolerance, whichever fields are dropped."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.synthetic import WITH_WEIGHTS
from thinktwice.data.encoded import Batch
from thinktwice.errors import BundleError
from thinktwice.files import read_json
from thinktwice.models import BACKBONES, DeepFMConfig, FieldSpace, backbone_config, build_backbone
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends import (
    Backend,
    Eager,
    choose,
    choose_backend,
    folded,
    lookup,
    onnx,
    open_backend,
    parity_of,
    save_choice,
    store,
    verify_sizes,
)
from thinktwice.models.backends.backend import random_rows
from thinktwice.models.backends.folded import Folded, can_fold
from thinktwice.models.backends.lower import BFloat16
from thinktwice.models.blocks import SIZES, blocks_of
from thinktwice.models.sequences import MeanPooling

ROWS = 150
FOLDED = ("lr", "fm", "deepfm")
NAMES = sorted(BACKBONES)
CASES = [*((m, "folded") for m in FOLDED), *((m, b) for m in NAMES for b in ("onnx", "bfloat16"))]
PLAIN = FieldSpace(
    names=("a", "b"), kinds=("categorical",) * 2, entities=("context",) * 2, protected=(False,) * 2, num_values=(50, 7)
)


def trained(name: str, fields: FieldSpace = WITH_WEIGHTS) -> Backbone:
    """Weights far from their start, so that every part of the score counts."""
    config = backbone_config(name=name, dim=6, hidden=(24, 16), init_sd=0.5)  # type: ignore[arg-type]
    model = build_backbone(config, fields, seed=1)
    with torch.no_grad():
        model.bias += 0.3
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name in NAMES:
        folders[name] = tmp_path_factory.mktemp(name)
        onnx.export(trained(name), folders[name])
    return folders


def make(kind: str, model: Backbone, exported: dict[str, Path], table: Tensor | None = None) -> Backend:
    fill = model.fill() + 0.1  # as another filler gives it: not the vectors in the table
    if kind == "onnx":
        return onnx.load(exported[model.config.name])(model, table, fill)
    return {"folded": Folded, "bfloat16": BFloat16, "eager": Eager}[kind](model, table, fill)


def gate(model: Backbone) -> Tensor:
    return model.embedding.gated(torch.rand(model.fields.num_rows, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.inference_mode()
def test_scores_are_those_of_eager_torch(name: str, kind: str, gated: bool, exported: dict[str, Path]) -> None:
    model = trained(name)
    table = gate(model) if gated else None
    found, eager = make(kind, model, exported, table), make("eager", model, exported, table)
    batch = random_rows(model, ROWS)
    kept = torch.rand(ROWS, model.num_fields, generator=torch.Generator().manual_seed(0)) < 0.7
    kept[:, len(WITH_WEIGHTS.num_values) :] = True  # what is no column is protected
    everything = torch.ones_like(kept)
    fields = torch.tensor([0, 2, 1])
    mask = torch.rand(ROWS, 5, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    real = torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    tolerance = 2e-2 if kind == "bfloat16" else 1e-5

    def close(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)

    one, other = found.read(batch), eager.read(batch)
    expected = eager.logits(other)
    close(found.logits(one), expected)
    close(expected, model.score(model.embed(batch, table))[:, 0])
    assert expected.std() > 10 * tolerance
    close(found.logits(one, kept), eager.logits(other, kept))
    for base in (kept, everything):
        paths = eager.path_logits(other, base, mask, fields, torch.ones_like(real))
        close(found.path_logits(one, base, mask, fields, real), paths.view(ROWS, 5)[real])
        assert paths.view(ROWS, 5).std(dim=1).mean() > 10 * tolerance


@pytest.mark.parametrize(("name", "kind"), [*CASES, *((name, "eager") for name in NAMES)])
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_any_block(name: str, kind: str, exported: dict[str, Path]) -> None:
    model = trained(name)
    backend = make(kind, model, exported)
    batch = random_rows(model, 600, seed=5)
    fixed = backend.logits(backend.read(batch))
    verify_sizes(backend)
    assert 128 in backend.sizes and set(backend.sizes) <= set(SIZES)
    among = backend.logits(backend.read(batch))
    assert torch.equal(among, fixed)
    for rows in (slice(0, 1), slice(599, 600), slice(130, 143), slice(90, 191)):
        assert torch.equal(backend.logits(backend.read(batch.select(rows))), among[rows])
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backend.logits(backend.read(batch.select(order))), among[order])


@pytest.mark.parametrize("kind", ["folded", "eager"])
@pytest.mark.parametrize("number", [2, 32, 40, 128, 600])
@torch.inference_mode()
def test_a_shared_user_changes_no_bit(kind: str, number: int, exported: dict[str, Path]) -> None:
    model = trained("deepfm")
    backend = make(kind, model, exported)
    verify_sizes(backend)
    rows, one = random_rows(model, number), random_rows(model, 1, seed=8)
    shared = Batch(
        rows.ids,
        {k: v.expand(number, -1) for k, v in one.sequences.items()},
        {k: v.expand(number, -1) for k, v in one.vectors.items()},
        weights={k: v.expand(number, -1) for k, v in one.weights.items()},
    )
    repeated = Batch(
        rows.ids,
        {k: v.clone() for k, v in shared.sequences.items()},
        {k: v.clone() for k, v in shared.vectors.items()},
        weights={k: v.clone() for k, v in shared.weights.items()},
    )
    if kind == "folded":  # read once
        assert backend.read(shared)[1].stride(0) == 0
    assert torch.equal(backend.logits(backend.read(shared)), backend.logits(backend.read(repeated)))


class Doubled(MeanPooling):
    """A sequence encoder of a backbone of your own."""

    def forward(self, batch: Batch, columns: Tensor, table: Tensor, *, sparse: bool) -> Tensor:
        return 2.0 * super().forward(batch, columns, table, sparse=sparse)


@pytest.mark.parametrize("kind", ["copied", "too large to copy", "of your own", "shared by all rows"])
@pytest.mark.parametrize("name", ["deepfm", "din"])
@torch.inference_mode()
def test_a_lookup_gives_the_field_vectors_of_the_embedding(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(name)
    table, batch = gate(model), random_rows(model, ROWS)
    if kind == "too large to copy":
        monkeypatch.setattr(lookup, "MAX_POOLED_BYTES", 0)
    if kind == "of your own":
        model.embedding.sequences[0] = Doubled(model.fields, model.fields.sequences[0])
    if kind == "shared by all rows":
        one = batch.select(slice(0, 1))
        sequences, vectors, weights = (
            {k: v.expand(ROWS, -1) for k, v in part.items()} for part in (one.sequences, one.vectors, one.weights)
        )
        batch = Batch(batch.ids, sequences, vectors, batch.counters, weights)
    (found,) = BFloat16(model, table, model.fill()).read(batch)
    torch.testing.assert_close(found, model.embed(batch, table), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_file_without_the_head_still_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions exported the trunk alone."""
    from onnx import load, save

    class Trunk(onnx._Whole):
        def forward(self, x: Tensor) -> Tensor:
            return self.model.trunk(x)

    model = trained("dcnv2")
    monkeypatch.setattr(onnx, "_Whole", Trunk)
    onnx.export(model, tmp_path)
    file = load(tmp_path / "backend.onnx")
    file.graph.output[0].name = next(n for n in file.graph.node if n.output[0] == "logit").output[0] = "trunk"
    save(file, tmp_path / "backend.onnx")
    assert parity_of(onnx.load(tmp_path)(model, None, model.fill())).holds


@torch.inference_mode()
def test_folding_needs_no_sequences() -> None:
    model = trained("deepfm", PLAIN)
    backend, eager = Folded(model, None, model.fill()), Eager(model, None, model.fill())
    batch = random_rows(model, 60)
    torch.testing.assert_close(backend.logits(backend.read(batch)), eager.logits(eager.read(batch)), rtol=0, atol=1e-5)
    assert parity_of(backend).holds


def test_what_cannot_be_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_fold(trained("deepfm"))
    assert not any(can_fold(trained(name)) for name in NAMES if name not in FOLDED)
    assert not can_fold(build_backbone(DeepFMConfig(hidden=()), WITH_WEIGHTS))
    monkeypatch.setattr(folded, "MAX_BYTES", 4 * 32 * (85 + 4) - 1)
    model = trained("deepfm")
    assert not can_fold(model)
    with pytest.raises(ValueError, match="cannot be folded"):
        Folded(model, None, model.fill())


@pytest.mark.parametrize(
    ("total", "expected"), [(1, [(0, 4)]), (5, [(0, 8)]), (512, [(0, 512)]), (700, [(0, 512), (512, 256)]), (0, [])]
)
def test_blocks(total: int, expected: list[tuple[int, int]]) -> None:
    assert list(blocks_of(total, (4, 8, 16, 64, 256, 512))) == expected


class Wrong(Eager):
    name = "folded"

    def dense(self, x: Tensor) -> Tensor:
        return super().dense(x) + 0.01


class Misplaced(Eager):
    """A row's bits depend on its place."""

    name = "bfloat16"

    def dense(self, x: Tensor) -> Tensor:
        logits = super().dense(x)
        logits[1::2] += 1e-6
        return logits


def test_the_first_backend_with_the_right_scores_is_chosen() -> None:
    model = trained("deepfm")
    with torch.inference_mode():
        eager = Eager(model, None, model.fill())
    choice = choose_backend({"folded": Wrong, "bfloat16": Misplaced}, eager)
    assert choice.name == "eager"
    assert not choice.parity["folded"].holds and choice.parity["folded"].difference > 1e-4
    assert choice.parity["bfloat16"].holds  # but a row's bits depend on its place
    choice = choose_backend({"folded": Wrong, "bfloat16": BFloat16}, eager)
    assert (choice.name, set(choice.parity)) == ("bfloat16", {"folded", "bfloat16"})
    assert choose_backend({"folded": Folded, "bfloat16": Wrong}, eager).name == "folded"
    assert choose_backend({}, eager).name == "eager"


@pytest.mark.parametrize(
    ("name", "hidden", "values", "with_instructions", "without"),
    [
        ("deepfm", (128, 64), 3_000, ("folded",), ("folded",)),
        ("deepfm", (400, 400, 400), 200_000, ("bfloat16", "onnx"), ("onnx",)),  # its table is too large to fold
        ("deepfm", (16,), 2_000_000, ("onnx",), ("onnx",)),  # and its trunk too small for bfloat16
        ("dcnv2", (128, 64), 3_000, ("onnx",), ("onnx",)),
        ("dcnv2", (400, 400, 400), 3_000, ("bfloat16", "onnx"), ("onnx",)),
        ("autoint", (128, 64), 3_000, ("onnx",), ("onnx",)),
        ("autoint", (400, 400, 400), 3_000, ("onnx",), ("onnx",)),
        ("masknet", (128, 64), 3_000, ("onnx",), ("onnx",)),
        ("finalmlp", (128, 64), 3_000, ("onnx",), ("onnx",)),
        ("lr", (128, 64), 3_000, ("folded",), ("folded",)),
        ("fm", (128, 64), 3_000, ("folded",), ("folded",)),
        ("fm", (128, 64), 20_000_000, ("onnx",), ("onnx",)),  # its table is too large to fold
        ("din", (128, 64), 3_000, ("onnx",), ("onnx",)),
        ("din", (400, 400, 400), 3_000, ("bfloat16", "onnx"), ("onnx",)),
        ("hstu", (128, 64), 3_000, ("onnx",), ("onnx",)),
    ],
)
def test_what_suits_a_model_follows_from_its_size(
    name: str,
    hidden: tuple[int, ...],
    values: int,
    with_instructions: tuple[str, ...],
    without: tuple[str, ...],
) -> None:
    """The fastest of `make bench-backends`. Nothing is timed, so a busy machine chooses what an idle one does."""
    fields = FieldSpace(
        names=tuple(f"c{i}" for i in range(12)),
        kinds=("categorical",) * 12,
        entities=("context",) * 12,
        protected=(False,) * 12,
        num_values=(values, *(100,) * 11),
    )
    with torch.device("meta"):
        model = build_backbone(backbone_config(name=name, hidden=hidden), fields)  # type: ignore[arg-type]
    assert choose.suitable(model, bfloat16=True) == with_instructions
    assert choose.suitable(model, bfloat16=False) == without


class Swapping(Eager):
    """Moves every row by less than the tolerance, some up and some down."""

    name = "bfloat16"

    def dense(self, x: Tensor) -> Tensor:
        p = super().dense(x).double().sigmoid()
        up = torch.arange(len(x)) % 2 == 0
        return (p + torch.where(up, 0.0019, -0.0019)).clamp(1e-6, 1 - 1e-6).logit().float()


def test_parity_looks_at_the_ranking() -> None:
    model = trained("deepfm")
    with torch.inference_mode():
        parity = parity_of(Swapping(model, None, model.fill()))
        assert parity_of(Eager(model, None, model.fill())).swapped == 0
    assert parity.difference <= 2e-3
    assert parity.swapped > 0
    assert not parity.holds


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_a_choice_comes_back_from_disk(name: str, tmp_path: Path) -> None:
    model = trained(name)
    eager = Eager(model, None, model.fill())
    choice = save_choice(tmp_path, eager)
    backend = open_backend(tmp_path)(model, None, model.fill())
    assert backend.name == choice.name
    assert (tmp_path / "backend.onnx").is_file() == (choice.name == "onnx")
    assert choice.name == ("folded" if name in FOLDED else "onnx")
    assert read_json(tmp_path / "backend.json") == {"backend": choice.name}
    assert parity_of(backend).holds


def test_an_exported_trunk_names_no_place_of_the_machine(exported: dict[str, Path], tmp_path: Path) -> None:
    content = (exported["dcnv2"] / "backend.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b".py" not in content
    onnx.export(trained("dcnv2"), tmp_path)
    assert (tmp_path / "backend.onnx").read_bytes() == content


def test_files_that_are_damaged(tmp_path: Path) -> None:
    assert open_backend(tmp_path) is Eager
    (tmp_path / "backend.json").write_text('{"backend": "fast"}')
    with pytest.raises(BundleError, match="package the model again"):
        open_backend(tmp_path)
    (tmp_path / "backend.json").write_text('{"backend": "onnx"}')
    (tmp_path / "backend.onnx").write_bytes(b"\x08\x01nonsense")
    with pytest.raises(BundleError, match="package the model again"):
        open_backend(tmp_path)


def test_without_onnx_runtime_eager_torch_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "backend.json").write_text('{"backend": "onnx"}')
    monkeypatch.setattr(store, "_installed", lambda *modules: False)
    with caplog.at_level(logging.WARNING):
        assert open_backend(tmp_path) is Eager
    assert "not installed" in caplog.text


class Uneven(Eager):
    """Small blocks give other bits."""

    def dense(self, x: Tensor) -> Tensor:
        return super().dense(x) + (1e-6 if len(x) < 64 else 0.0)


@torch.inference_mode()
def test_sizes_with_other_bits_are_not_used() -> None:
    model = trained("deepfm")
    backend = Uneven(model, None, model.fill())
    assert verify_sizes(backend)
    assert min(backend.sizes) == 64
    misplaced = Misplaced(model, None, model.fill())
    assert not verify_sizes(misplaced)
    assert misplaced.sizes == Eager.sizes
