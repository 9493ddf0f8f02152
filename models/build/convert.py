"""Published weights to plain fp32 ONNX twins: same arithmetic, opset 13, one input called `input`, batch of one.

Nothing is optimised here. The twins are what the int8 networks are measured against.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

import sface

OPSET = 13  # the first with per-channel QuantizeLinear
IR_VERSION = 8


def finish(graph_model):
    model = onnx.shape_inference.infer_shapes(graph_model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "rollcall", "", ""
    onnx.checker.check_model(model, full_check=True)
    return model


def rename_tensor(graph, old, new):
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.name == old:
            value.name = new


def from_onnx(path):
    model = onnx.load(path)
    initializers = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initializers]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]
    model = version_converter.convert_version(model, OPSET)
    rename_tensor(model.graph, inputs[0].name, "input")
    return finish(model)


def detector(path):
    """YuNet is published for 640 x 640; every layer of it works at any multiple of 32, so height and width are freed."""
    model = onnx.load(path)
    height, width = model.graph.input[0].type.tensor_type.shape.dim[2:]
    height.dim_param, width.dim_param = "height", "width"
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = "cells_" + output.name.split("_")[1]
    del model.graph.value_info[:]
    return finish(version_converter.convert_version(model, OPSET))


class TfliteReader:
    """The few parts of a TensorFlow Lite file that a plain convolutional network uses."""

    def __init__(self, path):
        import tflite
        with open(path, "rb") as file:
            self.model = tflite.Model.GetRootAsModel(file.read(), 0)
        self.tflite, self.graph = tflite, self.model.Subgraphs(0)
        self.op_names = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}

    def operators(self):
        for k in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(k)
            code = self.model.OperatorCodes(operator.OpcodeIndex())
            name = self.op_names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            yield name, [int(i) for i in operator.InputsAsNumpy()], int(operator.Outputs(0)), operator

    def shape(self, tensor):
        return [int(d) for d in self.graph.Tensors(tensor).ShapeAsNumpy()]

    def constant(self, tensor):
        """The tensor's stored floats, or None when it is computed."""
        described = self.graph.Tensors(tensor)
        buffer = self.model.Buffers(described.Buffer())
        if buffer.DataLength() == 0 or described.Type() != self.tflite.TensorType.FLOAT32:
            return None
        return np.frombuffer(buffer.DataAsNumpy().tobytes(), np.float32).reshape(self.shape(tensor))

    def options(self, operator, depthwise):
        options = self.tflite.DepthwiseConv2DOptions() if depthwise else self.tflite.Conv2DOptions()
        table = operator.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options


def same_padding(size_in, size_out, kernel, stride):
    """TensorFlow's SAME: what is missing, the odd pixel at the end."""
    missing = [max((o - 1) * stride + k - i, 0) for i, o, k in zip(size_in, size_out, kernel)]
    return [m // 2 for m in missing] + [m - m // 2 for m in missing]


def mobilefacenet(path):
    """MobileFaceNet from TensorFlow Lite (N H W C) to ONNX (N C H W).

    The file spells each PRelu as relu(x) + a (x - |x|), five operators; here it is one PRelu with slope 2a.
    """
    reader = TfliteReader(path)
    operators = list(reader.operators())
    made_by = {output: (name, inputs) for name, inputs, output, _ in operators}
    names = {int(reader.graph.Inputs(0)): "input"}
    nodes, initializers = [], []

    def stored(name, values):
        values = np.ascontiguousarray(values, np.float32)
        initializers.append(numpy_helper.from_array(values, name))
        return name

    def emit(kind, inputs, output, **attributes):
        name = f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        names[output] = name

    for name, inputs, output, operator in operators:
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            depthwise = name.startswith("DEPTHWISE")
            options = reader.options(operator, depthwise)
            weights = reader.constant(inputs[1])
            weights = weights.transpose(3, 0, 1, 2) if depthwise else weights.transpose(0, 3, 1, 2)
            assert options.FusedActivationFunction() == 0 and options.StrideH() == options.StrideW()
            kernel, stride = list(weights.shape[2:]), options.StrideH()
            same = options.Padding() == reader.tflite.Padding.SAME
            pads = same_padding(reader.shape(inputs[0])[1:3], reader.shape(output)[1:3], kernel, stride)
            layer = f"layer_{len(nodes)}"
            emit("Conv", [names[inputs[0]], stored(layer + "_weight", weights),
                          stored(layer + "_bias", reader.constant(inputs[2]))], output,
                 kernel_shape=kernel, strides=[stride, stride], pads=pads if same else [0, 0, 0, 0],
                 group=weights.shape[0] if depthwise else 1)
        elif name == "ADD":
            parts = {made_by[i][0]: made_by[i][1] for i in inputs}
            if parts.keys() == {"RELU", "MUL"}:
                slope = next(c for c in map(reader.constant, parts["MUL"]) if c is not None)
                emit("PRelu", [names[parts["RELU"][0]],
                               stored(f"layer_{len(nodes)}_slope", 2 * slope.reshape(-1, 1, 1))], output)
            else:
                emit("Add", [names[i] for i in inputs], output)
        elif name == "RESHAPE":
            emit("Flatten", [names[inputs[0]]], output, axis=1)
        else:
            assert name in ("RELU", "ABS", "SUB", "MUL"), f"{name} is not expected in MobileFaceNet"
    end = int(reader.graph.Outputs(0))
    graph = helper.make_graph(
        nodes, "mobilefacenet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info(names[end], TensorProto.FLOAT, [1, reader.shape(end)[-1]])], initializers)
    rename_tensor(graph, names[end], "output")
    return finish(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))


def from_sface(path):
    return finish(helper.make_model(sface.graph(path), opset_imports=[helper.make_opsetid("", OPSET)]))


TWINS = {"yunet": detector, "mobilefacenet": mobilefacenet, "sface": from_sface}


def twin(name, path):
    return TWINS.get(name, from_onnx)(path)
