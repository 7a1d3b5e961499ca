"""The two examples run as their users run them, and print what the theory says."""

from __future__ import annotations

from scripts import assert_drawn, printed, rows


def test_every_activation_has_the_same_rate_and_only_the_sigmoid_no_length(tmp_path):
    table = rows(printed("gdnp.py", "--quick", "--picture", str(tmp_path / "new" / "gdnp.png")))
    rates = {row[0]: row[1:] for row in table[:4]}
    assert set(rates) == {"softplus", "squared", "sigmoid", "squared sigmoid"}
    assert len({(seen, gap) for seen, _, gap, _, _ in rates.values()}) == 1
    assert all(float(seen) < float(guaranteed) for seen, guaranteed, *_ in rates.values())
    assert [name for name, row in rates.items() if row[-1] == "unbounded"] == ["sigmoid"]
    methods = [row[0] for row in table[4:]]
    assert methods == ["GDNP", "gradient descent", "Nesterov", "batch normalisation", "weight normalisation"] * 3
    assert all(0.0 < float(row[-1]) < 0.1 for row in table[4:14])  # the optimum lies below every method
    assert_drawn(tmp_path / "new" / "gdnp.png")


def test_products_with_the_norms_of_the_weights_are_the_larger_numbers(tmp_path):
    table = rows(printed("cross_dependency.py", "--quick", "--picture", str(tmp_path / "cross.png")))
    assert [row[0] for row in table] == ["without", "without", "with", "with"] * 2
    plain, scaled = ([[float(cell) for cell in row[2:]] for row in half] for half in (table[:4], table[4:]))
    for one, other in zip(plain, scaled, strict=True):
        ratios = [b / a for a, b in zip(one, other, strict=True)]
        assert len(ratios) == 7
        assert min(ratios) > 1.0
    assert_drawn(tmp_path / "cross.png")
