"""Where rows of plates stand in the vector: against Pyro's own shapes, whole and in batches."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi.errors import ModelError, OptionError


def crossed(persons=None, items=None):
    """Globals, two crossed plates, one site below both, several sites a row, a simplex."""
    pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    outer = pyro.plate("persons", 5, subsample=persons, dim=-2)
    inner = pyro.plate("items", 4, subsample=items, dim=-1)
    with outer:
        pyro.sample("skill", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with inner:
        pyro.sample("level", dist.HalfNormal(1.0))
    with outer, inner:
        pyro.sample("fit", dist.Normal(0.0, 1.0))
    with inner:
        pyro.sample("slope", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
    pyro.sample("sd", dist.HalfNormal(1.0))


def layout_of(model, *args):
    trace = poutine.trace(model).get_trace(*args)
    return PlateLayout.from_space(LatentSpace.from_trace(trace, subsampled=True))


def test_blocks_are_the_sites_of_the_same_plates():
    layout = layout_of(crossed)
    found = {b.name: (b.sites, tuple(b.positions.shape), list(b.parents)) for b in layout.blocks}
    assert found == {
        "": (("mean", "sd"), (1, 3), []),
        "persons": (("skill", "share"), (5, 4), [""]),
        "items": (("level", "slope"), (4, 4), [""]),
        "persons/items": (("fit",), (20, 1), ["", "persons", "items"]),
    }
    held = torch.cat([block.positions.reshape(-1) for block in layout.blocks])
    assert held.sort().values.tolist() == list(range(layout.dim))


def test_a_row_of_a_block_is_the_same_row_of_every_site():
    layout = layout_of(crossed)
    z = torch.randn(layout.dim)
    sites = layout.space.unpack(z)
    person, item, both = (layout.block(n) for n in ("persons", "items", "persons/items"))
    for row in range(5):
        # Pyro keeps an axis of length 1 for the plate to the right.
        expected = torch.cat([sites["skill"][row, 0], sites["share"][row, 0]])
        assert torch.equal(z[person.positions[row]], expected)
    for row in range(4):
        expected = torch.cat([sites["level"][row : row + 1], sites["slope"][row].reshape(-1)])
        assert torch.equal(z[item.positions[row]], expected)
    for row in range(20):
        p, i = int(both.parents["persons"][row]), int(both.parents["items"][row])
        assert torch.equal(z[both.positions[row]], sites["fit"][p, i].reshape(1))


@pytest.mark.parametrize("named", [("persons",), ("items",), ("persons", "items")])
def test_the_vector_of_a_mini_batch_is_that_of_pyros_trace(named):
    layout = layout_of(crossed)
    rows = {"persons": torch.tensor([4, 0, 2]), "items": torch.tensor([3, 1])}
    rows = {plate: rows[plate] for plate in named}
    few = layout.at(rows)
    trace = poutine.trace(crossed).get_trace(**rows)
    space = LatentSpace.from_trace(trace, subsampled=True)
    assert few.space.spec() == space.spec()
    z = torch.arange(1.0 * layout.dim)
    sites, kept = layout.space.unpack(z), few.space.unpack(z[layout.index(rows)])
    p, i = rows.get("persons", torch.arange(5)), rows.get("items", torch.arange(4))
    assert torch.equal(kept["skill"], sites["skill"][p])
    assert torch.equal(kept["slope"], sites["slope"][i])
    assert torch.equal(kept["fit"], sites["fit"][p][:, i])
    assert torch.equal(few.space.init_loc, layout.space.init_loc[layout.index(rows)])
    # Tables of all rows, parents and weights of the mini-batch.
    both = few.block("persons/items")
    table = torch.arange(20.0).reshape(20, 1)
    expected = table.reshape(5, 4)[p][:, i].reshape(-1, 1)
    assert torch.equal(both.of_rows(table), expected)
    assert both.weight == pytest.approx(20 / (len(p) * len(i)))
    assert torch.equal(both.parents["persons"], torch.arange(len(p)).repeat_interleave(len(i)))
    assert few.block("").rows is None
    assert few.block("").weight == 1.0


def test_all_rows_are_known_from_a_mini_batch():
    rows = {"persons": torch.tensor([4, 0]), "items": torch.tensor([3, 1, 2])}
    few = layout_of(crossed, *rows.values())
    assert few.space.spec() == layout_of(crossed).space.spec()
    space = LatentSpace.from_trace(poutine.trace(crossed).get_trace(), subsampled=False)
    assert few.space.spec() == space.spec()
    # Initial values are repeated along the plates, as Pyro's guides repeat them.
    fit = few.space.unpack(few.space.init_loc)["fit"]
    assert torch.equal(fit[2:4, :3], fit[:2, :3])
    assert torch.equal(fit[:, 3], fit[:, 0])


def test_the_rows_of_a_block_know_their_places_in_its_plates():
    layout = layout_of(crossed).at({"persons": torch.tensor([3, 1])})
    both = layout.block("persons/items")
    cells = layout.cells(both)
    assert cells["persons"].tolist() == both.parents["persons"].tolist() == [0] * 4 + [1] * 4
    assert cells["items"].tolist() == [0, 1, 2, 3] * 2
    z = torch.randn(2, layout.dim)
    assert torch.equal(layout.part(both, z)[:, 5, 0], z[:, both.positions[5, 0]])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"persons": torch.tensor([1, 5])}, "'persons' has the rows 0 to 4; got 5"),
        ({"persons": torch.tensor([-1])}, "got -1"),
        ({"persons": torch.tensor([0.5])}, "whole numbers"),
        ({"persons": torch.ones(5, dtype=torch.bool)}, "whole numbers; got torch.bool"),
        ({"persons": torch.zeros(0, dtype=torch.long)}, "No row of the plate 'persons'"),
        ({"persons": torch.tensor([2, 3, 2])}, "'persons' is named twice"),
        ({"cells": torch.tensor([0])}, "no latent in a plate 'cells'"),
    ],
)
def test_rows_that_are_none_are_an_error(rows, says):
    with pytest.raises(OptionError, match=says):
        layout_of(crossed).at(rows)


def test_the_space_of_all_refuses_a_mini_batch_and_names_the_cure():
    trace = poutine.trace(crossed).get_trace(torch.tensor([1, 2]))
    with pytest.raises(ModelError, match="'persons', which subsamples 2 of 5.*AutoPlateFlow"):
        LatentSpace.from_trace(trace)
