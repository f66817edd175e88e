"""The `distillkit` command: parses arguments and calls one function each.

Nothing heavy is imported before a command needs it: `--help`, `validate`, `schema`, `init`, `list`,
`compare`, `predict` and `serve` never import torch. Errors that a user can cause are told in words on stderr,
with their exit code.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distillkit.errors import ConfigError, DistillkitError, FloorError

if TYPE_CHECKING:
    from distillkit.recipe import Loaded

app = typer.Typer(
    name="distillkit",
    help="Distil NLP transformers into small, measured ONNX artifacts: one config, from teacher to report.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[Path | None, typer.Argument(help="a config file, or the folder of a run to go on with")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="e.g. student.layers=2")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="the same as KEY=VALUE")]
Code = Annotated[
    list[Path] | None,
    typer.Option("--code", help="Python file whose teachers, students and losses may be named"),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="go on from a checkpoint although its settings or data changed since"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but errors and the result")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Runs = Annotated[list[Path], typer.Argument(help="folders of runs")]
Exported = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="an exported folder, or a run's")]
Provider = Annotated[
    Literal["cpu", "cuda"], typer.Option("--provider", help="cpu or cuda; never another than this")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="threads of one forward; 0: one a core")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A bug leaves a crash file, not a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    warnings.showwarning = _show_warning
    try:
        app([argument for argument in given if argument != "--debug"], prog_name="distillkit")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except DistillkitError as error:
        if debug:
            _write(traceback.format_exc())
        _tell_once(error)
        return error.exit_code
    except Exception as error:  # a bug: the user gets a file to send, not a traceback
        return _crashed(error, debug)
    return 0


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks; may stand anywhere")] = False,
) -> None:
    """Only here so that --help lists --debug."""


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@app.command(
    epilog=_examples("distillkit run config.yaml", "distillkit run config.yaml student.layers=2 --gpus 2")
)
def run(
    config: Config = None,
    overrides: Overrides = None,
    sets: Sets = None,
    code: Code = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="processes, one per GPU")] = 1,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run every stage of a config, going on where an earlier run stopped."""
    if gpus > 1 and "RANK" not in os.environ:
        flags = [*(["--force"] if force else []), *(["--quiet"] if quiet else [])]
        raise typer.Exit(_launch(gpus, _path(config), [*(overrides or []), *(sets or [])], code or [], flags))
    _run(config, overrides, sets, code, "report", quiet, force)


def _stage_command(name: str, until: str, summary: str, *examples: str) -> None:
    """A command that runs the stages up to one of them."""

    @app.command(name, help=summary, epilog=_examples(*examples))
    def command(
        config: Config = None,
        overrides: Overrides = None,
        sets: Sets = None,
        code: Code = None,
        force: Force = False,
        quiet: Quiet = False,
    ) -> None:
        _run(config, overrides, sets, code, until, quiet, force)


_stage_command(
    "pretrain",
    "pretrain",
    "Run up to the pretrained teacher.",
    "distillkit pretrain config.yaml",
    "distillkit pretrain runs/mine",
)
_stage_command(
    "distill",
    "student",
    "Run up to the trained student.",
    "distillkit distill config.yaml",
    "distillkit distill config.yaml distill.epochs=1",
)


@app.command(epilog=_examples("distillkit export config.yaml", "distillkit export runs/mine --serve triton"))
def export(
    config: Config = None,
    overrides: Overrides = None,
    sets: Sets = None,
    code: Code = None,
    serve: Annotated[
        str, typer.Option("--serve", help="triton: write a model repository beside it, in the run's triton/")
    ] = "",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run up to the exported and verified ONNX artifact."""
    if serve not in ("", "triton"):
        raise ConfigError(f"{serve!r} is not known", where="--serve", hint="triton")
    run_folder = _run(config, overrides, sets, code, "export", quiet, force)
    if serve:
        from distillkit.export.triton import write_repository

        write_repository(run_folder / "export", run_folder / serve, name=run_folder.name)
        print(f"{serve}: {run_folder / serve}")


@app.command(
    epilog=_examples(
        "distillkit bench config.yaml bench.threads=1",
        "distillkit bench runs/mine --floor metric=0.90 p95=10ms size=20MB",
    )
)
def bench(
    config: Config = None,
    overrides: Overrides = None,
    sets: Sets = None,
    code: Code = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            "--floor",
            metavar="NAME=BOUND",
            help="exit with 12 where no form of the exported student reaches it; more may follow",
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run up to the measurements of teacher and student, and print them."""
    settings, floors = _floors(overrides or [], floor or [])
    _run(config, [*settings, *floors], sets, code, "bench", quiet, force)


def _floors(overrides: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the floors as one of them. What follows a --floor and names no part of a config is a
    floor too.
    """
    if not given:
        return list(overrides), []
    from distillkit.settings import RunConfig

    def is_floor(override: str) -> bool:
        key = override.partition("=")[0]
        return "." not in key and key not in RunConfig.model_fields

    floors: dict[str, float | str] = {}
    for one in [*given, *filter(is_floor, overrides)]:
        name, equals, bound = one.partition("=")
        if not (name and equals and bound):
            raise ConfigError(f"{one!r} is no floor", where="--floor", hint="--floor metric=0.90 p95=10ms")
        try:
            floors[name] = float(bound)
        except ValueError:
            floors[name] = bound
    return [one for one in overrides if not is_floor(one)], [f"bench.floor={json.dumps(floors)}"]


@app.command(
    epilog=_examples("distillkit plan config.yaml", "distillkit plan config.yaml --json student.layers=2")
)
def plan(
    config: Config = None,
    overrides: Overrides = None,
    sets: Sets = None,
    code: Code = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do and cost, and refuse what cannot work, before anything is trained."""
    loaded = _load(_path(config), [*(overrides or []), *(sets or [])], code or [])
    from distillkit import planning

    made = planning.plan(loaded)
    if as_json:
        print(json.dumps(made.as_json(), indent=1))
    else:
        _console().print(made.shown())


@app.command(
    epilog=_examples("distillkit validate config.yaml", "distillkit validate config.yaml student.layers=2")
)
def validate(
    config: Config = None,
    overrides: Overrides = None,
    sets: Sets = None,
    code: Code = None,
    as_json: AsJson = False,
) -> None:
    """Check a config, and that its data files have its columns: every error at once, each with its place."""
    from distillkit.sources import check_sources

    path = _path(config)
    try:
        loaded = _load(path, [*(overrides or []), *(sets or [])], code or [])
        check_sources(loaded)
    except DistillkitError as error:
        if as_json:
            print(
                json.dumps({"valid": False, "exit_code": error.exit_code, "errors": _parts(error)}, indent=1)
            )
            raise typer.Exit(error.exit_code) from None
        raise
    if as_json:
        print(json.dumps({"valid": True, "exit_code": 0, "errors": []}, indent=1))
    else:
        print(f"{path}: valid ({loaded.config.name})")


@app.command(
    epilog=_examples("distillkit init train.csv", "distillkit init reviews.jsonl.gz --output reviews.yaml")
)
def init(
    data: Annotated[Path, typer.Argument(help="the file with the training rows")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the config to write")] = Path("config.yaml"),
) -> None:
    """Look at a data file and write a commented config for it."""
    from distillkit import init as initialise

    print(initialise.write_config(data, output))


@app.command(
    epilog=_examples("distillkit schema > config.schema.json", "distillkit schema --code my_loss.py")
)
def schema(code: Code = None) -> None:
    """Print the JSON schema of a config, for editors."""
    from distillkit import catalog
    from distillkit.schema import json_schema

    for path in code or []:
        catalog.load_code(path)
    print(json.dumps(json_schema(catalog.components()), indent=1))


@app.command(epilog=_examples("distillkit demo", "distillkit demo --output /tmp/runs distill.epochs=1"))
def demo(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder that holds the run's folder")] = Path(
        "runs"
    ),
    quiet: Quiet = False,
) -> None:
    """Run the whole pipeline on built-in data in a few minutes on a CPU."""
    from distillkit import demo as packaged

    _run(packaged.CONFIG, [*packaged.overrides(output), *(overrides or [])], None, None, "report", quiet)


@app.command("list", epilog=_examples("distillkit list losses", "distillkit list runs --json"))
def list_(
    what: Annotated[str, typer.Argument(help="runs, losses, teachers or students")] = "runs",
    output: Annotated[Path, typer.Option("--output", "-o", help="folder that holds the runs")] = Path("runs"),
    code: Code = None,
    as_json: AsJson = False,
) -> None:
    """List runs, or what a config can name."""
    from distillkit import listing

    rows = listing.runs(output) if what == "runs" else listing.components(what, code or [])
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _console().print(listing.table(rows))


@app.command(
    epilog=_examples("distillkit report runs/mine", "distillkit report runs/mine --output page.html")
)
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default: report.html in the run")
    ] = None,
) -> None:
    """Write the report of a finished run again."""
    from distillkit.report.facts import FACTS_FILE, load_facts
    from distillkit.report.page import write_report

    facts = run_folder / "report" / FACTS_FILE
    if not facts.is_file():
        raise ConfigError(
            "this run has no report yet",
            where=str(run_folder),
            hint=f"distillkit run {shlex.quote(str(run_folder))}",
        )
    page = output or run_folder / "report.html"
    write_report(load_facts(facts), page)
    print(page)


@app.command(
    epilog=_examples("distillkit compare runs/a runs/b", "distillkit compare runs/* --html > runs.html")
)
def compare(
    runs: Runs,
    html: Annotated[bool, typer.Option("--html", help="print a self-contained page")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
) -> None:
    """Lay finished runs side by side."""
    from distillkit.report.compare import compare as side_by_side

    if html and csv:
        raise ConfigError(
            "--html and --csv contradict each other", where="command line", hint="give one of them"
        )
    compared = side_by_side(runs)
    if html or csv:
        print(compared.html() if html else compared.csv())
    else:
        _console().print(compared.table())
        if compared.over_tasks:
            _console().print(compared.over_tasks, highlight=False, markup=False)


@app.command(
    epilog=_examples(
        "distillkit predict runs/mine reviews.csv --output answers.csv",
        "distillkit predict runs/mine/export < texts.txt",
    )
)
def predict(
    artifact: Exported,
    file: Annotated[
        Path | None,
        typer.Argument(help="CSV, TSV, JSON Lines or Parquet, also .gz; without it, lines of stdin"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="text column; twice for a pair; default: as in training"),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="column to carry along; repeatable")
    ] = None,
    task: Annotated[str, typer.Option("--task", help="which of several tasks is asked")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file; default: stdout")] = None,
    form: Annotated[str, typer.Option("--format", help="jsonl or csv; default: by the file's name")] = "",
    spreadsheet: Annotated[
        bool, typer.Option("--spreadsheet", help="quote CSV cells that a spreadsheet would compute (= + - @)")
    ] = False,
    encoding: Annotated[str, typer.Option("--encoding", help="of the file or of stdin")] = "utf-8",
    delimiter: Annotated[
        str | None, typer.Option("--delimiter", help="of fields; default: by the file's name")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, help="most tokens of a batch, padding included")
    ] = 4096,
    provider: Provider = "cpu",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Answer the rows of a file, or lines of stdin, with an exported model."""
    from distillkit import predicting
    from distillkit.runtime import Artifact
    from distillkit.runtime.session import provider_named

    asked = predicting.Asked(
        columns=tuple(text or ()),
        keep=tuple(keep or ()),
        task=task,
        encoding=encoding,
        delimiter=delimiter,
        tokens=tokens,
        form=predicting.format_of(form, output),
        quoted=spreadsheet,
    )
    model = Artifact.load(artifact, provider=provider_named(provider), threads=threads)
    told = predicting.run(model, file, asked, output)
    if told.cut and not quiet:
        longest = model.description.tokens.max_length
        _tell(f"note: {told.cut} of {told.rows} rows were cut: they are longer than {longest} tokens")


@app.command(
    epilog=_examples(
        "distillkit serve runs/mine", "distillkit serve runs/mine/export --port 9000 --threads 2"
    )
)
def serve(
    artifact: Exported,
    host: Annotated[str, typer.Option("--host", help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one")] = 8000,
    provider: Provider = "cpu",
    threads: Threads = 0,
    window: Annotated[
        float, typer.Option("--window", min=0, help="milliseconds to wait for rows to answer together")
    ] = 2.0,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="most texts that wait; more are refused")
    ] = 256,
    tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, help="most tokens of a batch, padding included")
    ] = 4096,
    quiet: Quiet = False,
) -> None:
    """Answer texts over HTTP with an exported model (extra `serve`)."""
    from distillkit.runtime.session import provider_named
    from distillkit.serving import Limits, start

    limits = Limits(queue=queue, window=window / 1000, tokens=tokens)
    named = provider_named(provider)
    start(artifact, host=host, port=port, provider=named, threads=threads, limits=limits, quiet=quiet)


@app.command(
    epilog=_examples(
        "distillkit corpus corpus/ --against config.yaml", "distillkit corpus builtin:rotten_tomatoes --json"
    )
)
def corpus(
    path: Annotated[str, typer.Argument(metavar="PATH", help="a file, a folder, or builtin:NAME")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="FILE",
            help="evaluation rows, a config, builtin:NAME; repeatable",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="a folder with a tokenizer to count tokens with")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Look at a corpus: sizes, copies, languages, addresses and keys, and evaluation texts in it."""
    from distillkit.audit.corpus import audit_corpus
    from distillkit.audit.shown import shown
    from distillkit.progress import Progress

    evaluations, tokens = [], None
    if against:
        from distillkit.audit import evaluation

        evaluations = [found for source in against for found in evaluation.evaluations(source)]
    if tokenizer is not None:
        from distillkit.data.tokenizers import load_tokenizer, token_counts

        tokens = token_counts(load_tokenizer(tokenizer))
    progress = Progress.make("quiet" if quiet else "auto", main=True)
    audited = audit_corpus(path, base=Path(), progress=progress, evaluations=evaluations, tokens=tokens)
    if as_json:
        print(json.dumps(audited.as_json(), indent=1))
    else:
        _console().print(shown(audited))


@app.command(epilog=_examples("distillkit doctor", "distillkit doctor --json"))
def doctor(as_json: AsJson = False) -> None:
    """Check this machine and installation; ends with 5 where something is broken."""
    from distillkit import doctor as checks

    findings = checks.examine()
    if as_json:
        print(json.dumps([checks.as_json(finding) for finding in findings], indent=1))
    else:
        _console().print(checks.table(findings))
    raise typer.Exit(checks.exit_code(findings))


def _run(
    config: Path | None,
    overrides: Sequence[str] | None,
    sets: Sequence[str] | None,
    code: Sequence[Path] | None,
    until: str,
    quiet: bool,
    force: bool = False,
) -> Path:
    loaded = _load(_path(config), [*(overrides or []), *(sets or [])], code or [])
    from distillkit import pipeline

    try:
        run_folder = pipeline.run(
            loaded, until=until, progress="quiet" if quiet else "auto", force=force
        ).path
    except FloorError:  # everything was measured
        _show_result(pipeline.run_path(loaded), until)
        raise
    if os.environ.get("RANK", "0") == "0":
        _show_result(run_folder, until)
    return run_folder


def _show_result(run_folder: Path, until: str) -> None:
    """What a command that ran stages says at its end: teacher against student, and where everything lies."""
    from distillkit.report.facts import FACTS_FILE, load_facts
    from distillkit.report.summary import headline
    from distillkit.report.tables import for_terminal

    path = run_folder / "report" / FACTS_FILE
    if until == "bench":
        _show_measurements(run_folder)
        return
    if until != "report" or not path.is_file():
        print(f"{until}: {run_folder / until}")
        return
    facts = load_facts(path)
    _console().print(for_terminal(facts))
    print(f"{headline(facts)}\nreport: {run_folder / 'report.html'}")


def _show_measurements(run_folder: Path) -> None:
    from distillkit.report.facts import load_bench
    from distillkit.report.tables import bench_for_terminal

    path = run_folder / "bench" / "measurements.json"
    if path.is_file():
        _console(width=220).print(
            bench_for_terminal(load_bench(path), json.loads(path.read_text())["metric"])
        )
    print(f"bench: {path}")


def _path(config: Path | None) -> Path:
    if config is None:
        raise ConfigError(
            "no config given",
            where="command line",
            hint="`distillkit init DATA` writes one, `distillkit demo` needs none",
        )
    return config


def _load(path: Path, overrides: Sequence[str], code: Sequence[Path]) -> Loaded:
    """A config file; or a run's folder, which stays where it is."""
    from distillkit import catalog, recipe

    for file in code:
        catalog.load_code(file)
    if "=" in path.name and not path.exists():
        raise ConfigError(
            f"{str(path)!r} stands where the config should", hint="distillkit run config.yaml KEY=VALUE"
        )
    if (path / "config.yaml").is_file():
        folder = Path(os.path.abspath(path))
        overrides = [
            f"output={json.dumps(str(folder.parent))}",
            f"name={json.dumps(folder.name)}",
            *overrides,
        ]
        path = path / "config.yaml"
    loaded = recipe.load(path, overrides, components=catalog.components)
    for note in loaded.notes:
        _tell(f"note: {note}")
    return loaded


def _launch(
    gpus: int, config: Path, overrides: Sequence[str], code: Sequence[Path], flags: Sequence[str]
) -> int:
    """Start one process per GPU; the exit code of the one that failed first, or of the run's status where a
    signal ended them.
    """
    loaded = _load(config, overrides, code)
    from distillkit import launching, listing

    flags = [*(f"--code={file}" for file in code), *flags]
    done = launching.launch(
        gpus, ["run", *flags, str(config), *overrides], lambda message: _tell(f"error: {message}")
    )
    if done is not None:
        return done
    return listing.exit_code(Path(loaded.config.output) / loaded.config.name) or 1


def _tell_once(error: DistillkitError) -> None:
    """Of several processes rank 0 tells the user; all leave their error for the one that started them."""
    if "RANK" in os.environ:
        from distillkit import launching

        launching.leave(error)
    if os.environ.get("RANK", "0") == "0":
        _tell(f"error: {error}")


def _parts(error: DistillkitError) -> list[dict[str, Any]]:
    from distillkit.errors import ErrorGroup

    errors = error.errors if isinstance(error, ErrorGroup) else [error]
    return [{"where": one.where, "problem": one.problem, "hint": one.hint} for one in errors]


def _console(width: int = 120) -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def _tell(message: str) -> None:
    """A message on stderr; control and bidirectional characters are shown, not obeyed."""
    from distillkit.report.text import clean

    _write("\n".join(clean(line) for line in message.split("\n")))


def _write(text: str) -> None:
    encoding = sys.stderr.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    """Warnings are one line each."""
    _tell(f"warning: {str(message).splitlines()[0] if str(message) else category.__name__}")


def _crashed(error: Exception, debug: bool) -> int:
    """A bug: the traceback goes to a file."""
    if debug:
        _write("".join(traceback.format_exception(error)))
        return 1
    with tempfile.NamedTemporaryFile(
        "w",
        prefix="distillkit-crash-",
        suffix=".txt",
        delete=False,
        encoding="utf-8",
        errors="backslashreplace",
    ) as file:
        traceback.print_exception(error, file=file)
    _tell(
        f"error: this is a bug in distillkit: {type(error).__name__}\n  -> please report it with {file.name}"
    )
    return 1
