"""Tiny encoder-decoders, a tokenizer with an end token, and rows whose target is the source backwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tiny import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config

from distillkit.data.batching import Encoded, encode
from distillkit.data.layouts import TextToText
from distillkit.data.tasks import Rows
from distillkit.encoder_decoder import EncoderDecoder, fresh
from distillkit.settings import Labels

FamilyName = Literal["t5", "bart"]
LABELS = Labels(kind="text_to_text")
LEXICON = """
river mountain yellow garden winter summer basket candle dragon engine forest guitar hammer island jungle
kitten ladder market needle orange pencil rabbit silver tunnel velvet window zipper bottle circle dinner
""".split()  # noqa: SIM905 - one can read it
SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")


def tokenizer(family: FamilyName = "t5", words: list[str] = WORDS) -> PreTrainedTokenizerBase:
    """A token for each word; `text </s>` in T5, `<s> text </s>` in BART."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = "$A </s>" if family == "t5" else "<s> $A </s>"
    special = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def model(
    family: FamilyName = "t5",
    *,
    seed: int = 0,
    encoder: int = 2,
    decoder: int = 2,
    width: int = 16,
    vocab: int = len(WORDS) + len(SPECIAL),
    **changes: Any,
) -> EncoderDecoder:
    """Random weights, larger than fresh ones, so that texts differ."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": vocab, "d_model": width, **changes}
    if family == "t5":
        config: Any = T5Config(
            **sizes,
            d_kv=width // 2,
            d_ff=2 * width,
            num_layers=encoder,
            num_decoder_layers=decoder,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    else:
        config = BartConfig(
            **sizes,
            encoder_layers=encoder,
            decoder_layers=decoder,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=2 * width,
            decoder_ffn_dim=2 * width,
            max_position_embeddings=48,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=3,
            eos_token_id=1,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
            init_std=0.4,
        )
    return fresh(config).eval()


def pairs(count: int, *, seed: int = 0, longest: int = 7) -> list[tuple[str, str]]:
    """Some words, and the same backwards."""
    generator = np.random.default_rng(seed)
    chosen = [generator.choice(WORDS, size=generator.integers(1, longest)).tolist() for _ in range(count)]
    return [(" ".join(words), " ".join(reversed(words))) for words in chosen]


def rows(count: int = 20, *, seed: int = 0, longest: int = 7, prefix: str = "", most: int = 16) -> Rows:
    sources, targets = zip(*pairs(count, seed=seed, longest=longest), strict=True)
    return Rows(
        ids=np.arange(count),
        texts=tuple((text,) for text in sources),
        labels=np.asarray(targets, dtype=object),
        digest=f"pairs {count} {seed} {longest}",
        layout=TextToText(prefix, most),
    )


def encoded(cache: Path, count: int = 20, *, family: FamilyName = "t5", **how: Any) -> Encoded:
    return encode(rows(count, **how), tokenizer(family), max_length=16, cache=cache)


def save(folder: Path, made: EncoderDecoder, family: FamilyName = "t5") -> Path:
    """A Hugging Face folder with a tokenizer."""
    made.save(folder, LABELS)
    tokenizer(family).save_pretrained(folder)
    return folder


def write_rows(folder: Path, rows: int = 200, *, longest: int = 4, words: int = 12) -> None:
    """Files of the task over few words, which a tiny model learns."""
    generator = np.random.default_rng(4)
    for split, count in (("train", rows), ("validation", 40)):
        lines = []
        for _ in range(count):
            chosen = generator.choice(WORDS[:words], size=generator.integers(1, longest)).tolist()
            line = {"source": " ".join(chosen), "target": " ".join(reversed(chosen))}
            lines.append(json.dumps(line) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


def lively(made: EncoderDecoder) -> EncoderDecoder:
    """The same with larger maps and a likelier end, so that its texts hang on the source and end."""
    table = made.model.get_input_embeddings().weight
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.ndim == 2 and weight is not table and weight.shape[0] < len(table):
                weight.mul_(3)
        table[1].mul_(1.6)
    return made
