"""Models and data from strangers: cut off, changed, or made to do harm. Nothing of it may."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import zlib
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import zarr
from hostile.strategies import SWEEPS
from safetensors.torch import load_file, save_file

import scalloy as sa
from scalloy.files import atomic_write, hdf5_check, plain_json, reading
from scalloy.files.reading import DamagedFileError

STORED = Path(__file__).parent / "stored"
CASES = int(os.environ.get("SCALLOY_FUZZ", "150" if SWEEPS else "45"))


def damaged(source: bytes, rng: random.Random) -> bytes:
    """Cut off, or with bits or bytes changed."""
    data, kind, at = bytearray(source), rng.randrange(4), rng.randrange(len(source))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(rng.randrange(2, 50)):
            data[rng.randrange(min(len(data), rng.choice([2000, len(data)])))] ^= 1 << rng.randrange(8)
    else:
        n = rng.randrange(1, 64)
        data[at : at + n] = rng.randbytes(n)
    return bytes(data)


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".h5ad"])
def test_damaged_files_of_a_model(saved, copy, suffix):
    """Each is refused, or (a letter in a name of the JSON) gives a model that works."""
    rng, refused, works = random.Random(0), 0, 0
    (original,) = saved.glob(f"*{suffix}")
    for _ in range(CASES):
        (copy / original.name).write_bytes(damaged(original.read_bytes(), rng))
        try:
            model = sa.load(copy)
        except (ValueError, FileNotFoundError) as error:
            refused += str(copy) in str(error)
        else:
            works += np.isfinite(model.get_latent_representation()).all()
    assert refused + works == CASES
    assert works == 0 if suffix != ".json" else refused > CASES // 2


@pytest.mark.parametrize("kind", [".h5ad", ".h5mu"])
def test_damaged_data(saved, kind, tmp_path, monkeypatch):
    """What is cut off or changed is refused or read, within bounds of time and memory."""
    monkeypatch.setattr(reading, "SECONDS", 10)
    (source,) = saved.glob("*.h5ad")
    path, rng, refused, read = tmp_path / f"cells{kind}", random.Random(0), 0, 0
    if kind == ".h5mu":
        mudata = pytest.importorskip("mudata")
        cells = ad.read_h5ad(source)
        source = tmp_path / "whole.h5mu"
        mudata.MuData({"rna": cells, "prot": cells[:, :3].copy()}).write(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reading.read(source).n_obs == 60
    for _ in range(CASES // 3):
        path.write_bytes(damaged(source.read_bytes(), rng))
        try:
            reading.read(path)
        except DamagedFileError as error:
            refused += str(path) in str(error)
        else:
            read += 1
    assert refused + read == CASES // 3
    assert refused > CASES // 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB: one GiB


def crafted_json(change):
    def craft(folder):
        about = json.loads((folder / "model.json").read_text())
        change(about)
        (folder / "model.json").write_text(json.dumps(about))

    return craft


def text_json(text):
    return lambda folder: (folder / "model.json").write_text(text)


def weights(change, *, named=True):
    """Other weights; with their digest in the name, as whoever crafts them would do."""

    def craft(folder):
        (path,) = folder.glob("weights-*")
        tensors = change(load_file(path))
        save_file(tensors, folder / "new")
        name = f"weights-{atomic_write.digest(folder / 'new')}.safetensors" if named else path.name
        (folder / "new").replace(folder / name)
        crafted_json(lambda about: about["files"].update(weights=name))(folder)

    return craft


def nan(tensors):
    key = next(k for k in tensors if k.endswith("enc_z.head.loc.weight"))
    return {**tensors, key: torch.full_like(tensors[key], torch.nan)}


CRAFTED = {
    "deep JSON": text_json("[" * 100_000 + "]" * 100_000),
    "deeper JSON": text_json('{"a":' * 3_000_000),
    "large JSON": lambda folder: os.truncate(folder / "model.json", plain_json.MOST + 1),
    "names twice": text_json('{"format": 2, "format": 2}'),
    "no format": text_json("{}"),
    "a list": text_json("[1, 2]"),
    "format 0": text_json('{"format": 0}'),
    "format true": text_json('{"format": true}'),
    "nothing else": text_json('{"format": 2}'),
    "another format": text_json('{"format": 10000000000, "versions": 3}'),
    "huge number": text_json('{"format": ' + "9" * 100_000 + "}"),
    "unknown model": crafted_json(lambda a: a.update(model="os.system")),
    "model of another kind": crafted_json(lambda a: a.update(model="VAE")),
    "many layers": crafted_json(lambda a: a["init"].update(n_layers=10**9)),
    "wide layers": crafted_json(lambda a: a["init"].update(n_hidden=10**12)),
    "a few more": crafted_json(lambda a: a["init"].update(n_hidden=9)),
    "unknown option": crafted_json(lambda a: a["init"].update(hook="print")),
    "option of another type": crafted_json(lambda a: a["init"].update(n_latent={"a": []})),
    "negative": crafted_json(lambda a: a["init"].update(n_latent=-3)),
    "many batches": crafted_json(
        lambda a: a["registry"]["field_registries"]["batch"]["summary_stats"].update(n_batch=10**12)
    ),
    "many genes": crafted_json(
        lambda a: a["registry"]["field_registries"]["X"]["summary_stats"].update(n_vars=10**12)
    ),
    "another set-up": crafted_json(lambda a: a["registry"].update(setup_method_name="__init__")),
    "no registry": crafted_json(lambda a: a.update(registry=[])),
    "path out of the folder": crafted_json(lambda a: a["files"].update(weights="../../etc/passwd")),
    "absolute path": crafted_json(lambda a: a["files"].update(weights="/etc/passwd")),
    "path as cells": crafted_json(lambda a: a["files"].update(cells="cells-/../../../x.h5ad")),
    "file as number": crafted_json(lambda a: a["files"].update(weights=3)),
    "weights that are gone": lambda folder: next(folder.glob("weights-*")).unlink(),
    "no weights": crafted_json(lambda a: a["files"].pop("weights")),
    "array of objects": crafted_json(
        lambda a: a["history"].update(x={"__array__": [1], "shape": [1], "dtype": "O"})
    ),
    "array without values": crafted_json(
        lambda a: a["history"].update(x={"__array__": [], "shape": [10**12], "dtype": "<f8"})
    ),
    "array of bytes": crafted_json(
        lambda a: a["history"].update(x={"__array__": [1], "shape": [1], "dtype": "V1000000000"})
    ),
    "seed": crafted_json(lambda a: a["init"].update(seed=2**80)),
    "NaN in weights": weights(nan),
    "weights lack": weights(lambda t: {k: v for k, v in t.items() if "head" not in k}),
    "weights more": weights(lambda t: {**t, "weights/more": torch.zeros(3)}),
    "another group": weights(lambda t: {**t, "code/x": torch.zeros(3)}),
    "another shape": weights(lambda t: {k: v if v.dim() < 2 else v[:-1] for k, v in t.items()}),
    "another type": weights(lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()}),
    "not their digest": weights(
        lambda t: {k: v + 1 if v.is_floating_point() else v for k, v in t.items()}, named=False
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_models(name, copy):
    for file in copy.glob("cells-*"):
        file.unlink()
    crafted_json(lambda about: about["files"].pop("cells"))(copy)
    CRAFTED[name](copy)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r".") as caught:
        sa.load(copy)
    assert str(copy) in str(caught.value) or "holds a" in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB: one GiB


def h5(craft):
    def made(path, tmp_path):
        with h5py.File(path, "a") as file:
            craft(file, tmp_path)

    return made


def loop(file, _):
    file["uns/loop"] = file["uns"]


def outside(file, tmp_path):
    (tmp_path / "secret").write_bytes(b"\1" * 800)
    file.create_dataset("uns/e", shape=(100,), dtype="f8", external=[(str(tmp_path / "secret"), 0, 800)])


def virtual(file, tmp_path):
    layout = h5py.VirtualLayout(shape=(10,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(10,))
    file.create_virtual_dataset("uns/v", layout)


def far_columns(file, _):
    file["X/indices"][3] = 10**6


def falling_rows(file, _):
    file["X/indptr"][5] = 0


HDF5 = {
    "declares a terabyte": h5(
        lambda f, _: f.create_dataset("uns/b", shape=(10**12,), dtype="u1", chunks=(10**6,))
    ),
    "external link": h5(lambda f, _: f.__setitem__("uns/x", h5py.ExternalLink("/etc/x.h5", "/"))),
    "soft link": h5(lambda f, _: f.__setitem__("uns/x", h5py.SoftLink("/uns"))),
    "external storage": h5(outside),
    "virtual": h5(virtual),
    "groups in a loop": h5(loop),
    "a type": h5(lambda f, _: f.__setitem__("uns/t", np.dtype("f8"))),
    "columns outside": h5(far_columns),
    "rows that fall": h5(falling_rows),
    "no matrix": h5(lambda f, _: f.__delitem__("X/indptr")),
    "shape of another size": h5(lambda f, _: f["X"].attrs.__setitem__("shape", [10**12, 10**12])),
}


@pytest.mark.parametrize("place", ["X", "raw/X", "layers/a", "obsm/a", "varm/a", "obsp/a", "varp/a"])
def test_indices_of_every_sparse_matrix_are_looked_at(place, tmp_path):
    cells = sa.datasets.simulate(30, 12, seed=0)
    x, cells.raw = sp.csr_matrix(cells.X), cells
    cells.layers["a"], cells.obsm["a"], cells.varm["a"] = x, x, sp.csr_matrix(x.T)
    cells.obsp["a"], cells.varp["a"] = sp.csr_matrix(x @ x.T), sp.csr_matrix(x.T @ x)
    cells.write_h5ad(path := tmp_path / "cells.h5ad")
    assert reading.read(path).n_obs == 30
    with h5py.File(path, "r+") as file:
        file[f"{place}/indices"][3] = 10**6
    with pytest.raises(DamagedFileError, match="has indices outside of it"):
        reading.read(path)


@pytest.mark.parametrize("name", HDF5)
def test_crafted_data(name, saved, tmp_path):
    (source,) = saved.glob("*.h5ad")
    path = Path(shutil.copy(source, tmp_path / "cells.h5ad"))
    HDF5[name](path, tmp_path)
    with pytest.raises(DamagedFileError, match="is damaged, or not a valid h5ad file"):
        reading.read(path)


def test_strings_longer_than_the_file(tmp_path):
    """Many entries that point at one long string: a small file, and much to read."""
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "s", shape=(2000,), dtype=h5py.string_dtype(), chunks=(2000,), compression=9
        )
        made[0] = "x" * 300_000
        raw = made.id.read_direct_chunk((0,))[1]
        entries = bytearray(zlib.decompress(raw))
        entries[:] = entries[:16] * 2000
        made.id.write_direct_chunk((0,), zlib.compress(bytes(entries)))
    assert path.stat().st_size < 2_000_000
    with pytest.raises(hdf5_check.RefusedError, match="longer than the file"):
        hdf5_check.look(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        reading.read(tmp_path / "nothing.h5ad")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(DamagedFileError, match="is damaged, or not a valid h5ad file"):
        reading.read(tmp_path / "text.h5ad")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.json"):
        sa.load(tmp_path / "nowhere")


def test_no_code_is_run(copy, tmp_path):
    """A pickle under any of our names is refused, unread."""
    import pickle

    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    bomb = pickle.dumps(Runs())
    (copy / "latent.npy").unlink()
    for file in list(copy.iterdir()):
        held = file.read_bytes()
        file.write_bytes(bomb)
        with pytest.raises((ValueError, FileNotFoundError)):
            sa.load(copy)
        file.write_bytes(held)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.pt").write_bytes(bomb)
    with pytest.raises(DamagedFileError, match="can run any code"):
        sa.load(tmp_path / "theirs")
    assert not (tmp_path / "ran").exists()


# zarr stores --------------------------------------------------------------------------------------


class Runs:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def store(tmp_path):
    """A store of each format, whose column of ``.obs`` can be crafted."""

    def made(zarr_format):
        path = tmp_path / "cells.zarr"
        adata = ad.AnnData(sp.csr_matrix(np.eye(3, dtype=np.float32)))
        adata.obs["n"] = np.arange(3.0)
        if zarr_format == 3:
            sa.data.write_store(adata, path)
        else:
            ad.io.write_elem(zarr.open_group(path, mode="w", zarr_format=2), "/", adata)
        return path

    return made


def test_no_pickle_of_a_zarr_store_is_run(store, tmp_path, monkeypatch):
    """What other readers would run, as numcodecs up to 0.16.5 did, is refused by ours."""
    import pickle

    from numcodecs import pickles

    monkeypatch.setattr(pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    path, mark = store(2), tmp_path / "ran"
    texts = (p.parent for p in path.rglob(".zarray") if "vlen-utf8" in p.read_text())
    array = next(texts)
    about = json.loads((array / ".zarray").read_text())
    about["filters"].append({"id": "pickle", "protocol": 5})  # behind that for text, for which zarr looks
    about["compressor"] = None
    (array / ".zarray").write_text(json.dumps(about))
    (path / ".zmetadata").unlink(missing_ok=True)
    (array / "0").write_bytes(pickle.dumps(Runs(mark)))
    for read in (reading.read, sa.data.open_store):
        with pytest.raises(DamagedFileError, match=r"decoded by pickle in (obs|var)/.*, which may run"):
            read(path)
    assert not mark.exists()
    if int(version("numcodecs").split(".")[1]) < 17:  # later ones refuse in spite of the flag
        with contextlib.suppress(Exception):
            ad.read_zarr(path)
        assert mark.exists()  # so the store is as bad as it is meant to be


def sharded(about, key):
    about["codecs"].append({"name": "sharding_indexed", "configuration": {key: [{"name": "pickle"}]}})


PICKLE = {"filters": [{"id": "pickle"}], "compressor": None}
CODECS = {
    "compressor": (2, "obs/n/.zarray", lambda a: a.update(compressor={"id": "pickle"})),
    "among filters": (2, "obs/n/.zarray", lambda a: a.update(filters=[{"id": "delta"}, {"id": "pickle"}])),
    "unknown": (2, "obs/n/.zarray", lambda a: a.update(compressor={"id": "mine.codec"})),
    "consolidated": (2, ".zmetadata", lambda a: a.update(metadata={"X/.zarray": PICKLE})),
    "third format": (3, "obs/n/zarr.json", lambda a: a.update(codecs=[{"name": "numcodecs.pickle"}])),
    "by its name only": (3, "obs/n/zarr.json", lambda a: a.update(codecs=["pickle"])),
    "within shards": (3, "obs/n/zarr.json", lambda a: sharded(a, "codecs")),
    "of an index": (3, "obs/n/zarr.json", lambda a: sharded(a, "index_codecs")),
    "called like attributes": (
        3,
        "zarr.json",
        lambda a: a.update(consolidated_metadata={"metadata": {"attributes": {"codecs": ["pickle"]}}}),
    ),
}


@pytest.mark.parametrize("name", CODECS)
def test_codecs_that_are_not_known(name, store):
    zarr_format, file, craft = CODECS[name]
    path = store(zarr_format)
    assert reading.read(path).n_obs == 3
    file = path / file
    about = json.loads(file.read_text()) if file.exists() else {}
    craft(about)
    file.write_text(json.dumps(about))
    for read in (reading.read, sa.data.open_store):
        with pytest.raises(DamagedFileError, match="not a valid zarr store: its arrays are decoded by"):
            read(path)
