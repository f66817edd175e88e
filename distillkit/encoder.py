"""A Hugging Face encoder with a head (`distillkit.heads`) as a Student: logits, every block's output,
interventions.

The model is used unmodified: states are what its blocks take and return, read by forward hooks (`hidden[0]`
is the input of the first block, `hidden[l]` the output of block l, before any norm that some families apply
after the last block). Folders are read without running anything they say: safetensors only, no code, no
network.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from optimum.utils import NormalizedConfig, NormalizedConfigManager, NormalizedTextConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from distillkit.errors import DivergedError, ModelError, SecurityError
from distillkit.heads import HEADS, Head, head_of
from distillkit.model import Student
from distillkit.settings import Labels
from distillkit.types import Access, Batch, Outputs, Projections, Spec, Swap, Want

_CODE_KEYS = ("auto_map", "custom_pipelines")
_PARTS = ("query", "key", "value")
_PROJECTIONS = (
    _PARTS,
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
"""What the families of `transformers` call these three linear maps."""
_CAUSAL = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "codegen", "llama", "mistral")
"""Families whose tokens see only those before them."""
_LENGTH_FIRST = ("xlnet",)
"""Families whose blocks take and give states `[L, B, D]`."""
_IMPLEMENTATION = "_implementation"
"""A key that holds this names a kernel, which `transformers` may fetch and import."""
_BUILT_IN = (None, True, False, "eager", "sdpa")
_PICKLES = ("pytorch_model.bin", "model.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "pytorch_model*.bin")


class Encoder(Student):
    """A model of `transformers` that answers whole examples (`*ForSequenceClassification`), words
    (`*ForTokenClassification`) or masked tokens (`*ForMaskedLM`). Logits are fp32 `[N, V]`, `[B, 1]` for
    regression.
    """

    def __init__(self, model: PreTrainedModel, head: Head = HEADS["classification"]) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.spec = replace(spec_of(model.config), num_labels=head.num_labels(model.config))
        _check_end(self.spec, model.config)
        accepted = inspect.signature(model.forward).parameters
        unread = "token_type_ids" if self.spec.num_segments == 1 else ""  # RoBERTa takes them: zeros only
        self._accepted = tuple(name for name in accepted if name != unread)
        self._blocks = _blocks(model, self.spec.num_layers)
        self.length_first = model.config.model_type in _LENGTH_FIRST
        self._projections = [_projections(block) for block in self._blocks]
        self.spec = replace(self.spec, attention=all(self._projections))

    @property
    def blocks(self) -> nn.ModuleList:
        return self._blocks

    def layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """What the model's definition has before the blocks, and every table, wherever it stands; each block;
        all that is left: the head.
        """
        return by_depth(self.model, list(self._blocks))

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        inputs = {name: value for name, value in batch.inputs.items() if name in self._accepted}
        if batch.full:
            inputs.pop(
                "attention_mask", None
            )  # nothing is padded: attention without a mask is the same and faster
        states: dict[int, Tensor] = {}
        projected: dict[tuple[int, str], Tensor] = {}
        with ExitStack() as hooks:
            for index, change in (swap or {}).items():
                hooks.enter_context(changed(self._blocks[index], self._turning(change)))
            if want.attention:
                _check_attention(self.spec)
                for index, parts in enumerate(self._projections):
                    for part, module in parts.items():
                        hooks.enter_context(read(module, projected, (index, part)))
            if want.access >= Access.ALL_STATES:
                hooks.enter_context(read_input(self._blocks[0], states, 0))
                for index, block in enumerate(self._blocks, start=1):
                    hooks.enter_context(read(block, states, index))
            elif want.access == Access.FINAL_STATES:
                hooks.enter_context(read(self._blocks[-1], states, 0))
            logits = self.head.logits(self.model, inputs, batch)
        attention = (
            Projections(*(_heads(projected[index, part], self.spec.num_heads) for part in _PARTS))
            for index in range(len(projected) // len(_PARTS))
        )
        hidden = (self._turned(states[index]) for index in range(len(states)))
        return Outputs(logits=logits.float(), hidden=tuple(hidden), attention=tuple(attention))

    def _turned(self, states: Tensor) -> Tensor:
        """`[B, L, D]` of what a block gives, or the other way round."""
        return states.transpose(0, 1) if self.length_first else states

    def _turning(self, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same change of what a block gives."""
        return lambda states: self._turned(change(self._turned(states)))

    def exportable(self) -> nn.Module:
        model = copy.deepcopy(self.model).eval()
        model.set_attn_implementation("eager")
        kind = ExportableXLNet if self.length_first else ExportableEncoder
        return kind(
            model,
            tuple(
                name for name in ("input_ids", "attention_mask", "token_type_ids") if name in self._accepted
            ),
        )

    @property
    def config(self) -> Mapping[str, Any]:
        told: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=False))
        return {**told, "architectures": [type(self.model).__name__]}

    def save(self, folder: Path, labels: Labels) -> None:
        """A Hugging Face folder: config.json with the labels by name, model.safetensors."""
        self.head.set_labels(self.model.config, labels)
        self.model.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read a whole model with its head. Raises ModelError (4) where weights are missing or do not fit,
        SecurityError (11) where reading would run code, DivergedError (6) where a weight is not finite."""
        config = load_config(folder)
        head = head_of(config, str(folder))
        with torch.device("meta"):
            empty = bare(head.auto, head.suffix, config)
        model, _ = load_weights(head.auto, folder, config)
        check_weights(empty, folder)
        return cls(model, head)


class ExportableEncoder(nn.Module):
    """Takes token tensors `[B, L]` by keyword, returns logits `[B, V]`, or `[B, L, V]` where tokens are
    answered; attention is eager, so that it traces.
    """

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.input_names = model, input_names

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        logits: Tensor = self.model(**inputs, return_dict=True).logits
        return logits


class ExportableXLNet(ExportableEncoder):
    """The same of an XLNet. As `transformers` writes them, torch's exporter follows neither its mask of whole
    numbers nor the shift of its scores.
    """

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...]) -> None:
        super().__init__(model, input_names)
        for part in model.modules():
            if isinstance(part, XLNetRelativeAttention):
                part.rel_shift_bnij = shifted

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        return super().forward(input_ids, attention_mask.float(), token_type_ids)


def shifted(scores_BHLR: Tensor, klen: int) -> Tensor:
    """`[B, H, L, klen]`: each query's scores by the place of a key, from those by distance: of query i the
    r-th is that of key i - L + r."""
    B, H, L, _ = scores_BHLR.shape
    places = torch.arange(L, device=scores_BHLR.device)[:, None]
    keys = torch.arange(klen, device=scores_BHLR.device)[None, :]
    return scores_BHLR.gather(3, (keys - places + L).expand(B, H, L, klen))


def by_depth(model: nn.Module, blocks: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """A model's parameters: what its definition has before the blocks, and every table, wherever it stands
    but in a block; each block; all that is left.
    """
    place = {one: index for index, block in enumerate(blocks, start=1) for one in block.parameters()}
    tables = (part for part in model.modules() if isinstance(part, nn.Embedding))
    weights = (weight for table in tables for weight in table.parameters())
    place |= {weight: 0 for weight in weights if weight not in place}
    found: list[list[nn.Parameter]] = [[] for _ in range(len(blocks) + 2)]
    for parameter in model.parameters():
        passed = any(found[1:])
        found[place.get(parameter, len(found) - 1 if passed else 0)].append(parameter)
    return found


def spec_of(config: PretrainedConfig) -> Spec:
    """Sizes of any encoder, through optimum's normalised configs. Raises ModelError for an
    encoder-decoder."""
    if config.is_encoder_decoder:
        raise ModelError(f"{config.model_type!r} is an encoder-decoder; this needs an encoder", where="model")
    try:
        names = names_of(config)
        layers, width, heads = names.num_layers, names.hidden_size, names.num_attention_heads
    except (KeyError, AttributeError) as error:
        raise ModelError(
            f"the sizes of a {config.model_type!r} are not known: {error}",
            where="model",
            hint="use a custom teacher",
        ) from None
    values = config.to_dict()
    ffn = next(
        (
            values[name]
            for name in ("intermediate_size", "hidden_dim", "ffn_dim", "d_inner", "n_inner")
            if isinstance(values.get(name), int)
        ),
        4 * width,
    )
    return Spec(
        num_layers=layers,
        hidden_dim=width,
        num_heads=heads,
        ffn_dim=ffn,
        vocab_size=config.vocab_size,
        num_labels=config.num_labels,
        max_length=usable_positions(config),
        num_segments=max(1, int(values.get("type_vocab_size") or 1)),
        causal=config.model_type in _CAUSAL,
    )


def names_of(config: PretrainedConfig) -> NormalizedConfig:
    """The sizes of a config under the same names for every family. Raises KeyError for one not known."""
    if config.model_type in _LENGTH_FIRST:  # optimum knows no XLNet, which knows the usual names
        return NormalizedTextConfig(config)
    return NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)


def usable_positions(config: PretrainedConfig) -> int:
    """Longest input: RoBERTa's family numbers positions from padding + 1, so two of its rows are never
    reached.
    """
    values = config.to_dict()
    positions = int(values.get("max_position_embeddings") or values.get("n_positions") or 512)
    offset = config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")
    return positions - 2 if offset and positions > 2 else positions


def load_config(folder: Path) -> PretrainedConfig:
    """The config of a foreign folder, looked at before `transformers` sees it."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            "no config.json: not a model folder",
            where=str(folder),
            hint="give the folder that save_pretrained wrote",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        raise ModelError("not a JSON file", where=str(path)) from None
    for key in _that_can_load_code(values):
        raise SecurityError(
            f"the folder's config sets {key!r}, which can load code",
            where=str(path),
            hint=f"remove {key!r} to use the built-in classes",
        )
    if not _weights(folder):
        pickles = sorted(entry.name for pattern in _PICKLES for entry in folder.glob(pattern))
        if pickles:
            raise SecurityError(
                f"the weights are pickled ({pickles[0]}); unpickling runs code",
                where=str(folder),
                hint="convert them to safetensors in an isolated environment",
            )
        raise ModelError("no *.safetensors in the folder", where=str(folder))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"config.json is not understood: {str(error).splitlines()[0]}", where=str(path)
        ) from None
    return config


def label_names(folder: Path) -> tuple[str, ...]:
    """The names of the classes in a saved model's config.json, in id order; empty where it has none."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError("not a model's config.json", where=str(path)) from None
    named = values.get("id2label", {})
    return tuple(values.get("labels", [named[key] for key in sorted(named, key=int)]))


def folder_digest(folder: Path) -> str:
    """sha256 over the names and bytes of a model folder's config, weights and tokenizer files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _that_can_load_code(values: Any) -> Iterator[str]:
    """Keys of a config, or of one inside it, by which a folder can have code loaded."""
    if isinstance(values, list):
        for part in values:
            yield from _that_can_load_code(part)
    if isinstance(values, dict):
        for key, value in values.items():
            named = list(value.values()) if isinstance(value, dict) else [value]
            if key in _CODE_KEYS or (_IMPLEMENTATION in key and any(one not in _BUILT_IN for one in named)):
                yield key
            yield from _that_can_load_code(value)


def stored_weights(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every stored tensor, checked to be finite. Raises ModelError or DivergedError."""
    shapes = {}
    for path in _weights(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    tensor = file.get_tensor(name)
                    shapes[name] = list(tensor.shape)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        raise DivergedError(
                            f"weight {name!r} holds NaN or infinity",
                            where=str(path),
                            hint="the model is broken; train or fetch it again",
                        )
        except SafetensorError as error:
            raise ModelError(f"damaged: {error}", where=str(path)) from None
    return shapes


def load_body(folder: Path, labels: Labels) -> Encoder:
    """A model whose body comes from a folder, whatever it was trained for, and whose head is fresh; for
    masked tokens the folder's own head.

    A pooler that the folder lacks (it was trained on masked tokens
    alone) is fresh too. Raises ModelError (4) where other weights of the body are missing or do not fit.
    """
    if labels.kind == "mlm":
        return load_masked(folder)
    config = load_config(folder)
    stored_weights(folder)
    body, missing = load_weights(AutoModel, folder, config)
    lost = sorted(name for name in missing if "pooler" not in name)
    if lost:
        raise ModelError(
            f"{len(lost)} weights of the body are missing ({', '.join(lost[:10])})", where=str(folder)
        )
    model = fresh(config, labels)
    target = model.model.base_model
    weights = {
        name: tensor.clone() for name, tensor in body.state_dict().items() if name in target.state_dict()
    }
    target.load_state_dict(weights, strict=True)
    return model


def load_masked(folder: Path) -> Encoder:
    """The masked language model of a folder that holds one, alone or beside other heads.

    Raises ModelError (4) where its head, or a part of the body, is missing or does not fit.
    """
    config, head = load_config(folder), HEADS["mlm"]
    stored_weights(folder)
    model, missing = load_weights(head.auto, folder, config)
    if missing:
        raise ModelError(
            f"the folder holds no whole masked language model: {len(missing)} weights are missing "
            f"({', '.join(missing[:10])})",
            where=str(folder),
            hint="take one that was trained on masked tokens",
        )
    return Encoder(model, head)


def fresh(config: PretrainedConfig, labels: Labels) -> Encoder:
    """A model with fresh weights that answers the task."""
    head = HEADS[labels.kind]
    head.set_labels(config, labels)
    return Encoder(bare(head.auto, head.suffix, config), head)


def bare(auto: Any, suffix: str, config: PretrainedConfig) -> PreTrainedModel:
    """A model with fresh weights. Raises ModelError where nothing like it can be made of this config."""
    try:
        model: PreTrainedModel = auto.from_config(config)
    except (ValueError, ImportError) as error:
        raise ModelError(
            f"nothing {suffix} can be made of a {config.model_type!r}: {str(error).splitlines()[0]}",
            where="model",
        ) from None
    return model


def load_weights(kind: Any, folder: Path, config: PretrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """The model in fp32, and the names of its weights that the folder does not hold."""
    try:
        model, info = kind.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"the weights do not fit: {str(error).splitlines()[0]}", where=str(folder)) from None
    return model, sorted(info["missing_keys"])


def check_weights(empty: PreTrainedModel, folder: Path) -> None:
    """Raise ModelError where a folder lacks weights of this model, or holds others."""
    missing, unexpected = _compare(empty, folder)
    if missing or unexpected:
        inside = empty.base_model_prefix + "."
        of_body = any(name.startswith(inside) for name in (*missing, *unexpected))
        raise ModelError(
            f"{len(missing)} weights missing ({', '.join(missing[:10]) or 'none'}), "
            f"{len(unexpected)} unexpected "
            f"({', '.join(unexpected[:10]) or 'none'})",
            where=str(folder),
            hint="it was cut, or its config.json is another model's: save the model again"
            if of_body
            else "a head that was never trained is not guessed: set `finetune`",
        )


def _compare(empty: nn.Module, folder: Path) -> tuple[list[str], list[str]]:
    """Weights that a folder lacks or has in another shape, and those that the model does not know; of weights
    that are tied one is enough.
    """
    wanted = {name: list(tensor.shape) for name, tensor in empty.state_dict().items()}
    stored = stored_weights(folder)
    held = {id(one) for name, one in _named(empty) if stored.get(name) == wanted[name]}
    tied = {name for name, one in _named(empty) if name not in stored and id(one) in held}
    missing = sorted(
        name
        for name, shape in wanted.items()
        if stored.get(name) != shape and name not in tied and not name.endswith("position_ids")
    )
    unexpected = sorted(name for name in stored if name not in wanted and not name.endswith("position_ids"))
    return missing, unexpected


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every name of every parameter, tied ones included."""
    return model.named_parameters(remove_duplicate=False)


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def _blocks(model: PreTrainedModel, num_layers: int) -> nn.ModuleList:
    """The list of blocks: the first ModuleList whose length is the model's depth."""
    parts = model.base_model.modules()
    blocks = next(
        (part for part in parts if isinstance(part, nn.ModuleList) and len(part) == num_layers), None
    )
    if blocks is None:
        raise ModelError(
            f"the blocks of a {model.config.model_type!r} were not found",
            where="model",
            hint="use a custom teacher",
        )
    return blocks


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _projections(block: nn.Module) -> dict[str, nn.Module]:
    """The three linear maps that make a block's queries, keys and values; empty where it has none of their
    own under a name that is known.
    """
    named = {name.rsplit(".", 1)[-1]: part for name, part in block.named_modules()}
    for names in _PROJECTIONS:
        if all(name in named for name in names):
            return {part: named[name] for part, name in zip(_PARTS, names, strict=True)}
    return {}


def _check_end(spec: Spec, config: PretrainedConfig) -> None:
    """A causal model answers from the last token that is not padding. Raises ModelError where that is not
    known."""
    if spec.causal and config.pad_token_id is None:
        raise ModelError(
            f"the config of this {config.model_type!r} names no padding token, behind which no text goes on",
            where="config.json",
            hint="set pad_token_id to its tokenizer's",
        )


def _check_attention(spec: Spec) -> None:
    if not spec.attention:
        raise ModelError(
            "queries, keys and values were not found in the blocks of this model",
            where="model",
            hint="it computes them together; use a loss on hidden states instead",
        )


def _heads(states_BLD: Tensor, num_heads: int) -> Tensor:
    """`[B, L, D]` -> `[B, H, L, D / H]`."""
    B, L, D = states_BLD.shape
    return states_BLD.view(B, L, num_heads, D // num_heads).transpose(1, 2)


@contextmanager
def read(module: nn.Module, states: dict[Any, Tensor], index: Any) -> Iterator[None]:
    """Within, what a module gives is kept in `states[index]`."""
    handle = module.register_forward_hook(
        lambda _module, _inputs, output: states.__setitem__(index, _first(output))
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def given(block: nn.Module, states_BLD: Tensor) -> Iterator[None]:
    """Within, a block takes these states, whatever it is called with."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (states_BLD, *inputs[1:]), named
        return inputs, {**named, "hidden_states": states_BLD}

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def read_input(module: nn.Module, states: dict[int, Tensor], index: int) -> Iterator[None]:
    """Within, what a module takes is kept in `states[index]`."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        states[index] = inputs[0] if inputs else named["hidden_states"]

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, a module gives what `change` makes of it."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy every weight of `source` into `target`, which has the same names and shapes."""
    weights: Mapping[str, Tensor] = source.state_dict()
    target.load_state_dict({name: tensor.detach().clone() for name, tensor in weights.items()}, strict=True)
