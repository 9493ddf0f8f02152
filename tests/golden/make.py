"""Makes golden.json: what the reference steps (OpenCV, NumPy, ONNX Runtime) get out of the int8 networks and their twins.

usage: make.py PHOTOGRAPHS_DIR        (those named photos/... lie below .cache; see README.md; `make.sh` installs what is needed and runs this)

The steps are written apart from the daemon's code and from `models/build`, so that an error in one of them shows.
"""
import hashlib
import json
import pathlib
import sys
import tomllib

import cv2
import numpy as np
import onnxruntime as ort

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE.parent.parent / "models"
# The photographs of `make setup` are in photos/ there; the others are those of the folder that is named.
FETCHED = HERE.parent.parent / ".cache"
# file, reach of the detector, whether a border of half the longer side is put round it first
CASES = [
    ("Abdullatif_Sener/1.jpg", 320, False),
    ("az_Family1-Dad/1.jpg", 320, False),
    ("az_Family1-Daughter/1.jpg", 320, False),
    ("cf_A/1.jpg", 320, False),
    ("cf_B/1.jpg", 320, False),
    ("stock_a/1.jpg", 320, False),
    ("nuaa_0001/1.jpg", 320, False),
    ("nuaa_0005/2.jpg", 320, False),
    ("orl_s01/1.jpg", 320, True),
    ("orl_s05/3.jpg", 320, True),
    ("celeba_07224/1.jpg", 320, False),
    ("df_03/1.jpg", 320, False),
    ("group/family1.jpg", 640, False),
    ("group/bbt4.jpg", 640, False),
    ("photos/obama2.jpg", 320, False),
    ("photos/biden.jpg", 320, False),
    ("photos/astronaut.png", 320, False),
]
CONFIDENCE_MIN = 0.6
POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def has_vnni():
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return "avx512_vnni" in flags or "avx_vnni" in flags or "avxvnni" in flags


class Network:
    """One of the manifest's networks, with the session options of the daemon."""

    def __init__(self, entry, precision):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if not has_vnni():
            options.add_session_config_entry("session.x64quantprecision", "1")
        file = entry if precision == "int8" else entry["twin"]
        data = (MODELS / file["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            sys.exit(f"{file['file']} is not the file of the manifest")
        self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.input, self.outputs = entry["input"], entry["output"]["names"]

    def __call__(self, image):
        if self.input["channels"] == "rgb":
            image = image[:, :, ::-1]
        image = image.reshape(*image.shape[:2], -1)
        tensor = ((image.astype(np.float32) - self.input["mean"]) / np.float32(self.input["std"])).transpose(2, 0, 1)
        return self.session.run(self.outputs, {self.input["name"]: np.ascontiguousarray(tensor[None], np.float32)})


def detect(network, image, side):
    height, width = image.shape[:2]
    ratio = min(side / width, side / height)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:size[1], :size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    outputs = dict(zip(network.outputs, network(canvas)))
    faces = []
    for stride in (8, 16, 32):
        of = {kind: outputs[f"{kind}_{stride}"][0] for kind in ("cls", "obj", "bbox", "kps")}
        confidence = np.sqrt(of["cls"][:, 0].clip(0, 1) * of["obj"][:, 0].clip(0, 1))
        for index in np.flatnonzero(confidence > 0.5):
            cell = np.array([index % (side // stride), index // (side // stride)])
            centre = (cell + of["bbox"][index, :2]) * stride
            extent = np.exp(of["bbox"][index, 2:]) * stride
            box = np.concatenate([centre - extent / 2, centre + extent / 2]) / ratio
            points = (of["kps"][index].reshape(5, 2) + cell) * stride / ratio
            faces.append((float(confidence[index]), box, points))
    kept = []
    for face in sorted(faces, key=lambda face: -face[0]):
        if all(overlap(face[1], other[1]) <= 0.3 for other in kept):
            kept.append(face)
    return [face for face in kept if face[0] >= CONFIDENCE_MIN]


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.clip(high - low, 0, None).prod()
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)


def refine(network, image, box):
    left, top, right, bottom = (int(np.rint(value)) for value in box)
    height, width = image.shape[:2]
    over = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
    padded = cv2.copyMakeBorder(image, *over, cv2.BORDER_REPLICATE)
    part = padded[top + over[0]:bottom + over[0], left + over[2]:right + over[2]]
    grey = cv2.cvtColor(cv2.resize(part, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    points = network(grey)[0].reshape(68, 2) * [right - left, bottom - top] + [left, top]
    return np.array([points[group].mean(0) for group in ([37, 38, 40, 41], [43, 44, 46, 47], [30], [48, 60], [54, 64])])


def sample(image, points):
    z, w = points @ [1, 1j], POINTS @ [1, 1j]
    zc = z - z.mean()
    a = (zc.conj() * (w - w.mean())).sum() / (abs(zc) ** 2).sum()
    b = w.mean() - a * z.mean()
    return cv2.warpAffine(image, np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]]), (112, 112))


def grain():
    """A sample of no face, made of whole numbers, so that every language has the same pixels."""
    return (np.arange(112 * 112 * 3) * 7919 % 251).astype(np.uint8).reshape(112, 112, 3)


def normalised(template):
    return [round(float(value), 4) for value in template / np.linalg.norm(template)]


def cases(precision, photographs, entries):
    detector, refiner, *parts = (Network(entry, precision) for entry in entries.values())

    def templates(image):
        """Of the first and of the second part of the composite embedder."""
        return dict(zip(("template", "second"), (normalised(part(image)[0][0]) for part in parts)))

    # The grain is given as RGB, as the daemon keeps pictures; OpenCV's order is BGR.
    yield {"file": "", "precision": precision, "reach": 0, "border": False, "faces": [
        {"confidence": 1, "box": [0] * 4, "landmarks": [[0, 0]] * 5,
         **templates(grain()[:, :, ::-1])}]}
    for file, reach, border in CASES:
        folder = FETCHED if file.startswith("photos/") else photographs
        image = cv2.imread(str(folder / file))
        if border:
            width = round(max(image.shape[:2]) * 0.5)
            image = cv2.copyMakeBorder(image, *[width] * 4, cv2.BORDER_CONSTANT)
        faces = []
        for confidence, box, _ in detect(detector, image, reach):
            points = refine(refiner, image, box)
            faces.append({
                "confidence": round(confidence, 3),
                "box": [round(float(value), 2) for value in box],
                "landmarks": [[round(float(value), 2) for value in point] for point in points],
                **templates(sample(image, points)),
            })
        if not faces:
            sys.exit(f"{file}: no face; choose another photograph")
        print(f"{precision} {file}: {len(faces)}, least confidence {min(face['confidence'] for face in faces)}")
        yield {"file": file, "precision": precision, "reach": reach, "border": border, "faces": faces}


def main():
    photographs = pathlib.Path(sys.argv[1])
    manifest = tomllib.loads((MODELS / "manifest.toml").read_text())
    models = manifest["model"]
    entries = {role: next(model for model in models if model["role"] == role) for role in ("detector", "refiner")}
    for part in manifest["composite"][0]["parts"]:
        entries[part["model"]] = next(model for model in models if model["name"] == part["model"])
    made = [case for precision in ("int8", "fp32") for case in cases(precision, photographs, entries)]
    digests = {entry["name"]: [entry["sha256"], entry["twin"]["sha256"]] for entry in entries.values()}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in made)
    (HERE / "golden.json").write_text(f'{{"models": {json.dumps(digests)},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
