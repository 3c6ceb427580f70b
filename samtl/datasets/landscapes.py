"""Land-cover-like scenes drawn from random numbers: what `synthetic` and `synthetic-roads` show.

A scene's class is in its structure (rows, crowns, grids, bands, shorelines), hardly in its colours:
tones are drawn without regard to the class wherever nature allows, and every image is brought to a
brightness and a contrast drawn in the same way for all classes.

Only uniform numbers and operations that IEEE 754 rounds exactly are used (no sine, no exponential,
no matrix product, no floating-point sum over many pixels), so that a scene has the same pixels on
every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

SIZE = 256

# A scene in the making is (3, H, W), a tone (3, 1, 1), any other field (H, W).
Field = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)

_GROUND = (
    (0.36, 0.42, 0.22),
    (0.57, 0.52, 0.34),
    (0.45, 0.35, 0.25),
    (0.25, 0.36, 0.18),
    (0.55, 0.43, 0.34),
    (0.42, 0.46, 0.36),
    (0.63, 0.59, 0.48),
    (0.19, 0.27, 0.18),
    (0.47, 0.52, 0.26),
)
_WATER = (
    (0.10, 0.20, 0.29),
    (0.13, 0.26, 0.24),
    (0.33, 0.34, 0.25),
    (0.07, 0.13, 0.19),
    (0.26, 0.37, 0.42),
)
_ROOFS = (
    (0.63, 0.37, 0.28),
    (0.54, 0.54, 0.56),
    (0.80, 0.78, 0.73),
    (0.33, 0.31, 0.32),
    (0.57, 0.46, 0.37),
)
_PAVED = ((0.42, 0.42, 0.43), (0.60, 0.59, 0.57), (0.29, 0.29, 0.31), (0.72, 0.69, 0.63))


class _Dice:
    """Random draws for one scene, from uniform numbers only."""

    def __init__(self, seed: int, name: str, index: int) -> None:
        # The name's checksum, not its place in a list: adding a class leaves the others alone.
        entropy = (seed, zlib.crc32(name.encode()), index)
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._generator.random()

    def chance(self, probability: float) -> bool:
        return self._generator.random() < probability

    def table(self, *shape: int) -> Field:
        return self._generator.random(shape, dtype=np.float32)

    def direction(self) -> tuple[float, float]:
        """Draw a unit vector, every direction alike."""
        while True:
            x, y = self.between(-1, 1), self.between(-1, 1)
            norm = float(np.sqrt(x * x + y * y))
            if 0.1 < norm <= 1:
                return x / norm, y / norm

    def tone(self, tones: tuple[tuple[float, ...], ...]) -> Field:
        base = np.array(tones[int(self.between(0, len(tones)))], dtype=np.float32)
        light = np.float32(self.between(0.85, 1.15))
        tone = base * light + (self.table(3) - np.float32(0.5)) * np.float32(0.06)
        return tone[:, None, None]

    def pair(self, tones: tuple[tuple[float, ...], ...]) -> tuple[Field, Field]:
        """Draw two tones, one clearly lighter than the other, in either order."""
        first = self.tone(tones)
        for _ in range(20):
            second = self.tone(tones)
            if abs(_lightness(first - second)[0, 0]) > 0.1:
                break
        return first, second


def _lightness(scene: Field) -> Field:
    lightness: Field = (scene[0] + scene[1] + scene[2]) / np.float32(3)
    return lightness


def draw(seed: int, name: str, index: int) -> npt.NDArray[np.uint8]:
    """Draw one scene.

    Parameters
    ----------
    seed : int
        Not negative.
    name : str
        A key of `SCENES`.
    index : int
        Which of the class's scenes.

    Returns
    -------
    ndarray, (256, 256, 3) uint8
    """
    dice = _Dice(seed, name, index)
    return _developed(dice, SCENES[name](dice))


def draw_roads(
    seed: int, place: int, index: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draw one to three winding roads through fields and houses.

    The images of a place share its tones and its light. Colour alone does not give the roads away:
    some fields and a third of the roofs are paved in the same tone.

    Parameters
    ----------
    seed, place, index : int
        Not negative; `index` says which image, whatever its place.

    Returns
    -------
    pixels : ndarray, (H, W, 3) uint8
        One side of 256, the other of 192 to 256.
    road : ndarray, (H, W) bool
        Exactly the pixels whose middle is on a road.
    """
    look, dice = _Dice(seed, "place of roads", place), _Dice(seed, "roads", index)
    paved = look.tone(_PAVED)
    scene = _settled(look, dice, paved)
    road = np.zeros((SIZE, SIZE), dtype=np.bool_)
    verge = look.tone(_GROUND)
    for _ in range(int(dice.between(1, 4))):
        side, along = _winding(dice)
        beyond = side - np.float32(dice.between(4, 10))
        scene = _mix(scene, verge, _edge(beyond - np.float32(2), 4) * np.float32(0.5))
        scene = _mix(scene, paved + _ripple(dice), _edge(beyond))
        if dice.chance(0.5):
            _, t = _split(along, 11.0)
            dashes = _edge(side - np.float32(0.6)) * (t < np.float32(0.5))
            scene = _mix(scene, np.full((3, 1, 1), 0.8, dtype=np.float32), dashes)
        road |= beyond <= 0
    pixels = _developed(dice, scene, look)
    short = int(dice.between(192, SIZE + 1))
    height, width = (short, SIZE) if dice.chance(0.5) else (SIZE, short)
    return np.ascontiguousarray(pixels[:height, :width]), road[:height, :width].copy()


def _developed(dice: _Dice, scene: Field, look: _Dice | None = None) -> npt.NDArray[np.uint8]:
    """Add specks, then bring the scene to a brightness, contrast and tint of its look, and add grain."""
    look = look or dice
    for _ in range(int(dice.between(0, 16))):  # huts, boats, carts: extremes that tell nothing
        x, y = int(dice.between(0, SIZE)), int(dice.between(0, SIZE))
        scene[:, y : y + 2, x : x + 3] = 0.9 if dice.chance(0.5) else 0.1
    light = _lightness(scene)
    # Sums of integers are exact in any order; sums of floats are not.
    steps = (light * np.float32(4096)).astype(np.int64)
    mean = int(steps.sum()) / steps.size
    deviation = float(np.sqrt(int((steps * steps).sum()) / steps.size - mean * mean))
    contrast = np.float32(look.between(0.11, 0.21) / (deviation / 4096))
    level = np.float32(look.between(0.34, 0.58))
    # The same is added to all channels: contrast changes, hues do not.
    wanted = (light - np.float32(mean / 4096)) * contrast
    wanted /= np.float32(1) + np.abs(wanted) * np.float32(1.5)  # glare and shadow do not clip
    change = wanted + level - light
    change += (dice.table(SIZE, SIZE) - np.float32(0.5)) * np.float32(dice.between(0.02, 0.05))
    tint = np.float32(255) + (look.table(3, 1, 1) - np.float32(0.5)) * np.float32(36)
    pixels = np.clip((scene + change) * tint + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _turned(dice: _Dice) -> tuple[Field, Field]:
    """Pixel coordinates along and across a random direction, from a random origin."""
    x, y = dice.direction()
    dx, dy = _X - np.float32(dice.between(64, 192)), _Y - np.float32(dice.between(64, 192))
    along = dx * np.float32(x) + dy * np.float32(y)
    across = dy * np.float32(x) - dx * np.float32(y)
    return along, across


def _split(values: Field, period: float | Field) -> tuple[Index, Field]:
    """Number the cells of a periodic grid, and give the position in each, in [0, 1)."""
    scaled = values / np.float32(period) if isinstance(period, float) else values / period
    cell = np.floor(scaled)
    return cell.astype(np.intp), scaled - cell


def _smooth(t: Field) -> Field:
    return t * t * (np.float32(3) - np.float32(2) * t)


def _noise(dice: _Dice, cell: float) -> Field:
    """Smooth noise in [0, 1] with features about `cell` pixels wide."""
    index, t = _split(np.arange(SIZE, dtype=np.float32) + np.float32(dice.between(0, cell)), cell)
    t = _smooth(t)
    lattice = dice.table(int(index[-1]) + 2, int(index[-1]) + 2)
    rows = lattice[index] + (lattice[index + 1] - lattice[index]) * t[:, None]
    columns = np.ascontiguousarray(rows.T)
    noise: Field = (columns[index] + (columns[index + 1] - columns[index]) * t[:, None]).T
    return noise


def _relief(dice: _Dice, cell: float, octaves: int = 3) -> Field:
    """Noise on several scales in [0, 1], each half as wide and half as strong as the last."""
    total = np.zeros((SIZE, SIZE), dtype=np.float32)
    weight = 1.0
    for octave in range(octaves):
        weight /= 2
        total += _noise(dice, cell / 2**octave) * np.float32(weight)
    return total / np.float32(1 - weight)


def _course(dice: _Dice, along: Field, cell: float) -> Field:
    """Smooth noise in [-1, 1] that varies along one coordinate only."""
    index, t = _split(along, cell)
    lattice = dice.table(64) * np.float32(2) - np.float32(1)
    low: Field = lattice[index % 64]
    high: Field = lattice[(index + 1) % 64]
    return low + (high - low) * _smooth(t)


def _edge(distance: Field, softness: float = 1.5) -> Field:
    """1 where the signed distance in pixels is well below 0, 0 well above, a ramp between."""
    ramp: Field = np.float32(0.5) - distance / np.float32(softness)
    return ramp.clip(0, 1)


def _mix(below: Field, above: Field, amount: Field) -> Field:
    """Cover one scene or tone by another: not at all where `amount` is 0, wholly where it is 1."""
    return below + (above - below) * amount


def _crowns(dice: _Dice, cell: float) -> tuple[Field, Field, Field]:
    """Scatter one point in each cell of a grid; for each pixel take the nearest.

    Returns the distance to it in cells, a random number of its own in [0, 1), and how far the pixel
    lies from it towards the light.
    """
    n = int(SIZE / cell) + 4
    px, py, mark = dice.table(n, n), dice.table(n, n), dice.table(n, n)
    x, y = _X / np.float32(cell) + np.float32(1), _Y / np.float32(cell) + np.float32(1)
    column, row = x.astype(np.intp), y.astype(np.intp)
    best = np.full((SIZE, SIZE), 9, dtype=np.float32)
    which = np.zeros((SIZE, SIZE), dtype=np.intp)
    # Coordinates of the point, flat, so that one gather serves each neighbour.
    cx = (px + np.arange(n, dtype=np.float32)).ravel()
    cy = (py + np.arange(n, dtype=np.float32)[:, None]).ravel()
    here = row * n + column
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            there = here + (dr * n + dc)
            gx, gy = x - cx[there], y - cy[there]
            squared = gx * gx + gy * gy
            nearer = squared < best
            best = np.where(nearer, squared, best)
            which = np.where(nearer, there, which)
    lx, ly = dice.direction()
    lit = (x - cx[which]) * np.float32(lx) + (y - cy[which]) * np.float32(ly)
    return np.sqrt(best), mark.ravel()[which], lit


def _parcels(dice: _Dice) -> tuple[Field, Field, tuple[Index, Index]]:
    """Cut the land into strips and these into fields; give coordinates and each field's number."""
    along, across = _turned(dice)
    strip, _ = _split(across, dice.between(36, 80))
    strip %= 16
    lengths = np.float32(50) + dice.table(16) * np.float32(110)
    shifts = dice.table(16) * np.float32(100)
    field, _ = _split(along + shifts[strip], lengths[strip])
    field %= 16
    return along, across, (strip, field)


def _countryside(dice: _Dice) -> Field:
    """Ground for scenes whose class lies elsewhere: meadows, scrub or parcels without rows."""
    scene = _mix(*dice.pair(_GROUND), _relief(dice, dice.between(24, 90), 4))
    if dice.chance(0.5):
        _, _, parcel = _parcels(dice)
        scene = _mix(scene, dice.tone(_GROUND), dice.table(16, 16)[parcel])
    if dice.chance(0.6):
        distance, mark, _ = _crowns(dice, dice.between(9, 16))
        shrubs = _edge((distance - np.float32(0.42)) * np.float32(10))
        shrubs *= mark < np.float32(dice.between(0.1, 0.5))
        scene = _mix(scene, dice.tone(_GROUND), shrubs)
    return scene


def _crops(dice: _Dice) -> Field:
    along, across, parcel = _parcels(dice)
    period = (np.float32(4.5) + dice.table(16, 16) * np.float32(5))[parcel]
    lengthwise = (dice.table(16, 16) < np.float32(0.8))[parcel]
    strength = (np.float32(0.25) + dice.table(16, 16) * np.float32(0.6))[parcel]
    _, t = _split(np.where(lengthwise, across, along), period)
    rows = np.abs(t - np.float32(0.5)) * np.float32(2) - np.float32(0.5)
    amount = dice.table(16, 16)[parcel] * np.float32(0.7) + rows * strength
    amount += (_relief(dice, 40) - np.float32(0.5)) * np.float32(0.3)
    return _mix(*dice.pair(_GROUND), amount)


def _forest(dice: _Dice) -> Field:
    distance, mark, lit = _crowns(dice, dice.between(8, 14))
    stand = _relief(dice, dice.between(50, 100), 2)
    crown = np.float32(0.5) - distance * np.float32(0.4) + lit * np.float32(0.3)
    crown += mark * np.float32(0.6)
    dark, light = dice.pair(_GROUND)
    scene = _mix(dark * np.float32(0.6), light, crown * (np.float32(0.6) + stand * np.float32(0.6)))
    if dice.chance(0.4):
        scene = _mix(scene, light, _edge((stand - np.float32(0.33)) * np.float32(120)))
    return scene


def _highway(dice: _Dice) -> Field:
    scene = _countryside(dice)
    along, across = _turned(dice)
    across = across - along * along * np.float32(dice.between(-0.0012, 0.0012))
    side = np.abs(across)
    half = dice.between(6, 10)
    if dice.chance(0.6):  # a lane that crosses
        lane = np.abs(along) - np.float32(dice.between(2, 4))
        scene = _mix(scene, dice.tone(_PAVED), _edge(lane))
    verge = side - np.float32(half + dice.between(2, 5))
    scene = _mix(scene, dice.tone(_GROUND), _edge(verge, 3))
    scene = _mix(scene, dice.tone(_PAVED), _edge(side - np.float32(half)))
    median = side - np.float32(dice.between(0.6, 1.6))
    scene = _mix(scene, dice.tone(_GROUND), _edge(median))
    divide = np.abs(side - np.float32(half / 2))
    _, t = _split(along, 9.0)
    dashes = _edge(divide - np.float32(0.5)) * (t < np.float32(0.5))
    scene = _mix(scene, np.full((3, 1, 1), 0.8, dtype=np.float32), dashes)
    spot, t = _split(along, 13.0)
    lane_number = (across > 0).astype(np.intp) * 2 + (side > np.float32(half / 2))
    mark = dice.table(64, 4)[spot % 64, lane_number]
    cars = (np.abs(divide - np.float32(half / 4)) < np.float32(1.3)) & (mark < np.float32(0.3))
    cars &= np.abs(t - np.float32(0.5)) < np.float32(0.2)
    paint = np.where(mark < np.float32(0.15), np.float32(0.9), np.float32(0.12))
    return _mix(scene, paint, cars.astype(np.float32))


def _lake(dice: _Dice) -> Field:
    height = _relief(dice, dice.between(90, 160), 4)
    rank = int(dice.between(0.4, 0.85) * height.size)
    shore = (height - np.partition(height, rank, axis=None)[rank]) * np.float32(220)
    beach = shore - np.float32(dice.between(2, 7))
    scene = _mix(_countryside(dice), dice.tone(_GROUND), _edge(beach, 5))
    depth = np.clip(shore / np.float32(-30), 0, 1) * np.float32(0.05)
    return _mix(scene, dice.tone(_WATER) + _ripple(dice) - depth, _edge(shore))


def _orchard(dice: _Dice) -> Field:
    along, across = _turned(dice)
    apart = dice.between(8, 14)
    rows_apart = apart * dice.between(1.0, 1.35)
    row, s = _split(across, rows_apart)
    column, t = _split(along, apart)
    dx = (t - np.float32(0.5)) * np.float32(apart)
    dy = (s - np.float32(0.5)) * np.float32(rows_apart)
    mark = dice.table(64, 64)[row % 64, column % 64]
    radius = (np.float32(0.3) + mark * np.float32(0.12)) * np.float32(apart)
    tree = _edge(np.sqrt(dx * dx + dy * dy) - radius) * (mark > np.float32(dice.between(0, 0.08)))
    soil, leaf = dice.pair(_GROUND)
    lx, ly = dice.direction()
    lit = (dx * np.float32(lx) + dy * np.float32(ly)) / np.float32(apart)
    canopy = leaf * (np.float32(0.9) + lit * np.float32(0.5) + mark * np.float32(0.2))
    ground = _mix(soil, soil * np.float32(0.8), _relief(dice, dice.between(20, 60)))
    scene = _mix(ground, canopy, tree)
    _, t = _split(along + np.float32(dice.between(0, 200)), dice.between(90, 160))
    return _mix(scene, dice.tone(_GROUND), (t < np.float32(0.06)).astype(np.float32))


def _pasture(dice: _Dice) -> Field:
    scene = _mix(*dice.pair(_GROUND), _relief(dice, dice.between(50, 120), 4))
    distance, mark, _ = _crowns(dice, dice.between(18, 34))
    bushes = _edge((distance - np.float32(0.14)) * np.float32(22))
    bushes *= mark < np.float32(dice.between(0.05, 0.5))
    scene = _mix(scene, dice.tone(_GROUND), bushes)
    if dice.chance(0.5):
        along, across = _turned(dice)
        path = np.abs(across - _course(dice, along, 60) * np.float32(12)) - np.float32(0.8)
        scene = _mix(scene, dice.tone(_GROUND), _edge(path) * np.float32(0.6))
    return scene


def _residential(dice: _Dice) -> Field:
    along, across = _turned(dice)
    length, depth = dice.between(10, 15), dice.between(13, 18)
    column, t = _split(along, length)
    row, s = _split(across, depth)
    lot = (row % 64, column % 64)
    wide = np.float32(2.6) + dice.table(64, 64)[lot] * np.float32(2)
    deep = np.float32(2.6) + dice.table(64, 64)[lot] * np.float32(2)
    dx = (t - np.float32(0.42) - dice.table(64, 64)[lot] * np.float32(0.16)) * np.float32(length)
    dy = (s - np.float32(0.42) - dice.table(64, 64)[lot] * np.float32(0.16)) * np.float32(depth)
    mark = dice.table(64, 64)[lot]
    built = (mark < np.float32(dice.between(0.8, 0.97))).astype(np.float32)
    walls = np.maximum(np.abs(dx) - wide, np.abs(dy) - deep)
    cast = np.float32(1.5)
    shadow = np.maximum(np.abs(dx - cast) - wide, np.abs(dy - cast) - deep)
    scene = _mix(*dice.pair(_GROUND), _relief(dice, 22))
    scene = _mix(scene, dice.tone(_GROUND) * np.float32(0.4), _edge(shadow) * built)
    roofs = np.concatenate([dice.tone(_ROOFS)[:, 0] for _ in range(4)], axis=1)
    roof = roofs[:, (mark * np.float32(37)).astype(np.intp) % 4]
    ridge = np.where(dy > 0, np.float32(0.88), np.float32(1.08))
    scene = _mix(scene, roof * ridge, _edge(walls) * built)
    # Streets run between every second row of lots, and across after each few lots.
    _, s = _split(across, 2 * depth)
    block = int(dice.between(4, 8)) * length
    _, t = _split(along, block)
    side = np.minimum(s, 1 - s) * np.float32(2 * depth)
    end = np.minimum(t, 1 - t) * np.float32(block)
    street = np.minimum(side, end) - np.float32(dice.between(2.2, 3.6))
    return _mix(scene, dice.tone(_PAVED), _edge(street))


def _river(dice: _Dice) -> Field:
    scene = _countryside(dice)
    along, across = _turned(dice)
    middle = _course(dice, along, dice.between(60, 110)) * np.float32(dice.between(20, 50))
    width = _course(dice, along, dice.between(40, 80)) * np.float32(0.3) + np.float32(1)
    shore = np.abs(across - middle) - width * np.float32(dice.between(9, 18))
    bank = shore - _noise(dice, 8) * np.float32(dice.between(4, 18))
    scene = _mix(scene, dice.tone(_GROUND), _edge(bank, 3) * np.float32(0.8))
    return _mix(scene, dice.tone(_WATER) + _ripple(dice), _edge(shore))


def _ripple(dice: _Dice) -> Field:
    return (_noise(dice, dice.between(3, 6)) - np.float32(0.5)) * np.float32(0.03)


def _settled(look: _Dice, dice: _Dice, paved: Field) -> Field:
    """Fields, shrubs and houses in a place's own tones, some of them as grey as its roads."""
    scene = _mix(*look.pair(_GROUND), _relief(dice, dice.between(24, 90), 4))
    _, _, parcel = _parcels(dice)
    scene = _mix(scene, look.tone(_GROUND), dice.table(16, 16)[parcel] * np.float32(0.8))
    grey = (dice.table(16, 16) < np.float32(0.12))[parcel]
    scene = _mix(scene, paved + _ripple(dice), grey * np.float32(0.9))
    distance, mark, _ = _crowns(dice, dice.between(9, 16))
    shrubs = _edge((distance - np.float32(0.42)) * np.float32(10))
    shrubs *= mark < np.float32(dice.between(0.1, 0.5))
    scene = _mix(scene, look.tone(_GROUND), shrubs)
    along, across = _turned(dice)
    length, depth = dice.between(22, 32), dice.between(22, 32)
    (column, t), (row, s) = _split(along, length), _split(across, depth)
    mark = dice.table(64, 64)[row % 64, column % 64]
    half = np.float32(5) + mark * np.float32(4)
    dx = (t - np.float32(0.5)) * np.float32(length)
    dy = (s - np.float32(0.5)) * np.float32(depth)
    built = dice.table(64, 64)[row % 64, column % 64] < np.float32(dice.between(0.05, 0.4))
    roofs = np.concatenate([paved[:, 0], *(look.tone(_ROOFS)[:, 0] for _ in range(2))], axis=1)
    roof = roofs[:, (mark * np.float32(37)).astype(np.intp) % 3]
    walls = np.maximum(np.abs(dx), np.abs(dy)) - half
    return _mix(scene, roof, _edge(walls) * built)


def _winding(dice: _Dice) -> tuple[Field, Field]:
    """Distance in pixels from a winding line through the image, and how far along it a pixel lies."""
    along, across = _turned(dice)
    bends = _course(dice, along, dice.between(70, 120)) * np.float32(dice.between(8, 30))
    away = across - bends
    down, right = np.gradient(away)
    # Where the line runs aslant, the difference in one coordinate overstates the distance.
    return np.abs(away) / np.sqrt(down * down + right * right), along


SCENES: dict[str, Callable[[_Dice], Field]] = {
    "Crops": _crops,
    "Forest": _forest,
    "Highway": _highway,
    "Lake": _lake,
    "Orchard": _orchard,
    "Pasture": _pasture,
    "Residential": _residential,
    "River": _river,
}
