"""What is done to an exported graph before ONNX Runtime gets it: attention in one node, and activations without peaks.

Both leave what the graph computes as it was, but for rounding.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_CONTRIB = "com.microsoft"
_PEAK = 8.0  # times the median channel's highest value, from which a tensor's highest one costs the others precision
_MIGRATED = 0.9  # of a peak that moves to the weights: they have a scale for each channel, activations one for all


# --- attention ------------------------------------------------------------------------------------------------------


def fuse_attention(model: ModelProto, heads: int) -> int:
    """Have each attention that sees all tokens be one node, which ONNX Runtime computes without keeping the scores.

    The graph must read whole texts without padding: what is added to the scores is dropped. It is the caller's to see
    that the model still computes the same: where a mask hides tokens from others (causal, sliding window), places have
    a bias, or scores are not divided by the square root of a head's size, it does not.

    Args:
        model: is changed.
        heads: of each attention.

    Returns:
        How many there were; those of another form than BERT's, as rotary ones, stay.
    """
    graph = _Graph(model)
    found = [fused for node in model.graph.node if (fused := graph.attention(node, heads))]
    for last, node in found:
        place = next(i for i, each in enumerate(model.graph.node) if each is last)
        model.graph.node.remove(last)
        model.graph.node.insert(place, node)
    if found:
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
        _remove_unused(model)
    return len(found)


class _Graph:
    """A graph by its edges."""

    def __init__(self, model: ModelProto) -> None:
        self._maker = {name: node for node in model.graph.node for name in node.output}
        self._users: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def attention(self, softmax: NodeProto, heads: int) -> tuple[NodeProto, NodeProto] | None:
        """Return the last node of the attention that a softmax is of, and what may take its place; None if it may not.

        That is Q and K^T, scaled, masked perhaps, softmax, V, the heads side by side again.
        """
        if softmax.op_type != "Softmax":
            return None
        scaled = self._made(softmax.input[0], "Add")
        scores = self._made(scaled.input[0] if scaled else softmax.input[0], "Mul")
        product = scores and self._made(scores.input[0], "MatMul")
        weighted = self._used(softmax.output[0], "MatMul")
        beside = weighted and self._used(weighted.output[0], "Transpose")
        last = beside and self._used(beside.output[0], "Reshape")
        if not (product and weighted and last):
            return None
        query, key, value = (self._split(name) for name in (*product.input, weighted.input[1]))
        if not (query and key and value):
            return None
        node = helper.make_node(
            "MultiHeadAttention",
            [query, key, value],
            list(last.output),
            name=f"{softmax.name}_attention",
            domain=_CONTRIB,
            num_heads=heads,
        )
        return last, node

    def _split(self, name: str) -> str | None:
        """Return what was split into heads [batch, tokens, all] to make a tensor; None if it was made otherwise."""
        transposed = self._made(name, "Transpose")
        while transposed and (again := self._made(transposed.input[0], "Transpose")):
            transposed = again
        reshaped = transposed and self._made(transposed.input[0], "Reshape")
        return reshaped.input[0] if reshaped else None

    def _made(self, name: str, by: str) -> NodeProto | None:
        node = self._maker.get(name)
        return node if node is not None and node.op_type == by else None

    def _used(self, name: str, by: str) -> NodeProto | None:
        users = self._users.get(name, [])
        return users[0] if len(users) == 1 and users[0].op_type == by else None


def _remove_unused(model: ModelProto) -> None:
    outputs = {output.name for output in model.graph.output}
    while True:
        used = outputs.union(*(node.input for node in model.graph.node))
        unused = [node for node in model.graph.node if used.isdisjoint(node.output)]
        if not unused:
            break
        for node in unused:
            model.graph.node.remove(node)
    kept = [each for each in model.graph.initializer if each.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


# --- activations ----------------------------------------------------------------------------------------------------


def smooth(model: ModelProto, batches: Iterable[NDArray[np.int64]]) -> int:
    """Divide activations that have peaks before they are multiplied with weights, and multiply the weights with it.

    int8 has one scale for all channels of an activation: where one is many times as high as the others, these keep
    three bits. SmoothQuant (Xiao et al., arXiv 2211.10438) moves such peaks into the weights; here it is a node of its
    own, as in BERT what is multiplied is also added to what comes later.

    Args:
        model: is changed; float32, with the one input "input_ids".
        batches: token ids [batch, tokens] on which peaks are looked for.

    Returns:
        How many activations had peaks.
    """
    weights = {each.name: each for each in model.graph.initializer}
    products: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            products.setdefault(node.input[0], []).append(node)
    divided = 0
    for name, highest in _highest(model, list(products), batches).items():
        if highest.max() <= _PEAK * np.median(highest):
            continue
        rows = [numpy_helper.to_array(weights[node.input[1]]) for node in products[name]]
        heaviest = np.maximum.reduce([np.abs(each).max(axis=1) for each in rows])
        factor = np.maximum(highest, 1e-5) ** _MIGRATED / np.maximum(heaviest, 1e-5) ** (1 - _MIGRATED)
        factor = (factor / np.exp(np.log(factor).mean())).astype(np.float32)
        for node, each in zip(products[name], rows, strict=True):
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(each * factor[:, None], node.input[1]))
            node.input[0] = f"{name}_smooth"
        model.graph.initializer.append(numpy_helper.from_array(1 / factor, f"{name}_factor"))
        place = next(i for i, node in enumerate(model.graph.node) if node is products[name][0])
        made = helper.make_node("Mul", [name, f"{name}_factor"], [f"{name}_smooth"], name=f"{name}_smooth")
        model.graph.node.insert(place, made)
        divided += 1
    return divided


def _highest(
    model: ModelProto, names: list[str], batches: Iterable[NDArray[np.int64]]
) -> Mapping[str, NDArray[np.float32]]:
    """Return the highest absolute value of each channel of tensors [.., channels]."""
    from onnxruntime import InferenceSession

    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    highest: dict[str, NDArray[np.float32]] = {}
    for ids in batches:
        for name, values in zip(names, session.run(names, {"input_ids": ids}), strict=True):
            found = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            highest[name] = np.maximum(highest.get(name, found), found)
    return highest
