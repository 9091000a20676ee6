"""Adam by rows: dense Adam where every row is drawn, and nothing else moved where few are."""

import pytest
import torch

from pyro_nfvi._optim.gradient_clipping import clip_gradient
from pyro_nfvi._optim.rowwise_adam import RowwiseAdam
from pyro_nfvi._optim.snapshot import Snapshot, check_optimizer
from pyro_nfvi._optim.torch_optimizers import Adam


def loss_of(table, rows, target, *, sparse):
    found = torch.nn.functional.embedding(rows, table, sparse=sparse)
    return ((found - target[rows]).square() * torch.tensor([1.0, 30.0])).sum()


def tables(count, dtype=torch.float64):
    made = torch.randn(count, 2, dtype=dtype, generator=torch.Generator().manual_seed(3))
    return made.clone().requires_grad_(), made.clone().requires_grad_()


@pytest.mark.parametrize("clip", [None, 0.3])
def test_equals_dense_adam_where_every_row_is_drawn(clip):
    mine, theirs = tables(20)
    net, other = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target = torch.zeros(20, 2, dtype=torch.float64)
    sparse, dense = RowwiseAdam([mine, net], lr=0.05), Adam([theirs, other], lr=0.05)
    for step in range(30):
        # In another order each time, one row twice.
        rows = torch.randperm(20, generator=torch.Generator().manual_seed(step))
        rows = torch.cat([rows, rows[:1]])
        for table, part, optimizer in ((mine, net, sparse), (theirs, other, dense)):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(table, rows, target, sparse=table is mine) + part.pow(4).sum()
            loss.backward()
            assert clip is None or clip_gradient([table, part], clip)
            optimizer.step()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(net, other, rtol=0, atol=1e-12)
    assert mine.grad is not None
    assert mine.grad.is_sparse


def test_a_row_goes_its_own_way_whenever_it_is_drawn():
    """Row 5 drawn in some of the steps moves as a table of that row alone would in its own."""
    table, _ = tables(10)
    alone = table.detach()[5:6].clone().requires_grad_()
    target = torch.zeros(10, 2, dtype=torch.float64)
    optimizer, other = RowwiseAdam([table], lr=0.1), Adam([alone], lr=0.1)
    before = table.detach().clone()
    for step in range(12):
        optimizer.zero_grad()
        rows = torch.tensor([5, 2] if step % 3 == 0 else [2, 8])
        loss_of(table, rows, target, sparse=True).backward()
        optimizer.step()
        if step % 3 == 0:
            other.zero_grad()
            loss_of(alone, torch.tensor([0]), target, sparse=False).backward()
            other.step()
    torch.testing.assert_close(table[5:6], alone, rtol=0, atol=1e-12)
    rest = [row for row in range(10) if row not in (2, 5, 8)]
    assert torch.equal(table[rest], before[rest])
    state = optimizer.state[table]
    assert state["step"].tolist() == [0, 0, 12, 0, 0, 4, 0, 0, 8, 0]
    assert not state["exp_avg_sq"][rest].any()


def test_the_rate_of_a_block_of_steps_is_read_as_adam_reads_it():
    """A schedule writes ``lr`` between steps; a tensor of one number is a rate too."""
    one, two = tables(4)
    for table, rate in ((one, 0.02), (two, torch.tensor(0.02, dtype=torch.float64))):
        optimizer = RowwiseAdam([table], lr=0.5)
        optimizer.param_groups[0]["lr"] = rate
        loss_of(table, torch.tensor([1]), torch.zeros(4, 2).double(), sparse=True).backward()
        before = table.detach().clone()
        optimizer.step()
        torch.testing.assert_close((table - before).abs()[1], torch.full((2,), 0.02).double())
    assert torch.equal(one, two)


def test_states_come_back_and_go_on_with_the_same_numbers():
    table, _ = tables(6, torch.float32)
    target = torch.zeros(6, 2)
    optimizer = RowwiseAdam([table], lr=0.1, fused=True)

    def go(steps):
        for step in steps:
            optimizer.zero_grad()
            loss_of(table, torch.tensor([step % 6, (2 * step) % 6]), target, sparse=True).backward()
            optimizer.step()

    go(range(5))
    kept = Snapshot.take(5, [table], optimizer)
    go(range(5, 9))
    end = table.detach().clone()
    kept.put([table], optimizer)
    check_optimizer(optimizer)
    go(range(5, 9))
    assert torch.equal(table, end)


def test_clipping_counts_rows_that_came_twice_once_and_refuses_what_is_not_finite():
    table = torch.zeros(5, 1, requires_grad=True)
    found = torch.nn.functional.embedding(torch.tensor([1, 1, 4]), table, sparse=True)
    (found * torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
    assert clip_gradient([table], 1.0)  # (3, 4), of norm 5
    torch.testing.assert_close(table.grad.to_dense()[:, 0], torch.tensor([0.0, 0.6, 0.0, 0.0, 0.8]))
    table.grad = None
    (
        torch.nn.functional.embedding(torch.tensor([1]), table, sparse=True) * torch.nan
    ).sum().backward()
    assert not clip_gradient([table], 1.0)
