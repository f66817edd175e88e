"""The JSON schema of a config, in the draft-07 form that editors understand."""

from __future__ import annotations

from typing import Any

from distillkit.settings import RunConfig

DRAFT = "http://json-schema.org/draft-07/schema#"


def json_schema(model: type[RunConfig]) -> dict[str, Any]:
    """pydantic's schema (draft 2020-12) with its newer words put in draft-07's."""
    return {"$schema": DRAFT, **_draft_07(model.model_json_schema())}


def _draft_07(node: Any) -> Any:
    if isinstance(node, list):
        return [_draft_07(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    changed = {
        _NAMES.get(key, key): _draft_07(value) for key, value in node.items() if key != "discriminator"
    }
    if "prefixItems" in node:
        changed["additionalItems"] = False
    if isinstance(reference := changed.get("$ref"), str):
        changed["$ref"] = reference.replace("#/$defs/", "#/definitions/")
    return changed


_NAMES = {"$defs": "definitions", "prefixItems": "items"}
