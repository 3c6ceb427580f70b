"""What generated landscapes are drawn with: fields, crowns, houses, winding lines, and their light.

All operations are ones that IEEE 754 rounds exactly (no sine, no sum of fractions over pixels), so a scene has the same
pixels on every machine.
"""

from __future__ import annotations

import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 256
Field = NDArray[np.float64]  # (H, W); a scene is (3, H, W), a tone (3, 1, 1)

LAND = ((0.36, 0.42, 0.22), (0.57, 0.52, 0.34), (0.25, 0.36, 0.18), (0.55, 0.43, 0.34))
WATER = ((0.10, 0.20, 0.29), (0.13, 0.26, 0.24), (0.33, 0.34, 0.25), (0.36, 0.33, 0.22))
PAVED = ((0.42, 0.42, 0.43), (0.60, 0.59, 0.57), (0.29, 0.29, 0.31), (0.63, 0.40, 0.31))
_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)


class Draw(np.random.Generator):
    """The random numbers of an image, and what is made from them."""

    def __init__(self, seed: int, scene: str, number: int) -> None:
        super().__init__(np.random.PCG64((seed, zlib.crc32(scene.encode()), number)))

    def between(self, low: float, high: float) -> float:
        """Draw a number; `uniform` may round otherwise on some machines."""
        return low + (high - low) * self.random()

    def tone(self, tones: tuple[tuple[float, ...], ...] = LAND) -> Field:
        """Draw a tone near one of these."""
        base = np.array(tones[int(self.between(0, len(tones)))]) * self.between(0.8, 1.2)
        return (base + (self.random(3) - 0.5) * 0.06)[:, None, None]

    def pair(self) -> tuple[Field, Field]:
        """Draw two tones of land, one clearly lighter than the other, in either order."""
        dark = self.tone()
        light = dark * self.between(1.25, 1.6) + 0.03
        return (dark, light) if self.random() < 0.5 else (light, dark)

    def noise(self, cell: float, octaves: int = 3) -> Field:
        """Draw smooth noise in [0, 1] with features `cell` pixels wide and finer ones on them."""
        total = np.zeros((SIZE, SIZE))
        for octave in range(octaves):
            i, t = cells(_X[0], cell / 2**octave)
            lattice, t = self.random((i[-1] + 2, i[-1] + 2)), t * t * (3 - 2 * t)
            rows = mix(lattice[i], lattice[i + 1], t[:, None])
            total += mix(rows[:, i], rows[:, i + 1], t) / 2**octave
        return total / (2 - 2.0 ** (1 - octaves))

    def axes(self) -> tuple[Field, Field]:
        """Compute the pixels' coordinates along and across a random direction, from a random origin."""
        t = self.between(-1, 1)
        x, y = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # a point of the unit circle
        dx, dy = _X - self.between(64, 192), _Y - self.between(64, 192)
        return dx * x + dy * y, dy * x - dx * y

    def lattice(self, side: float) -> tuple[Field, Field, Field]:
        """Divide the scene into squares: distances from their middles, and a number for each."""
        (i, s), (j, t) = (cells(axis, side) for axis in self.axes())
        return (s - 0.5) * side, (t - 0.5) * side, self.random((64, 64))[j % 64, i % 64]

    def crowns(self, apart: float, radius: float) -> tuple[Field, Field]:
        """Scatter discs, one in each square of a lattice: the distance from their edges, a number for each."""
        dx, dy, mark = self.lattice(apart)
        room = apart - 2 * radius
        dx, dy = dx + (mark * 17 % 1 - 0.5) * room, dy + (mark * 41 % 1 - 0.5) * room
        return np.sqrt(dx * dx + dy * dy) - radius, mark

    def parcels(self) -> tuple[Field, Field]:
        """Divide the scene into fields: a number for each, and a coordinate across its rows."""
        along, across = self.axes()
        strip, _ = cells(across, self.between(36, 80))
        field, _ = cells(along + self.random(16)[strip % 16] * 100, self.between(50, 130))
        number = self.random((16, 16))[strip % 16, field % 16]
        return number, np.where(number * 8 % 1 < 0.8, across, along)

    def winding(self, swing: float) -> Field:
        """Compute the distance in pixels from a line that winds through the scene."""
        along, across = self.axes()
        i, t = cells(along, self.between(70, 120))
        course = (self.random(64) * 2 - 1) * swing
        away = across - mix(course[i % 64], course[(i + 1) % 64], t * t * (3 - 2 * t))
        down, right = np.gradient(away)
        # If the line runs aslant, the difference in one coordinate overstates the distance.
        distance: Field = np.abs(away) / np.sqrt(down * down + right * right)
        return distance

    def houses(self, scene: Field, lot: float, roofs: list[Field], share: float) -> Field:
        """Build square houses on a share of the lots of a lattice."""
        dx, dy, mark = self.lattice(lot)
        walls = np.maximum(np.abs(dx), np.abs(dy)) - lot * (0.22 + mark * 37 % 1 * 0.12)
        roof = np.choose((mark * 91).astype(np.intp) % len(roofs), roofs)
        return mix(scene, roof * np.where(dy > 0, 0.88, 1.08), edge(walls) * (mark < share))

    def develop(self, scene: Field, look: Draw) -> NDArray[np.uint8]:
        """Add grain, and the brightness, contrast and tint of `look`; return (256, 256, 3) pixels."""
        light = np.floor((scene[0] + scene[1] + scene[2]) * 1000)  # sums of integers are exact
        mean, square = light.mean(), (light * light).mean()
        wanted = (light - mean) / np.sqrt(square - mean * mean) * look.between(0.11, 0.21)
        wanted /= 1 + np.abs(wanted) * 1.5  # glare and shadow do not clip
        # The same is added to all channels: contrast changes, hues do not.
        change = wanted + look.between(0.34, 0.58) - light / 3000
        change += (self.random((SIZE, SIZE)) - 0.5) * self.between(0.02, 0.05)
        tint = 255 + (look.random((3, 1, 1)) - 0.5) * 36
        clipped = np.clip((scene + change) * tint + 0.5, 0, 255)
        pixels: NDArray[np.uint8] = clipped.astype(np.uint8).transpose(1, 2, 0)
        for x, y in (self.random((int(self.between(0, 16)), 2)) * SIZE).astype(np.intp):
            pixels[y : y + 2, x : x + 3] = 225 if (x + y) % 2 else 30  # extremes tell nothing
        return pixels


def cells(values: Field, period: float) -> tuple[NDArray[np.intp], Field]:
    """Number the cells of a periodic grid; return the position in each, in [0, 1), too."""
    cell = np.floor(values / period)
    return cell.astype(np.intp), values / period - cell


def edge(distance: Field, softness: float = 1.5) -> Field:
    """Return 1 if the signed distance in pixels is well below 0, 0 if well above, a ramp between."""
    ramp: Field = 0.5 - distance / softness
    return ramp.clip(0, 1)


def mix(below: Field, above: Field, amount: Field) -> Field:
    """Cover one scene or tone by another: not at all if `amount` is 0, wholly if it is 1."""
    return below + (above - below) * amount


def bmp(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image, (H, W, 3) uint8, without compression, whose bytes would differ between versions."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "BMP")
    return buffer.getvalue()
