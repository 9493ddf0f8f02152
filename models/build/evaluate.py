"""Measures the networks on photographs of known people: errors with the whole pipeline, thresholds, PAD.

usage: evaluate.py FACES [--fp32] [--embedder NAME] [--embedder-file FILE] [--cache FILE] [--pad]

FACES holds pairs.csv, identify.csv (roles enrol, probe, impostor) and, for --pad, spoof/spoof.csv.
A photograph without a face counts against us: its pair is a non-match, its probe is missed.
Photographs of the ORL set, which faces fill, get a black border first. One face a photograph is judged.
"""
import argparse
import csv
import pickle
import tomllib
from pathlib import Path

import cv2
import numpy as np

import face

MODELS = Path(__file__).resolve().parent.parent
FPIRS = (0.01, 0.001)
DRAWS, SEED = 200, 1  # galleries drawn for the threshold's growth


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Networks:
    def __init__(self, fp32, embedder, embedder_file=None):
        entries = tomllib.loads((MODELS / "manifest.toml").read_text())["model"]
        of_role = {}
        for entry in entries:
            if entry["role"] != "embedder" or entry["name"] == embedder:
                of_role[entry["role"]] = entry
        path = {role: MODELS / (e["twin"]["file"] if fp32 else e["file"]) for role, e in of_role.items()}
        self.key = tuple(path[role].read_bytes() for role in ("detector", "refiner"))
        fed = of_role["embedder"]["input"]
        self.detector, self.refiner = face.Detector(path["detector"]), face.Refiner(path["refiner"])
        self.embedder = face.Embedder(embedder_file or path["embedder"], fed["channels"], fed["mean"], fed["std"])
        self.pad = face.Pad(path["pad"])


def sample(networks, path, border):
    image = cv2.imread(str(path))
    if border:
        image = face.with_border(image)
    faces = networks.detector(image)
    if not faces:
        return None
    return face.align(image, networks.refiner(image, face.best_face(faces, image)[1]))


def samples(networks, root, files, cache):
    if cache and cache.exists():
        key, found = pickle.loads(cache.read_bytes())
        if key == networks.key:
            return found
    found = {f: sample(networks, root / f, f.startswith("orl_")) for f in sorted(files)}
    if cache:
        cache.write_bytes(pickle.dumps((networks.key, found)))
    return found


def equal_error_rate(scores, same):
    order = np.argsort(-scores)
    found = np.cumsum(same[order]) / same.sum()
    wrong = np.cumsum(~same[order]) / (~same).sum()
    at = np.argmin(abs(wrong - (1 - found)))
    return (wrong[at] + 1 - found[at]) / 2


def subject_scores(templates, files, gallery, owners, subjects):
    """Files x subjects: the best reference of each subject; -1 where no face was found."""
    scores = np.full((len(files), subjects), -1.0)
    for row, file in zip(scores, files):
        if templates[file] is not None:
            np.maximum.at(row, owners, gallery @ templates[file])
    return scores


class Identification:
    """Scores of the open-set test: who was enrolled, who asks, who must stay unknown."""

    def __init__(self, templates, listed):
        enrolled = [r for r in listed if r["role"] == "enrol" and templates[r["file"]] is not None]
        subjects = sorted({r["identity"] for r in enrolled})
        probes = [r for r in listed if r["role"] == "probe"]
        strangers = [r["file"] for r in listed if r["role"] == "impostor"]
        gallery = np.array([templates[r["file"]] for r in enrolled])
        owners = np.array([subjects.index(r["identity"]) for r in enrolled])
        self.own = np.array([subjects.index(r["identity"]) if r["identity"] in subjects else -1 for r in probes])
        self.probes = subject_scores(templates, [r["file"] for r in probes], gallery, owners, len(subjects))
        self.strangers = subject_scores(templates, strangers, gallery, owners, len(subjects))

    def threshold(self, fpir, subjects=None):
        """Least score that at most the share `fpir` of strangers reach."""
        scores = self.strangers if subjects is None else self.strangers[:, subjects]
        top = np.sort(scores.max(1))[::-1]
        return float(np.nextafter(top[int(fpir * len(top))], 2))

    def missed(self, threshold):
        right = (self.probes.argmax(1) == self.own) & (self.probes.max(1) >= threshold)
        return int((~right).sum())

    def growth(self, fpir):
        """Threshold against the gallery's size: [(subjects, mean threshold)], and its rise for ten times as many."""
        total = self.strangers.shape[1]
        draw = np.random.default_rng(SEED)
        sizes = [n for n in (9, 18, 36, 72) if n < total] + [total]
        points = []
        for size in sizes:
            drawn = [self.threshold(fpir, draw.choice(total, size, replace=False)) for _ in range(DRAWS)]
            points.append((size, float(np.mean(drawn))))
        slope = np.polyfit(np.log10([p[0] for p in points]), [p[1] for p in points], 1)[0]
        return points, float(slope)


def report_recognition(networks, root, cache):
    pairs, listed = rows(root / "pairs.csv"), rows(root / "identify.csv")
    files = {p[k] for p in pairs for k in ("file1", "file2")} | {r["file"] for r in listed}
    cut = samples(networks, root, files, cache)
    templates = {f: None if s is None else networks.embedder(s) for f, s in cut.items()}
    print(f"no face found in {sum(s is None for s in cut.values())} of {len(cut)} photographs")
    scores = np.array([-1.0 if templates[p["file1"]] is None or templates[p["file2"]] is None
                       else templates[p["file1"]] @ templates[p["file2"]] for p in pairs])
    print(f"verification, {len(pairs)} pairs: EER {equal_error_rate(scores, np.array([p['same'] == '1' for p in pairs])):.2%}")
    test = Identification(templates, listed)
    probes, strangers = len(test.own), len(test.strangers)
    print(f"identification, {test.strangers.shape[1]} subjects, {probes} probes, {strangers} strangers:")
    for fpir in FPIRS:
        threshold = test.threshold(fpir)
        missed = test.missed(threshold)
        print(f"  FPIR {fpir:.1%}: FNIR {missed / probes:.2%} ({missed} probes) at threshold {threshold:.3f}")
    top = np.sort(test.strangers.max(1))[::-1]
    missed = [test.missed(np.nextafter(t, 2)) for t in top[:8]]
    print(f"  probes missed with 0 to 7 strangers let in: {missed}")
    points, slope = test.growth(0.01)
    print("  threshold at FPIR 1 %: " + ", ".join(f"{n} subjects {t:.3f}" for n, t in points) + f"; {slope:.3f} a decade")


def report_pad(networks, root):
    chances = {"live": [], "attack": []}
    listed = [("spoof/" + r["file"], "live" if r["kind"] == "live" else "attack") for r in rows(root / "spoof/spoof.csv")]
    listed += [(r["file"], "live") for r in rows(root / "identify.csv")]
    for file, kind in listed:
        image = cv2.imread(str(root / file))
        faces = networks.detector(image)
        if faces:
            chances[kind].append(networks.pad(image, face.best_face(faces, image)[1]))
    live, attack = (np.array(chances[k]) for k in ("live", "attack"))
    print(f"PAD at 0.5: APCER {(attack >= 0.5).mean():.1%} of {len(attack)}, BPCER {(live < 0.5).mean():.1%} of {len(live)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path)
    parser.add_argument("--fp32", action="store_true", help="the twins instead of what ships")
    parser.add_argument("--embedder", default="fr_feature")
    parser.add_argument("--embedder-file", type=Path, help="another file in its place")
    parser.add_argument("--cache", type=Path, help="keep the aligned samples here")
    parser.add_argument("--pad", action="store_true")
    options = parser.parse_args()
    networks = Networks(options.fp32, options.embedder, options.embedder_file)
    report_recognition(networks, options.faces, options.cache)
    if options.pad:
        report_pad(networks, options.faces)


if __name__ == "__main__":
    main()
