"""An ONNX Runtime session whose inputs and logits lie in buffers of one shape on the device (IO binding):
what a server with fixed shapes does on a GPU, where making and copying arrays costs more than a small model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit.runtime.description import OUTPUT
from distillkit.types import Batch


class Bound:
    """The session for batches of one shape; device: cpu or cuda."""

    def __init__(self, session: Any, batch: Batch, device: str) -> None:
        import onnxruntime

        arrays = self._arrays(session, batch)
        made = onnxruntime.OrtValue
        self._session, self._binding = session, session.io_binding()
        self._inputs = {name: made.ortvalue_from_numpy(one.copy(), device, 0) for name, one in arrays.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        shape = session.run([OUTPUT], arrays)[0].shape
        self._logits = made.ortvalue_from_shape_and_type(list(shape), np.float32, device, 0)
        self._binding.bind_ortvalue_output(OUTPUT, self._logits)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """The logits of all tokens or examples of a batch of that shape."""
        for name, array in self._arrays(self._session, batch).items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        logits: NDArray[np.float32] = self._logits.numpy()
        return logits

    @staticmethod
    def _arrays(session: Any, batch: Batch) -> dict[str, NDArray[Any]]:
        names = [entry.name for entry in session.get_inputs()]
        return {name: np.ascontiguousarray(batch.inputs[name].numpy()) for name in names}
