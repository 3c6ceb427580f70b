"""Land-cover-like scenes drawn from random numbers, for `synthetic` and `synthetic-roads`.

The class of a scene is in its structure (rows, crowns, blocks, bands, shores) and hardly in its colours: tones are
drawn alike for all classes but for water, and every image gets a random brightness and contrast. Only operations that
IEEE 754 rounds exactly are used (no sine, no floating-point sum over pixels), so that a scene has the same pixels on
every machine.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

SIZE = 256
Field = NDArray[np.float64]  # (H, W); a scene is (3, H, W), a tone (3, 1, 1)

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
_LAND = (
    (0.36, 0.42, 0.22), (0.57, 0.52, 0.34), (0.25, 0.36, 0.18), (0.55, 0.43, 0.34), (0.45, 0.35, 0.25),
)  # fmt: skip
_WATER = ((0.10, 0.20, 0.29), (0.13, 0.26, 0.24), (0.33, 0.34, 0.25), (0.36, 0.33, 0.22))
_PAVED = ((0.42, 0.42, 0.43), (0.60, 0.59, 0.57), (0.29, 0.29, 0.31), (0.63, 0.40, 0.31))


class _Draw:
    def __init__(self, seed: int, name: str, index: int) -> None:
        entropy = (seed, zlib.crc32(name.encode()), index)
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._generator.random()

    def table(self, *shape: int) -> Field:
        return self._generator.random(shape)

    def tone(self, tones: tuple[tuple[float, ...], ...] = _LAND) -> Field:
        base = np.array(tones[int(self.between(0, len(tones)))]) * self.between(0.8, 1.2)
        return (base + (self.table(3) - 0.5) * 0.06)[:, None, None]

    def pair(self) -> tuple[Field, Field]:
        """Draw two tones of land, one clearly lighter than the other, in either order."""
        dark = self.tone()
        light = dark * self.between(1.25, 1.6) + 0.03
        return (dark, light) if self.between(0, 1) < 0.5 else (light, dark)

    def axes(self) -> tuple[Field, Field]:
        """Compute the pixels' coordinates along and across a random direction, from a random origin."""
        t = self.between(-1, 1)
        x, y = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # a point of the unit circle
        dx, dy = _X - self.between(64, 192), _Y - self.between(64, 192)
        return dx * x + dy * y, dy * x - dx * y

    def noise(self, cell: float, octaves: int = 3) -> Field:
        """Draw smooth noise in [0, 1] with features about `cell` pixels wide and finer ones on them."""
        total, weight = np.zeros((SIZE, SIZE)), 0.0
        for octave in range(octaves):
            wide = cell / 2**octave
            place = np.arange(SIZE) / wide + self.between(0, 1)
            i = place.astype(np.intp)
            t = place - i
            t = t * t * (3 - 2 * t)
            lattice = self.table(i[-1] + 2, i[-1] + 2)
            rows = lattice[i] + (lattice[i + 1] - lattice[i]) * t[:, None]
            total += (rows[:, i] + (rows[:, i + 1] - rows[:, i]) * t) / 2**octave
            weight += 1 / 2**octave
        return total / weight

    def course(self, along: Field, cell: float) -> Field:
        """Draw smooth noise in [-1, 1] that varies with one coordinate only."""
        i, t = _cells(along, cell)
        lattice = self.table(64) * 2 - 1
        return lattice[i % 64] + (lattice[(i + 1) % 64] - lattice[i % 64]) * (t * t * (3 - 2 * t))

    def crowns(self, cell: float) -> tuple[Field, Field]:
        """Scatter a point in each cell of a grid: the distance to the nearest in cells, and a number of its own."""
        n = int(SIZE / cell) + 4
        px, py, mark = self.table(n, n), self.table(n, n), self.table(n, n)
        x, y = _X / cell + 1, _Y / cell + 1
        best, number = np.full((SIZE, SIZE), 9.0), np.zeros((SIZE, SIZE))
        for step in range(9):
            row, column = y.astype(np.intp) + step // 3 - 1, x.astype(np.intp) + step % 3 - 1
            dx, dy = x - column - px[row, column], y - row - py[row, column]
            squared = dx * dx + dy * dy
            number = np.where(squared < best, mark[row, column], number)
            best = np.minimum(squared, best)
        return np.sqrt(best), number

    def lattice(self, width: float, height: float) -> tuple[Field, Field, Field]:
        """Divide the scene into rectangles: distances from their middles, and a number for each."""
        along, across = self.axes()
        (i, s), (j, t) = _cells(along, width), _cells(across, height)
        return (s - 0.5) * width, (t - 0.5) * height, self.table(64, 64)[j % 64, i % 64]

    def parcels(self) -> tuple[Field, Field]:
        """Divide the scene into fields: a number for each, and a coordinate across its rows."""
        along, across = self.axes()
        strip, _ = _cells(across, self.between(36, 80))
        field, _ = _cells(along + self.table(16)[strip % 16] * 100, self.between(50, 130))
        number = self.table(16, 16)[strip % 16, field % 16]
        return number, np.where(number * 8 % 1 < 0.8, across, along)

    def ground(self) -> Field:
        """Draw what surrounds the structure of a class: meadows, plain fields and shrubs."""
        scene = _mix(*self.pair(), self.noise(self.between(24, 90)))
        if self.between(0, 1) < 0.5:
            scene = _mix(scene, self.tone(), self.parcels()[0] * 0.8)
        distance, mark = self.crowns(self.between(9, 16))
        shrubs = _edge((distance - 0.42) * 10) * (mark < self.between(0, 0.4))
        return _mix(scene, self.tone(), shrubs)


def _cells(values: Field, period: float | Field) -> tuple[NDArray[np.intp], Field]:
    """Number the cells of a periodic grid; return the position in each, in [0, 1), too."""
    scaled = values / period
    cell = np.floor(scaled)
    return cell.astype(np.intp), scaled - cell


def _edge(distance: Field, softness: float = 1.5) -> Field:
    """Return 1 if the signed distance in pixels is well below 0, 0 if well above, a ramp between."""
    ramp: Field = 0.5 - distance / softness
    return ramp.clip(0, 1)


def _mix(below: Field, above: Field, amount: Field) -> Field:
    """Cover one scene or tone by another: not at all if `amount` is 0, wholly if it is 1."""
    return below + (above - below) * amount


def _crops(draw: _Draw) -> Field:
    number, across = draw.parcels()
    _, t = _cells(across, 4.5 + number * 37 % 1 * 5)
    return _mix(*draw.pair(), number * 0.6 + (np.abs(t - 0.5) * 2 - 0.5) * 0.7)


def _forest(draw: _Draw) -> Field:
    distance, mark = draw.crowns(draw.between(8, 14))
    stand = draw.noise(draw.between(50, 100), 2) * 0.6 + 0.6
    dark, light = draw.pair()
    return _mix(dark * 0.7, light, (0.6 - distance * 0.6 + mark * 0.6) * stand)


def _highway(draw: _Draw) -> Field:
    along, across = draw.axes()
    side = np.abs(across - along * along * draw.between(-0.0012, 0.0012))
    half = draw.between(6, 10)
    scene = _mix(draw.ground(), draw.tone(), _edge(side - half - draw.between(2, 5), 3))
    scene = _mix(scene, draw.tone(_PAVED), _edge(side - half))
    dashes = _edge(np.abs(side - half / 2) - 0.5) * (_cells(along, 9.0)[1] < 0.5)
    return _mix(_mix(scene, draw.tone(), _edge(side - 1)), np.full((3, 1, 1), 0.8), dashes)


def _lake(draw: _Draw) -> Field:
    height = draw.noise(draw.between(90, 160), 4)
    rank = int(draw.between(0.4, 0.85) * height.size)
    shore = (height - np.partition(height, rank, axis=None)[rank]) * 220
    scene = _mix(draw.ground(), draw.tone(), _edge(shore - draw.between(2, 7), 5))
    return _mix(scene, _water(draw), _edge(shore))


def _orchard(draw: _Draw) -> Field:
    apart = draw.between(8, 14)
    dx, dy, mark = draw.lattice(apart, apart * draw.between(1.0, 1.35))
    soil, leaf = draw.pair()
    ground = _mix(soil, soil * 0.8, draw.noise(draw.between(20, 60)))
    return _mix(ground, leaf, _edge(np.sqrt(dx * dx + dy * dy) - (0.3 + mark * 0.12) * apart))


def _pasture(draw: _Draw) -> Field:
    scene = _mix(*draw.pair(), draw.noise(draw.between(50, 120), 4))
    distance, mark = draw.crowns(draw.between(18, 34))
    return _mix(
        scene, draw.tone(), _edge((distance - 0.14) * 22) * (mark < draw.between(0.05, 0.5))
    )


def _residential(draw: _Draw) -> Field:
    scene = _mix(*draw.pair(), draw.noise(22))
    return _houses(draw, scene, draw.between(11, 17), [draw.tone(_PAVED) for _ in range(3)], 0.9)


def _river(draw: _Draw) -> Field:
    side, along = _winding(draw, draw.between(20, 50))
    shore = side - (1 + draw.course(along, 60) * 0.3) * draw.between(9, 18)
    scene = _mix(draw.ground(), draw.tone(), _edge(shore - draw.between(3, 9), 3) * 0.8)
    return _mix(scene, _water(draw), _edge(shore))


def _water(draw: _Draw) -> Field:
    return draw.tone(_WATER) + (draw.noise(5, 1) - 0.5) * 0.03


def _houses(draw: _Draw, scene: Field, lot: float, roofs: list[Field], share: float) -> Field:
    """Build square houses, on a share of the lots of a grid."""
    dx, dy, mark = draw.lattice(lot, lot * 1.15)
    walls = np.maximum(np.abs(dx), np.abs(dy)) - lot * (0.22 + mark * 37 % 1 * 0.12)
    tones = np.concatenate([roof[:, 0] for roof in roofs], axis=1)
    roof = tones[:, (mark * 91).astype(np.intp) % len(roofs)] * np.where(dy > 0, 0.88, 1.08)
    return _mix(scene, roof, _edge(walls) * (mark < share))


def _winding(draw: _Draw, swing: float) -> tuple[Field, Field]:
    """Return the distance in pixels from a winding line through the image, and the position along it."""
    along, across = draw.axes()
    away = across - draw.course(along, draw.between(70, 120)) * swing
    down, right = np.gradient(away)
    # If the line runs aslant, the difference in one coordinate overstates the distance.
    return np.abs(away) / np.sqrt(down * down + right * right), along


_DRAWN = (_crops, _forest, _highway, _lake, _orchard, _pasture, _residential, _river)
SCENES = {draw.__name__.removeprefix("_").title(): draw for draw in _DRAWN}


def draw_scene(seed: int, name: str, index: int) -> NDArray[np.uint8]:
    """Draw scene number `index` of the class `name`, a key of `SCENES`, as (256, 256, 3) uint8."""
    draw = _Draw(seed, name, index)
    return _developed(draw, draw, SCENES[name](draw))


def draw_roads(seed: int, place: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one to three winding roads through fields and houses.

    The images of a place share its tones and its light. Colour alone does not give the roads away: some fields and a
    third of the roofs have the same tone. Returns pixels, (H, W, 3) uint8, one side of 256 and the other of 192 to 256,
    and the pixels whose middle is on a road, (H, W) bool.
    """
    look, draw = _Draw(seed, "place of roads", place), _Draw(seed, "roads", index)
    paved = look.tone(_PAVED)
    scene = _mix(*look.pair(), draw.noise(draw.between(24, 90)))
    number, _ = draw.parcels()
    scene = _mix(scene, look.tone(), number * 0.8)
    scene = _mix(scene, paved, np.where(number < 0.12, 0.9, 0.0))
    roofs = [paved, look.tone(_PAVED), look.tone(_PAVED)]
    scene = _houses(draw, scene, draw.between(22, 32), roofs, draw.between(0.05, 0.4))
    road = np.zeros((SIZE, SIZE), dtype=np.bool_)
    for _ in range(int(draw.between(1, 4))):
        side, _ = _winding(draw, draw.between(8, 30))
        beyond = side - draw.between(4, 10)
        scene = _mix(scene, paved + (draw.noise(5, 1) - 0.5) * 0.03, _edge(beyond))
        road |= beyond <= 0
    pixels = _developed(look, draw, scene)
    short = int(draw.between(192, SIZE + 1))
    height, width = (short, SIZE) if draw.between(0, 1) < 0.5 else (SIZE, short)
    return np.ascontiguousarray(pixels[:height, :width]), road[:height, :width].copy()


def _developed(look: _Draw, draw: _Draw, scene: Field) -> NDArray[np.uint8]:
    """Add specks and grain, and the brightness, contrast and tint of `look`."""
    light = (scene[0] + scene[1] + scene[2]) / 3
    steps = (light * 4096).astype(np.int64)  # sums of integers are exact in any order
    mean = int(steps.sum()) / steps.size
    deviation = float(np.sqrt(int((steps * steps).sum()) / steps.size - mean * mean))
    wanted = (light - mean / 4096) * (look.between(0.11, 0.21) * 4096 / deviation)
    wanted /= 1 + np.abs(wanted) * 1.5  # glare and shadow do not clip
    # The same is added to all channels: contrast changes, hues do not.
    change = wanted + look.between(0.34, 0.58) - light
    change += (draw.table(SIZE, SIZE) - 0.5) * draw.between(0.02, 0.05)
    tint = 255 + (look.table(3, 1, 1) - 0.5) * 36
    pixels = np.clip((scene + change) * tint + 0.5, 0, 255).astype(np.uint8)
    for x, y in (draw.table(int(draw.between(0, 16)), 2) * SIZE).astype(np.intp):
        pixels[:, y : y + 2, x : x + 3] = 225 if (x + y) % 2 else 30  # extremes that tell nothing
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
