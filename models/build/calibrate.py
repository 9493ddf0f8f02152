"""Makes ranges.json: what the integer networks must know of their activations, measured on photographs of faces.

usage: calibrate.py [--only NAME] FILE_OR_FOLDER ...

--only  measure this network alone; the others keep what ranges.json says of them

Measured for each network that is quantized whole (build.sh must have made fp32/ before):
  gains   for each PRelu and channel, by how many quarter octaves it is scaled up before and down after
  ranges  for each tensor, low and high: all but one value in 20,000 lies above, and below
Photographs used here are no evidence in an evaluation.
"""
import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort

import face
import quantize

HERE = Path(__file__).resolve().parent
TWINS = HERE.parent / "fp32"
OUTSIDE = 5e-5      # share of values left outside on either side; half as much and thrice as much were no better
GAIN_MAX = 4        # octaves
BOX_MIN = 50        # pixels; smaller faces are blurred samples
INPUTS_MAX = {"sface": 90}  # its tensors are the largest: all inputs would take several GB
TENSORS_AT_ONCE = 3


def photographs(arguments):
    for argument in map(Path, arguments):
        for path in sorted(argument.rglob("*")) if argument.is_dir() else [argument]:
            if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                yield cv2.imread(str(path))


def network_inputs(images):
    """For each network the tensors it is fed: every face, and its mirror image where that is a face as good."""
    detector, refiner = face.Detector(TWINS / "yunet.onnx"), face.Refiner(TWINS / "fr_landmark.onnx")
    samples, windows = [], []
    for image in images:
        for _, box, _ in detector(image):
            if box[2] - box[0] >= BOX_MIN:
                sample = face.align(image, refiner(image, box))
                samples += [sample, sample[:, ::-1]]
                window = face.pad_input(image, box)
                windows += [window, np.ascontiguousarray(window[:, :, :, ::-1])]
    return {"fr_feature": [face.planes(s, 127, 128) for s in samples],
            "mobilefacenet": [face.planes(s[:, :, ::-1], 127.5, 128) for s in samples],
            "fr_liveness": windows,
            "sface": [face.planes(s[:, :, ::-1], 127.5, 128) for s in samples]}


def channel_values(net, names, inputs):
    """{tensor: channels x values}, a few tensors at a time."""
    model = net.model()
    known = {o.name for o in model.graph.output} | {"input"}
    for first in range(0, len(names), TENSORS_AT_ONCE):
        part = names[first:first + TENSORS_AT_ONCE]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in part if n not in known)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = {n: [] for n in part}
        for tensor in inputs:
            for name, value in zip(part, session.run(part, {"input": tensor})):
                found[name].append(value.reshape(value.shape[1], -1))
        for name, values in found.items():
            yield name, np.concatenate(values, 1)


def ends(values):
    """Along the last axis, the values that leave the share OUTSIDE beyond them."""
    beyond = int(values.shape[-1] * OUTSIDE)
    ordered = np.partition(values, (beyond, values.shape[-1] - 1 - beyond), axis=-1)
    return ordered[..., beyond], ordered[..., -1 - beyond]


def gains(net, inputs):
    """How far to scale each channel. Before a depthwise convolution all channels are brought to one range, for its
    weights have a scale for each; a pointwise one shares a scale among its inputs, so there half the way is best."""
    found, prelus = {}, {n.input[0]: n for n in net.of_type("PRelu")}
    for name, values in channel_values(net, list(prelus), inputs):
        prelu = prelus[name]
        low, high = ends(values)
        reach = np.maximum(np.maximum(-low, high), 1e-6)
        octaves = -np.log2(reach)
        after = net.only_consumer(prelu.output[0])
        if not quantize.is_depthwise(after):
            weight = np.abs(net.constants[after.input[1]]).max((0, 2, 3))
            octaves = (octaves + np.log2(np.maximum(weight, 1e-6))) / 2
        alive = reach > 1e-6
        octaves = np.where(alive, np.clip(octaves - octaves[alive].mean(), -GAIN_MAX, GAIN_MAX), 0)
        found[prelu.output[0]] = [int(k) for k in np.rint(octaves * quantize.GAIN_STEP)]
    return found


def ranges(net, inputs):
    found = {"input": [float(min(i.min() for i in inputs)), float(max(i.max() for i in inputs))]}
    made = [o for n in net.nodes for o in n.output if o not in {x.name for x in net.outputs}]
    for name, values in channel_values(net, made, inputs):
        found[name] = [float(f"{end:.4g}") for end in ends(values.reshape(-1))]
    return found


def measured(name, inputs):
    """The network's part of ranges.json."""
    net = quantize.simplify(onnx.load(TWINS / f"{name}.onnx"))
    scaled = gains(net, inputs)
    quantize.equalise(net, scaled)
    return {"gains": scaled, "ranges": ranges(net, inputs)}


def written(table):
    """ranges.json as text: one line for each tensor."""
    networks = []
    for name, parts in table.items():
        lines = ",\n".join(f'  "{part}": {{\n' + ",\n".join(f'    "{k}": {json.dumps(v, separators=(",", ":"))}'
                                                         for k, v in values.items()) + "\n  }"
                           for part, values in parts.items())
        networks.append(f' "{name}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(networks) + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("photographs", nargs="+", type=Path)
    options = parser.parse_args()
    images = list(photographs(options.photographs))
    path = HERE / "ranges.json"
    table = json.loads(path.read_text()) if options.only else {}
    for name, inputs in network_inputs(images).items():
        if options.only in (None, name):
            inputs = inputs[:INPUTS_MAX.get(name)]
            table[name] = measured(name, inputs)
            print(f"{name}: {len(inputs)} inputs of {len(images)} photographs")
    path.write_text(written(table))


if __name__ == "__main__":
    main()
