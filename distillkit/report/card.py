"""The model card: README.md of the student's folder, with Hugging Face front matter and no text of the data.

Everything printed is escaped for Markdown and HTML; the front matter is written by huggingface_hub, which
quotes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment
from markupsafe import Markup

from distillkit.report import summary, tables, text
from distillkit.report.facts import RunFacts
from distillkit.report.page import environment

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]|~$#"})
_PIPELINES = {
    "token_classification": "token-classification",
    "mlm": "fill-mask",
    "text_to_text": "text2text-generation",
}
_USAGE = {
    "token_classification": "usage_words.md",
    "mlm": "usage_masked.md",
    "text_to_text": "usage_writing.md",
}
_METRIC_TYPES = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
    "entity_f1": "f1",
    "perplexity": "perplexity",
    "exact_match": "exact_match",
    "bleu": "bleu",
    "chrf": "chrf",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rouge_l": "rouge",
}


def write_model_card(facts: RunFacts, path: Path) -> None:
    """Write the card of the student to `path` (README.md beside its weights, or beside its ONNX file)."""
    path.write_text(render_card(facts), encoding="utf-8")


def render_card(facts: RunFacts) -> str:
    """The card as text: YAML front matter, then Markdown."""
    body = (
        _environment()
        .get_template("card.md")
        .render(
            facts=facts,
            headline=summary.headline(facts),
            certainty=summary.certainty(facts),
            warnings=summary.warnings(facts),
            comparison=tables.comparison(facts),
            usage=_USAGE.get(facts.task.kind, "usage_texts.md"),
        )
    )
    card: str = str(ModelCard(f"---\n{_front_matter(facts).to_yaml()}\n---\n\n{body}"))
    return card


def _front_matter(facts: RunFacts) -> ModelCardData:
    """Metadata that the hub reads; results carry the split that they were measured on."""
    kind = facts.task.kind
    pipeline = _PIPELINES.get(kind, "text-classification")
    return ModelCardData(
        library_name="transformers",
        license=text.clean(facts.licences[0]) if len(facts.licences) == 1 else None,
        pipeline_tag=pipeline,
        tags=["distillkit", "knowledge-distillation", "onnx", kind],
        model_name=text.clean(facts.name),
        eval_results=[
            EvalResult(
                task_type=pipeline,
                task_name=_task_name(kind),
                dataset_type=text.clean(facts.name),
                dataset_name=text.clean(facts.name),
                dataset_split=facts.task.measured_on,
                metric_type=_METRIC_TYPES.get(name.rpartition(".")[2], text.label(name)),
                metric_name=text.label(name),
                metric_value=round(measured.value, 4),
            )
            for name, measured in facts.student.metrics.items()
        ],
    )


def _task_name(kind: str) -> str:
    return f"text {kind}" if kind in ("classification", "regression") else text.kind(kind)


def _environment() -> Environment:
    return environment().overlay(finalize=_shown)


def _shown(value: Any) -> Any:
    """What the card prints: text on one line, without home folders, its Markdown made literal."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return text.redact(text.clean(value)).translate(_SPECIAL)
