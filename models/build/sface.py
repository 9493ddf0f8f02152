"""SFace as it is published, int8 in blocks, to a plain fp32 twin.

The file keeps the weights of each convolution as int8 with one scale for each block of 64 (9 in the depthwise ones), to
be restored by DequantizeLinear nodes of opset 21. ONNX Runtime rejects it as it comes, because those restored tensors are
listed among the inputs of the graph. Here the weights are restored once. Each BatchNormalization that follows a
convolution or the Gemm is folded into it; the one that follows the last PRelu becomes a depthwise 1 x 1 convolution, as
`quantize` wants a convolution on either side of a PRelu. Dropout does nothing at inference. The first two nodes,
(x - 127.5) / 128, are the manifest's `mean` and `std`, and go.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def restored(steps, scales, zeros, axis, block):
    """The float values of int8 steps; each scale and zero point belongs to `block` steps along the axis."""
    def spread(values):
        return np.repeat(values, block, axis)[tuple(slice(0, n) for n in steps.shape)]

    return (steps.astype(np.float32) - spread(zeros).astype(np.float32)) * spread(scales)


def constants(graph):
    """Every constant as floats by name, and the nodes that are left when the restored weights are among them."""
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    left = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            asked = attributes(node)
            values[node.output[0]] = restored(*(values[i] for i in node.input), asked["axis"], asked["block_size"])
        elif node.op_type == "Reshape" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].reshape(values[node.input[1]])
        elif node.op_type not in ("Constant", "Dropout", "Sub", "Mul"):
            left.append(node)
    return values, left


def gain_and_shift(node, values):
    """BatchNormalization as y = gain x + shift."""
    gamma, beta, mean, variance = (values[i].astype(np.float64) for i in node.input[1:])
    gain = gamma / np.sqrt(variance + attributes(node)["epsilon"])
    return gain, beta - gain * mean


class Twin:
    """The nodes and constants of the twin, as they are made: the network is one chain."""

    def __init__(self):
        self.nodes, self.constants, self.last = [], [], "input"

    def stored(self, name, array):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def emit(self, kind, name, *arrays, output=None, **options):
        inputs = [self.last, *(self.stored(f"{name}.{k}", array) for k, array in enumerate(arrays))]
        self.last = output or name
        self.nodes.append(helper.make_node(kind, inputs, [self.last], name=name, **options))


def graph(path):
    """The twin's graph: input 1 x 3 x 112 x 112, output 1 x 128."""
    values, chain = constants(onnx.load(path).graph)
    twin = Twin()
    for at, node in enumerate(chain):
        following = chain[at + 1] if at + 1 < len(chain) else None
        if node.op_type == "Conv":
            weight = values[node.input[1]].astype(np.float64)
            gain, shift = gain_and_shift(following, values)
            asked = attributes(node)
            twin.emit("Conv", node.output[0], weight * gain.reshape(-1, 1, 1, 1), shift,
                      **{k: asked[k] for k in ("kernel_shape", "strides", "pads", "group")})
        elif node.op_type == "PRelu":
            twin.emit("PRelu", node.output[0], values[node.input[1]].reshape(-1, 1, 1))
        elif node.op_type == "BatchNormalization" and chain[at - 1].op_type == "PRelu":
            gain, shift = gain_and_shift(node, values)
            twin.emit("Conv", node.output[0], gain.reshape(-1, 1, 1, 1), shift, kernel_shape=[1, 1], group=len(gain))
        elif node.op_type == "Flatten":
            twin.emit("Flatten", node.output[0], axis=1)
        elif node.op_type == "Gemm":
            weight, bias = (values[i].astype(np.float64) for i in node.input[1:])
            gain, shift = gain_and_shift(following, values)
            twin.emit("Gemm", node.output[0], weight * gain[:, None], bias * gain + shift, output="output", transB=1)
        else:
            assert node.op_type == "BatchNormalization", f"{node.op_type} is not expected in SFace"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("input", [1, 3, 112, 112]), ("output", [1, 128]))]
    return helper.make_graph(twin.nodes, "sface", ends[:1], ends[1:], twin.constants)
