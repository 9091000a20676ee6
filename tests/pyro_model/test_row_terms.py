"""The log joint by rows: the terms of a row are what Pyro scores there, and they add up."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.row_terms import row_terms
from pyro_nfvi.errors import ModelError

Y = torch.linspace(-1.0, 2.0, 12).reshape(3, 4).double()


def flat(rows=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    with pyro.plate("groups", 12, subsample_size=rows) as index:
        place = pyro.sample("place", dist.Normal(mean, 1.0).to_event(1))
        size = pyro.sample("size", dist.LogNormal(place.sum(-1), 1.0))
        pyro.sample("y", dist.Normal(size, 1.0), obs=Y.reshape(-1)[index])


def nested(rows=None):
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), 1.0))
    with pyro.plate("inner", 4, subsample_size=rows, dim=-1) as index:
        item = pyro.sample("item", dist.Gamma(2.0 + 0 * mean, 1.0))
        with pyro.plate("outer", 3, dim=-2):
            cell = pyro.sample("cell", dist.Normal(mean, item))
            pyro.sample("y", dist.Normal(cell, 1.0), obs=Y[:, index])


def mixed(rows=None):
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), 1.0))
    with pyro.plate("groups", 12, subsample_size=rows) as index:
        shift = pyro.sample("shift", dist.Normal(mean, 1.0))
        kind = pyro.sample(
            "kind", dist.Bernoulli(torch.tensor(0.3).double()), infer={"enumerate": "parallel"}
        )
        pyro.sample("y", dist.Normal(shift + kind, 1.0), obs=Y.reshape(-1)[index])


CASES = [
    (flat, "groups", None),
    (flat, "groups", 5),
    (nested, "inner", None),
    (nested, "outer", None),
    (nested, "inner", 2),
    (nested, "outer", 2),
    (mixed, "groups", None),
    (mixed, "groups", 4),
]


def joint_of(model, *args):
    trace = poutine.trace(model).get_trace(*args)
    latent = LatentSpace.from_trace(
        poutine.trace(poutine.block(model, hide=["kind"])).get_trace(*args)
        if model is mixed
        else trace,
        subsampled=True,
    )
    return LogJoint(model, args, {}, latent)


@pytest.mark.parametrize(("model", "plate", "rows"), CASES)
def test_terms_add_up(model, plate, rows):
    log_joint = joint_of(model, rows)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, log_joint.latent.dim, generator=generator, dtype=torch.float64)
    subsample = log_joint.draw_subsample(generator)
    terms, rest = row_terms(log_joint, z, subsample, plate)
    sizes = {"groups": 12, "inner": 4, "outer": 3}
    count = rows if plate in subsample else sizes[plate]
    assert terms.shape == (3, count)
    total = sizes[plate] / count * terms.sum(-1) + rest
    torch.testing.assert_close(total, log_joint(z, subsample))


@pytest.mark.parametrize(("model", "plate", "rows"), [CASES[1], CASES[4], CASES[7]])
def test_a_row_of_a_mini_batch_has_the_term_that_it_has_among_all_rows(model, plate, rows):
    whole, batch = joint_of(model, None), joint_of(model, rows)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, whole.latent.dim, generator=generator, dtype=torch.float64)
    index = batch.draw_subsample(generator)
    values, _ = whole.latent.constrain(z)
    taken = {
        name: value.index_select(value.dim() - site.event_dim - 1, index[plate])
        if any(f.name == plate for f in site.cond_indep_stack)
        else value
        for (name, value), site in zip(values.items(), whole.latent.records)
    }
    expected, rest = row_terms(whole, z, {}, plate)
    found, same = row_terms(batch, batch.latent.pack(taken), index, plate)
    torch.testing.assert_close(found, expected[:, index[plate]])
    torch.testing.assert_close(same, rest)


def test_a_scale_around_a_likelihood_is_in_no_row():
    def model():
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), 1.0))
        with pyro.plate("groups", 12):
            shift = pyro.sample("shift", dist.Normal(mean, 1.0))
            with poutine.scale(scale=3.0):
                pyro.sample("y", dist.Normal(shift, 1.0), obs=Y.reshape(-1))

    log_joint = joint_of(model)
    with pytest.raises(ModelError, match="scale handler"):
        row_terms(log_joint, torch.zeros(2, 13).double(), {}, "groups")
