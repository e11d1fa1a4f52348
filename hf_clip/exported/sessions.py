"""Sessions of ONNX Runtime and OpenVINO: functions from named arrays to the first output of a graph."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..utils.packages import require
from ..utils.text import first_line
from ..utils.threads import thread_count
from .mapped_onnx import without_weights

Session = Callable[[Mapping[str, np.ndarray]], np.ndarray]

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
PROVIDERS = {"cpu": [], "cuda": ["CUDAExecutionProvider"]}
OPENVINO_DEVICES = {"cpu": "CPU", "xpu": "GPU"}


def check_onnx_device(name: str, device: str) -> None:
    """Raise ValueError unless ONNX Runtime can use the device; `name` is named as refused."""
    require("onnxruntime", "onnx", name)
    import onnxruntime

    wanted = PROVIDERS.get(device)
    available = onnxruntime.get_available_providers()
    if wanted is None or set(wanted) - set(available):
        raise ValueError(
            f"{name} cannot run on {device}, this onnxruntime has {', '.join(available)}: pass device='cpu', "
            "or install the onnxruntime of the device"
        )


def open_onnx(file: Path, device: str) -> Session:
    """Open a graph on ONNX Runtime; a call of the session returns the first output."""
    check_onnx_device(file.name, device)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.log_severity_level = 3  # errors
    providers = [*PROVIDERS[device], "CPUExecutionProvider"]
    try:
        graph: str | bytes = str(file)
        if not file.with_name(f"{file.name}_data").exists():
            # weights inside the graph would be parsed, and held twice; a cache of the Hub has links to files
            held = file.resolve()
            options.add_session_config_entry(WEIGHTS_FOLDER, str(held.parent))
            graph = without_weights(held)
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # onnxruntime has its own classes, below Exception
        raise ValueError(
            f"{file} cannot be opened ({first_line(error)[:200]}): copy it with its _data, or export again"
        ) from error
    return lambda inputs: session.run(None, dict(inputs))[0]


def check_openvino_device(name: str, device: str) -> None:
    """Raise ValueError unless OpenVINO can use the device; `name` is named as refused."""
    require("openvino", "openvino", name)
    import openvino

    available = openvino.Core().available_devices
    if OPENVINO_DEVICES.get(device) not in available:
        raise ValueError(f"{name} cannot run on {device}, this OpenVINO has {', '.join(available)}: pass device='cpu'")


def open_openvino(file: Path, device: str) -> Session:
    """Open a graph on OpenVINO; a call of the session returns the first output, computed in float32."""
    check_openvino_device(file.name, device)
    import openvino

    name, core = OPENVINO_DEVICES[device], openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    if name == "CPU":
        settings["INFERENCE_NUM_THREADS"] = str(thread_count())
        # kernels are cached for each shape, and the cache grew by a megabyte for each length and batch of texts
        settings["CPU_RUNTIME_CACHE_CAPACITY"] = "0"
    try:
        compiled = core.compile_model(str(file), name, settings)
    except RuntimeError as error:
        raise ValueError(
            f"{file} cannot be opened ({first_line(error)[:200]}): copy it with its .bin, or export again"
        ) from error
    # threads may share the model: an inference request holds the buffers of one call
    return lambda inputs: compiled.create_infer_request().infer(dict(inputs))[0].copy()


def runtime_device(runtime: str) -> str:
    """Return "cuda" if the runtime was installed for it, else "cpu"."""
    if runtime == "onnx" and find_spec("onnxruntime") is not None:
        import onnxruntime

        if set(PROVIDERS["cuda"]) <= set(onnxruntime.get_available_providers()):
            return "cuda"
    return "cpu"


OPEN = {"onnx": open_onnx, "openvino": open_openvino}
CHECK_DEVICE = {"onnx": check_onnx_device, "openvino": check_openvino_device}

__all__ = ["CHECK_DEVICE", "OPEN", "Session", "runtime_device"]
