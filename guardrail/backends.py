"""What computes a guard's logits: torch, or ONNX Runtime on CPUs.

A backend knows padded batches of token ids and nothing of texts, windows or calibration. The files of ONNX Runtime are
written, and compared with torch, by `guardrail.export`; ONNX Runtime is imported only where one of them is opened.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

BackendName = Literal["auto", "torch", "onnx", "onnx-int8"]
#: The exported backends, and their files within a guard directory.
ONNX_FILES: dict[BackendName, Path] = {
    "onnx": Path("onnx", "model.onnx"),
    "onnx-int8": Path("onnx", "model-int8.onnx"),
}

logger = logging.getLogger(__name__)

#: A core's caches hold the activations of so many tokens of a small model; more at once is no faster.
CPU_BATCH_TOKENS = 1024


class Backend(Protocol):
    """A classifier on one device.

    Attributes:
        name: of it.
        batch_tokens: that are best read at once, padding included.
        call_tokens: that could be read in the time a call takes beside reading; 0: no batch has padding.
    """

    name: BackendName
    batch_tokens: int
    call_tokens: int

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the logits of a batch, float32 [batch, labels].

        Args:
            input_ids: token ids, padded, int64 [batch, length]; neither is 0.
            attention_mask: 1 for tokens, 0 for padding, int64 [batch, length].
        """


class TorchBackend:
    """A transformers model, on the device that it is on."""

    name: BackendName = "torch"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        on_cpu = model.device.type == "cpu"
        self.batch_tokens, self.call_tokens = (CPU_BATCH_TOKENS, 64) if on_cpu else (4096, 1024)

    @torch.inference_mode()
    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the logits; see `Backend.logits`."""
        ids, mask = (torch.from_numpy(each).to(self.model.device) for each in (input_ids, attention_mask))
        return self.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()


class OnnxBackend:
    """An exported guard in ONNX Runtime, on as many CPU threads as torch would use.

    Raises:
        ValueError: ONNX Runtime is not installed, or cannot read the file.
    """

    batch_tokens = CPU_BATCH_TOKENS
    call_tokens = 0  # a call takes as long as some eight tokens, and a mask in the model longer than such calls

    def __init__(self, file: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                "the onnx backends need ONNX Runtime: pip install 'onnxruntime>=1.20' (the extra [serve] has it)"
            ) from error
        self.name: BackendName = next((name for name, path in ONNX_FILES.items() if path.name == file.name), "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # it keeps a plan for each shape, and there are thousands
        try:
            # Fused with the sum before it, layer normalisation is not vectorised: a quarter of the time with int8.
            self._session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
            )
        except Exception as error:  # those of ONNX Runtime have no class in common
            raise ValueError(f"ONNX Runtime {onnxruntime.__version__} cannot read {file} ({error})") from error
        self._inputs = {each.name for each in self._session.get_inputs()}  # earlier exports have a mask

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the logits; see `Backend.logits`."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        (logits,) = self._session.run(["logits"], {name: given[name] for name in self._inputs})
        return logits


def load_backend(
    name: BackendName, directory: Path, exported: Mapping[str, Mapping[str, Any]], device: str | None
) -> Backend:
    """Load a backend of a guard directory.

    Args:
        name: "torch"; or "onnx" (float32) or "onnx-int8", which compute on CPUs; or "auto" (`fastest`).
        directory: of the guard.
        exported: `GuardCard.backends`.
        device: a torch device; None: CUDA where there is any, else the CPU.

    Raises:
        ValueError: there is no such backend, it does not compute on that device, its file is missing, not listed or not
            the one that is listed, or ONNX Runtime is missing.
    """
    if name == "auto":
        name = fastest(directory, exported, device)
        try:
            return load_backend(name, directory, exported, device)
        except ValueError as error:
            if name == "torch":
                raise
            logger.warning("%s. Torch computes instead.", error)
            name = "torch"
    if name == "torch":
        model = AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True, dtype=torch.float32)
        return TorchBackend(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    if name not in ONNX_FILES:
        raise ValueError(f"there is no backend {name!r}; there are auto, torch, {', '.join(ONNX_FILES)}")
    if device not in (None, "cpu"):
        raise ValueError(f"the backend {name} computes on CPUs, not on {device!r}; torch does")
    return OnnxBackend(exported_file(name, directory, exported))


def fastest(directory: Path, exported: Mapping[str, Mapping[str, Any]], device: str | None = None) -> BackendName:
    """Return the fastest backend there is of a guard directory: on the CPU int8, else float32, else torch."""
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    if on_cpu and importlib.util.find_spec("onnxruntime"):
        for name in ("onnx-int8", "onnx"):
            if name in exported and (directory / ONNX_FILES[name]).is_file():
                return name
    return "torch"


def exported_file(name: BackendName, directory: Path, exported: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return the file of an exported backend.

    Raises:
        ValueError: it is missing, not listed, or not the one that is listed; the message names the command to run.
    """
    file = directory / ONNX_FILES[name]
    if not file.is_file():
        problem = f"{directory} has no {ONNX_FILES[name]}"
    elif name not in exported:
        problem = f"the guard.json of {directory} does not list the backend {name}"
    elif file_digest(file) != exported[name].get("sha256"):
        problem = f"{file} is not the file that guard.json lists"
    else:
        return file
    options = " --int8 --data NAME_OR_FILE ..." if name == "onnx-int8" else ""
    raise ValueError(f"{problem}; run python -m guardrail.export {directory}{options}")


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
