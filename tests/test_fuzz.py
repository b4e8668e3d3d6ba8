"""The fuzzer for a moment: `make fuzz` goes on for a minute."""

import json
import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).parent.parent / "tools" / "fuzz.py"


def test_broken_models_of_every_form_are_read_or_refused() -> None:
    ran = subprocess.run([sys.executable, FUZZER, "--seconds", "3"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    counts = json.loads(ran.stdout)
    assert set(counts) == {"safetensors", "packed", "zip", "flat"}
    for form, of in counts.items():
        assert of["read"], form
        assert of["refused"], form
