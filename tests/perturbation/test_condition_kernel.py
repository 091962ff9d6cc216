"""Covariance of conditions against sums that are written out, part by part."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalloy.perturbation.condition_kernel import Kernel
from scalloy.perturbation.design import Content, design_of

PARTS = "ABCD"
ABOUT = {p: np.random.default_rng(i).normal(size=3) for i, p in enumerate([*PARTS, "E"])}
SEEN = [
    Content.of({}, 2),
    Content.of({}, 8),
    *(Content.of({p: dose}, time) for p in PARTS for dose in (0.5, 2.0, 8.0) for time in (2, 8)),
    Content.of({"A": 2.0, "B": 8.0}, 2),
    Content.of({"A": 0.5, "B": 2.0, "C": 8.0}, 8),
]
ASKED = [*SEEN, Content.of({"A": 20.0}, 5), Content.of({"D": 1.0, "E": 2.0}, 20), Content.of({}, 0)]
CURVES = {
    "linear": lambda u, v: u * v,
    "rough": min,
    "smooth": lambda u, v: (3 * min(u, v) ** 2 * max(u, v) - min(u, v) ** 3) / 2,
}


def kernel(*, timed=True, dosed=True, described=True, dilution=0.3, several=True):
    design = design_of(SEEN, described=ABOUT if described else None, dosed=dosed, timed=timed)
    scale = 0.5 + np.arange(len(design.parts)) / 3
    return Kernel(design, scale, dilution, several)


def contexts(contents=ASKED, known="ABCDE"):
    """Groups under conditions of parts that are known."""
    contents = [c for c in contents if all(part in known for part, _ in c.parts)]
    return [(group, content) for group in ("T", "B") for content in contents]


def by_hand(made, name, one, other):
    """A component between two contexts, as the documentation has it."""
    design, scale = made.design, made.scale
    kind, grouped = name.rsplit(", ", 1)
    if grouped == "by group" and one[0] != other[0]:
        return 0.0
    (u, v), (t, s) = (design.strengths([c]) for _, c in (one, other)), design.times([one[1], other[1]])
    u, v = (x[0] / max(1, (x > 0).sum()) ** made.dilution for x in (u, v))
    if kind == "drift":
        start = design.times([design.reference])[0]
        return min(t, s) - min(t, start) - min(s, start) + start
    if kind == "pairs":
        pairs = combinations(range(len(u)), 2)
        return sum((scale[p] ** 2 + scale[q] ** 2) / 2 * min(u[p], v[p]) * min(u[q], v[q]) for p, q in pairs)
    likeness, curve, change = kind.split(", ")
    given, total = design.descriptors, 0.0
    if given is not None:
        apart = np.square(given[:, None] - given).sum(-1)
        typical = np.median([apart[p, q] for p, q in combinations(range(len(u)), 2)])
    for p in range(len(u)):
        for q in range(len(v)):
            if likeness == "own" and p != q:
                continue
            like = np.exp(-apart[p, q] / typical) if likeness == "described" else 1.0
            total += scale[p] * scale[q] * like * CURVES[curve](u[p], v[q])
    return total * (min(t, s) if change == "changing" else 1.0)


@pytest.mark.parametrize(
    ("settings", "n"),
    [
        ({}, 2 * (3 * 3 * 2 + 2)),
        ({"several": False, "timed": False}, 3 * 3 + 1),
        ({"described": False, "several": False}, 2 * 3 * 2 + 2),
        ({"dosed": False, "several": False, "dilution": 0.0}, 3 * 1 * 2 + 2),
    ],
)
def test_components_are_sums_over_parts(settings, n):
    made = kernel(**settings)
    every = contexts(known=made.design.parts)
    these, those = every[::3], every[1::2]
    found = made.of(these, those)
    assert len(made.names) == len(set(made.names)) == len(found) == n
    for name, component in zip(made.names, found, strict=True):
        expected = [[by_hand(made, name, one, other) for other in those] for one in these]
        np.testing.assert_allclose(component, expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("dilution", [0.0, 0.5])
def test_components_are_positive_semidefinite_and_symmetric(dilution):
    made = kernel(dilution=dilution)
    for name, component in zip(made.names, made.of(contexts(), contexts()), strict=True):
        np.testing.assert_allclose(component, component.T, atol=1e-12)
        eigenvalues = np.linalg.eigvalsh(component)
        assert eigenvalues.min() > -1e-9 * max(1, eigenvalues.max()), name
        assert eigenvalues.max() > 0


@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from([*PARTS, "E"]), st.floats(0.01, 100)), st.floats(0, 30)),
        min_size=2,
        max_size=6,
    ),
    st.sampled_from([0.0, 0.15, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_no_combination_of_doses_and_times_has_a_negative_variance(drawn, dilution):
    made = kernel(dilution=dilution)
    these = [("T", Content.of(parts, time)) for parts, time in drawn]
    for component in made.of(these, these):
        assert np.linalg.eigvalsh(component).min() > -1e-7 * max(1, np.abs(component).max())


def test_nothing_happens_at_dose_zero_and_at_the_time_of_the_control():
    made = kernel()
    control = [("T", made.design.reference)]
    assert not made.of(control, contexts()).any()
    later = made.of([("T", Content((), 8.0))], contexts())
    moved = [name for name, component in zip(made.names, later, strict=True) if component.any()]
    assert moved == ["drift, shared", "drift, by group"]  # which cells without any part have, too


def test_without_times_or_curves_there_are_no_components_of_them():
    names = kernel(timed=False).names
    assert not [name for name in names if "changing" in name or "drift" in name]
    one_dose = design_of([Content(), Content.of({"A": 1.0}), Content.of({"B": 3.0})], dosed=True)
    assert not [k for k in Kernel(one_dose, np.ones(2)).names if "rough" in k or "smooth" in k]


def test_a_single_part_with_descriptors():
    design = design_of([Content(), Content.of({"A": 1.0})], described={"A": [0.3]})
    made = Kernel(design, np.ones(1))
    a = [("T", Content.of({"A": 1.0}))]
    assert dict(zip(made.names, made.of(a, a).ravel(), strict=True)) == {
        "own, linear, constant, shared": 1.0,
        "common, linear, constant, shared": 1.0,
        "described, linear, constant, shared": 1.0,
        "pairs, shared": 0.0,
    }
