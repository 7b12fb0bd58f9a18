"""What generative pre-training must do: learn dependencies between fields, and never see the answer it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.synthetic import FIELDS, random_batch, random_rows
from tests.models.test_counters import SPACE
from thinktwice.models import BACKBONES, DeepFMConfig, backbone_config, build_backbone
from thinktwice.models.hstu import HSTU
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.corrupt import corrupt, corrupt_batch, mask_rates
from thinktwice.pretrain.denoiser import HIDDEN_LABEL, Denoiser
from thinktwice.pretrain.losses import Restoration, candidates_of, denoising_loss
from thinktwice.pretrain.pretrain import fit, log_shares, transferred_parts, unigram_entropy

NAMES = sorted(BACKBONES)
pretraining = importlib.import_module("thinktwice.pretrain.pretrain")  # the package exports a function of that name


def denoiser(name: str = "deepfm", config: PretrainConfig | None = None) -> Denoiser:
    backbone = build_backbone(backbone_config(name=name, dim=8, hidden=(16,), init_sd=0.3), FIELDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser(backbone, config or PretrainConfig(), log_shares(random_rows(500), FIELDS)).eval()


def test_the_mask_rate_is_uniform_and_the_label_is_hidden_at_least_half_of_the_time() -> None:
    label = torch.ones(100_000)
    keep, token = corrupt(label, 8, 0.5, torch.Generator().manual_seed(0))
    kept = keep.mean(dim=1)
    assert float(keep.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(((kept > 0.2) & (kept < 0.8)).float().mean()) == pytest.approx(0.6, abs=0.1)
    assert float((token == HIDDEN_LABEL).float().mean()) == pytest.approx(0.75, abs=0.01)
    assert set(token.tolist()) == {1, HIDDEN_LABEL}


@pytest.mark.parametrize("name", NAMES)
def test_no_mask_and_a_hidden_label_is_the_fine_tuning_forward(name: str) -> None:
    model, batch = denoiser(name), random_batch(12)
    keep = torch.ones(12, FIELDS.num_fields)
    with torch.inference_mode():
        pretraining = model(batch, keep, torch.full((12,), HIDDEN_LABEL))
        assert torch.equal(pretraining, model.backbone(batch))


@pytest.mark.parametrize("name", NAMES)
def test_a_hidden_label_cannot_be_seen(name: str) -> None:
    """Flipping the label changes the target, and where it is hidden nothing that the model computes."""
    model, batch = denoiser(name), random_batch(400)
    ones, zeros = torch.ones(400), torch.zeros(400)
    keep, token = corrupt(ones, FIELDS.num_fields, 0.5, torch.Generator().manual_seed(3))
    again, flipped = corrupt(zeros, FIELDS.num_fields, 0.5, torch.Generator().manual_seed(3))
    hidden = token == HIDDEN_LABEL
    assert torch.equal(keep, again)
    assert torch.equal(hidden, flipped == HIDDEN_LABEL)
    with torch.inference_mode():
        x = model.backbone.embed(batch)
        first, second = model.hidden(x, keep, token), model.hidden(x, keep, flipped)
    assert torch.equal(first[hidden], second[hidden])
    assert not torch.equal(first[~hidden], second[~hidden])


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_value_cannot_be_seen(name: str) -> None:
    model, batch = denoiser(name), random_batch(60)
    keep = torch.ones(60, FIELDS.num_fields)
    keep[:, [0, 4, 5]] = 0
    other = random_batch(60, seed=9)
    changed = type(batch)(batch.ids.clone(), other.sequences, other.vectors)
    changed.ids[:, 0] = other.ids[:, 0]
    token = torch.full((60,), 1)
    with torch.inference_mode():
        first = model.hidden(model.backbone.embed(batch), keep, token)
        second = model.hidden(model.backbone.embed(changed), keep, token)
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_sampled_softmax_over_the_whole_vocabulary_is_the_full_softmax() -> None:
    """With every value as a candidate and uniform shares the sampled loss is the exact one."""
    full, sampled = denoiser(), denoiser(config=PretrainConfig(full_softmax=2))
    for model in (full, sampled):
        model.log_share.fill_(-3.0)
        torch.nn.init.constant_(full.offset[0], -3.0)
    hidden = torch.randn(25, full.backbone.hidden_width, generator=torch.Generator().manual_seed(0))
    target = torch.arange(1, 26)
    with torch.inference_mode():
        predicted = full.predictions(hidden)[:, 0]
        exact = full.field_loss(0, predicted, target)
        approximate = sampled.field_loss(0, predicted, target, torch.arange(40), draws=25)
    torch.testing.assert_close(approximate, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("negatives", [512, 8])
def test_sampled_softmax_learns_how_often_skewed_values_come(negatives: int) -> None:
    """The logits that the sampled loss asks for are those of the full softmax, for frequent and for rare values."""
    size, rows = FIELDS.num_values[1], 64
    share = 1.0 / torch.arange(1, size).float() ** 1.3  # Zipf over the values 1, 2, ...
    share = share / share.sum()
    backbone = build_backbone(DeepFMConfig(dim=size, hidden=(4,)), FIELDS)
    log_share = torch.zeros(sum(FIELDS.num_values))
    first = FIELDS.offsets[1]
    log_share[first + 1 : first + size] = share.log()
    model = Denoiser(backbone, PretrainConfig(full_softmax=2, temperature=1.0), log_share)
    with torch.no_grad():  # every value has an axis of its own, so a prediction is the vector of its logits
        backbone.embedding.table[first : first + size, :size] = torch.eye(size)
    logits = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    generator, late = torch.Generator().manual_seed(0), []
    for step in range(3000):
        target = torch.multinomial(share, rows, replacement=True, generator=generator) + 1
        candidates = candidates_of(target, negatives, generator)
        loss = model.field_loss(1, logits.expand(rows, size), target, candidates, draws=rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 1500:
            late.append(logits.detach().clone())
    learned = torch.stack(late).mean(dim=0)[1:].log_softmax(dim=0)
    torch.testing.assert_close(learned[:20], share.log()[:20], atol=0.3, rtol=0)


@pytest.mark.parametrize("full_softmax", [2048, 10])
def test_fields_that_depend_on_others_beat_their_unigram_entropy(full_softmax: int) -> None:
    rows = random_rows(6000)
    config = PretrainConfig(batch_size=256, rate=1e-2, epochs=6, full_softmax=full_softmax)
    done = fit(rows, FIELDS, DeepFMConfig(dim=8, hidden=(32,), init_sd=0.1), config)
    entropy = unigram_entropy(rows, FIELDS)
    sampled = {2048: [], 10: ["user", "item", "history"]}[full_softmax]
    assert done.sampled == sampled
    assert done.unigram == {name: value for name, value in entropy.items() if name not in sampled}
    last = done.curve[-1]["fields"]
    assert last["genre"] < 0.75 * entropy["genre"]  # follows from the item
    assert last["price"] < 0.9 * entropy["price"]  # follows from the genre
    if full_softmax == 2048:
        assert last["item"] < entropy["item"]  # its genre narrows it down
    share = rows.label.mean()
    assert done.curve[-1]["label"] < -(share * np.log(share) + (1 - share) * np.log(1 - share)) - 0.01
    assert set(last) == set(FIELDS.names)


def test_the_loss_reaches_every_parameter_that_fine_tuning_takes_over() -> None:
    model = denoiser()
    model.train()
    losses = denoising_loss(
        model, random_batch(200), torch.from_numpy(random_rows(200).label), torch.Generator().manual_seed(0)
    )
    losses.total.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sparse_rows", [1, 10_000])
def test_pretraining_repeats_to_the_bit(threads: int, sparse_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches so large that torch would share their sums among threads."""
    monkeypatch.setenv("THINKTWICE_THREADS", str(threads))
    rows = random_rows(3000)
    config = PretrainConfig(batch_size=1000, epochs=2, negatives=8, full_softmax=10, sparse_rows=sparse_rows)
    first, *others = (fit(rows, FIELDS, DeepFMConfig(dim=16, hidden=(8,)), config, seed=4).denoiser for _ in range(3))
    for other in others:
        for (name, value), again in zip(first.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(value, again), name


def test_an_operation_without_ordered_sums_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own list of them is what guards new code: it is switched on wherever a model is trained."""
    if torch.cuda.is_available():
        pytest.skip("on a GPU some sums have no ordered form")
    seen = []
    monkeypatch.setattr(
        pretraining, "denoising_loss", lambda *_: seen.append(torch.get_deterministic_debug_mode()) or _stop()
    )
    with pytest.raises(_StoppedError):
        fit(random_rows(100), FIELDS, DeepFMConfig(dim=4, hidden=(8,)), PretrainConfig(batch_size=50))
    assert seen == [2]


class _StoppedError(Exception):
    """Ends a training at its first step."""


def _stop() -> None:
    raise _StoppedError


@pytest.mark.parametrize("full_softmax", [2, 10])
def test_large_tables_pretrain_with_row_updates(full_softmax: int) -> None:
    rows = random_rows(500)
    config = PretrainConfig(batch_size=100, epochs=2, full_softmax=full_softmax, sparse_rows=1)
    done = fit(rows, FIELDS, DeepFMConfig(dim=4, hidden=(8,)), config)
    assert np.isfinite(done.curve[-1]["label"])
    assert not done.denoiser.backbone.embedding.sparse_gradients


def test_every_behaviour_is_masked_at_the_rate_of_its_row_and_cannot_be_seen() -> None:
    batch, rows = random_batch(4000), 4000
    rate = torch.linspace(0.05, 1.0, rows)
    keep = torch.ones(rows, FIELDS.num_fields)
    found = corrupt_batch(batch, FIELDS, keep, rate, torch.Generator().manual_seed(0))
    masked, before = found.behaviours["history"], batch.sequences["history"]
    assert not bool((masked & (before == 0)).any())  # padding is no behaviour
    assert torch.equal(found.batch.sequences["history"], before.masked_fill(masked, 0))
    for part in (slice(0, 1000), slice(3000, 4000)):
        share = masked[part].sum() / (before[part] != 0).sum()
        assert float(share) == pytest.approx(float(rate[part].mean()), abs=0.03)
    assert torch.equal(found.batch.ids, batch.ids)


@pytest.mark.parametrize("behaviours", [0.01, 0.5, 1.0])
def test_a_sample_of_the_masked_behaviours_has_the_loss_of_all_on_average(behaviours: float) -> None:
    """Every masked behaviour is as likely as any other to be restored, and no more of them than the settings say."""
    rows = 200
    batch, rate = random_batch(rows), torch.linspace(0.1, 1.0, rows)
    keep, token = torch.ones(rows, FIELDS.num_fields), torch.full((rows,), HIDDEN_LABEL)
    masked = corrupt_batch(batch, FIELDS, keep, rate, torch.Generator().manual_seed(0)).behaviours

    def loss(restored: float, seed: int) -> float:
        model = denoiser(config=PretrainConfig(behaviours=restored))
        with torch.no_grad():
            model.places[0].copy_(torch.randn(model.places[0].shape, generator=torch.Generator().manual_seed(1)))
            hidden, read = model.encoded(model.backbone.embed(batch), token)
            draws = torch.Generator().manual_seed(seed)
            each = Restoration(model, batch, keep, 1.0 + rate, hidden, read, draws)
            assert len(each._sampled(masked["history"].nonzero())) <= max(1, restored * rows)
            return float(each.terms(masked)["history"])

    every = [loss(1000.0, seed) for seed in (0, 1)]
    assert every[0] == every[1]
    drawn = np.array([loss(behaviours, seed) for seed in range(60)])
    assert drawn.std() > 0
    assert drawn.mean() == pytest.approx(every[0], abs=4 * drawn.std() / np.sqrt(len(drawn)))


def test_a_label_that_is_not_known_is_neither_seen_nor_restored() -> None:
    """Other values of unknown labels change neither the loss nor the gradient."""
    rows = random_rows(300)
    known = torch.from_numpy(np.random.default_rng(0).random(300) < 0.3)
    label = torch.from_numpy(rows.label)
    found = []
    for given in (label, torch.where(known, label, 1.0 - label)):
        model = denoiser()
        losses = denoising_loss(model, rows.batch(slice(None)), given, torch.Generator().manual_seed(2), labelled=known)
        losses.total.backward()
        assert model.label_shift.grad is not None
        found.append((losses.total.detach(), losses.label, model.label_shift.grad))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1] > 0
    assert torch.equal(found[0][2], found[1][2])
    none = denoising_loss(
        denoiser(), rows.batch(slice(None)), label, torch.Generator().manual_seed(2), labelled=torch.zeros_like(known)
    )
    assert none.label == 0.0


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_pretraining_on_rows_of_which_few_have_a_label(share: float) -> None:
    rows = random_rows(600)
    known = np.random.default_rng(0).random(600) < share
    config = PretrainConfig(batch_size=100, epochs=1)
    size = DeepFMConfig(dim=4, hidden=(8,))
    done = fit(rows, FIELDS, size, config, labelled=known)
    assert all(np.isfinite(value) for value in done.curve[-1]["fields"].values())
    assert set(done.by_class) == ({"click", "no click"} if share else set())
    other = fit(
        replace(rows, label=np.where(known, rows.label, 0).astype(np.float32)), FIELDS, size, config, labelled=known
    )
    for (name, value), again in zip(done.denoiser.named_parameters(), other.denoiser.parameters(), strict=True):
        assert torch.equal(value, again), name


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_batch_is_embedded_as_if_it_were_unknown(name: str) -> None:
    """Target attention reads columns: what is masked is gone before."""
    model, batch = denoiser(name), random_batch(40)
    keep = torch.ones(40, FIELDS.num_fields)
    keep[:, [1, 4, 5]] = 0.0
    other = type(batch)(batch.ids.clone(), batch.sequences, random_batch(40, 8).vectors)
    other.ids[:, 1] = random_batch(40, 9).ids[:, 1]
    found = [
        model.backbone.embed(corrupt_batch(b, FIELDS, keep, torch.zeros(40), torch.Generator().manual_seed(1)).batch)
        for b in (batch, other)
    ]
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "fixed"])
def test_schedules_and_weights(schedule: str) -> None:
    draws = torch.Generator().manual_seed(0)
    config = PretrainConfig.model_validate({"schedule": schedule, "loss_weight": "elbo"})
    rate, weight = mask_rates(20_000, config, draws)
    assert bool(((rate > 0) & (rate <= 1)).all())
    if schedule == "fixed":
        assert rate.unique().tolist() == [pytest.approx(0.3)] and weight.unique().tolist() == [1.0]
        return
    mean = 0.5 if schedule == "linear" else 1 - 2 / np.pi
    assert float(rate.mean()) == pytest.approx(mean, abs=0.01)
    assert float(weight.max()) <= config.most_weight and float(weight.min()) >= 0
    if schedule == "linear":
        torch.testing.assert_close(weight, (1 / rate).clamp_max(10))
    assert mask_rates(9, PretrainConfig.model_validate({"schedule": schedule}), draws)[1].tolist() == [1.0] * 9


@pytest.mark.parametrize("name", ["deepfm", "hstu", "din"])
@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine", "loss_weight": "elbo", "time_embedding": True},
        {"schedule": "fixed", "ablation": "no_label"},
    ],
)
def test_every_form_learns_counters_included(name: str, options: dict[str, object]) -> None:
    rows = random_rows(1500)
    values = np.random.default_rng(0).normal(size=(1500, 5)).astype(np.float32) * 3
    values[::7] = np.nan
    config = PretrainConfig.model_validate(
        {"batch_size": 256, "rate": 1e-2, "epochs": 3, "full_softmax": 20, **options}
    )
    model = Denoiser(build_backbone(backbone_config(name, dim=4, hidden=(8,)), SPACE), config, log_shares(rows, FIELDS))
    batch = replace(rows.batch(slice(None)), counters=torch.from_numpy(values))
    optimizer, label, draws = (
        torch.optim.Adam(model.parameters(), 1e-2),
        torch.from_numpy(rows.label),
        torch.Generator(),
    )
    totals = []
    for _ in range(25):
        losses = denoising_loss(model, batch, label, draws)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(float(losses.total.detach()))
    assert set(losses.fields) == set(SPACE.names) and all(np.isfinite(v) for v in losses.fields.values())
    assert np.mean(totals[-5:]) < np.mean(totals[:5])
    assert (losses.label == 0.0) == (config.ablation == "no_label")
    keep, token = torch.ones(1500, SPACE.num_fields), torch.full((1500,), HIDDEN_LABEL)
    with torch.inference_mode():  # nothing is masked and the label is hidden: time says nothing either
        hidden, _ = model.eval().encoded(model.backbone.embed(batch), token, torch.zeros(1500))
        assert torch.equal(hidden, model.hidden(model.backbone.embed(batch), keep, token))


def test_the_outputs_of_a_transformer_move_with_the_fields() -> None:
    """Permuting the fields, with what is learned about each, permutes the outputs."""
    model = build_backbone(backbone_config("hstu", dim=4, init_sd=0.5), FIELDS, seed=3).eval()
    assert isinstance(model, HSTU)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        model.log_weights.copy_(torch.randn(6, generator=torch.Generator().manual_seed(0)))
        x = model.embed(random_batch(7))
        expected = model.field_states(x)[:, order]
        model.field.copy_(model.field[order].clone())
        model.log_weights.copy_(model.log_weights[order].clone())
        torch.testing.assert_close(model.field_states(x[:, order]), expected, atol=1e-5, rtol=1e-5)
        model.log_weights.zero_()
        assert not torch.allclose(model.field_states(x[:, order]), expected)


@pytest.mark.parametrize("ablation", ["none", "embeddings_only", "trunk_only"])
def test_ablations_transfer_what_their_name_says(ablation: str) -> None:
    config = PretrainConfig.model_validate({"batch_size": 100, "epochs": 1, "ablation": ablation})
    size = DeepFMConfig(dim=4, hidden=(8,))
    done = fit(random_rows(500), FIELDS, size, config, seed=2).denoiser.backbone
    start, found = build_backbone(size, FIELDS, seed=2).state_dict(), transferred_parts(done, config, 2).state_dict()
    for name, value in done.state_dict().items():
        embedded = name.startswith("embedding.")
        kept = ablation == "none" or embedded == (ablation == "embeddings_only")
        assert torch.equal(found[name], value if kept else start[name]), name
