"""Trees of labels: read from parents, paths and columns, or refused with the names of what is wrong."""

import json

import numpy as np
import pandas as pd
import pytest

import scalloy as sa
from scalloy.data.label_tree import LabelTree, parents_of_paths

TYPES = ("CD4 T", "CD8 T", "B", "Mono")
PARENTS = {"CD4 T": "T", "CD8 T": "T", "T": "lymphoid", "B": "lymphoid"}


@pytest.fixture
def typed(cells):
    cells.obs["type"] = np.resize([*TYPES, "T"], cells.n_obs)
    return cells


def set_up(cells, **given):
    sa.CGMDVAE.setup_anndata(cells, **{"labels_key": "type", **given})
    return LabelTree.from_plain(
        sa.CGMDVAE(cells, n_hidden=8, n_latent=2).registry["setup_args"]["label_parents"]
    )


def test_leaves_come_first_and_every_node_has_a_code(typed):
    tree = set_up(typed, label_parents=PARENTS)
    assert tree.leaves == ("B", "CD4 T", "CD8 T", "Mono")
    assert tree.inner == ("T", "lymphoid")
    assert tree.parents == PARENTS
    codes = dict(zip(typed.obs["type"], typed.obs["_scvi_labels"], strict=True))
    assert {tree.nodes[code]: code for code in codes.values()} == codes


def test_paths_and_columns_give_the_same_tree_as_parents(typed):
    whole = {"CD4 T": "T/CD4 T", "CD8 T": "T/CD8 T"}
    typed.obs["path"] = typed.obs["type"].map(lambda name: whole.get(name, name))
    tree = set_up(typed, labels_key="path", label_parents="/")
    assert (tree.leaves, tree.inner) == (("B", "Mono", "T/CD4 T", "T/CD8 T"), ("T",))
    assert tree.parents == {"T/CD4 T": "T", "T/CD8 T": "T"}
    assert parents_of_paths(["a > b > c"], " > ") == {"a > b": "a", "a > b > c": "a > b"}
    typed.obs["class"] = typed.obs["type"].replace({"CD4 T": "T", "CD8 T": "T"})
    typed.obs["fine"] = typed.obs["type"].where(typed.obs["type"] != "T")
    typed.obs.loc[typed.obs_names[:7], ["class", "fine"]] = None, "?"
    tree = set_up(typed, labels_key=["class", "fine"], unlabeled_category="?")
    assert (tree.leaves, tree.inner) == (("B", "CD4 T", "CD8 T", "Mono"), ("T",))
    assert tree.columns == ("class", "fine")
    expected = typed.obs["type"].astype(str).where(np.arange(typed.n_obs) >= 7, "?")
    assert list(typed.obs["label_tree"].astype(str)) == list(expected)


def test_three_columns_with_gaps():
    from scalloy.data.label_tree import deepest_of, parents_in_columns, values_of

    obs = pd.DataFrame(
        {"a": ["x", "x", "y", None], "b": ["p", None, None, None], "c": ["q", None, "r", None]}
    )
    values = values_of(obs, ["a", "b", "c"], None)
    assert parents_in_columns(values, ["a", "b", "c"]) == {"p": "x", "q": "p", "r": "y"}
    assert deepest_of(values).tolist() == ["q", "x", "r", None]


def test_slashes_are_no_paths_unless_said(typed):
    typed.obs["type"] = typed.obs["type"].replace({"CD4 T": "T/CD4"})
    sa.CGMDVAE.setup_anndata(typed, labels_key="type")
    assert sa.CGMDVAE(typed, n_hidden=8, n_latent=2).labels == ["B", "CD8 T", "Mono", "T", "T/CD4"]


def test_the_plain_form_is_json_and_is_checked():
    tree = LabelTree.of(TYPES, PARENTS)
    assert LabelTree.from_plain(json.loads(json.dumps(tree.plain()))) == tree
    for odd in ({"leaves": ["B", "B"]}, {"inner": []}, {"parents": {"B": "Mono"}}):
        with pytest.raises(ValueError, match=r"the labels are no tree|which no cell has"):
            LabelTree.from_plain({**tree.plain(), **odd})


REFUSED = {
    "circle": (
        {"T": "lymphoid", "lymphoid": "T", "B": "T"},
        ValueError,
        "goes in a circle: 'T' in 'lymphoid' in 'T'",
    ),
    "itself": ({"T": "T"}, ValueError, "goes in a circle: 'T' in 'T'"),
    "two parents": (
        {"B": ["lymphoid", "myeloid"]},
        ValueError,
        "gives 'B' 2 parents: 'lymphoid', 'myeloid'.*turn it round",
    ),
    "label that is not there": (
        {"CD4 Tcell": "T", "CD8 T": "T"},
        ValueError,
        "names 'CD4 Tcell', which no cell has.*Did you mean 'CD4 T'",
    ),
    "no text": ({"B": 3}, TypeError, "names 3. Expected names of labels, as text"),
    "no dict": (7, TypeError, "`label_parents=7` is a int. Expected the parent of each label"),
    "unknown parents": ({"B": None}, TypeError, "names None. Expected names of labels"),
    "no path": ("/", ValueError, "'/'` is taken for the text between the parts of a path, and no label"),
    "empty separator": ("", ValueError, "''` is taken for the text between"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_tree_is_refused_with_names(what, typed):
    parents, error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        sa.CGMDVAE.setup_anndata(typed, labels_key="type", label_parents=parents)


def test_labels_that_do_not_fit_are_refused(typed):
    with pytest.raises(ValueError, match=r"`label_parents` needs labels. Pass `labels_key="):
        sa.CGMDVAE.setup_anndata(typed, label_parents=PARENTS)
    with pytest.raises(
        ValueError, match="`unlabeled_category='T'` stands for no label, and it is a label of the"
    ):
        sa.CGMDVAE.setup_anndata(typed, labels_key="type", label_parents=PARENTS, unlabeled_category="T")
    typed.obs["number"] = np.arange(typed.n_obs) % 3
    with pytest.raises(
        TypeError, match="`label_parents` needs labels that are text, and `labels_key='number'`"
    ):
        sa.CGMDVAE.setup_anndata(typed, labels_key="number", label_parents={})
    typed.obs["type"] = typed.obs["type"].replace({"CD4 T": "T//naive"})
    with pytest.raises(ValueError, match=r"The label 'T//naive' is a path with an empty part"):
        sa.CGMDVAE.setup_anndata(typed, labels_key="type", label_parents="/")
    with pytest.raises(TypeError, match=r"is no argument of|unexpected keyword"):
        sa.TRVAE.setup_anndata(typed, labels_key="type", label_parents={})


def test_columns_that_do_not_fit_are_refused(typed):
    def refused(error, match, columns=("class", "fine"), **given):
        with pytest.raises(error, match=match):
            sa.CGMDVAE.setup_anndata(typed, labels_key=list(columns), **given)

    typed.obs["class"] = typed.obs["type"].replace({"CD4 T": "T", "CD8 T": "T"})
    typed.obs["fine"] = typed.obs["type"]
    refused(KeyError, "`labels_key='sub'` is not a column", ["class", "sub"])
    refused(ValueError, "should name columns from coarse to fine, each once", ["class", "class"])
    refused(ValueError, "should name columns from coarse to fine, each once", [])
    refused(ValueError, "says what the parents are, and so does `label_parents`", label_parents={})
    typed.obs["label_tree"] = typed.obs["fine"]
    refused(ValueError, "names 'label_tree', a column that the set-up writes", ["class", "label_tree"])
    typed.obs["empty"] = None
    refused(ValueError, "names 'empty', in which no cell has a label", ["class", "empty"])
    typed.obs["batch_of"] = typed.obs["class"]
    refused(ValueError, "both name the column 'class'", batch_key="class")
    typed.obs.loc[typed.obs_names[:3], ["class", "fine"]] = None
    refused(ValueError, r"3 cell\(s\) have no label in any of the columns 'class', 'fine'")
    typed.obs.loc[typed.obs_names[:3], ["class", "fine"]] = "Mono", "CD4 T"
    refused(ValueError, "a label has two parents: 'CD4 T' is in '(Mono|T)' and '(T|Mono)'")
    typed.obs["fine"], typed.obs["class"] = typed.obs["type"], typed.obs["batch_of"]
    typed.obs.loc[typed.obs["type"] == "CD8 T", "class"] = None
    refused(ValueError, "The labels 'CD8 T' have no label in a coarser column")
