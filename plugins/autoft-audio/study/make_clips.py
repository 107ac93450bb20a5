"""Makes the study's clips with espeak-ng: spoken digits, and spoken letters and words by other voices.

    python make_clips.py FOLDER

FOLDER/digits has `metadata.csv` with a column `split`: the voices of the test split speak nowhere else, nor do those of
validation. FOLDER/words has other words by voices that never speak a digit of the test split.
"""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (
    *("bravo", "delta", "echo", "foxtrot", "hotel", "india", "kilo", "lima", "mike", "november", "oscar", "papa"),
    *("quebec", "romeo", "sierra", "tango", "victor", "whiskey", "yankee", "zulu", "yes", "no", "stop", "go"),
)
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan")
# (accent, variant of the voice, split): 4 voices to learn from, 2 to choose by, 6 to be tested on
SPEAKERS = (
    *(("en-us", "m1", "train"), ("en", "f2", "train"), ("en-us", "m3", "train"), ("en-gb-scotland", "f1", "train")),
    *(("en", "m2", "validation"), ("en-us", "f3", "validation")),
    *(("en-029", "m4", "test"), ("en-gb-x-rp", "f4", "test"), ("en-gb-x-gbclan", "m5", "test")),
    *(("en-us", "klatt", "test"), ("en", "croak", "test"), ("en-gb-scotland", "whisper", "test")),
)
OTHERS = tuple(itertools.product(ACCENTS[:3], ("m6", "m7", "f5", "m8", "m1", "f1")))
MANNERS = ((130, 35), (150, 50), (175, 60), (210, 70))  # words a minute, and pitch of 0 to 99


def say(word: str, voice: str, speed: int, pitch: int, file: Path) -> None:
    """Write one spoken word, 22.05 kHz mono."""
    file.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", file, word], check=True)


def main(folder: Path) -> None:
    """Write both sets."""
    digits = [
        (f"{accent}+{variant}", split, digit, speed, pitch)
        for accent, variant, split in SPEAKERS
        for digit in DIGITS
        for speed, pitch in (MANNERS[1:3] if split == "train" else MANNERS)
    ]
    words = [
        (f"{accent}+{variant}", "", word, speed, pitch)
        for accent, variant in OTHERS
        for word in WORDS
        for speed, pitch in MANNERS[::2]
    ]
    with ThreadPoolExecutor(4) as pool:
        for name, clips in (("digits", digits), ("words", words)):
            rows = [
                (f"clips/{voice}-{word}-{speed}.wav", word, voice, split, speed, pitch)
                for voice, split, word, speed, pitch in clips
            ]
            done = [
                pool.submit(say, word, voice, speed, pitch, folder / name / file)
                for file, word, voice, _, speed, pitch in rows
            ]
            for each in done:
                each.result()
            with (folder / name / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(("file_name", "label", "speaker", "split"))
                writer.writerows(row[:4] for row in rows)
            print(f"{name}: {len(rows)} clips")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
