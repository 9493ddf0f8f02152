#!/usr/bin/env python3
"""Makes clips of presentation attacks out of photographs and clips of people: screens filmed by a
camera, and prints held before it, for `rollcall evaluate pad`.

usage: attacks.py FROM BACKGROUNDS TO COUNT    (needs OpenCV)

FROM holds photographs or clips whose middle shows one face, BACKGROUNDS photographs without people.
Of each species COUNT motion JPEG clips of five frames go to TO, with the list spoof.csv:

  screen_phone   a telephone upright in the hand, its border in the picture
  screen_tablet  a tablet or a laptop's screen, across
  screen_filling a screen held so near that its border is out of the picture
  print          a photograph on bent paper, with or without a white margin
  cutout         a photograph cut out round the head

All is synthetic. What a camera makes of a screen is modelled: tilt and movement of the hand,
perspective, white point and gamma of the display, reflected light and glare, its subpixels as the
sensor samples them (moire), bands of its refresh, the lens's blur, the sensor's noise, JPEG. Hands
and real displays, printers and lenses are not. The same COUNT and folders give the same clips.
"""
import csv
import math
import pathlib
import sys

import cv2
import numpy as np

# Five frames are the most that a verdict takes.
WIDTH, HEIGHT, FPS, FRAMES = 640, 480, 10, 5
SPECIES = ["screen_phone", "screen_tablet", "screen_filling", "print", "cutout"]
# The sensor samples twice as finely as the picture, which is then reduced.
FINE = 2
ROWS, COLUMNS = np.mgrid[0 : HEIGHT * FINE, 0 : WIDTH * FINE].astype(np.float32)


class Artefact:
    """What is held before the camera: its size in the picture, its pose, its look."""

    def __init__(self, random, species):
        uniform = random.uniform
        self.random, self.species = random, species
        self.emits = species.startswith("screen")
        shape = {  # height by width, width in pixels of the picture, border by width and by height
            "screen_phone": (uniform(1.78, 2.1), uniform(130, 240), uniform(0.02, 0.06), uniform(0.03, 0.12)),
            "screen_tablet": (uniform(0.62, 0.78), uniform(300, 520), uniform(0.02, 0.06), uniform(0.03, 0.09)),
            "screen_filling": (0.75, uniform(700, 1000), 0.02, 0.02),
        }.get(species, (uniform(1.2, 1.45), uniform(160, 300), uniform(0, 0.06), uniform(0, 0.06)))
        aspect, self.width, self.border_x, self.border_y = shape
        self.height = self.width * aspect
        # Whether the photograph is cut to fill the screen, or has black bars.
        self.covers = species not in ("screen_phone", "screen_tablet") or (
            species == "screen_phone" and random.random() < 0.5
        )
        is_near = species == "screen_filling"
        self.x = WIDTH / 2 + (0 if is_near else uniform(-0.12, 0.12) * WIDTH)
        self.y = HEIGHT / 2 + (0 if is_near else uniform(-0.08, 0.08) * HEIGHT)
        tilt = 7 if is_near else 20  # degrees
        self.pose = [uniform(-tilt, tilt), uniform(-0.75 * tilt, 0.75 * tilt), uniform(-6, 6)]
        self.phase = uniform(0, 2 * math.pi, 5)
        self.bend = uniform(-0.3, 0.3)  # of paper, by its height
        # Blue, green, red.
        self.white = np.float32([uniform(1.0, 1.1), uniform(0.95, 1.02), uniform(0.84, 0.98)])
        self.gamma, self.gain = uniform(0.85, 1.25), uniform(0.75, 1.3)
        self.reflected = uniform(0.01, 0.07)
        self.glare, self.glare_at = uniform(0, 0.06), uniform(0, 1, 2)
        self.band, self.band_rows, self.band_hz = uniform(0, 0.12), uniform(60, 400), uniform(1, 4)
        # Display pixels for each sample of the sensor, how far a subpixel stands out, and the share of
        # that contrast that the lens and a sample's own width leave (a Gaussian's transfer function).
        self.pitch = uniform(0.5, 1.6)
        aperture = uniform(0.28, 0.42)
        self.subpixel = uniform(0.3, 0.9) * math.exp(-2 * (math.pi * aperture * self.pitch) ** 2)
        self.blur, self.noise = uniform(0.5, 1.2), uniform(1.2, 3.5)

    def frame(self, picture, background, seconds):
        part, u, v = self.coordinates(seconds)
        if not self.emits:
            v = v + self.bend * (u - 0.5) ** 2
        width, height = int(1.5 * self.width), int(1.5 * self.height)
        shown = fitted(picture, width, height, self.covers).astype(np.float32) / 255
        shown = cv2.remap(shown, u * (width - 1), v * (height - 1), cv2.INTER_LINEAR)
        light = shown ** (2.2 * self.gamma)
        light = self.emitted(light, part, u, v, seconds) if self.emits else self.scattered(light)
        inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
        scene = background.copy()
        held = scene[part]
        if self.species == "cutout":
            inside = ((u - 0.5) / 0.4) ** 2 + ((v - 0.5) / 0.46) ** 2 <= 1
        else:
            x, y = self.border_x, self.border_y
            edge = (u >= -x) & (u <= 1 + x) & (v >= -y) & (v <= 1 + y)
            held[edge] = (0.004 if self.emits else 0.75) ** (1 / 2.2)
        held[inside] = np.clip(light[inside], 0, None) ** (1 / 2.2)
        scene = cv2.resize(cv2.GaussianBlur(scene, (0, 0), self.blur), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        scene = 255 * scene + self.random.normal(0, self.noise, scene.shape)
        return cv2.imencode(".jpg", np.clip(scene, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]

    def coordinates(self, seconds):
        """The part of the scene round the artefact, and where on it each sample there lies, 0 to 1
        from its left and its upper edge."""
        phase, (yaw, pitch, roll) = self.phase, np.radians(self.pose)
        yaw += 0.05 * math.sin(1.7 * seconds + phase[0])
        pitch += 0.035 * math.sin(1.3 * seconds + phase[1])
        roll += 0.025 * math.sin(1.1 * seconds + phase[2])
        x = self.x + 6 * math.sin(2.1 * seconds + phase[3]) + self.random.uniform(-0.7, 0.7)
        y = self.y + 5 * math.sin(1.6 * seconds + phase[4]) + self.random.uniform(-0.7, 0.7)
        turned = cv2.Rodrigues(np.float64([0, 0, roll]))[0] @ cv2.Rodrigues(np.float64([pitch, 0, 0]))[0]
        turned = turned @ cv2.Rodrigues(np.float64([0, yaw, 0]))[0]
        distance = 4 * max(self.width, self.height)
        corners = []
        for across, down in [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]:
            right, below, away = turned @ [across * self.width, down * self.height, 0]
            scale = FINE * distance / (distance + away)
            corners.append([FINE * x + right * scale, FINE * y + below * scale])
        corners = np.float32(corners)
        room = 0.2 * np.ptp(corners, axis=0)  # for its border
        left, top = np.maximum(corners.min(axis=0) - room, 0).astype(int)
        right, bottom = np.maximum(corners.max(axis=0) + room, 0).astype(int)
        part = np.s_[top:bottom, left:right]
        columns, rows = COLUMNS[part], ROWS[part]
        square = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
        (a, b, c), (d, e, f), (g, h, i) = cv2.getPerspectiveTransform(corners, square)
        depth = g * columns + h * rows + i
        u, v = (a * columns + b * rows + c) / depth, (d * columns + e * rows + f) / depth
        return part, u.astype(np.float32), v.astype(np.float32)

    def emitted(self, light, part, u, v, seconds):
        """A display's light: subpixels, refresh, white point, and the room that it reflects."""
        across = self.pitch * self.width * FINE
        for channel in range(3):
            light[..., channel] *= 1 + self.subpixel * np.cos(2 * np.pi * (u * across - channel / 3))
        light *= (1 + 0.5 * self.subpixel * np.cos(2 * np.pi * v * across * self.height / self.width))[..., None]
        band = ROWS[part] / FINE / self.band_rows + seconds * self.band_hz
        light *= (1 + self.band * np.sin(2 * np.pi * band))[..., None]
        light = (light * (1 - self.reflected) + self.reflected) * self.white * self.gain
        away = (u - self.glare_at[0]) ** 2 + (v - self.glare_at[1]) ** 2
        return light + (self.glare * np.exp(-away / 0.06))[..., None]

    def scattered(self, light):
        """Paper's light: its black is not black and its white is the room's."""
        return (0.85 * light + self.reflected) * self.white[::-1] * min(self.gain, 1.05)


def fitted(picture, width, height, covers):
    """The picture in the middle of a black one of that size, cut or whole."""
    scale = (max if covers else min)(width / picture.shape[1], height / picture.shape[0])
    move = [[scale, 0, (width - scale * picture.shape[1]) / 2], [0, scale, (height - scale * picture.shape[0]) / 2]]
    return cv2.warpAffine(picture, np.float32(move), (width, height), flags=cv2.INTER_CUBIC)


def background(random, path):
    """A part of the photograph, out of focus, at some brightness, 0 to 1."""
    picture = cv2.imread(str(path))
    scale = random.uniform(1, 1.5) * max(WIDTH / picture.shape[1], HEIGHT / picture.shape[0])
    picture = fitted(cv2.resize(picture, None, fx=scale, fy=scale), WIDTH, HEIGHT, True)
    picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(1.5, 4)).astype(np.float32) / 255
    picture = picture * random.uniform(0.5, 0.9) + random.uniform(0.02, 0.12)
    return cv2.resize(picture, (WIDTH * FINE, HEIGHT * FINE))


def moving(path):
    """As many frames as an attack has, from the middle of the clip; of a photograph the same one."""
    picture = cv2.imread(str(path))
    if picture is not None:
        return [picture] * FRAMES
    clip = cv2.VideoCapture(str(path))
    clip.set(cv2.CAP_PROP_POS_FRAMES, clip.get(cv2.CAP_PROP_FRAME_COUNT) // 3)
    every = max(1, round(clip.get(cv2.CAP_PROP_FPS) / FPS))
    frames = [clip.read()[1] for _ in range(FRAMES * every)][::every]
    return [frame for frame in frames if frame is not None]


def files(folder, endings):
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in endings)


def main():
    source, backgrounds, target, count = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), int(sys.argv[4])
    pictures = files(source, {".jpg", ".jpeg", ".png", ".mp4", ".mkv", ".avi", ".gif"})
    scenes = files(backgrounds, {".jpg", ".jpeg", ".png"})
    if not pictures or not scenes:
        sys.exit(f"{source} or {backgrounds} has no pictures")
    target.mkdir(parents=True, exist_ok=True)
    with open(target / "spoof.csv", "w", newline="", encoding="utf-8") as listing:
        rows = csv.writer(listing)
        rows.writerow(["file", "kind", "shown"])
        for number in range(count * len(SPECIES)):
            species = SPECIES[number % len(SPECIES)]
            random = np.random.default_rng(number)
            shown = pictures[int(number * len(pictures) / (count * len(SPECIES)))]
            artefact = Artefact(random, species)
            scene = background(random, scenes[random.integers(len(scenes))])
            name = f"{species}_{number // len(SPECIES):03}.mjpeg"
            frames = (artefact.frame(picture, scene, n / FPS) for n, picture in enumerate(moving(shown)))
            (target / name).write_bytes(b"".join(frame.tobytes() for frame in frames))
            rows.writerow([name, species, shown.name])
    print(f"{count} clips of each of {len(SPECIES)} species in {target}")


main()
