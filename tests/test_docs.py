"""What the documents say is true: the tree, the commands, the options, the links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Cli

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "HACKING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [d for d in [*DOCS, ROOT / "bench" / "README.md"] if "](" in d.read_text(encoding="utf-8")]


def tree(text: str) -> set[str]:
    """Paths named in a document's file tree, which indents by four spaces a level."""
    block = next(b for b in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "src/thinbert/" in b)
    paths, folders = set(), {}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        for name in line.split("  ")[0].split() if depth == 0 else line.strip().split("  ")[0].split():
            path = "".join(folders[d] for d in range(depth)) + name
            paths.add(path)
            if name.endswith("/"):
                folders[depth] = name
    return paths


def test_the_tree_in_the_readme_is_the_tree() -> None:
    named = tree((ROOT / "README.md").read_text(encoding="utf-8"))
    for path in named:
        assert (ROOT / path).exists(), f"README names {path}"
    tracked = subprocess.run(["git", "ls-files", "src", "core"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for path in tracked.stdout.split():
        if path.endswith((".py", ".cc", ".h")) and not path.endswith("__init__.py"):
            assert path in named, f"README's tree lacks {path}"


def test_recipes_are_described_whole() -> None:
    """Every file that a data folder may hold, and every key."""
    pytest.importorskip("torch")
    from thinbert.compress.recipe import Distil, Prune, Recipe, Stage
    from thinbert.compress.sources import MEASURED, TRAINING

    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    wanted = {name for names in TRAINING.values() for name in names}
    wanted |= {name for files in MEASURED.values() for names in files.values() for name in names}
    wanted |= {key for part in (Recipe, Stage, Prune, Distil) for key in part.model_fields}
    lacking = {name for name in wanted if f"`{name}`" not in text}
    assert not lacking


@pytest.mark.parametrize("document", LINKING, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_commands_in_the_readme_exist(cli: Cli) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"^thinbert (\w+)", text, re.MULTILINE))
    assert used >= {"ask", "evaluate", "score", "inspect"}
    for command in used:
        help_text = cli(command, "--help").out
        for line in re.findall(rf"^thinbert {command}\b([^#\n]*)", text, re.MULTILINE):
            for option in re.findall(r"(?<=\s)--[\w-]+", line):
                assert option in help_text, f"thinbert {command} has no {option}"


def test_every_variable_read_is_documented() -> None:
    variables = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        variables |= set(re.findall(r"THINBERT_[A-Z0-9_]+", path.read_text(encoding="utf-8")))
    assert "THINBERT_DATA" in variables
    documented = "".join(d.read_text(encoding="utf-8") for d in DOCS)
    assert not {v for v in variables if v not in documented}


def test_tables_of_results_are_what_was_measured() -> None:
    """Line by line, from bench/results."""
    script = [sys.executable, ROOT / "tools" / "result_tables.py"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    known = set((ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines())
    assert len(printed) > 100
    assert not [line for line in printed if line and line not in known]


def test_version_is_in_the_changelog() -> None:
    import thinbert

    assert f"## {thinbert.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
