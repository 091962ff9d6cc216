"""Conditions in the columns of cells: the same design from every form in which a screen can be written."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import scalloy as sa
from scalloy.data.conditions import Conditions
from scalloy.data.descriptors import as_described, components
from scalloy.files import plain_json
from scalloy.perturbation.design import Content

PARTS = [{}, {"A": 0.5}, {"A": 2.0}, {"B": 1.0}, {"A": 0.5, "B": 1.0}, {"C": 10.0, "A": 2.0}, {}]
NAMES = ["control", "A 0.5", "A 2", "B 1", "A 0.5+B 1", "A 2+C 10", "control"]


def of(obs=None, n=None, **more):
    """Cells without counts, which nobody reads here."""
    obs = pd.DataFrame(obs if obs is not None else {}, index=[f"cell {i}" for i in range(n or len(PARTS))])
    return ad.AnnData(np.ones((len(obs), 2), dtype=np.float32), obs=obs, **more)


def table(parts=PARTS, names="ABC"):
    return pd.DataFrame([[p.get(name, 0.0) for name in names] for p in parts], columns=list(names))


def text(doses):
    return ["0", "0.5", "2", "1", *doses, "0"]


COLUMN = ["control", "A", "A", "B", "A+B", "C+A", "control"]
OBSM = {"amounts": table().set_axis([f"cell {i}" for i in range(len(PARTS))])}
#: One and the same screen, by what holds it: columns, and the arguments of `Conditions`.
FORMS = {
    "one column": (of({"drug": COLUMN, "dose": text(["0.5+1", "10+2"])}), {"dose": "dose"}),
    "parts in another order": (
        of({"drug": [*COLUMN[:4], "B+A", "A+C", "control"], "dose": text(["1+0.5", "2+10"])}),
        {"dose": "dose"},
    ),
    "spaces and other texts": (
        of({"drug": [*COLUMN[:4], "A + B", " C+A", "control"], "dose": text(["5e-1 +1.0", "1e+01+ 2"])[:]}),
        {"dose": "dose"},
    ),
    "another separator": (
        of({"drug": [c.replace("+", "|") for c in COLUMN], "dose": text(["0.5|1", "10|2"])}),
        {"dose": "dose", "separator": "|"},
    ),
    "categories, no dose of the control": (
        of(
            {
                "drug": pd.Categorical(COLUMN),
                "dose": pd.Categorical([None, "0.5", "2", "1.0", "0.5+1", "10+2", None]),
            }
        ),
        {"dose": "dose"},
    ),
    "two controls": (
        of({"drug": ["DMSO", *COLUMN[1:6], "water"], "dose": text(["0.5+1", "10+2"])}),
        {"dose": "dose", "control": ("DMSO", "water")},
    ),
    "two columns": (
        of(
            {
                "first": ["none", "A", "none", "B", "A", "C", "none"],
                "second": ["none", "none", "A", "none", "B", "A", "none"],
                "of_first": [0, 0.5, np.nan, 1.0, 0.5, 10, np.nan],
                "of_second": [0, 0, 2.0, np.nan, 1.0, 2, 0],
            }
        ),
        {"factors": ["first", "second"], "control": "none", "dose": ["of_first", "of_second"]},
    ),
    "a frame": (of(obsm=OBSM), {"factors": "amounts"}),
}


def conditions(form, **more):
    cells, given = FORMS[form]
    return cells, Conditions(**{"factors": "drug", "control": "control", **given, **more})


def by_content(design, content):
    """Everything about a condition that does not go by the order or the names of conditions."""
    index, value = design.rows([content])
    row = np.zeros(design.n_columns)
    np.add.at(row, index[0], value[0])
    return row


# the same design ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_design(form):
    cells, asked = conditions(form)
    before = cells.copy()
    made, names = asked.fitted(cells)
    codes, contents = asked.of_cells(cells)
    assert [contents[i] for i in codes] == [Content.of(p) for p in PARTS]
    called = made.control[0]
    joint = asked.separator
    expected = [called if n == "control" else n.replace("+", joint) for n in NAMES]
    assert list(names) == expected
    design = made.design
    assert design.parts == ("A", "B", "C")
    assert sorted(design.names) == sorted(set(expected))
    np.testing.assert_allclose(design.lowest, [0.5, 1, 10])
    np.testing.assert_allclose(design.highest, [2, 1, 10])
    assert design.dosed
    assert not design.timed
    pd.testing.assert_frame_equal(cells.obs, before.obs)  # the column is written by the set-up of a model
    reference = conditions("one column")[1].fitted(FORMS["one column"][0])[0].design
    for p in PARTS:
        np.testing.assert_array_equal(by_content(design, Content.of(p)), by_content(reference, Content.of(p)))


def test_arrays_have_names_by_number():
    values = table().to_numpy()
    for entry in (values, values.astype(np.float32), sp.csr_matrix(values)):
        cells = of(obsm={"amounts": entry})
        made, names = Conditions("amounts").fitted(cells)
        assert made.design.parts == ("0", "1", "2")
        assert list(names)[:5] == ["control", "0 0.5", "0 2", "1 1", "0 0.5+1 1"]


def test_a_column_of_the_control_in_obsm_is_no_part():
    frame = table([{"NT": 1.0}, {"A": 1.0}, {"A": 1.0, "B": 1.0}], names=["NT", "A", "B"])
    cells = of(n=3, obsm={"guides": frame.set_axis(["cell 0", "cell 1", "cell 2"])})
    made, names = Conditions("guides", control="NT").fitted(cells)
    assert list(names) == ["NT", "A", "A+B"]
    assert made.design.parts == ("A", "B")
    assert not made.design.dosed


def test_amounts_of_a_part_that_is_named_twice_add_up():
    cells = of({"drug": ["control", "A+A", "A"], "dose": ["0", "0.5+1", "2"]}, n=3)
    assert list(Conditions("drug", dose="dose").fitted(cells)[1]) == ["control", "A 1.5", "A 2"]
    both = {"first": ["none", "A"], "second": ["none", "A"], "x": [0.0, 0.5], "y": [0.0, 1.0]}
    asked = Conditions(["first", "second"], control="none", dose=["x", "y"])
    assert list(asked.fitted(of(both, n=2))[1]) == ["none", "A 1.5"]


def test_without_doses_names_have_none():
    made, names = Conditions("drug").fitted(of({"drug": COLUMN}))
    assert list(names) == ["control", "A", "A", "B", "A+B", "A+C", "control"]
    assert not made.design.dosed
    assert made.design.width == 1


def test_without_a_separator_names_stay_whole():
    made, names = Conditions("drug", separator=None).fitted(of({"drug": COLUMN}))
    assert list(names) == COLUMN
    assert made.design.parts == ("A", "A+B", "B", "C+A")


def test_times_are_in_the_names_and_the_reference_is_the_first_control():
    cells = of({"drug": COLUMN, "hours": [6, 6, 24, 6, 24, 24, 24]})
    made, names = Conditions("drug", time="hours").fitted(cells)
    assert list(names)[:3] == ["control at 6", "A at 6", "A at 24"]
    assert made.design.clock == (6.0, 24.0, 6.0)
    assert made.design.name_of(made.design.reference) == "control at 6"
    np.testing.assert_allclose(made.design.times([Content((), 24.0), Content((), 0.0)]), [1, 0])


@given(st.permutations(range(7)), st.lists(st.booleans(), min_size=7, max_size=7))
@settings(max_examples=40, deadline=None)
def test_the_order_of_cells_and_of_parts_does_not_matter(order, turned):
    doses = text(["0.5+1", "10+2"])
    both = [
        ("+".join(c.split("+")[::-1]), "+".join(d.split("+")[::-1])) if turn else (c, d)
        for c, d, turn in zip(COLUMN, doses, turned, strict=True)
    ]
    drug, dose = zip(*(both[i] for i in order), strict=True)
    made, names = Conditions("drug", dose="dose").fitted(of({"drug": drug, "dose": dose}))
    assert list(names) == [NAMES[i] for i in order]
    np.testing.assert_array_equal(made.design.highest, [2, 1, 10])


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_doses_of_any_size_are_told_apart_by_six_digits(doses):
    """Doses that differ by rounding alone (0.3 and 0.1 + 0.2, single and double precision) are the same."""
    column = np.array([0.0, *doses, *doses])
    column[1 + len(doses) :] *= 1 + 1e-9
    cells = of({"drug": ["control", *["A"] * (2 * len(doses))], "dose": column}, n=len(column))
    made, names = Conditions("drug", dose="dose").fitted(cells)
    same = {f"A {d:.6g}" for d in column[1:]}
    assert set(names) == {"control", *same}
    assert len(made.design.contents) == 1 + len(same)
    cells.obs["dose"] = column.astype(np.float32)
    assert set(Conditions("drug", dose="dose").fitted(cells)[1]) <= {
        "control",
        *(f"A {d:.6g}" for d in column.astype(np.float32)[1:]),
    }


def test_doses_that_differ_by_rounding_alone_are_the_same():
    cells = of({"drug": ["control", "A", "A"], "dose": [0, 0.3, 0.1 + 0.2]}, n=3)
    made, names = Conditions("drug", dose="dose").fitted(cells)
    assert list(names) == ["control", "A 0.3", "A 0.3"]
    assert len(made.design.contents) == 2


def test_large_doses_in_text():
    """As pandas and numpy write them, with a plus sign that separates nothing."""
    cells = of({"drug": ["control", "A", "A+B"], "dose": ["0", "1e+06", "2000000+3"]}, n=3)
    assert list(Conditions("drug", dose="dose").fitted(cells)[1]) == ["control", "A 1e+06", "A 2e+06+B 3"]


def test_many_doses_are_read_in_no_time():
    n = 20_000
    cells = of({"drug": ["control", *["A"] * n], "dose": np.arange(n + 1) / 7}, n=n + 1)
    made, names = Conditions("drug", dose="dose").fitted(cells)
    assert names.codes.min() >= 0
    again, same = made.fitted(cells)
    assert list(same[:3]) == list(names[:3])
    assert again.design.contents == made.design.contents


# kept designs -------------------------------------------------------------------------------------


def described(rows="ABC"):
    numbers = np.random.default_rng(0).normal(size=(5, 4))
    return pd.DataFrame(numbers, index=list("ABCDE")).loc[list(rows)]


@pytest.mark.parametrize("form", ["one column", "two columns", "a frame"])
@pytest.mark.parametrize("more", [{}, {"descriptors": described("ABCDE")}])
def test_plain_and_back(form, more):
    cells, asked = conditions(form, **more)
    made, names = asked.fitted(cells)
    back = Conditions.from_plain(plain_json.loads(plain_json.dumps(made.plain())))
    for name in ("factors", "control", "dose", "time", "separator", "log_dose", "key_added"):
        assert getattr(back, name) == getattr(made, name)
    assert back.design.contents == made.design.contents
    assert back.design.parts == made.design.parts
    for p in [*PARTS, {"A": 30.0, "C": 0.1}]:
        content = Content.of(p)
        np.testing.assert_array_equal(by_content(back.design, content), by_content(made.design, content))
        assert back.design.beyond(content) == made.design.beyond(content)
    again, same = back.fitted(cells)  # a fitted design reads the cells again as they were
    assert list(same) == list(names)
    assert again.design.contents == made.design.contents


@pytest.mark.parametrize("part", ["__array__", "__float__", "__frame__", "a\nb", "🙂", "x" * 400, " 1 "])
def test_names_of_any_spelling_go_through_files(part):
    cells = of({"drug": ["control", part, "B"]}, n=3)
    made, _ = Conditions("drug", separator=None).fitted(cells)
    back = Conditions.from_plain(plain_json.loads(plain_json.dumps(made.plain())))
    assert back.design.contents == made.design.contents
    assert back.design.names == made.design.names


def test_a_known_design_keeps_its_scales_and_the_order_of_its_parts():
    cells, asked = conditions("one column")
    made, _ = asked.fitted(cells)
    more = of({"drug": ["Aa", "A", "B"], "dose": ["3", "50", "1"]}, n=3)
    grown, names = made.fitted(more)
    assert list(names) == ["Aa 3", "A 50", "B 1"]
    old, new = made.design, grown.design
    assert new.parts == ("A", "B", "C", "Aa")
    assert new.contents[: len(old.contents)] == old.contents
    np.testing.assert_array_equal(new.lowest, [0.5, 1, 10, 3])
    np.testing.assert_array_equal(new.highest, [2, 1, 10, 3])
    for content in old.contents:
        np.testing.assert_array_equal(by_content(new, content)[: old.n_columns], by_content(old, content))
    assert not new.beyond(Content.of({"A": 40.0}))  # as it has been seen now
    assert old.beyond(Content.of({"A": 40.0}))


# descriptors --------------------------------------------------------------------------------------


def test_descriptors_become_scaled_principal_components():
    values = np.random.default_rng(1).normal(size=(6, 4)) * [1, 10, 100, 0] + 3
    found = components(values)
    assert found.shape[1] <= 4
    assert np.square(found).sum(1).mean() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    product = found.T @ found
    np.testing.assert_allclose(product - np.diag(np.diag(product)), 0, atol=1e-4)
    scaled = (values - values.mean(0))[:, :3] / values.std(0)[:3]
    pairs = lambda x: np.square(x[:, None] - x).sum(-1)  # noqa: E731
    np.testing.assert_allclose(pairs(found), pairs(scaled) / 3, atol=1e-4)  # distances are kept
    np.testing.assert_array_equal(components(np.full((6, 2), 0.1)), np.zeros((6, 1)))
    np.testing.assert_array_equal(components(np.column_stack([values, np.full(6, 0.1)])), found)


def test_descriptors_from_uns_and_of_parts_that_were_not_seen():
    cells, asked = conditions("one column", descriptors="about")
    cells = cells.copy()
    cells.uns["about"] = described("EDCBA")
    design = asked.fitted(cells)[0].design
    assert design.parts == ("A", "B", "C", "D", "E")
    same = Conditions("drug", dose="dose", descriptors=described("EDCBA")).fitted(cells)[0].design
    np.testing.assert_array_equal(design.descriptors, same.descriptors)
    np.testing.assert_array_equal(as_described(design)["D"], design.descriptors[3])
    np.testing.assert_allclose(design.lowest[3:], np.median([0.5, 1, 10]))
    np.testing.assert_allclose(design.highest[3:], np.median([2, 1, 10]))


def test_the_control_needs_no_descriptors():
    """A fingerprint of water is no drug's: its row is left out."""
    cells, _ = conditions("one column")
    about = described("ABCD")
    about.loc["control"] = np.nan
    with_control = Conditions("drug", dose="dose", descriptors=about).fitted(cells)[0].design
    without = Conditions("drug", dose="dose", descriptors=described("ABCD")).fitted(cells)[0].design
    assert with_control.parts == without.parts == tuple("ABCD")
    np.testing.assert_array_equal(with_control.descriptors, without.descriptors)


# what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"factors": ()}, ValueError, "is empty. Pass the name of the column"),
        ({"factors": 7}, TypeError, "`factors` has 7, a int. Expected names, as text"),
        ({"factors": ["a", None]}, TypeError, "`factors` has None, a NoneType"),
        ({"factors": {"a": 1}}, TypeError, "`factors` has {'a': 1}, a dict"),
        ({"factors": ["a", "a"]}, ValueError, "has a name twice"),
        ({"factors": ""}, ValueError, "has a name twice, or one without a letter"),
        ({"control": 0}, TypeError, "`control` has 0, a int"),
        ({"control": ()}, ValueError, r"`control=\(\)` is empty. Pass the name of the value"),
        ({"dose": b"dose"}, TypeError, "`dose` has"),
        ({"dose": ["a", "b"]}, ValueError, "`dose` names 2 columns, and `factors` 1"),
        ({"time": 3}, TypeError, "`time=3` is a int. Expected text that is not empty"),
        ({"separator": ""}, TypeError, "`separator=''` is a str"),
        ({"key_added": None}, TypeError, "`key_added=None` is a NoneType"),
        ({"key_added": "drug"}, ValueError, "`key_added='drug'` is one of the columns"),
        ({"time": "t", "key_added": "t"}, ValueError, "`key_added='t'` is one of the columns"),
    ],
)
def test_wrong_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        Conditions(**{"factors": "drug", **wrong})


def refused(obs, message, error=ValueError, **given):
    with pytest.raises(error, match=message):
        Conditions(**{"factors": "drug", "dose": "dose", **given}).fitted(of(obs, n=len(obs["drug"])))


@pytest.mark.parametrize(
    ("drug", "dose", "message"),
    [
        (["control", "A"], [1.0, 1.0], "contradict each other: 'control' has dose 1"),
        (["control", "A"], [0.0, np.nan], "'A' has dose None"),
        (["control", "A"], [0.0, -1.0], "'A' has dose -1"),
        (["control", "A"], [0.0, np.inf], "'A' has dose inf"),
        (["control", "A"], ["0", "1e999"], "'A' has dose inf"),
        (["control", "A+B"], ["0", "1+2+3"], r"'A\+B' has 2 parts and the doses '1\+2\+3'"),
        (["control", "A+B"], ["0", "1+"], "'B' has dose None"),
        (["control", "A+"], [0.0, 1.0], r"'A\+' has a part without a name"),
        (["control", ""], [0.0, 1.0], "'' has a part without a name"),
        (["control", " "], [0.0, 1.0], "' ' has a part without a name"),
    ],
)
def test_doses_that_contradict_the_factors_are_refused(drug, dose, message):
    refused({"drug": drug, "dose": dose}, message)


def test_columns_that_cannot_be_read_are_refused():
    good = {"drug": ["control", "A", "B"], "dose": [0.0, 1.0, 2.0], "hours": [1, 2, 3]}
    refused({**good, "dose": ["0", "5 uM", "3 mM"]}, "is no number: '3 mM', '5 uM'", TypeError)
    refused(
        {**good, "drug": ["control", "A+B", "B"], "dose": ["0", "x+y", "z+x"]}, "'x', 'y', 'z'", TypeError
    )
    refused({**good, "dose": [False, True, True]}, "is no number: 'False', 'True'", TypeError)
    refused(good, "`dose='amount'` is not a column", KeyError, dose="amount")
    refused(good, "`factors='compound'` is not a column", KeyError, factors="compound")
    refused({**good, "drug": ["control", None, "B"]}, "is missing", ValueError)
    refused(
        good,
        "No cell is under `control='DMSO'`. `factors` holds 'A', 'B', 'control'",
        control="DMSO",
        dose=None,
    )
    refused({**good, "hours": [1, -2, 3]}, "`time='hours'` has times below zero", time="hours")
    refused({**good, "hours": [1, np.inf, 3]}, "must be finite", time="hours")
    refused({**good, "hours": [1, np.nan, 3]}, "is missing", time="hours")
    refused({**good, "hours": ["a", "b", "c"]}, "expected numbers", TypeError, time="hours")


def test_different_conditions_of_one_name_are_refused():
    cells = of(
        n=3,
        obsm={
            "x": table([{}, {"A+B": 1}, {"A": 1, "B": 1}], ["A+B", "A", "B"]).set_axis(
                [f"cell {i}" for i in range(3)]
            )
        },
    )
    with pytest.raises(ValueError, match=r"Different conditions would have the same name: 'A\+B'"):
        Conditions("x").fitted(cells)


def test_amounts_that_cannot_be_are_refused():
    for values in ([[0.0], [-1.0], [1.0]], [[0.0], [np.nan], [1.0]], [[0.0], [np.inf], [1.0]]):
        with pytest.raises(ValueError, match="has amounts below zero or not finite"):
            Conditions("x").fitted(of(n=3, obsm={"x": np.array(values)}))
    good = of(n=3, obsm={"x": np.array([[0.0], [1.0], [1.0]])})
    with pytest.raises(ValueError, match="holds amounts, so `dose='dose'` has no use"):
        Conditions("x", dose="dose").fitted(good)
    frame = pd.DataFrame({"A": ["a", "b", "c"]}, index=good.obs_names)
    with pytest.raises(TypeError, match=r"`.obsm\['x'\]` holds something that is no number"):
        Conditions("x").fitted(of(n=3, obsm={"x": frame}))
    twice = pd.DataFrame(np.eye(3), index=good.obs_names, columns=["A", "A", "B"])
    with pytest.raises(ValueError, match=r"`.obsm\['x'\]` has several columns for 'A'"):
        Conditions("x").fitted(of(n=3, obsm={"x": twice}))


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("nope", KeyError, "`descriptors='nope'` is not in `adata.uns`. It has: nothing"),
        (np.ones((3, 2)), TypeError, "`descriptors` is a ndarray. Expected a DataFrame"),
        (described("AB"), ValueError, "has no row for 'C'"),
        (described("ABCC"), ValueError, "has several rows for 'C'"),
        (described().assign(x="text"), ValueError, "no finite number"),
        (described().assign(x=np.nan), ValueError, "no finite number"),
        (described()[[]], ValueError, "no finite number"),
    ],
)
def test_descriptors_that_cannot_be_are_refused(table, error, message):
    cells, asked = conditions("one column", descriptors=table)
    with pytest.raises(error, match=message):
        asked.fitted(cells)


def test_new_parts_of_a_known_design_need_descriptors():
    cells, asked = conditions("one column", descriptors=described("ABCD"))
    made, _ = asked.fitted(cells)
    fine = of({"drug": ["D"], "dose": ["1"]}, n=1)
    assert list(made.fitted(fine)[1]) == ["D 1"]
    with pytest.raises(ValueError, match=re.escape("has no descriptors of 'Z'. Train with a row for each")):
        made.fitted(of({"drug": ["Z"], "dose": ["1"]}, n=1))


def test_it_is_public():
    assert sa.Conditions is Conditions
