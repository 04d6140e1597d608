"""The mutation tool on a planted package: it finds what a weak test lets through, names it, and believes no list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.paths import REPOSITORY

TOOL = REPOSITORY / "tools" / "mutants.py"

RATE = '''"""A planted module."""

from __future__ import annotations

LEAST = 3


def fast_enough(speed: float, bound: float) -> bool:
    """Whether a speed is at least its bound."""
    if speed < 0:
        raise ValueError(f"{speed} is no speed")
    return speed >= bound


def enough(count: int) -> bool:
    """Whether there are enough."""
    return count >= LEAST
'''

STRONG = """
import pytest
from planted.rate import LEAST, enough, fast_enough

def test_a_speed_is_held_against_its_bound():
    assert [fast_enough(x, 2.0) for x in (1.9, 2.0, 2.1)] == [False, True, True]
    assert fast_enough(0, 0) and fast_enough(0.5, 0.5)
    with pytest.raises(ValueError):
        fast_enough(-1e-9, -1.0)

def test_three_are_enough():
    assert [enough(x) for x in (2, 3, 4)] == [False, True, True]
"""

WEAK = """
import subprocess
import sys
from planted.rate import fast_enough

def test_a_speed_is_held_against_its_bound():
    assert [fast_enough(x, 2.0) for x in (1.0, 3.0)] == [False, True]

def test_three_are_enough_in_another_process():
    said = "from planted.rate import enough; print([enough(x) for x in (2, 3, 4)])"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == "[False, True, True]\\n"

def test_that_fails_anyway():
    assert fast_enough(1.0, 2.0)
"""


def mutants(folder: Path, test: str, *arguments: str, equivalent: str = "") -> subprocess.CompletedProcess[str]:
    """Run the tool on the planted package with one test file."""
    (folder / "planted").mkdir(exist_ok=True)
    (folder / "planted" / "__init__.py").write_text("")
    (folder / "planted" / "rate.py").write_text(RATE)
    (folder / "test_rate.py").write_text(test)
    (folder / "modules.toml").write_text('[modules]\n"planted/rate.py" = ["test_rate.py"]\n')
    (folder / "equivalent.toml").write_text(equivalent)
    where = ["--root", str(folder), "--package", "planted", "--table", str(folder / "modules.toml")]
    where += ["--equivalent", str(folder / "equivalent.toml"), "--json", str(folder / "all.json")]
    command = [sys.executable, str(TOOL), *where, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def verdicts(folder: Path) -> dict[str, str]:
    return {row["id"]: row["verdict"] for row in json.loads((folder / "all.json").read_text())}


def test_a_strong_test_kills_every_mutant(tmp_path: Path) -> None:
    done = mutants(tmp_path, STRONG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(verdicts(tmp_path).values()) == {"killed"}
    assert "Survivors" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith("| 0 | 0 | 0 | 100.0 |")


def test_a_weak_test_lets_some_through_and_they_are_named(tmp_path: Path) -> None:
    done = mutants(tmp_path, WEAK)
    assert done.returncode == 1, done.stdout + done.stderr
    found = verdicts(tmp_path)
    assert found["planted/rate.py:12:12 compare-boundary"] == "survived"
    assert found["planted/rate.py:12:12 compare-negate"] == "killed"
    assert "  planted/rate.py:12:12 compare-boundary (1 tests pass)\n    - return speed >= bound\n" in done.stdout
    assert "    + return speed > bound\n" in done.stdout
    assert found["planted/rate.py:11:9 raise-delete"] == "survived"
    assert "planted/rate.py:11:9 raise-delete (no test executes it)" in done.stdout
    assert "test_that_fails_anyway fails without a mutant; it is left out" in done.stderr


def test_a_process_that_a_test_starts_gets_the_mutant_too(tmp_path: Path) -> None:
    mutants(tmp_path, WEAK, "--only", ":17:")
    found = verdicts(tmp_path)
    assert found["planted/rate.py:17:12 compare-boundary"] == "killed"
    assert set(found.values()) == {"killed"}


def test_a_constant_of_the_module_is_changed(tmp_path: Path) -> None:
    mutants(tmp_path, STRONG, "--only", ":5:")
    assert verdicts(tmp_path) == {
        "planted/rate.py:5:9 number+1": "killed",
        "planted/rate.py:5:9 number-1": "killed",
    }


ENTRY = """
[[equivalent]]
file = "planted/rate.py"
line = "return speed >= bound"
operator = "compare-boundary"
reason = "nobody is ever exactly at the bound"
"""


def test_an_equivalent_mutant_is_counted_apart(tmp_path: Path) -> None:
    mutants(tmp_path, WEAK, "--only", ":12:", equivalent=ENTRY)
    found = verdicts(tmp_path)
    assert found["planted/rate.py:12:12 compare-boundary"] == "equivalent"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("speed >= bound", "speed >= limit", "nothing matches any more: planted/rate.py: compare-boundary"),
        ("reason =", "remark =", "entry 1: missing or unknown: reason, remark"),
        ('"nobody is ever exactly at the bound"', '" "', "entry 1: missing or unknown: reason"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(tmp_path: Path, before: str, after: str, said: str) -> None:
    done = mutants(tmp_path, STRONG, equivalent=ENTRY.replace(before, after))
    assert done.returncode == 2
    assert said in done.stdout + done.stderr


def test_a_sample_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    every = mutants(tmp_path, STRONG, "--list").stdout
    lists = [mutants(tmp_path, STRONG, "--list", "--sample", "5", "--seed", seed).stdout for seed in "112"]
    assert lists[0] == lists[1] != lists[2]
    assert lists[0].count("planted/rate.py:") == 5
    assert set(lists[0].splitlines()) < set(every.splitlines())


def test_what_decides_nothing_is_left_alone(tmp_path: Path) -> None:
    shown = mutants(tmp_path, STRONG, "--list").stdout
    assert "planted" not in shown.replace("planted/rate.py", "")
    assert "no speed" not in "\n".join(line for line in shown.splitlines() if line.startswith("    +"))


def test_a_module_that_is_not_in_the_table_is_named(tmp_path: Path) -> None:
    done = mutants(tmp_path, STRONG, "planted/none.py")
    assert done.returncode == 2
    assert "planted/none.py: no module of the table" in done.stderr
