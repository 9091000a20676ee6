"""Packed data and VAE files that would take more memory than they may: refused before that."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch

from pyro_nfvi.errors import FileError
from pyro_nfvi.vae import load_vae
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae._idx import read_idx
from pyro_nfvi.vae._npz import read_npz
from pyro_nfvi.vae.train._run_folder import RunFolder


def idx(*shape, kind=0x08):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape)


@pytest.mark.parametrize(
    "content",
    [
        idx(2**31, 2**10, 2**10) + bytes(10),
        idx(*[2**32 - 1] * 200) + bytes(10),
        idx(60_000, 28, 28) + bytes(1000),
        idx(4) + bytes(5),
        idx(4)[:6],
        b"",
    ],
)
def test_an_idx_file_that_says_more_than_it_holds(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(FileError):
        read_idx(path)


def test_a_flood_behind_an_idx_header_is_not_unpacked(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(idx(4))
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(FileError, match="longer than its header says: 13 bytes"):
        read_idx(path)


def npz(path, header, size):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x.npy", header + bytes(size))


def header(shape, version=(1, 0)):
    file = io.BytesIO()
    writer = {
        (1, 0): np.lib.format.write_array_header_1_0,
        (2, 0): np.lib.format.write_array_header_2_0,
    }[version]
    writer(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (header((10**15, 4, 4)), 100),
        (header((60_000, 28, 28)), 100),
        (header((2**40, 2**40)), 100),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1), 1 << 20),
        (b"\x93NUMPY\x03\x00" + struct.pack("<I", 2**31), 100),
    ],
)
def test_an_npz_file_that_says_more_than_it_holds(tmp_path, start, size):
    npz(tmp_path / "data.npz", start, size)
    with pytest.raises(FileError):
        read_npz(tmp_path / "data.npz")


def test_an_npz_file_that_unpacks_to_more_than_the_memory(tmp_path, monkeypatch):
    from pyro_nfvi._files import archives

    npz(tmp_path / "data.npz", header((1000, 28, 28)), 1000 * 28 * 28)
    assert read_npz(tmp_path / "data.npz").arrays["x"].shape == (1000, 28, 28)
    monkeypatch.setattr(archives.os, "sysconf", lambda name: 1000)
    with pytest.raises(FileError, match="more than half of the memory"):
        read_npz(tmp_path / "data.npz")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    kind = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,))
    folder = RunFolder(tmp_path_factory.mktemp("vae"))
    folder.save_best(kind.build(seed=0), {"architecture": kind.spec()})
    return folder.best


CHANGES = {
    "shape giant": lambda spec, vae: spec.update(shape=[10**9, 10**9]),
    "shape negative": lambda spec, vae: spec.update(shape=[-4, 4]),
    "latents many": lambda spec, vae: spec.update(latent_dim=10**9),
    "hidden wide": lambda spec, vae: spec.update(hidden=[10**9]),
    "hidden deep": lambda spec, vae: spec.update(hidden=[8] * 200_000),
    "flow of many layers": lambda spec, vae: spec.update(flow=f"iaf*{10**9}"),
    "an option of its own": lambda spec, vae: spec.update(exec=1),
    "no shape": lambda spec, vae: spec.pop("shape", spec.pop("event_shape", None)),
    "NaN": lambda spec, vae: vae[next(iter(vae))].fill_(torch.nan),
    "cast": lambda spec, vae: vae.update({k: v.double() for k, v in vae.items()}),
    "another shape": lambda spec, vae: vae.update({next(iter(vae)): torch.zeros(3)}),
    "one missing": lambda spec, vae: vae.pop(next(iter(vae))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_vae_file_is_refused(saved, tmp_path, name):
    held = torch.load(saved, weights_only=True)
    told = json.loads(held["pyro_nfvi"])
    CHANGES[name](told["spec"]["architecture"], held["tensors"]["vae"])
    held["pyro_nfvi"] = json.dumps(told)
    torch.save(held, tmp_path / "best.pt")
    with pytest.raises(FileError, match="does not describe a VAE"):
        load_vae(tmp_path / "best.pt")
    assert load_vae(saved).latent_dim == 2
