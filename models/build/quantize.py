"""fp32 twin -> the int8 network that ships.

`simplify` rewrites the twin into an equal float network. `Quantizer` then puts it on integers:

- The embedders whole, the PAD network but for its ends: activations u8 with one scale a tensor, weights s8 with one
  scale an output channel, as QuantizeLinear/DequantizeLinear pairs placed where ONNX Runtime fuses them into integer
  operators.
- The detector and the refiner in their weights only: stored as s8, computed in float. Their time goes into depthwise
  convolutions, whose integer form is half as fast as the float one on x86: quantized whole they were 1.2 to 1.6 times
  slower than their twins there, and the detector's boxes ten times further off.

What makes the integer form fast and near to the twin:

- There is no integer PRelu, and the float one costs more than all convolutions together: it branches on every
  element. With slopes of at most 1, PRelu(x) = max(x, slope * x): a depthwise 1 x 1 convolution and a Max of u8 values.
- A slope s beyond +-1 is brought inside by turning the channel's sign, which its neighbours absorb:
  PRelu_s(x) = -s PRelu_1/s(-x). Exact, because the neighbours are convolutions.
- For the same reason channels may be scaled before a PRelu and back after it. Quiet channels are scaled up, so that
  the tensor's one scale serves them too (`gains` in ranges.json, found by calibrate.py).
- A kernel's weights are rounded so that their sum is right, too: even areas then keep their level.
- Odd counts of channels (13, 103, 231 …) are filled up with channels of zeros to multiples of 16: kernels want whole blocks.
- Relu needs no operator: its range starts at 0, and u8 has nothing below it.
- A Gemm may leave its result in float, a convolution may not: the last layer is a Gemm.

Nothing here may depend on the machine: no BLAS, no order of summation that a library chooses.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import convert

# (tensor up to which, tensor from which on a network computes in float); its weights are s8 all the same.
# fr_liveness judges fine texture: its first two layers (full resolution, 32 channels) and its last blocks made most of
# the error. Whole in integers it sent 11.2 % of real faces away, like this 8.2 %, its twin 7.8 %, and it is as fast.
ALL = (None, None)
IN_FLOAT = {"yunet": ALL, "fr_landmark": ALL, "fr_liveness": ("378", "707")}
GAIN_STEP = 4  # gains are powers of the 4th root of 2
BLOCK = 16     # channels a kernel takes at once


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

    def only_consumer(self, tensor):
        found = [n for n in self.nodes if tensor in n.input]
        return found[0] if len(found) == 1 else None

    def of_type(self, *types):
        return [n for n in self.nodes if n.op_type in types]

    def constant(self, name, values):
        self.constants[name] = np.asarray(values)
        return name

    def replace(self, old, new):
        """`new` nodes in the place of the last of `old`, which all go."""
        at = max(i for i, n in enumerate(self.nodes) if any(n is o for o in old))
        self.nodes[at:at + 1] = new
        self.nodes = [n for n in self.nodes if not any(n is o for o in old)]

    def drop_unread(self):
        """Nodes that nobody reads, and then those that only they read."""
        wanted = {o.name for o in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if any(o in wanted for o in node.output):
                wanted.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]

    def model(self):
        used = {name for node in self.nodes for name in node.input}
        constants = [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in used]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, constants)
        return convert.finish(helper.make_model(graph, opset_imports=[helper.make_opsetid("", convert.OPSET)]))


def attribute(node, name, default=None):
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def is_depthwise(conv):
    return attribute(conv, "group", 1) > 1


def along(values, axis, rank):
    """A vector shaped to multiply a tensor of that rank along one axis."""
    return values.reshape([-1 if k == axis else 1 for k in range(rank)])


# ---- equal rewrites of the float network ----------------------------------------------------------------------

def merge_detector_heads(net):
    """YuNet reads each of its three maps with four pairs of a pointwise and a depthwise convolution, of 1, 1, 4 and 10
    channels, and turns each to rows of cells. One pair of 16 channels and one turn do the same in a quarter of the time."""
    for stride in (8, 16, 32):
        outputs = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps")]
        chains = []
        for output in outputs:
            chain = [net.producer(output)]
            while [n.op_type for n in chain[-2:]] != ["Conv", "Conv"]:
                chain.append(net.producer(chain[-1].input[0]))
            chains.append(chain[::-1])
        head = f"heads_{stride}"

        def stacked(layer, part):
            return net.constant(f"{head}_{layer}_{part}",
                                np.concatenate([net.constants[chain[layer].input[part]] for chain in chains]))

        sizes = [len(net.constants[chain[0].input[2]]) for chain in chains]
        rows, split = net.constant("rows", [1, -1, sum(sizes)]), net.constant("split", sizes)
        parts = [f"{o}_logit" if o[:3] in ("cls", "obj") else o for o in outputs]
        steps = [
            ("Conv", [chains[0][0].input[0], stacked(0, 1), stacked(0, 2)], "narrow", {"kernel_shape": [1, 1]}),
            ("Conv", [f"{head}_narrow", stacked(1, 1), stacked(1, 2)], "map",
             {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": sum(sizes)}),
            ("Transpose", [f"{head}_map"], "last", {"perm": [0, 2, 3, 1]}),
            ("Reshape", [f"{head}_last", rows], "rows", {})]
        new = [helper.make_node(kind, inputs, [f"{head}_{name}"], f"{head}_{name}", **more)
               for kind, inputs, name, more in steps]
        new.append(helper.make_node("Split", [f"{head}_rows", split], parts, f"{head}_split", axis=2))
        new += [helper.make_node("Sigmoid", [part], [o], o) for part, o in zip(parts, outputs) if part != o]
        net.replace([n for chain in chains for n in chain], new)


def reshape_to_flatten(net):
    """Reshape to (batch, everything else), however its shape was spelled, is Flatten."""
    for node in net.of_type("Reshape"):
        reader = net.only_consumer(node.output[0])
        if reader is None or reader.op_type in ("MatMul", "Gemm"):
            net.replace([node], [helper.make_node("Flatten", [node.input[0]], list(node.output), node.name, axis=1)])
    net.drop_unread()


def product(a, b):
    """a @ b, summed in order."""
    total = np.zeros((a.shape[0], b.shape[1]))
    for k in range(a.shape[1]):
        total += a[:, k:k + 1] * b[k:k + 1]
    return total


def merge_linear_tail(net, flatten):
    """Gemm, MatMul and BatchNormalization in a row after Flatten are one Gemm: y = x A + c."""
    chain, factor, shift = [], None, None
    node = net.only_consumer(flatten.output[0])
    while node is not None:
        constants = [net.constants[i].astype(np.float64) for i in node.input[1:]]
        if node.op_type == "BatchNormalization":
            gain, bias, mean, variance = constants
            gain = gain / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
            factor, shift = factor * gain, (shift - mean) * gain + bias
        else:
            step = constants[0].T if attribute(node, "transB", 0) else constants[0]
            factor = step if factor is None else product(factor, step)
            shift = np.zeros(step.shape[1]) if shift is None else product(shift[None], step)[0]
            shift = shift + constants[1] if len(constants) > 1 else shift
        chain.append(node)
        node = net.only_consumer(node.output[0])
    if chain:
        net.replace(chain, [tail(net, flatten.output[0], factor.T, shift)])


def tail(net, source, weight, bias):
    inputs = [source, net.constant("tail_weight", np.ascontiguousarray(weight, np.float32)),
              net.constant("tail_bias", bias.astype(np.float32))]
    return helper.make_node("Gemm", inputs, [net.outputs[0].name], "tail", transB=1)


def last_convolution_to_gemm(net, flatten):
    """A 1 x 1 convolution of a 1 x 1 map, flattened, is a Gemm of the flattened map."""
    conv = net.producer(flatten.input[0])
    if flatten.output[0] == net.outputs[0].name and attribute(conv, "kernel_shape") == [1, 1]:
        weight, bias = (net.constants[i] for i in conv.input[1:])
        net.replace([conv, flatten], [helper.make_node("Flatten", [conv.input[0]], ["flat"], "flat", axis=1),
                                      tail(net, "flat", weight[:, :, 0, 0], bias)])


def scale_channels(net, prelu, gain_in, gain_out):
    """Multiplies what enters a PRelu and what its only reader takes from it, channel by channel."""
    before, after = net.producer(prelu.input[0]), net.only_consumer(prelu.output[0])
    assert before.op_type == after.op_type == "Conv"
    for name in before.input[1:]:
        values = net.constants[name]
        net.constants[name] = (values * along(gain_in, 0, values.ndim)).astype(np.float32)
    weight = net.constants[after.input[1]]
    net.constants[after.input[1]] = (weight * along(gain_out, 0 if is_depthwise(after) else 1, 4)).astype(np.float32)


def turn_steep_slopes(net):
    for prelu in net.of_type("PRelu"):
        slope = net.constants[prelu.input[1]].reshape(-1).astype(np.float64)
        steep = np.abs(slope) > 1
        scale_channels(net, prelu, np.where(steep, -1.0, 1.0), np.where(steep, -slope, 1.0))
        inside = 1 / np.where(steep, slope, 1.0)
        net.constants[prelu.input[1]] = along(np.where(steep, inside, slope), 0, 3).astype(np.float32)


def fill_blocks(net):
    """Rounds the channels around each PRelu up to whole blocks. The new ones are 0 from end to end."""
    def grown(name, axis):
        values = net.constants[name]
        room = [(0, -values.shape[axis] % BLOCK if k == axis else 0) for k in range(values.ndim)]
        net.constants[name] = np.pad(values, room)

    for prelu in net.of_type("PRelu"):
        before, after = net.producer(prelu.input[0]), net.only_consumer(prelu.output[0])
        grown(prelu.input[1], 0)
        if not is_depthwise(before):
            grown(before.input[1], 0)
            grown(before.input[2], 0)
        if is_depthwise(after):
            grown(after.input[1], 0)
            grown(after.input[2], 0)
            next(a for a in after.attribute if a.name == "group").i = len(net.constants[after.input[1]])
        else:
            grown(after.input[1], 1)


def simplify(model):
    net = Net(model)
    if "cls_8" in {o.name for o in net.outputs}:
        merge_detector_heads(net)
        return net
    reshape_to_flatten(net)
    (flatten,) = net.of_type("Flatten")
    merge_linear_tail(net, flatten)
    last_convolution_to_gemm(net, flatten)
    fill_blocks(net)
    turn_steep_slopes(net)
    return net


def equalise(net, gains):
    """Scales channels before each PRelu and back after it; gains in steps of a quarter octave."""
    for prelu in net.of_type("PRelu"):
        gain = 2.0 ** (np.array(gains[prelu.output[0]]) / GAIN_STEP)
        scale_channels(net, prelu, gain, 1 / gain)


# ---- integers ------------------------------------------------------------------------------------------------

def activation_grid(low, high):
    """Scale and zero point of u8 for low..high, which must hold 0 exactly (padding is 0)."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))


def keep_sums(steps, exact):
    """Of each kernel of more than one weight, rounds those that were nearest to a half the other way, until the sum of
    the kernel is the rounded sum of its exact weights."""
    left = exact - steps
    for kernel, rest in zip(steps.reshape(-1, steps.shape[2] * steps.shape[3]), left.reshape(-1, steps[0, 0].size)):
        missing = int(np.rint(rest.astype(np.float64).cumsum()[-1]))
        sign = np.sign(missing)
        for i in np.argsort(-sign * rest, kind="stable")[:abs(missing)]:
            kernel[i] += sign


def s8_steps(weight, scale_min=1e-10):
    """Weights as s8, and the scale of each output channel."""
    scale = np.maximum(np.abs(weight.reshape(len(weight), -1)).max(1) / 127, scale_min).astype(np.float32)
    exact = weight / along(scale, 0, weight.ndim)
    steps = np.rint(exact)
    if weight.ndim == 4 and weight.shape[2:] != (1, 1):
        keep_sums(steps, exact)
    return np.clip(steps, -127, 127).astype(np.int8), scale


def float_nodes(net, name):
    """First outputs of the nodes that compute in float."""
    outputs = [n.output[0] for n in net.nodes]
    if name not in IN_FLOAT:
        return set()
    until, since = IN_FLOAT[name]
    if (until, since) == ALL:
        return set(outputs)
    return set(outputs[:outputs.index(until) + 1] + outputs[outputs.index(since):])


class Quantizer:
    """Rewrites nodes one after another. `grids` names scale and zero point of each tensor that has a u8 form."""

    def __init__(self, net, ranges, in_float):
        self.net, self.ranges, self.in_float = net, ranges, in_float
        self.nodes, self.grids, self.restored = [], {}, {}

    def emit(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}.{kind}", **attributes))
        return output

    def grid(self, *tensors):
        """One grid for all that the tensors hold."""
        low, high = zip(*(self.ranges[t] for t in tensors))
        scale, zero = activation_grid(min(low), max(high))
        return self.net.constant(tensors[0] + ".scale", scale), self.net.constant(tensors[0] + ".zero", zero)

    def quantized(self, tensor, grid=None):
        """The u8 form of a tensor, made on first use."""
        if tensor not in self.grids:
            self.grids[tensor] = grid or self.grid(tensor)
            self.emit("QuantizeLinear", [tensor, *self.grids[tensor]], tensor + ".u8")
        return tensor + ".u8"

    def restore(self, tensor):
        """The float form of a tensor for one reader. Each reader gets its own: a shared one is not fused."""
        copy = self.restored[tensor] = self.restored.get(tensor, 0) + 1
        return self.emit("DequantizeLinear", [self.quantized(tensor), *self.grids[tensor]], f"{tensor}.f{copy}")

    def stored(self, name, steps, scale, kind):
        """Constants in integer form, restored; one scale and a zero point of 0 for each output channel."""
        add = self.net.constant
        inputs = [add(f"{name}.{kind}", steps), add(name + ".scale", scale), add(name + ".zero", np.zeros(len(scale), steps.dtype))]
        return self.emit("DequantizeLinear", inputs, name + ".f", axis=0)

    def layer(self, node):
        """Conv or Gemm on integers: s8 weights, s32 bias."""
        source = self.restore(node.input[0])
        weight, bias = (self.net.constants[i] for i in node.input[1:])
        grid = self.net.constants[self.grids[node.input[0]][0]]
        # The bias counts in steps of grid * scale: a channel of nearly no weight must not make it overflow s32.
        steps, scale = s8_steps(weight, np.abs(bias) / (grid * 2.0**30) + 1e-10)
        bias_scale = (grid * scale).astype(np.float32)
        node.input[:] = [source, self.stored(node.input[1], steps, scale, "s8"),
                         self.stored(node.input[2], np.rint(bias / bias_scale).astype(np.int32), bias_scale, "s32")]
        self.nodes.append(node)

    def prelu(self, node):
        """max(x, slope * x), both on the grid that holds what enters and what leaves. The product is a depthwise 1 x 1
        convolution: its slopes are exact, and with AVX-512 it takes half the time of QLinearMul, which has no wide kernel."""
        source, output = node.input[0], node.output[0]
        grid = self.grids[output] = self.grid(source, output)
        whole = self.quantized(source, grid)
        steps, scale = s8_steps(along(self.net.constants[node.input[1]], 0, 4))
        self.emit("Conv", [self.restore(source), self.stored(node.input[1], steps, scale, "s8")], output + ".sloped",
                  group=len(steps), kernel_shape=[1, 1])
        self.emit("QuantizeLinear", [output + ".sloped", *grid], output + ".sloped.u8")
        self.emit("Max", [whole, output + ".sloped.u8"], output + ".u8")

    def relu(self, node):
        """No operator: what enters is quantized on the range of what leaves."""
        source, output = node.input[0], node.output[0]
        grid = self.grids[output] = self.grid(output)
        self.emit("QuantizeLinear", [source, *grid], output + ".u8")

    def layer_in_float(self, node):
        """Its s8 weights as Cast and Mul of constants, which ONNX Runtime computes once, when it loads the network."""
        node.input[:] = [self.as_float(i) for i in node.input]
        if node.op_type in ("Conv", "Gemm"):
            name, add = node.input[1], self.net.constant
            steps, scale = s8_steps(self.net.constants[name])
            cast = self.emit("Cast", [add(name + ".s8", steps)], name + ".steps", to=TensorProto.FLOAT)
            node.input[1] = self.emit("Mul", [cast, add(name + ".scale", along(scale, 0, steps.ndim))], name + ".f")
        elif node.op_type == "PRelu":
            self.emit("Mul", list(node.input), node.output[0] + ".sloped")
            node = helper.make_node("Max", [node.input[0], node.output[0] + ".sloped"], list(node.output), node.name)
        self.nodes.append(node)

    def as_float(self, tensor):
        return self.restore(tensor) if tensor in self.grids else tensor

    def run(self):
        for node in self.net.nodes:
            if node.output[0] in self.in_float:
                self.layer_in_float(node)
            elif node.op_type in ("Conv", "Gemm"):
                self.layer(node)
            elif node.op_type == "PRelu":
                self.prelu(node)
            elif node.op_type == "Relu":
                self.relu(node)
            elif node.op_type == "Flatten":  # moves u8 values, makes none
                self.emit("Flatten", [self.quantized(node.input[0])], node.output[0] + ".u8", axis=1)
                self.grids[node.output[0]] = self.grids[node.input[0]]
            else:
                assert node.op_type in ("Add", "Mul", "GlobalAveragePool", "Sigmoid"), node.op_type
                node.input[:] = [self.restore(i) for i in node.input]
                self.nodes.append(node)
        self.net.nodes = self.nodes
        return self.net.model()


def quantize(name, twin, settings):
    """`settings`: the network's part of ranges.json; None for those in float altogether."""
    net = simplify(twin)
    if settings is not None:
        equalise(net, settings["gains"])
    ranges = settings["ranges"] if settings is not None else {}
    return Quantizer(net, ranges, float_nodes(net, name)).run()
