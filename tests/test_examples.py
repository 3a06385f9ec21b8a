"""Each example runs, without a network, and says what it found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAYS = {
    "attack_your_model.py": "Under the last attack: {'n': 6",
    "detect_adversarial_examples.py": "examples found",
    "harden_your_model.py": "hardened",
    "poison_a_data_set.py": "trained on poisoned ones",
    "scan_a_data_set.py": "30 % of them poisoned: poisoned",
}


def test_each_example_is_run():
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == {*SAYS, "common.py"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, f"examples/{name}"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
