"""What holds for every session ranker, and the encoders' formulas written out."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from compress.config import ConfigError, Section, configure
from compress.sessions.rankers import SESSION_RANKERS
from compress.sessions.rankers.base import NOTHING, SessionRanker, Ways
from compress.sessions.rankers.heads import REACH, WIDTH, RepeatHead
from compress.sessions.rankers.sasrec import ItemPool, SasRec, SoftAttention
from compress.sessions.rankers.stamp import Stamp
from tests.compress.sessions.students import DIM, FLOORS, TRAINED, drawn_ranker, new_ranker

Case = tuple[str, dict[str, Any]]
every = pytest.mark.parametrize(
    "case", [*TRAINED, *FLOORS], ids=lambda case: "-".join(map(str, (case[0], *case[1].values())))
)
trained = pytest.mark.parametrize(
    "case", TRAINED, ids=lambda case: "-".join(map(str, (case[0], *case[1].values())))
)


def vectors(ranker: SessionRanker, rows: int, length: int, seed: int = 0) -> Tensor:
    """(B, L, D) drawn."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, ranker.config.dim, generator=draw)


def cut(ways: Ways, positions: int) -> Ways:
    """The ways after at most so many items, less one."""
    query, repeat, follow = ways
    items = positions - 1
    return Ways(
        None if query is None else query[:, :positions],
        None if repeat is None else repeat[:, :positions, :items],
        None if follow is None else follow[:, :positions, :items],
    )


def assert_alike(some: Ways, other: Ways) -> None:
    """Both have the same ways, and these are equal but for rounding."""
    for ours, theirs in zip(some, other, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_every_ranker_is_tested_here() -> None:
    """A new one joins the lists."""
    assert {name for name, _ in (*TRAINED, *FLOORS)} == set(SESSION_RANKERS)
    assert {name for name, _ in TRAINED} == {
        name for name, kind in SESSION_RANKERS.items() if kind.USES_VECTORS
    }


@every
def test_ways_are_told_at_every_position(case: Case) -> None:
    """After no item, after one, and so on: one position more than there are items."""
    name, options = case
    ranker = drawn_ranker(name, **options)

    ways = ranker.encode(vectors(ranker, 3, 7))

    if ways.query is not None:
        assert ways.query.shape == (3, 8, DIM)
    for weights in (ways.repeat, ways.follow):
        assert weights is None or weights.shape == (3, 8, 7)


@every
@pytest.mark.parametrize("changed", [0, 3, 6])
def test_an_item_changes_nothing_before_it(case: Case, changed: int) -> None:
    """Position l follows l items, and knows no more."""
    name, options = case
    ranker = drawn_ranker(name, **options)
    before = vectors(ranker, 2, 7)
    after = before.clone()
    after[:, changed] = vectors(ranker, 2, 1, seed=1)[:, 0]

    old, new = ranker.encode(before), ranker.encode(after)

    assert_alike(cut(old, changed + 1), cut(new, changed + 1))
    if old.query is not None and new.query is not None:
        later = (old.query - new.query).abs().amax(2)[:, changed + 1 :]
        assert (later > 1e-4).all()


@every
@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_prefix_is_encoded_as_in_the_whole(case: Case, length: int) -> None:
    """So one pass trains what serving asks prefix by prefix."""
    name, options = case
    ranker = drawn_ranker(name, **options)
    whole = vectors(ranker, 2, 7)

    assert_alike(ranker.encode(whole[:, :length]), cut(ranker.encode(whole), length + 1))


@every
@pytest.mark.parametrize("length", [0, 1, 4])
def test_the_latest_ways_are_those_of_the_last_position(case: Case, length: int) -> None:
    """What is exported asks for no other, and says the same."""
    name, options = case
    ranker = drawn_ranker(name, **options)
    given = vectors(ranker, 3, length)

    with torch.inference_mode():
        last = Ways(*(None if way is None else way[:, -1] for way in ranker.encode(given)))
        assert_alike(ranker.latest(given), last)


@every
def test_padding_at_the_end_changes_nothing(case: Case) -> None:
    """Nor does what other sessions of the batch there are."""
    name, options = case
    ranker = drawn_ranker(name, **options)
    short = vectors(ranker, 1, 4)
    batch = torch.cat([vectors(ranker, 2, 9, seed=1), torch.zeros(1, 9, ranker.config.dim)])
    batch[2, :4] = short[0]

    alone, among = ranker.encode(short), ranker.encode(batch)

    assert_alike(alone, cut(Ways(*(w if w is None else w[2:] for w in among)), 5))


@every
def test_an_empty_session_has_finite_ways(case: Case) -> None:
    """There is always something to rank by."""
    name, options = case
    ranker = drawn_ranker(name, **options)

    ways = ranker.encode(vectors(ranker, 2, 0))

    if ways.query is not None:
        assert ways.query.shape == (2, 1, DIM)
        assert torch.isfinite(ways.query).all()
    assert all(w is None or w.shape == (2, 1, 0) for w in (ways.repeat, ways.follow))


@every
def test_items_to_come_weigh_nothing(case: Case) -> None:
    """At position l those from the l-th on; the others of a trained ranker weigh something."""
    name, options = case
    ranker = drawn_ranker(name, **options)
    to_come = torch.arange(7)[None] >= torch.arange(8)[:, None]  # (L + 1, L)

    ways = ranker.encode(vectors(ranker, 2, 7))

    for weights in (ways.repeat, ways.follow):
        if weights is not None:
            assert (weights[:, to_come] == NOTHING).all()
            if ranker.USES_VECTORS:
                assert (weights[:, ~to_come] > NOTHING / 2).all()


@every
def test_a_session_may_be_as_long_as_is_said(case: Case) -> None:
    """The longest is encoded, in training and in serving."""
    name, options = case
    ranker = drawn_ranker(name, length=5, **options)

    for ways in ranker.encode(vectors(ranker, 2, 5)):
        assert ways is None or torch.isfinite(ways).all()


@trained
def test_a_scale_is_the_querys_length(case: Case) -> None:
    """Without one it is free."""
    name, options = case
    ranker = drawn_ranker(name, **options)

    lengths = ranker.encode(vectors(ranker, 2, 7)).query.norm(dim=2)

    if ranker.config.scale:
        torch.testing.assert_close(lengths, torch.full_like(lengths, ranker.config.scale))
    else:
        assert lengths.std() > 0.1


@trained
def test_every_parameter_takes_part(case: Case) -> None:
    """Each gets a gradient: nothing is trained in vain, or not at all."""
    name, options = case
    ranker = drawn_ranker(name, **options).train()

    ways = ranker.encode(vectors(ranker, 4, 7))
    draw = torch.Generator().manual_seed(2)
    seen = [w.clamp(min=NOTHING / 2) for w in ways if w is not None]
    sum((w * torch.randn(w.shape, generator=draw)).sum() for w in seen).backward()

    for what, parameter in ranker.named_parameters():
        assert parameter.grad is not None, what
        if what != "pool.answers.bias":  # the same for all keys of a softmax: it changes nothing
            assert parameter.grad.abs().max() > 1e-4, what


@trained
def test_training_begins_with_gradients_in_bounds(case: Case) -> None:
    """A query of no length has one without; Adam would never move its parameter again."""
    name, options = case
    ranker = new_ranker(name, **options)
    items = F.normalize(vectors(ranker, 4, 7), dim=2)

    query, draw = ranker.encode(items).query, torch.Generator().manual_seed(2)
    (query * torch.randn(query.shape, generator=draw)).sum().backward()

    largest = {
        what: parameter.grad.abs().max().item()
        for what, parameter in ranker.named_parameters()
        if parameter.grad is not None
    }
    assert 0 < max(largest.values()) < 1e4, largest


def test_dropout_is_of_training_alone() -> None:
    """In evaluation a ranker is a function."""
    ranker = drawn_ranker("sasrec", dropout=0.5)
    some = vectors(ranker, 2, 7)

    assert_alike(ranker.encode(some), ranker.encode(some))
    ranker.train()
    assert not torch.equal(ranker.encode(some).query, ranker.encode(some).query)


@pytest.mark.parametrize("name", sorted(SESSION_RANKERS))
@pytest.mark.parametrize("option", [{"length": 1}, {"dim": 0}, {"lengths": 9}])
def test_options_that_make_no_ranker_are_refused(name: str, option: dict[str, int]) -> None:
    """Sessions of one item, vectors of no width, names that are none."""
    with pytest.raises(ValidationError):
        SESSION_RANKERS[name].Config(**option)


def test_heads_share_the_width_evenly() -> None:
    """Else the config is refused in words."""
    section = Section.model_validate({"type": "sasrec", "dim": 10, "heads": 4})

    with pytest.raises(ConfigError, match="ranker: dim = 10 does not divide into 4 heads"):
        configure(SESSION_RANKERS, section, "ranker")


# --- the formulas, position by position ------------------------------------------------------


def test_soft_attention_is_its_formula() -> None:
    """θ_l = sum_t α_lt h_t, α_lt = f · sigmoid(W1 h̄_l + W2 h_t + c), the mean over what is real."""
    torch.manual_seed(0)
    soft, hidden = SoftAttention(DIM), torch.randn(2, 5, DIM)

    found = soft(hidden)

    for b in range(2):
        for place in range(5):
            mean = hidden[b, : place + 1].mean(0)
            theta = torch.zeros(DIM)
            for t in range(place + 1):
                inner = torch.sigmoid(soft.of_mean(mean) + soft.of_each(hidden[b, t]))
                theta += soft.weigh(inner) * hidden[b, t]
            torch.testing.assert_close(found[b, place], theta, atol=1e-5, rtol=1e-5)


def test_the_item_pool_is_its_formula() -> None:
    """sum_t β_lt e_t, β_lt = softmax_t(h_l · A h_t - b_{l-t})."""
    torch.manual_seed(0)
    pool, items, hidden = ItemPool(DIM, 6), torch.randn(2, 5, DIM), torch.randn(2, 5, DIM)

    found = pool(items, hidden)

    for b in range(2):
        for place in range(5):
            asked = pool.asks(hidden[b, place])
            logits = torch.stack(
                [
                    asked @ pool.answers(hidden[b, t]) / math.sqrt(DIM)
                    + REACH * pool.of_age[place - t]
                    for t in range(place + 1)
                ]
            )
            expected = logits.softmax(0) @ items[b, : place + 1]
            torch.testing.assert_close(found[b, place], expected, atol=1e-5, rtol=1e-5)


def test_training_begins_with_an_average_of_the_latest_items() -> None:
    """SASRec's pool of items has the whole say at first: the query points where they do."""
    ranker = SasRec(SasRec.Config(dim=DIM)).eval()
    item = F.normalize(vectors(ranker, 1, 1), dim=2)

    query = ranker.encode(item.expand(1, 6, DIM)).query[0, -1]

    assert (query @ item[0, 0]).item() > 0.99 * ranker.config.scale


def test_repeat_weights_are_their_formula() -> None:
    """r_lt = 10 · (a_{l-t} + b · h_l + q_l · (k_t + c_{l-t}) / sqrt(32))."""
    torch.manual_seed(0)
    head, hidden = RepeatHead(DIM, 6), torch.randn(2, 5, DIM)
    with torch.no_grad():
        head.of_age.normal_()
        head.age_key.normal_()

    found = head(hidden)

    for b in range(2):
        for place in range(5):
            asked = head.query(hidden[b, place])
            for t in range(place + 1):
                key = head.key(hidden[b, t]) + head.age_key[place - t]
                expected = REACH * (
                    head.of_age[place - t]
                    + head.level(hidden[b, place])[0]
                    + asked @ key / math.sqrt(WIDTH)
                )
                torch.testing.assert_close(found[b, place, t], expected, atol=1e-4, rtol=1e-5)


def test_stamp_is_its_formula() -> None:
    """θ_l = tanh(A (m_l + sum_t α_lt e_t)) * tanh(B e_l), and W θ_l of the scale's length."""
    ranker = drawn_ranker("stamp")
    assert isinstance(ranker, Stamp)
    raw = vectors(ranker, 1, 5)

    found = ranker(raw).query

    items = ranker.norm(raw[0])
    for place in range(5):
        mean, last = items[: place + 1].mean(0), items[place]
        attended = mean.clone()
        for t in range(place + 1):
            inner = ranker.of_each(items[t]) + ranker.of_last(last) + ranker.of_mean(mean)
            attended += ranker.weigh(torch.sigmoid(inner)) * items[t]
        theta = ranker.query.out(
            torch.tanh(ranker.session(attended)) * torch.tanh(ranker.last(last))
        )
        expected = ranker.config.scale * theta / theta.norm()
        torch.testing.assert_close(found[0, place], expected, atol=1e-4, rtol=1e-4)
