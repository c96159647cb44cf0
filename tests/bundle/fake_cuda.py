"""An onnxruntime with CUDA, for machines without."""

import onnxruntime as ort


class FakeCuda:
    """A session that says it runs on CUDA, where there is such a device, and runs on the CPU."""

    def __init__(self, session: type[ort.InferenceSession], *, has_device: bool, has_driver: bool = True) -> None:
        self._session = session
        self._has_device = has_device
        self._has_driver = has_driver

    def __call__(self, *args, providers: list[tuple[str, dict[str, str]]], **options):
        session = self._session(*args, providers=["CPUExecutionProvider"], **options)
        self.asked = providers
        if not self._has_driver and providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        if self._has_device and providers[0][0] == "CUDAExecutionProvider":
            session.get_providers = lambda: [name for name, _ in providers]
        return session
