"""CPU seconds of a distillation step against TextBrewer 0.2.1, on the same work, in turn in one run; and
what both say of the same tensors.

Teacher 6 x 384, student 3 x 384, loss on scores + hidden MSE of four pairs + gold, 32 examples a step,
sentences of MRPC, RTE and STS-B of 16 to 64 tokens. TextBrewer shuffles and pads to the longest of a batch,
as its examples do; distillkit batches as it always does, live and with its cache of the teacher. Each side
is a process of its own with one thread each, so that its CPU seconds are its own.

Needs an environment with `torch==2.13.0 transformers==4.57.6 textbrewer==0.2.1`, whose python
TEXTBREWER_PYTHON names, and the data.
Usage: TEXTBREWER_PYTHON=.../bin/python python benchmarks/textbrewer_cost.py
"""

from __future__ import annotations

from distillkit.settings import Labels

SEED, BATCH, WARMUP, STEPS, TURNS = 5, 32, 3, 20, 7
SHAPE = {"vocab": 30522, "width": 384, "heads": 12}
PAIRS = [(0, 0), (1, 2), (2, 4), (3, 6)]
SIDES = ("textbrewer", "live", "cached")
LABELS = Labels(kind="classification", names=("no", "yes"))
