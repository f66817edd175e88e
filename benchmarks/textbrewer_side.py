"""TextBrewer's half of textbrewer_cost.py: runs in an environment of its own and never imports distillkit.

Usage: python textbrewer_side.py time|values REQUEST.npz REQUEST.json ANSWER.json
time: CPU seconds of `steps` training steps of GeneralDistiller (loss on scores, hidden MSE of four pairs,
gold), after `warmup` more. values: what its losses say of the given tensors.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from textbrewer import losses as theirs
from transformers import BertConfig, BertForSequenceClassification

PAIRS = [(0, 0), (1, 2), (2, 4), (3, 6)]
"""(student state, teacher state)."""


class Done(Exception):
    """Enough steps were timed."""


def model(layers: int, shape: dict[str, int]) -> Any:
    config = BertConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["width"],
        num_hidden_layers=layers,
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["width"],
        num_labels=2,
        output_hidden_states=True,
    )
    return BertForSequenceClassification(config)


def batches(arrays: Any, size: int, seed: int) -> Any:
    """Shuffled batches of `size` rows, padded to the longest of each."""
    lengths, tokens, labels = arrays["lengths"], arrays["tokens"], arrays["labels"]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = np.random.default_rng(seed).permutation(len(lengths))
    for first in range(0, len(order) - size + 1, size):
        rows = order[first : first + size]
        ids = np.zeros((size, lengths[rows].max()), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : lengths[row]] = tokens[starts[row] : starts[row + 1]]
        mask = (np.arange(ids.shape[1]) < lengths[rows][:, None]).astype(np.int64)
        yield {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels[rows]),
        }


def timed(arrays: Any, request: dict[str, Any]) -> dict[str, Any]:
    shape = request["shape"]
    teacher, student = model(6, shape).eval(), model(3, shape)
    clock = {"steps": 0, "start": 0.0, "seconds": 0.0}

    def loader() -> Any:
        for batch in batches(arrays, request["batch"], request["seed"]):
            if clock["steps"] == request["warmup"]:
                clock["start"] = time.process_time()
            if clock["steps"] == request["warmup"] + request["steps"]:
                clock["seconds"] = time.process_time() - clock["start"]
                raise Done
            clock["steps"] += 1
            yield batch

    class Loader:
        def __iter__(self) -> Any:
            return loader()

        def __len__(self) -> int:
            return len(arrays["lengths"]) // request["batch"]

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {
            "logits": outputs.logits,
            "hidden": outputs.hidden_states,
            "inputs_mask": batch["attention_mask"],
            "losses": outputs.loss,
        }

    matches = [
        {"layer_T": high, "layer_S": low, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for low, high in PAIRS
    ]
    distiller = GeneralDistiller(
        TrainingConfig(device="cpu", log_dir=None, output_dir=request["scratch"], ckpt_frequency=1),
        DistillationConfig(
            temperature=2, hard_label_weight=1.0, kd_loss_type="ce", intermediate_matches=matches
        ),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    try:
        with distiller:
            distiller.train(optimizer, Loader(), num_epochs=1, max_grad_norm=1.0, callback=None)
    except Done:
        pass
    return {"seconds": clock["seconds"], "examples": request["steps"] * request["batch"]}


def values(arrays: Any) -> dict[str, float]:
    student, teacher = (torch.from_numpy(arrays[name]) for name in ("student_states", "teacher_states"))
    mask = torch.from_numpy(arrays["mask"]).long()
    mine, told = (torch.from_numpy(arrays[name]) for name in ("student_logits", "teacher_logits"))
    scores = [torch.from_numpy(arrays[name]) for name in ("student_scores", "teacher_scores")]
    return {
        "hidden_mse": float(theirs.hid_mse_loss(student, teacher, mask)),
        "hidden_cosine": float(theirs.cos_loss(student, teacher)),
        "kd_mse": float(theirs.kd_mse_loss(mine, told)),
        "kd_ce": float(theirs.kd_ce_loss(mine, told, 1)),
        "attention_mse": float(theirs.att_mse_loss(*scores, mask)),
        "pkd": float(theirs.pkd_loss(student, teacher)),
    }


def main() -> None:
    what, array_file, request_file, answer_file = sys.argv[1:]
    arrays = np.load(array_file, allow_pickle=False)
    with open(request_file) as file:
        request = json.load(file)
    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    answer = timed(arrays, request) if what == "time" else values(arrays)
    with open(answer_file, "w") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
