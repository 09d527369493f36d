"""Export a guard for ONNX Runtime on CPUs, as float32 and as int8, once it is seen to judge as torch does.

    python -m guardrail.export GUARD                                    # GUARD/onnx/model.onnx
    python -m guardrail.export GUARD --int8 --data xstest my-set.jsonl  # and GUARD/onnx/model-int8.onnx

What is refused has its reason printed, exit status 2, and leaves neither a file nor an entry in guard.json. Nothing
else of a guard changes, nor does its digest. Files are written whole or not at all, and guard.json last.
"""

import argparse
import dataclasses
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from guardrail.backends import ONNX_FILES, BackendName, OnnxBackend, exported_file, file_digest
from guardrail.evaluation import evaluate_set
from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import load_evaluations
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.seeds import embedded_seeds

MAX_PROBABILITY_DIFFERENCE = 1e-3  # of float32 from torch; 2e-6 is usual
MAX_AUPRC_LOSS = 0.005  # of int8, on each evaluation set with both labels; it loses less
MAX_DECISION_LOSS = 0.01  # of int8, at the guard's threshold: of F1, of recall or by fpr where a set has one label
_SEEDS = 256  # texts that float32 and torch are compared on
_MAX_BYTES = 2**31 - 2**24  # of weights: protobuf holds 2 GiB in a file, some of it for the graph


# --- float32 --------------------------------------------------------------------------------------------------------


def export_float(directory: Path) -> GuardCard:
    """Write the backend "onnx" of a guard directory and return the guard's new card.

    Its entry there holds `sha256`, `max_probability_difference` from torch over all labels, and the number of `texts`:
    some of the shipped seeds, and all of these in one, which fills windows.

    Raises:
        ValueError: it is no guard, packages are missing, the model cannot be exported, or differs from torch by more
            than MAX_PROBABILITY_DIFFERENCE: then there is no such backend afterwards.
    """
    _check_installed()
    directory = directory.resolve()  # RUN/guard is a link, and may name another guard by the time this ends
    guard = Guard.from_pretrained(directory, device="cpu")
    with _work_folder(directory) as folder:
        file, fused = folder / "model.onnx", folder / "fused.onnx"
        _write_onnx(guard.model, file)
        texts = _texts()
        wanted = guard.probabilities(texts)

        def difference_of(file: Path) -> float:
            exported = Guard(OnnxBackend(file), guard.tokenizer, guard.card)
            return float(np.abs(exported.probabilities(texts) - wanted).max())

        difference = difference_of(fused) if _write_fused(guard.model, file, fused) else np.inf
        if difference <= MAX_PROBABILITY_DIFFERENCE:
            file = fused
        else:
            difference = difference_of(file)
        if not difference <= MAX_PROBABILITY_DIFFERENCE:  # nor may it be NaN
            _withdraw("onnx", directory)
            raise ValueError(
                f"the exported model is refused: its probabilities differ from torch's by up to {difference:.1e}, and "
                f"at most {MAX_PROBABILITY_DIFFERENCE:.0e} is allowed"
            )
        figures = {"max_probability_difference": difference, "texts": len(texts)}
        return _enter("onnx", file, directory, guard.card.digest, figures)


def _write_onnx(model: PreTrainedModel, file: Path) -> None:
    if model.num_parameters() * 4 > _MAX_BYTES:
        raise ValueError(f"{model.num_parameters():,} parameters are too many: an ONNX file holds at most 2 GiB")
    model.config.use_cache = False  # of decoders: nothing is generated
    # Fused attention is exported with more nodes, which guard every layer against rows without a token.
    model.set_attn_implementation("eager")
    pad = model.config.pad_token_id or 0
    ids = torch.tensor([[pad + 1, pad + 2, pad + 3], [pad + 4, pad + 5, pad + 6]])
    ids %= model.get_input_embeddings().num_embeddings
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}  # fails where an axis would be fixed
    try:
        with _quiet():
            program = torch.onnx.export(
                _Logits(model).eval(),
                (ids,),
                input_names=["input_ids"],
                output_names=["logits"],
                dynamo=True,
                dynamic_shapes=(any_size,),
                verbose=False,
            )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with paths of this machine
        program.save(file, external_data=False)
    except RuntimeError as error:  # as all of the exporter's errors are
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"a {model.config.model_type} model cannot be exported with this torch ({reason})") from error


def _write_fused(model: PreTrainedModel, file: Path, fused: Path) -> bool:
    """Write a graph with attention in one node, if there is any that can be; it may compute something else."""
    import onnx

    from guardrail.onnx_graph import fuse_attention

    graph = onnx.load(file)
    if found := fuse_attention(graph, model.config.num_attention_heads):
        onnx.save(graph, fused)
    return found > 0


class _Logits(torch.nn.Module):
    """The model with ids as its only input, and logits as its only output.

    It has no attention mask: the backend pads nothing, and adding one to the scores of every layer takes time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids).logits


def _texts() -> list[str]:
    seeds = [seed["text"] for seed in embedded_seeds()]
    sample = seeds[:: max(1, len(seeds) // _SEEDS)]
    return [*sample, "\n".join(sample)]


# --- int8 -----------------------------------------------------------------------------------------------------------


def export_int8(directory: Path, sets: Mapping[str, Sequence[EvaluationItem]]) -> GuardCard:
    """Write the backend "onnx-int8" of a guard directory that has "onnx", and return the guard's new card.

    Its entry there holds `sha256` and, as {SET: {"torch", "onnx-int8"}}, `auprc` and `f1` of each set with both labels,
    `recall` of those with unsafe items only, `fpr` of those with benign ones only; all but `auprc` at the guard's
    threshold, which was fitted with torch.
    Activations are quantised as they come, with one scale for all that is read at once: a text's score depends on those
    of its length beside it.

    Args:
        directory: of the guard.
        sets: evaluation sets by name, at least one of them with both labels.

    Raises:
        ValueError: no set has both labels, "onnx" is missing, packages are, or int8 loses too much (`losses`): then
            there is no such backend afterwards.
    """
    check_labels(sets)
    _check_installed()
    directory = directory.resolve()
    guard = Guard.from_pretrained(directory, device="cpu")
    exported_file("onnx", directory, guard.card.backends)
    with _work_folder(directory) as folder:
        file = folder / "model-int8.onnx"
        _quantise(directory / ONNX_FILES["onnx"], file, guard)
        quantised = Guard(OnnxBackend(file), guard.tokenizer, guard.card)
        figures: dict[str, dict[str, dict[str, float]]] = {}
        for name, items in sets.items():
            before, after = evaluate_set(guard, items), evaluate_set(quantised, items)
            for metric in _compared_by(items):
                figures.setdefault(metric, {})[name] = {"torch": before[metric], "onnx-int8": after[metric]}
        if lost := losses(figures):
            _withdraw("onnx-int8", directory)
            raise ValueError(
                f"the int8 model is refused: it may lose less than {MAX_AUPRC_LOSS} of auprc and, at the guard's "
                f"threshold, at most {MAX_DECISION_LOSS} of f1 (of recall or fpr where all items have one label), and "
                f"loses more: {', '.join(lost)}"
            )
        return _enter("onnx-int8", file, directory, guard.card.digest, figures)


def _compared_by(items: Sequence[EvaluationItem]) -> tuple[str, ...]:
    """Return the metrics that int8 is compared with torch by: a set with one label defines neither AUPRC nor F1."""
    labels = {item.unsafe for item in items}
    return ("auprc", "f1") if len(labels) == 2 else ("recall",) if True in labels else ("fpr",)


def losses(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return where int8 loses too much, in words.

    Args:
        figures: {METRIC: {SET: {"torch", "onnx-int8"}}} of auprc, f1, recall and fpr, the last of which should be low.
    """
    lost = []
    for metric, by_set in figures.items():
        for name, each in by_set.items():
            loss = each["torch"] - each["onnx-int8"] if metric != "fpr" else each["onnx-int8"] - each["torch"]
            loss = round(loss, 9)  # else one text of a hundred is more than 0.01
            too_much = loss >= MAX_AUPRC_LOSS if metric == "auprc" else loss > MAX_DECISION_LOSS
            if too_much:
                lost.append(f"{metric} on {name} from {each['torch']:.4f} to {each['onnx-int8']:.4f}")
    return lost


def check_labels(sets: Mapping[str, Sequence[EvaluationItem]]) -> None:
    """Raise ValueError if no set has unsafe and benign items: others define no AUPRC."""
    if not any(len({item.unsafe for item in items}) == 2 for items in sets.values()):
        raise ValueError("int8 is compared with torch by AUPRC: give --data a set with unsafe and benign items")


def _quantise(float_file: Path, file: Path, guard: Guard) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from guardrail.onnx_graph import smooth

    graph = onnx.load(float_file)
    smooth(graph, (np.array([window.ids]) for each in guard.prepare(_texts()) for _, window in each.read))
    # The quantiser writes beside what it reads, and what is left there should go with the folder.
    beside = file.with_name("float.onnx")
    onnx.save(graph, beside)
    with _quiet():
        # A scale for each channel, and weights of 7 bits, are the most exact where a CPU has AVX2 but no VNNI: its sums
        # of 8-bit products saturate.
        quantize_dynamic(beside, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


# --- The guard directory --------------------------------------------------------------------------------------------


@contextmanager
def _work_folder(directory: Path) -> Iterator[Path]:
    """Make a folder, for a while, from which files can be moved into place in one step."""
    folder = (directory / ONNX_FILES["onnx"]).parent / ".partial"
    shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _enter(name: BackendName, file: Path, directory: Path, digest: str, figures: Mapping[str, Any]) -> GuardCard:
    """Move a checked file into place and enter it in guard.json.

    Raises:
        ValueError: another guard has taken the place of that with `digest`.
    """
    card = GuardCard.read(directory)
    if card.digest != digest:
        raise ValueError(f"{directory} became another guard (digest {card.digest}, not {digest}) meanwhile; try again")
    entry = {"sha256": file_digest(file), **figures}
    card = dataclasses.replace(card, backends={**card.backends, name: entry})
    os.replace(file, directory / ONNX_FILES[name])
    card.write(directory)
    return card


def _withdraw(name: BackendName, directory: Path) -> None:
    """Remove what an earlier export has left of a backend that is refused now."""
    card = GuardCard.read(directory)
    if name in card.backends:
        backends = {key: entry for key, entry in card.backends.items() if key != name}
        dataclasses.replace(card, backends=backends).write(directory)
    (directory / ONNX_FILES[name]).unlink(missing_ok=True)


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"exporting needs onnx, onnxscript and onnxruntime: pip install '.[serve,train]' ({error})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporters warn of by default."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- The command ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a guard; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m guardrail.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("guard", type=Path, help="guard directory")
    parser.add_argument("--int8", action="store_true", help="write an int8 model, too, if --data lets it")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME_OR_FILE", help="evaluation sets that int8 is compared on"
    )
    parser.add_argument("--data-dir", type=Path, help="local copies of public data sets")
    options = parser.parse_args(arguments)
    if options.int8 != bool(options.data):
        parser.error("--int8 and --data go together: int8 is kept only if evaluation sets show that it loses little")
    transformers.utils.logging.disable_progress_bar()
    try:
        sets = load_evaluations(options.data, options.data_dir)
        if options.int8:
            check_labels(sets)  # before minutes are spent
        entry = export_float(options.guard).backends["onnx"]
        print(
            f"{options.guard / ONNX_FILES['onnx']}: probabilities within {entry['max_probability_difference']:.1e} of "
            f"torch's on {entry['texts']} texts",
            flush=True,
        )
        if options.int8:
            entry = export_int8(options.guard, sets).backends["onnx-int8"]
            print(f"{options.guard / ONNX_FILES['onnx-int8']}: at the guard's threshold, but for auprc (torch's)")
            for name, items in sets.items():
                found = ((metric, entry[metric][name]) for metric in _compared_by(items))
                told = (f"{metric} {each['onnx-int8']:.4f} ({each['torch']:.4f})" for metric, each in found)
                print(f"  {name}: {', '.join(told)}")
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
