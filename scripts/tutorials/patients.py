# %% [markdown]
# # Patients
#
# **What you will have at the end:** the cells of a patient who was not treated, predicted as if they had
# been, although nobody has named a cell type; a table with the simple baselines; the reason why a model
# should be told who is who; and what a prediction says of itself. About a minute and a half.
#
# In tumours there are often no types to go by, and patients differ by more than a drug changes. The trial
# here is simulated, because only then is the truth known: how *the same cells* would look under treatment.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

import scalloy as sa


def simulated(**settings):
    """Return a trial, the same cells as if all were treated, and the expected counts of each cell."""
    trial = sa.datasets.trial(2450, 200, n_types=5, n_donors=7, seed=1, **settings)
    trial.obs["donor"] = trial.obs["donor"].cat.rename_categories([f"patient {i}" for i in range(1, 8)])
    expected = {c: trial.layers.pop(f"mean_{c}") for c in ("control", "treated")}  # no model gets these
    rng, theta = np.random.default_rng(0), trial.uns["theta"]
    if_treated = trial.copy()
    counts = rng.poisson(rng.gamma(theta, expected["treated"] / theta))
    if_treated.X = sp.csr_matrix(counts, dtype=np.float32)
    return trial, if_treated, expected


differ = {"donor_effect": 0.6, "composition": 1.0, "shared": 0.5}
trial, if_treated, expected = simulated(**differ)
study = trial[trial.obs["donor"] != "patient 7"].copy()  # the seventh comes later
pd.crosstab(study.obs["donor"], study.obs["condition"])

# %% [markdown]
# Six patients, each with control and treated cells. `if_treated` has what would have been measured in the
# same cells under treatment; it is used for scores only.
#
# The cells have types, which the models are never told. Their shares differ between the two conditions:

# %%
pd.crosstab(study.obs["condition"], study.obs["cell_type"], normalize="index").round(2)

# %% [markdown]
# So there are two differences between the samples before and under treatment: cells have changed, and there
# are more of some types. The question here is how the cells change.
#
# ## Patients differ by more than the treatment changes

# %%
logged = study.copy()
sc.pp.normalize_total(logged, target_sum=1e4)
sc.pp.log1p(logged)
sc.pp.pca(logged, n_comps=20)
sa.pl.latent(logged, ["donor", "condition", "cell_type"], use_rep="X_pca", method="tsne")


# %%
def log_normalised(counts):
    counts = counts.toarray() if sp.issparse(counts) else counts
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


kinds = [trial.obs[column].astype(str).to_numpy() for column in ("cell_type", "donor")]
before, after = (pd.DataFrame(log_normalised(expected[c])).groupby(kinds).mean() for c in expected)
one, other = (before.xs(patient, level=1) for patient in ("patient 1", "patient 2"))
differences = {
    "treatment, same type and patient": after - before,
    "patient 1 against patient 2, same type": one - other,
}
pd.Series({k: np.sqrt(np.square(v.to_numpy()).mean()) for k, v in differences.items()}).round(2)

# %% [markdown]
# **What to look at.** Each island is one type *of one patient*. Treated cells are in the same island as the
# controls, or right beside it; the same type of another patient is another island. The numbers (root mean
# square over genes of the difference in log-normalised expression) say the same.
#
# ## Four ways to set up the model
#
# The treated cells of one patient are taken out and predicted from the patient's controls. The model is told
#
# - **nothing** but the condition. It finds clusters, and compares the treated cells of each with its
#   controls. Once it decides itself how many clusters there are, and once it is given 30;
# - **patients as types** (`labels_key="donor"`). It compares the treated cells of each patient with the
#   controls of the patient;
# - **who is who** (`donor_key="donor"`). It finds clusters with the patients removed, and compares cells
#   that are in the same cluster *and* of the same patient.

# %%
setups = {
    "nothing": {},
    "nothing, 30 clusters": {"n_clusters": 30},
    "patients as types": {"labels_key": "donor"},
    "who is who": {"donor_key": "donor"},
}


def of(cells, patient, condition):
    return ((cells.obs["donor"] == patient) & (cells.obs["condition"] == condition)).to_numpy()


def trained(cells, n_clusters=None, **columns):
    cells = cells.copy()
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition", **columns)
    model = sa.CGMDVAE(cells, n_clusters=n_clusters, seed=0)
    model.train(max_epochs=20, enable_progress_bar=False)  # few, to be quick
    return model


def transferred(model, controls):
    """Predict, and print what the model warns of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predicted = model.transfer(controls, to="treated")
    for warning in said:
        print("Warning:", warning.message)
    return predicted


def mean_shift(cells):
    """Return the mean change of the patients who have both controls and treated cells."""
    x = pd.DataFrame(log_normalised(cells.X))
    mean = x.groupby([cells.obs[c].astype(str).to_numpy() for c in ("condition", "donor")]).mean()
    return (mean.loc["treated"] - mean.loc["control"]).dropna().mean().to_numpy()


patients = ["patient 1", "patient 2"]
models, transfers, predictions = {}, {}, {}
for patient in patients:
    seen = study[~of(study, patient, "treated")].copy()
    controls = study[of(study, patient, "control")].copy()
    predictions["no change", patient] = log_normalised(controls.X)
    predictions["mean shift", patient] = log_normalised(controls.X) + mean_shift(seen)
    for name, settings in setups.items():
        models[name, patient] = trained(seen, **settings)
        transfers[name, patient] = transferred(models[name, patient], controls)
        predictions[name, patient] = transfers[name, patient].X

# %% [markdown]
# ## Beside the simple baselines
#
# `skill` is 1 - (squared error / squared error of no change): for the mean of all cells of the patient, and
# for the mean of each type by itself (averaged over types). A patient has 20 to 50 controls of each type, so
# the truth, as it would have been measured, is noisy. `true change` is the score of the change that was
# simulated, which does not know this noise: no prediction can be expected to score more.


# %%
def true_change(expected, theta, n=20):
    """Return the change of the log-normalised expression of each cell that is expected (mean of n draws)."""
    mean = {}
    for condition, of_cells in expected.items():
        rng = np.random.default_rng(1)
        draws = (rng.poisson(rng.gamma(theta, of_cells / theta)) for _ in range(n))
        mean[condition] = sum(map(log_normalised, draws)) / n
    return mean["treated"] - mean["control"]


def skills(predicted, rows):
    """Return the skill for all of these cells, and the mean over types."""
    start, truth = log_normalised(trial.X[rows]), log_normalised(if_treated.X[rows])
    types = trial.obs["cell_type"][rows].to_numpy()
    each = [np.full(len(types), True), *(types == t for t in np.unique(types))]
    each = [sa.metrics.skill(*(x[s].mean(axis=0) for x in (predicted, truth, start))) for s in each]
    return each[0], np.mean(each[1:])


change = true_change(expected, trial.uns["theta"])
for patient in patients:
    moved = predictions["no change", patient] + change[of(trial, patient, "control")]
    predictions["true change", patient] = moved

columns, scores = ["all cells", "each type"], {}
for (name, patient), predicted in predictions.items():
    scores[name, patient] = skills(predicted, of(trial, patient, "control"))
scores = pd.DataFrame(scores, index=columns).T
table = scores.unstack(level=1).loc[scores.index.get_level_values(0).unique()]
for column in columns:
    table[column, "mean"], table[column, "worst"] = table[column].mean(axis=1), table[column].min(axis=1)
table[columns].round(2)

# %%
fig, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained", sharex=True, sharey=True)
rows = of(trial, "patient 2", "control")
start, truth = (log_normalised(x[rows]).mean(axis=0) for x in (trial.X, if_treated.X))
for ax, name in zip(axes, setups):
    sa.pl.transfer(predictions[name, "patient 2"].mean(axis=0), truth, start, ax=ax)
    ax.set_title(f"{name}\n{ax.get_title()}", fontsize="small")

# %% [markdown]
# **What to look at.** Each point is a gene in patient 2: on the line is right. With who is who, the
# prediction is close to what is possible, in both patients. With nothing, it is worse than no change in one
# of them. Patients as types are no better than the mean shift if all cells are taken together; in each type
# they are about halfway between the mean shift and who is who.
#
# ## What each gets wrong, and why
#
# **Nothing.** These are the clusters with controls of patient 2, and the cells that were compared in them:

# %%
model = models["nothing", "patient 2"]
model.annotate()
seen = model.adata.obs
whose = np.where(seen["donor"] == "patient 2", "patient 2", "other patients").astype(object)
numbers = pd.crosstab(seen["cgmdvae_cluster"], [whose, seen["condition"]], colnames=["cells of", "condition"])
numbers[numbers["patient 2", "control"] > 0]

# %%
fig, ax = plt.subplots(figsize=(13, 4), layout="constrained")
sa.pl.clusters(model.adata, "cgmdvae_cluster", "donor", ax=ax)

# %% [markdown]
# Most clusters are cells of one patient. But the controls of patient 2 share theirs with patient 4 or 5, and
# the treated cells in these clusters are of patient 4 or 5 alone. So the change that such a cluster shows is
# the effect *and the difference between two patients*. Nothing tells the model that it is not all effect, and
# no warning came.
#
# There are 30 combinations of type and patient, and the model merges 25 components if it decides how many
# clusters there are. With 30, the result is good. But that this is the right number is known only because the
# trial is simulated.
#
# **Patients as types.** The cells of a patient are compared as a whole, so more cells of a type look like an
# effect on its genes. This is the correlation over genes between the error (predicted minus true change,
# patient 2) and what the change of composition alone does to the mean of all cells:

# %%
shares = pd.crosstab(study.obs["condition"], study.obs["cell_type"], normalize="index")
composition = (shares.loc["treated"] - shares.loc["control"]) @ before.groupby(level=0).mean()
errors = {k: predictions[k, "patient 2"].mean(axis=0) - truth for k in ["mean shift", *setups]}
pd.Series({k: np.corrcoef(error, composition)[0, 1] for k, error in errors.items()}).round(2) + 0.0

# %% [markdown]
# **Who is who.** Cells are compared with cells of the same kind and of the same patient, so neither the other
# patients nor the composition can be taken for the effect.
#
# ## Are the clusters the types?

# %%
model = models["who is who", "patient 2"]
model.annotate()
fig, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
for ax, column in zip(axes, ["cell_type", "donor"]):
    sa.pl.clusters(model.adata, "cgmdvae_cluster", column, ax=ax)

# %% [markdown]
# Left: the share of each type's cells in each cluster, in percent. The model found five clusters, and they
# are the five types. Right: each cluster has cells of all patients. Real cells are not as clear-cut. What
# matters is that a cluster has the same kinds of cells before and under treatment.
#
# ## What a prediction says of itself
#
# `.obs["transfer_skill"]` is the skill to expect, and `.obs["transfer_far"]` marks cells that are unlike all
# that were seen under both conditions. There is one value for each cluster in each patient, and
# `.uns["transfer"]["sd"]` has a standard deviation for each gene. Beside it is what came true: the skill, the
# skill of the true change (`at best`), and the size of the change (root mean square over genes).


# %%
def said_and_true(predicted, trial, if_treated, expected):
    """Return what is said of each group, and what is true."""
    rows = trial.obs_names.get_indexer(predicted.obs["transfer_of"])
    start, truth = log_normalised(trial.X[rows]), log_normalised(if_treated.X[rows])
    table = {}
    for group, cells in predicted.obs.groupby("transfer_pair", observed=True).indices.items():
        a, b, p = (x[cells].mean(axis=0) for x in (start, truth, predicted.X))
        change = true_change({k: x[rows[cells]] for k, x in expected.items()}, trial.uns["theta"])
        change = change.mean(axis=0)
        sd, said = predicted.uns["transfer"]["sd"][group].to_numpy(), predicted.obs.iloc[cells]
        table[group] = {
            "type": said["cell_type"].mode()[0],
            "cells": len(cells),
            "transfer_far": said["transfer_far"].any(),
            "transfer_skill": round(said["transfer_skill"].mean(), 2) + 0.0,
            "skill": round(sa.metrics.skill(p, b, a), 2) + 0.0,
            "at best": round(sa.metrics.skill(a + change, b, a), 2) + 0.0,
            "genes within 90 %": round(sa.metrics.coverage(p, b, sd, 0.9), 2),
            "predicted size": round(np.sqrt(np.square(p - a).mean()), 2),
            "true size": round(np.sqrt(np.square(change).mean()), 2),
        }
    return pd.DataFrame(table).T


predicted = transfers["who is who", "patient 1"]
said_and_true(predicted, trial, if_treated, expected)

# %%
group = predicted.obs["transfer_pair"].mode()[0]  # with the most cells
cells = (predicted.obs["transfer_pair"] == group).to_numpy()
rows = trial.obs_names.get_indexer(predicted.obs["transfer_of"][cells])
start, truth = (log_normalised(x[rows]).mean(axis=0) for x in (trial.X, if_treated.X))
mean, sd = predicted.X[cells].mean(axis=0), predicted.uns["transfer"]["sd"][group].to_numpy()
top = np.argsort(-np.abs(mean - start))[:30]

fig, ax = plt.subplots(figsize=(11, 3.6), layout="constrained")
ax.errorbar(range(30), (mean - start)[top], 1.64 * sd[top], fmt="_", label="predicted, 90 %")
ax.scatter(range(30), (truth - start)[top], s=14, color="tab:red", zorder=3, label="as measured")
ax.axhline(0, color="0.6", linewidth=0.8)
ax.set_xticks(range(30), trial.var_names[top], rotation=90, fontsize="small")
ax.set(ylabel="change", title=f"{group}: the 30 largest predicted changes")
ax.legend(frameon=False, loc="lower right")

# %% [markdown]
# **What to look at.** About nine in ten genes lie within their interval of 90 %, as they should. The skill
# is near the promised one, apart from type 3. There are only 21 of these cells, so what would be measured in
# them is noisy, and the best prediction would have less, too. No cells are marked as far, and there was no
# warning.
#
# Now the promises of all set-ups (mean over the cells), beside what was reached: in the same cells, as above,
# and in the mean of the *treated sample* that had been taken out, with its own shares of the types.

# %%
rows = []
for (name, patient), cells in transfers.items():
    sample, start = (log_normalised(study.X[of(study, patient, c)]) for c in ("treated", "control"))
    of_sample = sa.metrics.skill(cells.X.mean(axis=0), sample.mean(axis=0), start.mean(axis=0))
    rows.append([name, patient, cells.obs["transfer_skill"].mean(), *scores.loc[(name, patient)], of_sample])
promises = pd.DataFrame(rows, columns=["told", "patient", "transfer_skill", *columns, "treated sample"])
promises.sort_values("patient", kind="stable").set_index(["patient", "told"]).round(2)

# %% [markdown]
# - **Who is who** promises 0.70 and 0.74, for each cluster by itself, and reaches 0.65 and 0.64 in the types.
#   So do 30 clusters, more or less.
# - **Patients as types** promise much more, and keep most of it in the treated sample, but not in the cells.
#   For all that can be seen, the change of composition is a part of the effect. If you want to know what the
#   next sample will look like, and if the composition changes alike in everybody, as it does here, this is
#   even the better prediction.
# - **Nothing** promises more than twice what it reaches in patient 1. In patient 2 it gives no number, since
#   the model takes the change for one that it has *seen*. For a patient without treated cells this is a bad
#   sign.
#
# ## Some types do not respond
#
# Another trial, in which types 3 and 4 do not respond at all. What is more, type 4 is found in patient 1
# only, as a clone of a tumour may be.

# %%
quiet = simulated(**differ, silent=2)
obs = quiet[0].obs
absent = ((obs["cell_type"] == "type_4") & (obs["donor"] != "patient 1")) | (obs["donor"] == "patient 7")
seen = quiet[0][~absent & ~of(quiet[0], "patient 1", "treated")].copy()
controls = quiet[0][of(quiet[0], "patient 1", "control")].copy()
predicted = transferred(trained(seen, donor_key="donor"), controls)
said_and_true(predicted, *quiet)

# %% [markdown]
# **What to look at.** Type 3 was seen in the other patients, where it did not respond either. So hardly any
# change is predicted, and hardly any skill promised. Type 4 was not seen in other patients, and its change is
# predicted from the other types instead (the entry names no patient). The model predicts some change where
# there is none, but it says what is wrong: the other types respond differently, and this one is unlike all of
# them. Where nothing changes, any predicted change is worse than none, so the skill is below 0.
#
# ## A new patient
#
# Patient 7 was in no training. A model is asked that was trained above (without the treated cells of
# patient 1), and nothing is trained again. Pass all controls of a new patient together, since the change of
# each cluster starts at their mean.

# %%
model, rows = models["who is who", "patient 1"], of(trial, "patient 7", "control")
predicted = transferred(model, trial[rows].copy())
start = log_normalised(trial.X[rows])
ways = {
    "mean shift": start + mean_shift(model.adata),
    "who is who": predicted.X,
    "true change": start + change[rows],
}
pd.DataFrame({k: skills(v, rows) for k, v in ways.items()}, index=columns).T.round(2)

# %% [markdown]
# The warning says what is assumed. The result is close to what is possible, and as good as for the patients
# above, whose controls were part of the training.
#
# One thing cannot be read off anybody's controls. Some patients respond more strongly than others, and in
# this simulation that has nothing to do with how their controls look (root mean square of the true change,
# mean over types):

# %%
response = np.sqrt(np.square(after - before).mean(axis=1)).groupby(level=1).mean()
response.rename("size of the change").round(2).to_frame().T

# %% [markdown]
# ## What to remember
#
# - **Pass `donor_key=` if patients were seen under both conditions.** The patient who is to be predicted may
#   lack one. If nobody was seen under both, no method can tell the treatment from the patients
#   ([Comparing groups](comparing.ipynb)).
# - **Look at the clusters.** Each should have cells of all patients, as far as they have such cells.
# - **A prediction without a warning can be wrong.** Without donors no warning came, and one of two
#   predictions was worse than no change. `transfer_skill` can only be as good as the comparison that it comes
#   from.
# - **Cells and samples are different questions.** Cells of the same kind are predicted, and not how many of
#   them there will be.
# - **What no method can know:** how strongly this patient responds, and how cells respond that nobody else
#   has (`transfer_far` marks these).
#
# **What not to believe.** This is one simulated trial and two patients, with types as distinct as one could
# wish. Take out the treated cells of each of your patients in turn, beside the mean shift, before you rely on
# a prediction. What is compared when, and why, is in [Predicting cells under another
# condition](../docs/transfer.md), and real data are in [Benchmarks](../docs/benchmarks.md).
