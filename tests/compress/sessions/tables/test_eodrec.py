"""EODRec's table: the paper's formulas by hand, mixup that ends, codes that learn on or stay."""

import pytest
import torch
from torch import nn

from compress.progress import Silent
from compress.sessions.tables import Teacher
from compress.sessions.tables.eodrec import (
    Encoder,
    Eodrec,
    EodrecConfig,
    EodrecItems,
    gumbel_one_hot,
    mse,
    picked,
)

QUICK = {"codes": "4x16", "steps": 20, "kept_as": "float32"}


def build(teacher: Teacher, **options: object) -> EodrecItems:
    """A table with few steps of stage B."""
    config = EodrecConfig(**{**QUICK, **options})
    return Eodrec().build(teacher, config, torch.Generator().manual_seed(1), Silent())


def test_log_alpha_is_the_papers_formula() -> None:
    """It has h = tanh(θᵀX + b), α = softmax(softplus(θ'ᵀh + b')), in plain loops."""
    X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))  # noqa: N806
    encoder = Encoder(X, 2, 4, torch.Generator().manual_seed(1))
    nn.init.normal_(encoder.bias)
    nn.init.normal_(encoder.bias_codes)

    alpha = encoder(X).exp()

    assert encoder.theta.shape == (5, 4)  # M·K / 2 hidden
    for row in range(3):
        h = torch.tanh(encoder.theta.T @ X[row] + encoder.bias)
        for m in range(2):
            logits = encoder.theta_codes.view(4, 2, 4)[:, m].T @ h + encoder.bias_codes[m]
            expected = torch.softmax(torch.log1p(logits.exp()), 0)
            torch.testing.assert_close(alpha[row, m], expected)


def test_samples_are_one_hot_and_their_gradient_is_soft() -> None:
    """Forward one codeword of each codebook, backward a gradient for all of them."""
    log_alpha = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_alpha.requires_grad_()
    codebooks = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))

    sample = gumbel_one_hot(log_alpha, 0.3, torch.Generator().manual_seed(2))
    picked(sample, codebooks).square().sum().backward()

    assert set(sample.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(sample.sum(-1), torch.ones(6, 2))
    assert bool((log_alpha.grad != 0).all())


def test_samples_follow_alpha() -> None:
    """Gumbel's trick: a codeword comes as often as α says."""
    alpha = torch.tensor([0.7, 0.2, 0.1])

    sample = gumbel_one_hot(alpha.log().expand(20_000, 1, 3), 0.3, torch.Generator().manual_seed(0))

    assert sample.mean((0, 1)).tolist() == pytest.approx(alpha.tolist(), abs=0.015)


def test_l_mse_has_the_papers_scale() -> None:
    """By hand: squared distances summed over the width, averaged over items: (25 + 1) / 2."""
    found = mse(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2))

    assert float(found) == 13.0


def test_mixup_mixes_in_training_only(teacher: Teacher) -> None:
    """It is e' = η·X + (1 - η)·e with η the teacher's share; judged and shipped is e."""
    table, rows = build(teacher, mixup=0.8), torch.arange(300)
    with torch.no_grad():
        table.eval()
        alone = table(rows)
        table.train()
        mixed = table(rows)

    torch.testing.assert_close(mixed, 0.8 * teacher.vectors + 0.2 * alone)


def test_mixup_fades_so_that_training_ends_on_what_ships(teacher: Teacher) -> None:
    """η falls in a straight line to 0 at half of the training, and stays there."""
    table, shares = build(teacher, mixup=0.8, mixup_until=0.5), []
    for progress in (0.0, 0.25, 0.5, 1.0):
        table.anneal(progress)
        shares.append(table.eta)

    assert shares == pytest.approx([0.8, 0.4, 0.0, 0.0])
    with torch.no_grad():
        table.train()
        last = table(torch.arange(300))
        assert torch.equal(last, table.eval()(torch.arange(300)))


def test_mixup_can_stay_as_published(teacher: Teacher) -> None:
    """Unless it is annealed, η is to the last step what it was: for the ablation."""
    table = build(teacher, mixup=0.8, annealed=False)
    table.anneal(1.0)

    assert table.eta == 0.8


def test_mixup_can_be_left_out(teacher: Teacher) -> None:
    """η = 0: training sees the composed vectors from the first step on."""
    table = build(teacher, mixup=0.0).train()

    with torch.no_grad():
        seen = table(torch.arange(300))
        assert torch.equal(seen, table.eval()(torch.arange(300)))


def test_the_penalty_is_l_mse(teacher: Teacher) -> None:
    """Of frozen codes, over all rows, it is the mean squared distance to the teacher's."""
    table = build(teacher, mse=2.0, mse_rows=300)
    torch.manual_seed(0)
    rows = torch.randint(300, (300,))
    torch.manual_seed(0)

    penalty = table.penalty()

    with torch.no_grad():
        expected = 2 * mse(table.eval()(rows), teacher.vectors[rows])
    torch.testing.assert_close(penalty, expected)


def test_pretraining_brings_the_encoder_near_the_teacher(teacher: Teacher) -> None:
    """Stage B by Gumbel samples alone lowers the reconstruction error, step by step."""

    def error(steps: int) -> float:
        table = build(teacher, start="gumbel", steps=steps, frequency=0.0).eval()
        with torch.no_grad():
            return float(mse(table(torch.arange(300)), teacher.vectors))

    assert error(300) < 0.8 * error(1)


def test_residual_codes_are_the_better_start(teacher: Teacher) -> None:
    """Why they are the default: the error is well below that of Gumbel samples."""
    errors = {}
    for start in ("rq", "gumbel"):
        table = build(teacher, start=start, steps=300).eval()
        with torch.no_grad():
            errors[start] = float(mse(table(torch.arange(300)), teacher.vectors))

    assert errors["rq"] < errors["gumbel"]


def test_codes_stay_as_pretraining_left_them_unless_asked(teacher: Teacher) -> None:
    """Only with ``learn_codes`` is there an encoder, and do steps change the codes."""
    torch.manual_seed(0)
    for learn, changed in ((False, False), (True, True)):
        table = build(teacher, learn_codes=learn)
        before = table.eval().export().codes.copy()
        optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
        for _ in range(10):
            table.train()
            optimizer.zero_grad()
            (table(torch.arange(300)).sin().sum() + table.penalty()).backward()
            optimizer.step()

        assert (table.encoder is not None) == learn
        assert bool((table.eval().export().codes != before).any()) == changed


def test_the_encoder_imitates_residual_codes(teacher: Teacher) -> None:
    """Codes that start at residual k-means and learn on are mostly those of the encoder."""
    given = build(teacher, distinct=False).codes
    learned = build(teacher, learn_codes=True, steps=500).eval().codes

    assert float((given == learned).float().mean()) > 0.8


def test_the_teacher_does_not_ship(teacher: Teacher) -> None:
    """Neither the bundle nor the weights of a checkpoint hold the teacher's rows."""
    table = build(teacher)

    assert "vectors" not in table.state_dict()
    assert table.export().nbytes < teacher.vectors.numel() * 4
