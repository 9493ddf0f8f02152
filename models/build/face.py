"""The recognition pipeline in Python: letterbox, detect, refine, align, embed, judge.

It exists to calibrate and to evaluate the networks; the daemon has its own. Both must give the same
detections and templates, so what is done here is what the manifest's figures mean.
Coordinates are pixels of the full photograph, x before y. Images are OpenCV's: height x width x BGR, u8.
"""
import cv2
import numpy as np
import onnxruntime as ort

ort.set_default_logger_severity(3)

STRIDES = (8, 16, 32)
# Where the five landmarks stand in a 112 x 112 sample (the ArcFace layout both embedders were trained on).
SAMPLE_POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
                          [41.5493, 92.3655], [70.7299, 92.2041]])
SAMPLE_SIDE = 112
# The 68-point scheme: upper and lower lid of each eye without its corners, tip of the nose, corners of the mouth.
LANDMARK_GROUPS = ((37, 38, 40, 41), (43, 44, 46, 47), (30,), (48, 60), (54, 64))


def open_session(path, accurate_u8s8=False):
    """One thread, no spinning. `accurate_u8s8`: on x86 without VNNI, do not let 16-bit sums saturate."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if accurate_u8s8:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def planes(image, mean=0.0, std=1.0):
    """Height x width x channels, u8, to a 1 x channels x height x width float tensor."""
    tensor = (image.astype(np.float32) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(tensor.transpose(2, 0, 1)[None])


def letterbox(image, side):
    """The photograph, scaled to fit the top left corner of a black square, and the scale."""
    height, width = image.shape[:2]
    scale = min(side / width, side / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:size[1], :size[0]] = cv2.resize(image, size, interpolation=way)
    return canvas, scale


def overlap(box, boxes):
    """Intersection over union of one box with many; boxes are left, top, right, bottom."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return common / (area + (box[2:] - box[:2]).prod() - common)


class Detector:
    def __init__(self, path, side=320, confidence=0.6, overlap_max=0.3, **options):
        self.session = open_session(path, **options)
        self.side, self.confidence, self.overlap_max = side, confidence, overlap_max
        self.names = [o.name for o in self.session.get_outputs()]

    def candidates(self, image, side=None):
        side = side or self.side
        canvas, scale = letterbox(image, side)
        raw = dict(zip(self.names, self.session.run(None, {"input": planes(canvas)})))
        faces = []
        for stride in STRIDES:
            cls, obj = (np.clip(raw[f"{k}_{stride}"][0, :, 0], 0, 1) for k in ("cls", "obj"))
            confidence = np.sqrt(cls * obj)
            for i in np.flatnonzero(confidence > self.confidence):
                cell = np.array([i % (side // stride), i // (side // stride)], np.float32)
                bbox = raw[f"bbox_{stride}"][0, i]
                centre, size = (cell + bbox[:2]) * stride, np.exp(bbox[2:]) * stride
                points = (raw[f"kps_{stride}"][0, i].reshape(5, 2) + cell) * stride
                faces.append((float(confidence[i]), np.concatenate([centre - size / 2, centre + size / 2]) / scale,
                              points / scale))
        return faces

    def __call__(self, image, side=None):
        """[(confidence, box, five points)], most confident first."""
        faces = sorted(self.candidates(image, side), key=lambda f: -f[0])
        kept = []
        while faces:
            kept.append(faces.pop(0))
            if faces:
                over = overlap(kept[-1][1], np.array([f[1] for f in faces]))
                faces = [f for f, o in zip(faces, over) if o <= self.overlap_max]
        return kept


def box_cutout(image, box):
    """The box with whole-pixel edges; what lies outside the photograph repeats its edge."""
    left, top, right, bottom = (int(round(v)) for v in box)
    height, width = image.shape[:2]
    over = (max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width))
    padded = cv2.copyMakeBorder(image, *over, cv2.BORDER_REPLICATE) if any(over) else image
    return padded[top + over[0]:bottom + over[0], left + over[2]:right + over[2]], (left, top, right, bottom)


def refiner_input(image, box):
    cutout, edges = box_cutout(image, box)
    small = cv2.resize(cutout, (64, 64), interpolation=cv2.INTER_AREA)
    return planes(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)[:, :, None], 0.0, 256.0), edges


class Refiner:
    def __init__(self, path, **options):
        self.session = open_session(path, **options)

    def __call__(self, image, box):
        tensor, (left, top, right, bottom) = refiner_input(image, box)
        points = self.session.run(None, {"input": tensor})[0].reshape(68, 2)
        points = points * [right - left, bottom - top] + [left, top]
        return np.array([points[list(group)].mean(0) for group in LANDMARK_GROUPS])


def similarity(points, target):
    """Least-squares rotation, scale and shift (no reflection) that takes points to target, as 2 x 3.

    In the plane it is a complex multiplication and has a closed form: z' = a z + b.
    """
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (np.asarray(points, np.float64), target))
    zc, wc = z - z.mean(), w - w.mean()
    a = (zc.conj() * wc).sum() / (abs(zc) ** 2).sum()
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(image, points):
    return cv2.warpAffine(image, similarity(points, SAMPLE_POINTS), (SAMPLE_SIDE, SAMPLE_SIDE),
                          flags=cv2.INTER_LINEAR, borderValue=0)


class Embedder:
    def __init__(self, path, channels, mean, std, **options):
        self.session = open_session(path, **options)
        self.channels, self.mean, self.std = channels, mean, std

    def tensor(self, sample):
        return planes(sample[:, :, ::-1] if self.channels == "rgb" else sample, self.mean, self.std)

    def __call__(self, sample):
        template = self.session.run(None, {"input": self.tensor(sample)})[0][0]
        return template / np.linalg.norm(template)


def pad_input(image, box, scale=2.7, side=128):
    """A window 2.7 times the box, moved inside the photograph where it would leave it, shrunk where it cannot fit."""
    height, width = image.shape[:2]
    size = np.array([box[2] - box[0], box[3] - box[1]])
    size = size * min((height - 1) / size[1], (width - 1) / size[0], scale)
    low = (np.array(box[:2]) + np.array(box[2:])) / 2 - size / 2
    low = low - np.minimum(low, 0)
    low = low - np.maximum(low + size - [width - 1, height - 1], 0)
    left, top = (int(v) for v in np.maximum(low, 0))
    right, bottom = (int(v) for v in low + size)
    return planes(cv2.resize(image[top:bottom + 1, left:right + 1], (side, side)))


class Pad:
    """Chance that the face is live, from a single frame."""

    def __init__(self, path, **options):
        self.session = open_session(path, **options)

    def __call__(self, image, box):
        logits = self.session.run(None, {"input": pad_input(image, box)})[0][0]
        odds = np.exp(logits - logits.max())
        return float(odds[0] / odds.sum())


def best_face(faces, image):
    """One face a photograph: the largest, weighed by how near it is to the centre."""
    centre = np.array(image.shape[1::-1]) / 2

    def weight(face):
        box = face[1]
        away = np.linalg.norm((box[:2] + box[2:]) / 2 - centre) / np.linalg.norm(centre)
        return (box[2:] - box[:2]).prod() * (1 - 0.5 * away)

    return max(faces, key=weight)


def with_border(image, share=0.5):
    """A black border, for photographs that a face fills; coordinates then are those of the bordered one."""
    rim = int(max(image.shape[:2]) * share)
    return cv2.copyMakeBorder(image, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=(0, 0, 0))
