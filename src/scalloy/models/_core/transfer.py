"""Prediction under another condition: how cells would look if they had been treated.

    route         code under the new condition c'                                   counts
    "decoder"     z ~ q(z | x, c)                                                   p(x | z, c')
    "transport"   z' = sum_k r_k [m_k(w', c') + s_k(w') / s_k(w) (z - m_k(w, c))]   p(x | z', c')
    "style"       z' = m_y(w', c'), w = E q(w | x, c), y the component (Kolb)       p(x | z', c')
    "auto"        z, with the expression moved by the pooled shift of the group     x itself, changed

With "auto", a change is a property of a group of cells (:mod:`scalloy.models._core.changes`), found once from
the *context*: the model's own cells, or others that are given (:mod:`scalloy.models._core.starts`). A cell is
then predicted from its own counts and the change of its group, so the prediction is the same whether the cell
is alone or among others, unless the model lacks cells of its donor.

The shift of a group is a weighted mean of the decoder's shift and of the shifts that other groups have
shown (:mod:`scalloy.perturbation.group_effects`). The decoder's shift is a change of the mean logarithm
(:mod:`scalloy.blocks.expected_log1p`), which can differ much from the change of the logarithm of the mean.
The differences of a cell from its group are taken from the mean of the decoded expression before and after
the change: the former knows the genes of its type, the latter those that the condition induces. Cells
without a group, or of a group that the context lacks, are predicted by the decoder alone.

The counts with "auto" are the cell's own, thinned if a gene falls and added to if it rises
(:mod:`scalloy.perturbation.redraw_counts`), by factors that correspond to the shift of the group
(:mod:`scalloy.perturbation.fold_changes`). With the other routes the decoder draws new counts, which lose
what is particular to the cell.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import few, warn
from scalloy._seeds import seeded
from scalloy.data.asked_conditions import design_in, write_content
from scalloy.models._core.changes import Change, Changes
from scalloy.models._core.decoding import Decoded, How, batches, decode, drawn
from scalloy.models._core.groups import UNGROUPED, donors_of, groups_of
from scalloy.models._core.protocols import Conditioned, ModelOf
from scalloy.models._core.starts import Starts, started
from scalloy.models._core.structure import contents_in
from scalloy.models._core.targets import Target, knowing
from scalloy.perturbation.donors import Seen
from scalloy.perturbation.redraw_counts import kept_share, redraw, with_depth
from scalloy.vae.base import HasConditions
from scalloy.vae.cgmdvae import CGMDVAE
from scalloy.vae.routes import moved

# columns that scanpy computes from counts
OF_COUNTS = "(log1p_)?(total_counts|n_genes_by_counts).*|pct_counts_.*|n_counts|n_genes"
COUNTS = "counts"  # layer of the predicted counts
# what has to be decoded of cells with the change of their group, and of cells without
BY_CHANGE = frozenset({"middle", "share"})
BY_DECODER = BY_CHANGE | {"after", "share_before"}


def transfer(
    model: Conditioned[HasConditions],
    cells: AnnData | None,
    target: Target,
    *,
    route: str = "auto",
    n_samples: int | None = None,
    library_size: float | None = None,
    seed: int = 0,
    target_sum: float = 1e4,
    context: AnnData | None = None,
    changes: Changes | Starts | None = None,
) -> AnnData:
    """Predict cells under another condition.

    The arguments have been checked by :meth:`~scalloy.CGMDVAE.transfer`, where the other ones are described.

    Parameters
    ----------
    model
        A trained model with conditions.
    changes
        Changes of groups that were found for earlier pieces of the same cells; ``None`` finds them.
    """
    if route == "style" and cast("CGMDVAE", model.module).enc_w is None:
        msg = "`route='style'` goes through `w`, and the model has none. Pass `n_w=` to the model."
        raise ValueError(msg)
    cells = None if cells is model.adata else cells
    cells = cells if cells is None else model.reader.fitting(cells)
    source = model.reader.cells(cells)
    how = How(route, n_samples, float(target_sum), seed)
    to, beyond = target.name, _beyond(model, target, route)
    with torch.no_grad(), seeded(seed), knowing(model, target) as code:
        about = described(model, cells, source)
        if route != "auto":
            (made,) = decode(model, cells, code, how, keep=frozenset({"after"}))
            expected, found = made.after, dict[str, Change | None]()
            counts = None if made.counts is None else _sampled(model, cells, code, how, library_size)
        else:
            changes = changes or started(model, how, cells, context)
            _learn_names(model, changes, source)
            about = _of_donors(about, changes.seen, to)
            pairs = about.drop_duplicates("pair").itertuples()
            found = {row.pair: changes.of(row.group, row.donor, row.source, target) for row in pairs}
            _warn_of_strays(about, changes.seen, to)
            _warn_of_worse(found, to, structured=model.reader.structure is not None)
            keep = BY_DECODER if None in found.values() else BY_CHANGE
            (made,) = decode(model, cells, code, how, keep=keep)
            names = pd.util.hash_array(source.obs_names.to_numpy().astype(object))
            rng = np.random.default_rng([seed, int(names.sum() % 2**32)])  # pieces have draws of their own
            expected, counts = _changed(made, about["pair"], found, library_size, rng)
            about["far"] = _far(about, found, to)
            about["skill"] = about["pair"].map({k: c.skill.mean for k, c in found.items() if c and c.skill})
    return _as_anndata(model, source, target, about, expected, counts, found, how, beyond=bool(beyond))


def described(model: Conditioned[HasConditions], cells: AnnData | None, source: AnnData) -> pd.DataFrame:
    """Return group, donor and condition of each cell, by position; ``pair`` is group and condition together.

    Parameters
    ----------
    model
        A trained model with conditions.
    cells
        New cells with the genes of the model; ``None`` is the model's own.
    source
        The same cells, or those of the model.
    """
    about = pd.DataFrame({"group": groups_of(model, cells), "donor": donors_of(model, cells)})
    about["source"] = source.obs[model.condition_key].astype(str).to_numpy()
    about["pair"] = about["group"] + " from " + about["source"]
    return about


def _of_donors(about: pd.DataFrame, seen: Seen, to: str) -> pd.DataFrame:
    """Return the same table with donors as part of ``pair``, and no donors if they are all alike."""
    pairs = about[["group", "source"]].drop_duplicates().itertuples(index=False)
    apart = {(group, source): seen.per_donor(group, source, to) for group, source in pairs}
    donor = about["donor"].where([apart[k] for k in zip(about["group"], about["source"])], "")
    group = about["group"].where(donor == "", about["group"] + " of " + donor)
    about = about.assign(donor=donor, pair=group + " from " + about["source"])
    each = about[["group", "donor", "source", "pair"]].drop_duplicates()
    alike = each["pair"][each["pair"].duplicated(keep=False)]  # such as "a of b" from "c", and "a" of "b"
    quoted = [f"{g!r} of {d!r} from {s!r}" for g, d, s in zip(about["group"], donor, about["source"])]
    return about.assign(pair=about["pair"].mask(about["pair"].isin(alike), pd.Series(quoted, about.index)))


def _warn_of_strays(about: pd.DataFrame, seen: Seen, to: str) -> None:
    """Warn of clusters with so few cells under one of the conditions that they are not taken as seen."""
    for source in sorted(about["source"].unique()):
        odd = seen.strays(source, to)
        for group in sorted(odd.keys() & set(about["group"][about["source"] == source])):
            before, after = odd[group]
            warn(
                f"Cluster {group!r} has {before} cells under {source!r} and {after} under {to!r}, out of all "
                "proportion with other clusters. The fewer ones are taken for strays, and its change is "
                "predicted from the other clusters. Pass `labels_key=` or `donor_key=` to `setup_anndata` if "
                "labels or donors are known.",
            )


def _warn_of_worse(found: dict[str, Change | None], to: str, *, structured: bool) -> None:
    """Warn if what was left out would have been predicted worse than by no change."""
    of: dict[tuple[int, int], list[str]] = {}
    for pair, change in found.items():
        if change is not None and change.skill is not None and change.skill.worse and change.skill.mean > 0:
            of.setdefault((change.skill.worse, change.skill.contexts), []).append(pair)
    for (worse, contexts), pairs in of.items():
        kind = "groups under such conditions" if structured else "groups"
        warn(
            f"Responses differ under {to!r}: {worse} of {contexts} {kind}, left out in turn, would have been "
            f"predicted worse than by no change. So may be {few(sorted(pairs))}. "
            "`.obs['transfer_skill']` has the skill to expect.",
        )


def _changed(
    made: Decoded,
    pairs: pd.Series,
    found: dict[str, Change | None],
    library_size: float | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, sp.csr_matrix | None]:
    """Return expected expression and counts of each cell: by the change of its group, or by the decoder."""
    expected, parts, order = np.empty_like(made.middle), [], []
    for pair, rows in pairs.groupby(pairs, sort=True).indices.items():
        change = found[pair]
        expected[rows] = (
            made.after[rows] if change is None else made.middle[rows] * change.factor + change.offset
        )
        if made.counts is not None:
            parts.append(_redrawn(made, rows, change, library_size, rng))
            order.append(rows)
    if made.counts is None:
        return expected, None
    return expected, sp.vstack(parts, format="csr")[np.argsort(np.concatenate(order))]


def _redrawn(
    made: Decoded,
    rows: np.ndarray,
    change: Change | None,
    library_size: float | None,
    rng: np.random.Generator,
) -> sp.csr_matrix:
    """Thin or add to the counts of cells of one group; the decoder says in which cells a gene rises most."""
    assert made.counts is not None
    assert made.share is not None
    counts, share = made.counts[rows], made.share[rows]
    ell = np.asarray(counts.sum(axis=1), dtype=np.float32)
    if change is None:
        assert made.share_before is not None
        before, after, shape, rise = made.share_before[rows], share, None, None
        added, pattern = ell * np.maximum(after - before, 0.0), after
    else:
        assert change.rates is not None
        before, after, shape = change.rates.before, change.rates.after, change.rates.shape
        rise = np.flatnonzero(after > before)
        added = share[:, rise] * (ell * ((after - before) / change.rates.pattern)[rise])
        pattern = share * (after / change.rates.pattern)
    changed = redraw(counts, kept_share(before, after), added, rng, shape, rise)
    return changed if library_size is None else with_depth(changed, library_size, pattern, rng)


def _far(about: pd.DataFrame, found: dict[str, Change | None], to: str) -> np.ndarray:
    """Return a mask of the cells whose group is unlike all that were seen under both conditions."""
    of_pair = {pair: change is None or change.shift.far for pair, change in found.items()}
    return about["pair"].map(of_pair).to_numpy(dtype=bool) & (about["source"] != to).to_numpy()


def _beyond(model: Conditioned[HasConditions], target: Target, route: str) -> list[str]:
    """Return what of a condition lies beyond what was seen, with a warning of it."""
    if (structure := model.reader.structure) is None or target.content is None:
        return []
    if beyond := design_in(structure).beyond(target.content):
        skill = "`.obs['transfer_skill']` has the skill to expect"
        skill = skill if route == "auto" else "nothing is known of the skill of this route"
        warn(
            f"{target.name!r} lies beyond what the model has seen: {few(beyond)}. "
            f"`.obs['transfer_far']` marks these cells, and {skill}.",
        )
    return beyond


def _learn_names(model: Conditioned[HasConditions], changes: Changes | Starts, source: AnnData) -> None:
    """Tell what changes are learned from which conditions the cells are under, as they may be new ones."""
    if (structure := model.reader.structure) is not None and changes.structured is not None:
        for name, content in contents_in(structure, source).items():
            if name not in model.reader.conditions:
                changes.structured.of(name, content)


def _warn_of_far(about: pd.DataFrame, to: str) -> None:
    """Warn of groups that are far, or say what would help if the model knows no groups."""
    far = about[about["far"]]
    if (far["group"] == UNGROUPED).any():
        warn(
            "The model knows no groups of cells, so the decoder alone predicts them, and nothing tells "
            f"whether it has seen such cells under {to!r}: `.obs['transfer_far']` marks them. Pass "
            "`labels_key=` to `setup_anndata`, or use CGMDVAE, which finds groups.",
        )
    if names := sorted(far["pair"][far["group"] != UNGROUPED].unique()):
        warn(
            f"Far from what was seen under {to!r}: {few(names)}. `.obs['transfer_far']` marks these cells; "
            "do not rely on what is predicted for them.",
        )
    if names := sorted(about["pair"][about["skill"] <= 0].unique()):
        warn(
            f"Predictions under {to!r} were no better than no change for groups that were left out, so do "
            f"not rely on those of {few(names)}. `.obs['transfer_skill']` has the skill to expect.",
        )


def _sampled(
    model: ModelOf[HasConditions], cells: AnnData | None, code: int, how: How, library_size: float | None
) -> sp.csr_matrix:
    """Return counts that the decoder draws for the cells under the new condition."""
    parts = []
    for batch, names in batches(model, cells):
        q = model.module.encode(batch)
        latents = moved(
            model.module, batch, code, q, drawn(q, names, how.seed, how.n_samples or 0), how.route
        )
        changed = replace(batch, c=torch.full_like(batch.b, code))
        if library_size is not None:
            changed = replace(changed, log_ell=torch.full_like(batch.log_ell, float(np.log(library_size))))
        parts.append(sp.csr_matrix(model.module.decode(changed, latents)["x"].sample().cpu().numpy()))
    return sp.vstack(parts, format="csr")


def _as_anndata(
    model: Conditioned[HasConditions],
    source: AnnData,
    target: Target,
    about: pd.DataFrame,
    expected: np.ndarray,
    counts: Any,
    found: dict[str, Change | None],
    how: How,
    *,
    beyond: bool,
) -> AnnData:
    """Return the prediction with the columns of the cells that are still true."""
    to = target.name
    out = AnnData(expected.astype(np.float32), obs=still_true(source, model.name), var=source.var.copy())
    out.obs_names = source.obs_names.astype(str) + f"-{to}"  # so that both can be in one object
    out.obs["transfer_of"] = source.obs_names.astype(str)
    if counts is not None:
        layer = model.registry["setup_args"].get("layer") or COUNTS
        out.layers[COUNTS] = counts
        out.layers[layer] = out.layers[COUNTS]
    conditions = model.reader.conditions + ([] if target.seen else [to])
    out.obs[model.condition_key] = pd.Categorical([to] * out.n_obs, categories=conditions)
    if (structure := model.reader.structure) is not None and target.content is not None:
        write_content(structure, target.content, out, source)
    out.obs["transfer_from"] = pd.Categorical(about["source"])
    out.obs["transfer_group"] = pd.Categorical(about["group"])
    said: dict[str, Any] = {"model": type(model).__name__, "to": to, "route": how.route}
    said["target_sum"] = how.target_sum
    if counts is not None:
        said["counts"] = COUNTS
    if "far" in about or target.content is not None:
        out.obs["transfer_far"] = about["far"].to_numpy() | beyond if "far" in about else beyond
    if "far" in about:
        out.obs["transfer_skill"] = about["skill"].to_numpy(dtype=np.float64)
        out.obs["transfer_pair"] = pd.Categorical(about["pair"].map(_keys.safe))
        said |= _explained(found, [str(v) for v in out.var_names])
        _warn_of_far(about.assign(far=about["far"] & (not beyond)), to)
    out.uns["transfer"] = said
    return out


def _explained(found: dict[str, Change | None], genes: list[str]) -> dict[str, Any]:
    """Return what is known of each change: by gene, the groups behind it, and the skill to expect."""
    known = {_keys.safe(k): c for k, c in found.items() if c is not None}  # as keys of an h5ad file
    said: dict[str, Any] = {
        "shift": pd.DataFrame({k: c.shift.mean for k, c in known.items()}, index=genes),
        "sd": pd.DataFrame({k: c.shift.sd for k, c in known.items()}, index=genes),
        "learned_from": {k: c.shift.others for k, c in known.items()},
    }
    worth = {k: vars(c.skill) for k, c in known.items() if c.skill is not None}
    if worth:
        said["expected_skill"] = pd.DataFrame.from_dict(worth, orient="index")
    counted = {k: c.rates for k, c in known.items() if c.rates is not None}
    if counted:
        ratios = {k: _ratio(r.after, r.before) for k, r in counted.items()}
        said["fold_change"] = pd.DataFrame(ratios, index=genes)
        said["log_fold_change_sd"] = pd.DataFrame({k: r.sd for k, r in counted.items()}, index=genes)
    return said


def _ratio(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the fold change by gene, which is unknown for genes without counts."""
    return np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)


def still_true(source: AnnData, name: str) -> pd.DataFrame:
    """Return ``.obs`` without the columns that were computed from the counts before the change.

    Parameters
    ----------
    source
        Cells before the change.
    name
        Name of the model in the keys that it writes.
    """
    annotated = {name} | {str(k) for k, v in source.uns.items() if isinstance(v, dict) and "settings" in v}
    ours = rf"({'|'.join(map(re.escape, sorted(annotated)))})_({'|'.join(_keys.WRITTEN_OBS)})"
    stale = re.compile(rf"_scvi.*|transfer_.*|{OF_COUNTS}|{ours}")
    return source.obs[[c for c in source.obs if not stale.fullmatch(str(c))]].copy()
