"""The catalog: built-in classes are read without an import, others only when the user names them."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distillkit import catalog
from distillkit.errors import ConfigError
from distillkit.settings import LossComponent

KINDS = ("teacher", "student", "loss")
BUILTIN = [(kind, name) for kind in KINDS for name in catalog.names(kind)]
MINE = """
from pathlib import Path
from distillkit.losses.base import Loss
from distillkit.settings import Positive
Path("imported").touch()

class Mine(Loss):
    '''Mine.

    Settings:
        power: How much.
    '''
    needs_labels = True

    def __init__(self, *, power: Positive = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, step):
        return step.student.logits.sum() * self.power
"""


def run_python(code: str, folder: Path) -> str:
    """The output of a fresh interpreter in a folder, with the project importable."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{root!r}, '.']\n{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "task": {"kind": "classification", "train": "t.csv"},
        "teacher": {"use": "bert", "size": "tiny"},
        "student": {"use": "transformer", "layers": 1},
        "distill": {"losses": {"gold": {"use": "gold"}}},
        **changes,
    }


def test_what_is_built_in() -> None:
    assert {"bert", "pretrained"} <= set(catalog.names("teacher"))
    assert "transformer" in catalog.names("student")
    assert {"gold", "hard_labels", "hidden_cosine", "logits"} <= set(catalog.names("loss"))


@pytest.mark.parametrize(("kind", "name"), BUILTIN, ids=[name for _, name in BUILTIN])
def test_the_source_says_what_the_signature_says(kind: str, name: str) -> None:
    """Settings read by `ast` against the imported class: a difference would validate what cannot be built."""
    cls = catalog.REGISTRIES[kind].get(name, object)
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    expected = {}
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        default = ... if parameter.default is parameter.empty else parameter.default
        expected[parameter.name] = (hints[parameter.name], default)
    read = catalog._described[kind][name].fields
    assert {name: (annotation, default) for name, (annotation, default, _) in read.items()} == expected


@pytest.mark.parametrize("name", catalog.names("loss"))
def test_the_source_says_what_a_loss_is_for(name: str) -> None:
    cls = catalog.REGISTRIES["loss"].get(name, object)
    facts = {
        "needs_labels": False,
        "kinds": LossComponent.kinds,
        **catalog._described["loss"][name].facts,
    }
    assert facts == {"needs_labels": cls.needs_labels, "kinds": cls.kinds}


FILES = [
    (kind, path.stem)
    for kind, folder in catalog._FOLDERS.items()
    for path in sorted((Path(catalog.__file__).parent / folder).glob("[!_]*.py"))
]


@pytest.mark.parametrize(("kind", "stem"), FILES, ids=[f"{kind}-{stem}" for kind, stem in FILES])
def test_a_component_that_a_recipe_could_name_can_be_named(kind: str, stem: str) -> None:
    """A class that is made of settings alone is registered: a name that does not fit its file's would leave
    it out without a word."""
    module = importlib.import_module(f"distillkit.{catalog._FOLDERS[kind]}.{stem}")
    nameable = {
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and cls.__module__ == module.__name__ and not cls.__name__.startswith("_")
        if issubclass(cls, catalog._base(kind)) and not inspect.isabstract(cls)
        if all(
            parameter.kind is inspect.Parameter.KEYWORD_ONLY
            for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]
        )
    }
    registered = {catalog.REGISTRIES[kind].get(stem, object)} if (kind, stem) in BUILTIN else set()
    assert nameable == registered


@pytest.mark.parametrize(("kind", "name"), BUILTIN, ids=[name for _, name in BUILTIN])
def test_every_setting_has_a_sentence(kind: str, name: str) -> None:
    described = catalog._described[kind][name]
    assert described.summary.endswith(".")
    assert [name for name, (_, _, sentence) in described.fields.items() if not sentence] == []


def test_reading_the_catalog_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "from distillkit import catalog; catalog.components(); print({'torch', 'numpy'} & set(sys.modules))"
    )
    assert run_python(code, tmp_path).strip() == "set()"


def test_a_component_is_built_from_its_settings() -> None:
    made = catalog.components().model_validate(config())
    loss = catalog.build("loss", made.phases[0].losses["gold"], base=Path("/nowhere"))
    assert type(loss).__name__ == "Gold" and loss.label_smoothing == 0.0


def test_a_folder_becomes_absolute(tmp_path: Path) -> None:
    made = catalog.components().model_validate(config(teacher={"use": "pretrained", "path": "models/x"}))
    teacher = catalog.build("teacher", made.teacher, base=tmp_path)
    assert teacher.path == tmp_path / "models/x"


def test_a_config_made_in_python_takes_the_same_models() -> None:
    model = catalog.components()
    made = model.model_validate(config())
    assert model.model_validate(made.model_dump(by_alias=True)) == made


def test_settings_of_another_component_are_refused() -> None:
    with pytest.raises(ValidationError, match="temperature"):
        catalog.components().model_validate(
            config(distill={"losses": {"x": {"use": "gold", "temperature": 2.0}}})
        )


EVIL = [
    "os.system",
    "os:system",
    "builtins.eval",
    "builtins:exec",
    "functools.partial",
    "posix.system",
    "subprocess.Popen",
    "distillkit.losses.gold.Gold",
    "distillkit.losses.gold:Gold",
    "evil.Mine",
    "evil:Mine",
    "./evil.py",
    "evil.py",
    "/tmp/evil.py",
    "evil.py:Mine",
    "__import__('os').system('touch imported')",
    "gold.__class__.__mro__",
    "../losses/gold",
    "import os",
    "importlib.import_module",
]


def test_a_config_alone_imports_nothing(tmp_path: Path) -> None:
    """`evil.py` lies beside the config and is importable; it would leave the file `imported`."""
    (tmp_path / "evil.py").write_text(MINE)
    for number, name in enumerate([*EVIL, "evil"]):
        losses = {"losses": {"x": {"use": name}}}
        (tmp_path / f"{number}.yaml").write_text(json.dumps(config(distill=losses)))
    code = """
from distillkit.cli import main
codes = [main(["validate", f"{number}.yaml"]) for number in range(21)]
print(codes == [11] * 20 + [2], "torch" in sys.modules)
"""
    assert run_python(code, tmp_path).split() == ["True", "False"]
    assert not (tmp_path / "imported").exists()


def installed(folder: Path, name: str = "mine") -> None:
    """A package with an entry point, as pip leaves it."""
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[distillkit.losses]\n{name} = package_of_mine:Mine\n")
    (folder / "package_of_mine.py").write_text(MINE)


def test_an_entry_point_is_listed_without_an_import_and_loaded_when_named(tmp_path: Path) -> None:
    installed(tmp_path)
    losses = {"losses": {"x": {"use": "mine", "power": 3.0}}}
    (tmp_path / "config.yaml").write_text(json.dumps(config(distill=losses)))
    code = """
from pathlib import Path
from distillkit import catalog, recipe
print("mine" in catalog.names("loss"), Path("imported").exists())
loaded = recipe.load(Path("config.yaml"), components=catalog.components)
loss = loaded.config.phases[0].losses["x"]
built = catalog.build("loss", loss, base=Path())
print(Path("imported").exists(), loss.power, loss.needs_labels, built.power)
"""
    assert run_python(code, tmp_path).split() == ["True", "False", "True", "3.0", "True", "3.0"]


def test_an_entry_point_with_a_taken_name_is_refused(tmp_path: Path) -> None:
    installed(tmp_path, "gold")
    code = "from distillkit.cli import main; print(main(['list', 'losses']))"
    assert run_python(code, tmp_path).strip() == "2"


def test_an_entry_point_that_cannot_be_imported_is_told_in_words(tmp_path: Path) -> None:
    installed(tmp_path)
    (tmp_path / "package_of_mine.py").write_text("1 / 0")
    (tmp_path / "config.yaml").write_text(json.dumps(config(distill={"losses": {"x": {"use": "mine"}}})))
    code = "from distillkit.cli import main; print(main(['validate', 'config.yaml']))"
    assert run_python(code, tmp_path).strip() == "2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", "defines no teacher, student or loss"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        (MINE.replace("power: Positive = 2.0", "power=2.0"), "keyword-only and typed"),
        (MINE.replace("*, power", "power"), "keyword-only and typed"),
        (MINE.replace("class Mine", "class Gold"), "registered twice"),
    ],
    ids=["empty", "syntax", "raises", "untyped", "positional", "taken"],
)
def test_code_that_cannot_be_used_is_told_in_words(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(content.replace('Path("imported").touch()', ""))
    with pytest.raises(ConfigError, match=words):
        catalog.load_code(path)


def test_code_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file"):
        catalog.load_code(tmp_path / "none.py")


def test_code_from_the_command_line_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "my_code.py").write_text(MINE)
    losses = {"losses": {"x": {"use": "mine", "power": -3.0}}}
    (tmp_path / "config.yaml").write_text(json.dumps(config(distill=losses)))
    (tmp_path / "t.csv").write_text("text,label\na,b\n")
    code = """
from distillkit.cli import main
command = ["validate", "config.yaml"]
codes = [main([*command, *more]) for more in ([], ["--code", "my_code.py"], ["distill.losses.x.power=3"])]
print(codes)
"""
    assert run_python(code, tmp_path).splitlines()[-1] == "[2, 2, 0]"
