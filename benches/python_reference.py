"""The same recognition driven from Python with OpenCV and ONNX Runtime: what `rollcall bench` is compared with.

One thread, fp32, CPU time (not the wall's), the median over the photographs of a folder: decode, find the face at 320 x
320, refine its landmarks on the full picture, cut the sample, make the template. Written the way one would write it in
Python: NumPy where it is fast, OpenCV for pixels. Prints one JSON object.

usage: python_reference.py MODELS_DIR PHOTOS_DIR [PHOTOS_MAX]
"""
import json
import pathlib
import resource
import sys
import time

import cv2
import numpy as np
import onnxruntime as ort

SAMPLE_POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
                          [41.5493, 92.3655], [70.7299, 92.2041]])
# Of the 68 points: lids of each eye without its corners, tip of the nose, corners of the mouth.
GROUPS = ((37, 38, 40, 41), (43, 44, 46, 47), (30,), (48, 60), (54, 64))


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def tensor(image, mean=0.0, std=1.0):
    values = image.astype(np.float32)
    if (mean, std) != (0.0, 1.0):
        values = (values - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


class Pipeline:
    def __init__(self, models):
        self.detector, self.refiner, self.embedder = (
            session(models / "fp32" / name) for name in ("yunet.onnx", "fr_landmark.onnx", "fr_feature.onnx"))
        self.outputs = [output.name for output in self.detector.get_outputs()]

    def detect(self, image, side=320):
        """Box and five points of the most confident face, or nothing. (The suppression of overlapping boxes never drops
        the most confident one, so it is left out here, in Python's favour.)"""
        height, width = image.shape[:2]
        scale = min(side / width, side / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = np.zeros((side, side, 3), np.uint8)
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas[:size[1], :size[0]] = cv2.resize(image, size, interpolation=way)
        raw = dict(zip(self.outputs, self.detector.run(None, {"input": tensor(canvas)})))
        best = None
        for stride in (8, 16, 32):
            confidence = np.sqrt(np.clip(raw[f"cls_{stride}"][0, :, 0], 0, 1) * np.clip(raw[f"obj_{stride}"][0, :, 0], 0, 1))
            index = int(confidence.argmax())
            if confidence[index] > 0.6 and (best is None or confidence[index] > best[0]):
                cell = np.array([index % (side // stride), index // (side // stride)], np.float32)
                box = raw[f"bbox_{stride}"][0, index]
                centre, extent = (cell + box[:2]) * stride, np.exp(box[2:]) * stride
                best = confidence[index], np.concatenate([centre - extent / 2, centre + extent / 2]) / scale
        return None if best is None else best[1]

    def refine(self, image, box):
        left, top, right, bottom = (int(round(float(value))) for value in box)
        height, width = image.shape[:2]
        over = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
        if any(over):
            image = cv2.copyMakeBorder(image, *over, cv2.BORDER_REPLICATE)
        part = image[top + over[0]:bottom + over[0], left + over[2]:right + over[2]]
        grey = cv2.cvtColor(cv2.resize(part, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        points = self.refiner.run(None, {"input": tensor(grey[:, :, None], 0.0, 256.0)})[0].reshape(68, 2)
        points = points * [right - left, bottom - top] + [left, top]
        return np.array([points[list(group)].mean(0) for group in GROUPS])

    @staticmethod
    def align(image, points):
        # A similarity in the plane is multiplication by a complex number and a shift.
        z, w = points @ [1, 1j], SAMPLE_POINTS @ [1, 1j]
        zc = z - z.mean()
        a = (zc.conj() * (w - w.mean())).sum() / (abs(zc) ** 2).sum()
        b = w.mean() - a * z.mean()
        matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
        return cv2.warpAffine(image, matrix, (112, 112), flags=cv2.INTER_LINEAR)

    def embed(self, sample):
        template = self.embedder.run(None, {"input": tensor(sample, 127.0, 128.0)})[0][0]
        return template / np.linalg.norm(template)


def main():
    models, photos = map(pathlib.Path, sys.argv[1:3])
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    cv2.setNumThreads(1)
    kinds = {".jpg", ".jpeg", ".png", ".webp"}
    # Depth first by path, as `rollcall bench` goes through a folder.
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in kinds)[:most]
    pipeline = Pipeline(models)
    taken = {stage: [] for stage in ("decode", "detect", "refine", "align", "embed", "decode_to_template")}

    def timed(stage, work, *arguments):
        before = time.process_time_ns()
        done = work(*arguments)
        taken[stage].append((time.process_time_ns() - before) / 1e6)
        return done

    def photograph(data):
        image = timed("decode", cv2.imdecode, data, cv2.IMREAD_COLOR)
        box = timed("detect", pipeline.detect, image)
        if box is None:
            return False
        points = timed("refine", pipeline.refine, image, box)
        sample = timed("align", pipeline.align, image, points)
        timed("embed", pipeline.embed, sample)
        return True

    for path in files[:5]:  # The first inferences allocate.
        photograph(np.fromfile(path, np.uint8))
    for samples in taken.values():
        samples.clear()
    faces = 0
    for path in files:
        data = np.fromfile(path, np.uint8)
        before = time.process_time_ns()
        if photograph(data):
            taken["decode_to_template"].append((time.process_time_ns() - before) / 1e6)
            faces += 1
    stages = {stage: {"median": float(np.median(it)), "p95": float(np.percentile(it, 95))} for stage, it in taken.items()}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"photographs": len(files), "faces": faces, "stages_ms": stages, "rss_bytes": resident}))


if __name__ == "__main__":
    main()
