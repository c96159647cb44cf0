"""One batch size's own place on a device: the input is copied to the same memory at every run, never allocated anew.

onnxruntime's I/O binding. Without it `run` takes memory for the input from the device's arena each time.
"""

import threading

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bundle.contract import IMAGES, LOGITS, SIMILARITY


class BoundBatch:
    """Runs batches of one size on a session. `device` is "cuda" or "cpu"."""

    def __init__(self, session: ort.InferenceSession, size: int, *, crop_px: int, device: str) -> None:
        self._session = session
        self._shape = (size, crop_px, crop_px, 3)
        self._images = ort.OrtValue.ortvalue_from_shape_and_type(self._shape, np.uint8, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(IMAGES.name, self._images)
        for output in (LOGITS, SIMILARITY):
            self._binding.bind_output(output.name, "cpu")  # a few floats
        self._lock = threading.Lock()

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]] | None:
        """Return logits (N, C) and similarities (N,) for uint8 (N, H, W, 3).

        None for an array of another shape or type, and while another thread runs here.
        """
        if images.shape != self._shape or images.dtype != np.uint8 or not self._lock.acquire(blocking=False):
            return None
        try:
            self._images.update_inplace(images)
            self._session.run_with_iobinding(self._binding)
            outputs: list[NDArray[np.float32]] = self._binding.copy_outputs_to_cpu()  # the next run may overwrite them
            return outputs
        finally:
            self._lock.release()
