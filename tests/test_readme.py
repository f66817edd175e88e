"""The README is true: its file tree, its example, its commands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from tinyrun import write_data

from distillkit.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def writer() -> Any:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_tree_is_that_of_the_files() -> None:
    assert writer().with_tree(README) == README, "run `python docs/tree.py`"
    assert "distillkit/train.py" in README and "teachers/bert.py" in README


def test_the_example_config_is_valid(tmp_path: Path) -> None:
    config = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert config is not None
    write_data(tmp_path)
    text = (
        config[1].replace("train.jsonl.gz", "train.jsonl").replace("validation.jsonl.gz", "validation.jsonl")
    )
    (tmp_path / "config.yaml").write_text(text.replace("corpus/", "corpus.txt"))
    assert main(["validate", str(tmp_path / "config.yaml")]) == 0


def test_every_linked_file_is_there() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
