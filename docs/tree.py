"""Writes README's file tree: each file with the first sentence of its docstring. `python docs/tree.py`"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("distillkit", "teachers", "students", "benchmarks", "docs")
OTHERS = {
    "distillkit/demo.yaml": "The recipe of `distillkit demo`",
    "distillkit/data/bundled/rotten_tomatoes.jsonl.gz": "8,530 film snippets (CC BY 4.0, see NOTICE.md)",
    "distillkit/report/templates": "The page and the model card, as jinja templates",
    "benchmarks/results": "What the scripts above measured, with hardware, versions and seeds",
    "docs/bench.md": "Measuring: runtimes, noise, scenarios, floors, which form is best here",
    "docs/architecture.md": "The words, the imports, one way through",
    "docs/pretraining.md": "BERT and the families around it: settings, ablations, what is logged",
    "docs/seq2seq.md": "Texts from texts: answers, students, written targets, the two graphs",
    "docs/regimes.md": "Several teachers, chains, peers and black boxes",
    "docs/runtime.md": "An artifact without torch: from Python, on files, behind HTTP",
    "docs/how-to-add-a-loss.md": "A loss in one file",
    "docs/how-to-add-a-student.md": "A student in one file",
    "docs/how-to-add-a-teacher.md": "A teacher in one file, or from Python",
    "tests": "Properties and equivalences, a folder per subject; conformance/ holds one suite per kind",
}
_BLOCK = re.compile(r"(## The files\n\n```\n).*?(\n```)", re.DOTALL)
_WIDTH = 44


def tree() -> str:
    """The lines of the tree, in the order of the paths."""
    found = {path: sentence for path, sentence in OTHERS.items() if (ROOT / path).exists()}
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("**/*.py"):
            sentence = summary(path)
            if sentence:
                found[path.relative_to(ROOT).as_posix()] = sentence
    return "\n".join(f"{path:{_WIDTH}} {sentence}" for path, sentence in sorted(found.items()))


def summary(path: Path) -> str:
    """First sentence of a module's docstring, or '' where it has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)])(?<! al)\. ", text)[0].rstrip(".:")


def with_tree(readme: str) -> str:
    """A README's text with the tree put where it belongs."""
    return _BLOCK.sub(lambda match: match[1] + tree() + match[2], readme)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_tree(page.read_text(encoding="utf-8")), encoding="utf-8")
