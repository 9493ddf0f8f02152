"""fp32 twin + activation ranges -> the int8 network that ships.

Two steps. `simplify` rewrites the twin into an equal float network that has an integer form for every layer.
`quantize` then puts QuantizeLinear/DequantizeLinear pairs where ONNX Runtime fuses them into integer operators:
activations u8 with one scale a tensor, weights s8 with one scale an output channel. What fuses, and what must not
stay between two convolutions, is the reason for most lines here:

- There is no integer PRelu, and the float one costs more than all convolutions together: it branches on every
  element. With slopes of at most 1, PRelu(x) = max(x, slope * x): QLinearMul by a constant and a Max of u8 values.
- A slope s beyond +-1 is brought inside by turning the channel's sign, which its neighbours absorb:
  PRelu_s(x) = -s PRelu_1/s(-x). Exact, because the neighbours are convolutions.
- Relu needs no operator: its range starts at 0, and u8 has nothing below it.
- A Gemm may leave its result in float, a convolution may not: the last layer is a Gemm.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import convert


class Net:
    """A network being rewritten: nodes in order, constants as arrays."""

    def __init__(self, model):
        graph = model.graph
        self.nodes = [n for n in graph.node if n.op_type != "Constant"]
        self.constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.inputs, self.outputs, self.name = list(graph.input), list(graph.output), graph.name

    def producer(self, tensor):
        return next((n for n in self.nodes if tensor in n.output), None)

    def consumers(self, tensor):
        return [n for n in self.nodes if tensor in n.input]

    def only_consumer(self, tensor):
        found = self.consumers(tensor)
        return found[0] if len(found) == 1 else None

    def constant(self, name, values):
        self.constants[name] = values
        return name

    def replace(self, old, new):
        """`new` nodes in the place of the last of `old`, which all go."""
        at = max(i for i, n in enumerate(self.nodes) if any(n is o for o in old))
        self.nodes[at:at + 1] = new
        self.nodes = [n for n in self.nodes if not any(n is o for o in old)]

    def model(self):
        used = {name for node in self.nodes for name in node.input}
        constants = [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in used]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, constants)
        return convert.finish(helper.make_model(graph, opset_imports=[helper.make_opsetid("", convert.OPSET)]))


def attribute(node, name, default=None):
    found = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return found[0] if found else default


# ---- equal rewrites of the float network ----------------------------------------------------------------------

def batch_norm_line(net, node):
    """BatchNormalization as y = gain x + shift."""
    gain, bias, mean, variance = (net.constants[i].astype(np.float64) for i in node.input[1:])
    gain = gain / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return gain, bias - mean * gain


def flatten_by_shape(net):
    """Reshape to (batch, everything else), however its shape was spelled, is Flatten."""
    for node in [n for n in net.nodes if n.op_type == "Reshape"]:
        reader = net.only_consumer(node.output[0])
        if len(net.outputs) == 1 and (reader is None or reader.op_type in ("MatMul", "Gemm")):
            net.replace([node], [helper.make_node("Flatten", [node.input[0]], list(node.output), node.name, axis=1)])
    while True:
        dead = [n for n in net.nodes if not any(net.consumers(o) or o in {x.name for x in net.outputs} for o in n.output)]
        if not dead:
            return
        net.nodes = [n for n in net.nodes if not any(n is d for d in dead)]


def merge_linear_tail(net):
    """Gemm, MatMul and BatchNormalization in a row after Flatten are one Gemm."""
    flatten = next((n for n in net.nodes if n.op_type == "Flatten"), None)
    if flatten is None:
        return
    chain, weight, bias = [], None, 0.0
    node = net.only_consumer(flatten.output[0])
    while node is not None:
        if node.op_type == "BatchNormalization":
            gain, shift = batch_norm_line(net, node)
            weight, bias = weight * gain, bias * gain + shift
        else:
            factor = net.constants[node.input[1]].astype(np.float64)
            factor = factor.T if attribute(node, "transB", 0) else factor
            weight, bias = (factor if weight is None else weight @ factor), bias @ factor if np.ndim(bias) else 0.0
            if len(node.input) > 2:
                bias = bias + net.constants[node.input[2]]
        chain.append(node)
        node = net.only_consumer(node.output[0])
    if chain:
        add_gemm(net, chain, flatten.output[0], weight.T, np.broadcast_to(bias, weight.shape[1]))


def add_gemm(net, old, source, weight, bias):
    inputs = [source, net.constant("tail_weight", np.ascontiguousarray(weight, np.float32)),
              net.constant("tail_bias", np.array(bias, np.float32))]
    net.replace(old, [helper.make_node("Gemm", inputs, [net.outputs[0].name], "tail", transB=1)])


def last_convolution_to_gemm(net):
    """A 1 x 1 convolution of a 1 x 1 map, flattened, is a Gemm of the flattened map."""
    flatten = net.producer(net.outputs[0].name)
    conv = net.producer(flatten.input[0]) if flatten.op_type == "Flatten" else None
    if conv is None or conv.op_type != "Conv" or attribute(conv, "kernel_shape") != [1, 1]:
        return
    weight, bias = (net.constants[i] for i in conv.input[1:])
    flat = helper.make_node("Flatten", [conv.input[0]], ["flat"], "flat", axis=1)
    net.replace([conv, flatten], [flat])
    net.nodes.append(flatten)
    add_gemm(net, [flatten], "flat", weight[:, :, 0, 0], bias)


def scale_channels(net, prelu, gain_in, gain_out):
    """Multiplies what enters a PRelu and what its only reader takes from it, channel by channel."""
    before, after = net.producer(prelu.input[0]), net.only_consumer(prelu.output[0])
    for i in before.input[1:]:
        values = net.constants[i]
        net.constants[i] = (values * gain_in.reshape(-1, *[1] * (values.ndim - 1))).astype(np.float32)
    weight = net.constants[after.input[1]]
    depthwise = attribute(after, "group", 1) > 1
    shape = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
    net.constants[after.input[1]] = (weight * gain_out.reshape(shape)).astype(np.float32)


def turn_steep_slopes(net):
    for prelu in [n for n in net.nodes if n.op_type == "PRelu"]:
        slope = net.constants[prelu.input[1]].reshape(-1).astype(np.float64)
        steep = np.abs(slope) > 1
        scale_channels(net, prelu, np.where(steep, -1.0, 1.0), np.where(steep, -slope, 1.0))
        inside = np.where(steep, 1 / np.where(steep, slope, 1), slope)
        net.constants[prelu.input[1]] = inside.reshape(-1, 1, 1).astype(np.float32)


def merge_detector_heads(net):
    """YuNet reads each of its three maps with four pairs of a pointwise and a depthwise convolution, of 1, 1, 4 and 10
    channels, and turns each to rows of cells. One pair of 16 channels and one turn do the same."""
    ends = {o.name: o for o in net.outputs}
    if "cls_8" not in ends:
        return
    for stride in (8, 16, 32):
        outputs = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps")]
        chains = []
        for output in outputs:
            chain = [net.producer(output)]
            while len(chain) < 2 or chain[-2].op_type != "Conv" or chain[-1].op_type != "Conv":
                chain.append(net.producer(chain[-1].input[0]))
            chains.append(chain[::-1])
        first, pre = chains[0][:2], f"heads_{stride}"
        stacked = [net.constant(f"{pre}_{layer}_{part}", np.concatenate(
            [net.constants[chain[layer].input[part]] for chain in chains])) for layer in (0, 1) for part in (1, 2)]
        sizes = [len(net.constants[chain[0].input[2]]) for chain in chains]
        rows = net.constant("rows", np.array([1, -1, sum(sizes)]))
        split = net.constant("split", np.array(sizes))
        parts = [f"{o}_logit" if o[:3] in ("cls", "obj") else o for o in outputs]
        new = [
            helper.make_node("Conv", [first[0].input[0], *stacked[:2]], [pre], pre, kernel_shape=[1, 1]),
            helper.make_node("Conv", [pre, *stacked[2:]], [pre + "_map"], pre + "_map", kernel_shape=[3, 3],
                             pads=[1, 1, 1, 1], group=sum(sizes)),
            helper.make_node("Transpose", [pre + "_map"], [pre + "_last"], pre + "_last", perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [pre + "_last", rows], [pre + "_rows"], pre + "_rows"),
            helper.make_node("Split", [pre + "_rows", split], parts, pre + "_split", axis=2),
            *(helper.make_node("Sigmoid", [part], [o], o) for part, o in zip(parts, outputs) if part != o)]
        net.replace([n for chain in chains for n in chain], new)


def simplify(model):
    net = Net(model)
    merge_detector_heads(net)
    flatten_by_shape(net)
    merge_linear_tail(net)
    last_convolution_to_gemm(net)
    turn_steep_slopes(net)
    return net


# ---- integers ------------------------------------------------------------------------------------------------

def activation_grid(low, high):
    """Scale and zero point of u8 for low..high, which must hold 0 exactly (padding is 0)."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))


def s8_steps(weight, scale_min=1e-10):
    """Steps and the scale of each output channel."""
    scale = np.maximum(np.abs(weight.reshape(len(weight), -1)).max(1) / 127, scale_min).astype(np.float32)
    return np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), scale


class Quantizer:
    """Rewrites nodes one after another; `integer` holds, for each float tensor, its u8 twin and grid."""

    def __init__(self, net, ranges, in_float=()):
        self.net, self.ranges, self.in_float = net, ranges, set(in_float)
        self.nodes, self.grids, self.restored = [], {}, set()

    def emit(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}.{kind}", **attributes))
        return output

    def grid(self, tensor):
        """Names of scale and zero point, made of the tensor's range."""
        scale, zero = activation_grid(*self.ranges[tensor])
        return (self.net.constant(tensor + ".scale", np.array(scale)), self.net.constant(tensor + ".zero", np.array(zero)))

    def quantized(self, tensor, grid=None):
        """The u8 form of a tensor, made on first use."""
        if tensor not in self.grids:
            self.grids[tensor] = grid or self.grid(tensor)
            self.emit("QuantizeLinear", [tensor, *self.grids[tensor]], tensor + ".u8")
        return tensor + ".u8"

    def restore(self, tensor):
        """The float form of a u8 tensor, for one reader: shared ones keep ONNX Runtime from fusing."""
        name, copy = tensor + ".f", 1
        while name in self.restored:
            copy += 1
            name = f"{tensor}.f{copy}"
        self.restored.add(name)
        return self.emit("DequantizeLinear", [tensor + ".u8", *self.grids[tensor]], name)

    def s8(self, name, weight, scale_min=1e-10):
        """Weights as s8 with one scale an output channel; returns their restored form and the scales."""
        steps, scale = s8_steps(weight, scale_min)
        add = self.net.constant
        return self.emit("DequantizeLinear", [add(name + ".s8", steps), add(name + ".scale", scale),
                                              add(name + ".zero", np.zeros(len(scale), np.int8))],
                         name + ".f", axis=0), scale

    def weights(self, node, source):
        """s8 weights and s32 bias, restored for ONNX Runtime to fuse."""
        name, add = node.input[2], self.net.constant
        grid, bias = self.net.constants[self.grids[source][0]], self.net.constants[name]
        # The bias counts in steps of grid * scale: a channel of (nearly) no weight must not make it overflow s32.
        weight, scale = self.s8(node.input[1], self.net.constants[node.input[1]], np.abs(bias) / (grid * 2.0**30) + 1e-10)
        scale = (grid * scale).astype(np.float32)
        return [weight, self.emit("DequantizeLinear", [add(name + ".s32", np.rint(bias / scale).astype(np.int32)),
                                                       add(name + ".scale", scale),
                                                       add(name + ".zero", np.zeros(len(scale), np.int32))],
                                  name + ".f", axis=0)]

    def as_float(self, tensor):
        return self.restore(tensor) if tensor in self.grids else tensor

    def layer(self, node):
        source, output = node.input[0], node.output[0]
        self.quantized(source)
        inputs = [self.restore(source)]
        node.input[:] = inputs + self.weights(node, source)
        self.nodes.append(node)
        after = self.net.only_consumer_of.get(output)
        if node.op_type == "Gemm":
            return
        grid = None
        if after is not None and after.op_type in ("PRelu", "Relu") and after.name not in self.in_float:
            self.quantized(output, self.grid(after.output[0]))
        elif after is None or after.name not in self.in_float:
            self.quantized(output)

    def prelu(self, node):
        """max(x, slope * x) on one grid for both. The product is a depthwise 1 x 1 convolution: exact slopes, and on
        x86 up to twice as fast as QLinearMul, which has no wide kernel."""
        source, output = node.input[0], node.output[0]
        grid = self.grids[source]
        slope = self.net.constants[node.input[1]].reshape(-1, 1, 1, 1)
        weight, _ = self.s8(node.input[1], slope)
        self.emit("Conv", [self.restore(source), weight], output + ".sloped", group=len(slope), kernel_shape=[1, 1])
        self.emit("QuantizeLinear", [output + ".sloped", *grid], output + ".sloped.u8")
        self.emit("Max", [source + ".u8", output + ".sloped.u8"], output + ".u8")
        self.grids[output] = grid

    def relu(self, node):
        """Nothing: the convolution's result was quantized on the range of what Relu leaves of it."""
        source, output = node.input[0], node.output[0]
        last = self.nodes[-1]
        assert last.output[0] == source + ".u8"
        last.output[0] = output + ".u8"
        self.grids[output] = self.grids[source]

    def run(self):
        net = self.net
        net.only_consumer_of = {o: net.only_consumer(o) for n in net.nodes for o in n.output}
        for node in net.nodes:
            if node.name in self.in_float:
                node.input[:] = [i if i in net.constants else self.as_float(i) for i in node.input]
                self.nodes.append(node)
            elif node.op_type in ("Conv", "Gemm"):
                self.layer(node)
            elif node.op_type == "PRelu" and node.input[0] in self.grids:
                self.prelu(node)
            elif node.op_type == "Relu" and node.input[0] in self.grids:
                self.relu(node)
            elif node.op_type in ("Add", "Mul", "GlobalAveragePool", "Sigmoid") and node.output[0] in self.ranges:
                for i in node.input:
                    self.quantized(i)
                node.input[:] = [self.restore(i) for i in node.input]
                self.nodes.append(node)
                self.quantized(node.output[0])
            elif node.op_type in ("MaxPool", "Flatten", "Resize") and node.input[0] in self.grids:
                self.on_integers(node)
            else:
                node.input[:] = [self.as_float(i) for i in node.input]
                self.nodes.append(node)
        net.nodes = self.nodes
        return net.model()

    def on_integers(self, node):
        """Operators that move u8 values and make no new ones."""
        source, output = node.input[0], node.output[0]
        node.input[0], node.output[0] = source + ".u8", output + ".u8"
        self.nodes.append(node)
        self.grids[output] = self.grids[source]


def activations(net):
    """Tensors whose range the quantizer may ask for."""
    outputs = {o.name for o in net.outputs}
    return ["input"] + [o for n in net.nodes for o in n.output if o not in outputs]


def store_weights_only(net):
    """Weights s8, arithmetic float: Cast and Mul of constants, which ONNX Runtime computes once, when it loads."""
    nodes = []
    for node in net.nodes:
        if node.op_type in ("Conv", "Gemm"):
            name = node.input[1]
            steps, scale = s8_steps(net.constants[name])
            scale = scale.reshape(-1, *[1] * (steps.ndim - 1))
            nodes += [helper.make_node("Cast", [net.constant(name + ".s8", steps)], [name + ".steps"], name + ".Cast",
                                       to=TensorProto.FLOAT),
                      helper.make_node("Mul", [name + ".steps", net.constant(name + ".scale", scale)], [name + ".f"],
                                       name + ".Mul")]
            node.input[1] = name + ".f"
        nodes.append(node)
    net.nodes = nodes
    return net.model()


def quantize(model, ranges, in_float=()):
    net = simplify(model)
    if not ranges:
        return store_weights_only(net)
    # A range under PRelu holds what enters and what leaves: both live on one grid.
    ranges = dict(ranges)
    for node in net.nodes:
        if node.op_type == "PRelu":
            low, high = zip(ranges[node.input[0]], ranges[node.output[0]])
            ranges[node.output[0]] = [min(low), max(high)]
    return Quantizer(net, ranges, in_float).run()
