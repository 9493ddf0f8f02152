#!/usr/bin/env python3
"""Makes photographs of more people than there are, to measure what a large gallery takes.

usage: people.py FROM TO COUNT    (needs OpenCV)

Each is one of the JPEGs below FROM, cropped by up to 4 %, brightened and, in every second round,
mirrored. The same face recurs under other names, so accuracy is not measured on them.
"""
import pathlib
import sys

import cv2

source, target, count = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
photographs = sorted(source.rglob("*.jpg"))
if not photographs:
    sys.exit(f"{source} has no photographs")
target.mkdir(parents=True, exist_ok=True)
for number in range(count):
    round_ = number // len(photographs)
    picture = cv2.imread(str(photographs[number % len(photographs)]))
    height, width = picture.shape[:2]
    picture = picture[height * (round_ // 5 % 5) // 100 :, width * (round_ % 5) // 100 :]
    picture = cv2.add(picture, (round_ % 7 * 6 - 18,) * 3 + (0,))
    if round_ % 2:
        picture = cv2.flip(picture, 1)
    cv2.imwrite(str(target / f"Person {number:06}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
print(f"{count} photographs made from {len(photographs)}")
