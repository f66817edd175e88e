"""ONNX Runtime sessions whose graph runs in OpenVINO, on the CPU: the same .onnx, through a plugin that a
package of its own brings.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from distillkit.errors import MissingError
from distillkit.runtime.check import check_model
from distillkit.runtime.session import session_of, session_options

INSTALL = "pip install 'distillkit[openvino]'"
_NAME = "OpenVINOExecutionProvider"
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def open_openvino(path: Path, *, precision: str, threads: int) -> Any:
    """A session in OpenVINO with arithmetic in `precision` (fp32, bf16), which it would else choose by
    itself: bf16 where the CPU has it. Inputs and outputs keep their types.

    Raises MissingError (5) where the plugin is not installed or does not take the graph, otherwise as
    `open_session`.
    """
    import onnxruntime

    check_model(path)
    options = session_options(threads=threads, spinning=False)
    hints = {
        "CPU": {"INFERENCE_PRECISION_HINT": _PRECISIONS[precision], "INFERENCE_NUM_THREADS": str(threads)}
    }
    options.add_provider_for_devices(_devices(onnxruntime), {"load_config": json.dumps(hints)})
    return session_of(path, options, _NAME)


@cache  # a second time would be refused
def _register(library: str) -> None:
    import onnxruntime

    onnxruntime.register_execution_provider_library(_NAME, library)


def _devices(onnxruntime: Any) -> list[Any]:
    """OpenVINO's CPU, with its plugin registered."""
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError:
        raise MissingError("OpenVINO is not installed here", where="provider", hint=INSTALL) from None
    _register(plugin.get_library_path())
    found = [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == _NAME and device.ep_metadata.get("ov_device") == "CPU"
    ]
    if not found:
        problem = "OpenVINO's plugin offers no CPU here (seen on one of AMD)"
        raise MissingError(problem, where="provider", hint="ask for cpu")
    return found
