"""The examples run as their users run them, and print only what holds."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
from scripts import ENVIRONMENT, assert_drawn, command, printed, rows


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("demo") / "not there yet"
    return printed("demo.py", "--quick", "--output", str(folder)), folder


def tables(text: str) -> list[dict[str, float]]:
    """The first column of numbers of each table, by the first word or two of its row."""
    found: list[dict[str, float]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells and cells[0] == "convexbn":
            found.append({})
        if cells:
            found[-1][cells[0]] = float(cells[1])
    return found


def test_the_demo_prints_a_table_for_each_task(demo):
    text, _ = demo
    assert len(tables(text)) == text.count("ReLU network with batch normalisation:") == 2


def test_the_demo_keeps_the_order_of_bounds_and_objectives(demo):
    for table in tables(demo[0]):
        adam = [value for name, value in table.items() if name.startswith("Adam")]
        assert adam[0] <= adam[1]
        slack = 1.0 + 1e-7  # the table has eight digits
        for name, bound in table.items():
            if name.startswith("bound (proved"):
                assert bound <= table["convexbn"] * slack
        if "bound (proved)" in table:
            assert table["bound (proved)"] <= adam[0] * slack
            assert table["convexbn"] <= adam[0] * 1.001


def test_the_demo_exports_to_pytorch_exactly(demo):
    errors = [float(line.split("to ")[1].split()[0]) for line in demo[0].splitlines() if line.startswith("PyTorch export")]
    assert len(errors) == 2
    assert max(errors) < 1e-12


def test_the_demo_draws_a_picture(demo):
    assert_drawn(demo[1] / "demo.png")


def test_an_interrupt_leaves_one_line(tmp_path):
    process = subprocess.Popen(
        command("demo.py", "--output", str(tmp_path)),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs are born deaf to it
    )
    assert process.stdout is not None
    while "ReLU network" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert errors.strip() == "demo: interrupted, no picture was written"
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())


def test_the_compile_time_benchmark_prints_both_times():
    text = printed("benchmark/compile_time.py", "--samples", "60", "--features", "2", "--arrangements", "8")
    assert "n=60, d=2, P=8" in text
    assert float(text.rsplit("=", 1)[1]) > 0


def test_the_implicit_bias_of_descent_is_printed_and_drawn(tmp_path):
    picture = tmp_path / "new" / "bias.png"
    table = rows(printed("implicit_bias.py", "--quick", "--picture", str(picture)))
    assert [row[1].split(",")[0] for row in table] == ["descent", "descent", "convex", "convex"]
    assert table[3][1].split()[-1] in {"2", "4", "8", "16", "32"}
    assert all(0.0 < float(row[4]) < 3.0 for row in table)
    assert_drawn(picture)
