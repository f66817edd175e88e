"""Text and numbers as a reader sees them: untrusted text made visible and harmless, figures with units.

Texts, labels and names come from data files. Escaping for HTML is the templates' part (autoescape); here
control and bidirectional characters become visible, and the places that tell who ran it become `~`.
"""

from __future__ import annotations

import re

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "mean squared error",
    "entity_f1": "entity F1",
    "cross_entropy": "cross-entropy in nats",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "edit_precision": "precision of edits",
    "edit_recall": "recall of edits",
    "edit_f05": "F0.5 of edits",
}
_ASKED = {
    "classification": "Classify each text into one of {} classes",
    "regression": "Predict a number for each text",
    "token_classification": "Give each word one of {} tags",
    "mlm": "Say which tokens were masked in each text",
    "text_to_text": "Write a text for each text",
}
_KINDS = {
    "token_classification": "token classification",
    "mlm": "masked language",
    "text_to_text": "text-to-text",
}
_ANSWERS = {"token_classification": "words", "mlm": "masked tokens", "text_to_text": "target tokens"}
_UNITS = {"mlm": "sequences"}
_SOURCES = {"mlm": "documents"}
BACKEND_NAMES = {
    "onnxruntime": "ONNX Runtime",
    "pytorch": "PyTorch",
    "pytorch-bf16": "PyTorch bf16",
    "pytorch-compile": "torch.compile",
    "pytorch-compile-bf16": "torch.compile bf16",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO bf16",
}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_HOME = re.compile(r"(?<![\w.])(?:(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[^/\\\s\"']+|/root(?![\w.-]))")
_LABEL = 32
_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def clean(text: str) -> str:
    """The text on one line with control, bidirectional and zero-width characters shown as what they are."""
    flat = text.replace("\r\n", " ").replace("\n", " ").replace("\t", " ")
    return _INVISIBLE.sub(_code_point, _CONTROL.sub(_picture, flat))


def redact(text: str) -> str:
    """Home folders (`/home/name`, `/Users/name`, `C:\\Users\\name`, `/root`) become `~`."""
    return _HOME.sub("~", text)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, cut with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def count(value: float | None) -> str:
    """`1234` as `1,234`, from a million on as `4.39 M`; an unknown value as a dash."""
    if value is None:
        return "–"
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    return scaled(value)


def scaled(value: float | None) -> str:
    """Three digits and a decimal prefix: `4.39 M`, `1.2 G`."""
    if value is None:
        return "–"
    rounded = float(f"{value:.3g}")
    for factor, prefix in _SCALES:
        if abs(rounded) >= factor:
            return f"{rounded / factor:.4g} {prefix}"
    return f"{rounded:g}"


def size(value: float | None) -> str:
    """Bytes in decimal units: `17.6 MB`."""
    if value is None:
        return "–"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float | None) -> str:
    """`0.42 ms`, `12.3 ms`, `1.25 s`."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def score(value: float) -> str:
    """A metric with three decimals, and a real minus sign."""
    return f"{value:.3f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference with three decimals and its sign; zero carries none."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "−")


def provider(name: str) -> str:
    """`CPUExecutionProvider` and `PyTorch cpu` as `CPU`."""
    bare = name.removeprefix("PyTorch ").removesuffix("ExecutionProvider")
    return (bare.upper() if bare in ("cpu", "cuda") else bare) or "–"


def metric(name: str) -> str:
    """The metric in words, with the task that it is of where there are several; an unknown one by its
    name.
    """
    task, _, bare = name.rpartition(".")
    words = METRIC_NAMES.get(bare, label(bare))
    return f"{words} of {label(task)}" if task else words


def kind(name: str) -> str:
    """A kind of task in words."""
    return _KINDS.get(name, name)


def asked(kind: str, labels: int) -> str:
    """What a task of this kind asks, as a command."""
    return _ASKED[kind].format(labels)


def answers(kind: str) -> str:
    """What is counted where answers are counted."""
    return _ANSWERS.get(kind, "rows")


def units(kind: str) -> str:
    """What a model reads at once, and what intervals resample."""
    return _UNITS.get(kind, "rows")


def sources(kind: str) -> str:
    """What the splits are made of."""
    return _SOURCES.get(kind, "rows")


def backend(name: str) -> str:
    """The runtime's proper name; an unknown one as it is."""
    return BACKEND_NAMES.get(name, label(name))


def runtime(name: str, form: str) -> str:
    """A runtime and the form of the artifact that runs in it, where that is not the plain one."""
    return backend(name) if form == "fp32" else f"{backend(name)} {label(form)}"


def label(name: str) -> str:
    """A name for a legend or an axis: harmless and short."""
    return shorten(clean(name), _LABEL)


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else _code_point(match)


def _code_point(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match.group()):04X}⟩"
