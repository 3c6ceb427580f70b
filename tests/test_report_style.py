"""Colours are told apart by everyone on either paper, and figures come out the same every time."""

import io
import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samtl.report.page import Part
from samtl.report.style import DARK, GRID, INK, LOOKS, PAPER, looks, new_figure, png, svg

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# doi 10.1109/TVCG.2009.113, table 1, severity 1.0; for linear RGB.
PROTANOPIA = "0.152286 1.052583 -0.204868; 0.114503 0.786281 0.099216; -0.003882 -0.048116 1.051998"
DEUTERANOPIA = "0.367322 0.860646 -0.227968; 0.280085 0.672501 0.047413; -0.01182 0.04294 0.968881"
# IEC 61966-2-1: linear sRGB to CIE XYZ, with its white.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG 2.2's contrast ratio."""
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    """CIE L*a*b* of a linear colour."""
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_colour_shows_on_white_and_on_dark_and_is_not_needed_to_tell_lines_apart():
    for name, look in LOOKS.items():
        for paper in (PAPER, DARK):
            assert contrast(look.colour, paper) >= 3, name  # WCAG 1.4.11, for graphics
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS) >= 8
    assert contrast(INK, PAPER) >= 7


@pytest.mark.parametrize("eye", ["1 0 0; 0 1 0; 0 0 1", PROTANOPIA, DEUTERANOPIA])
def test_colours_are_told_apart_by_the_colour_blind(eye):
    turned = np.array([row.split() for row in eye.split(";")], float)
    seen = {name: lab(turned @ linear(look.colour)) for name, look in LOOKS.items()}
    for a, b in combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) >= 19, (a, b)


def test_a_model_looks_the_same_in_every_study_and_keeps_its_colour_once():
    assert looks(["vit", "floor"])["vit"] == looks(["mlp", "vit", "own"])["vit"] == LOOKS["vit"]
    found = looks(["mlp on pooled", "mlp on pooled[mean]"])
    assert found["mlp on pooled"] == LOOKS["mlp"]
    assert found["mlp on pooled[mean]"].colour not in (LOOKS["mlp"].colour, LOOKS["floor"].colour)


@given(st.lists(st.sampled_from([*LOOKS, "own", *"abcdefghijklmnopqrstuvwxyz"]), unique=True))
def test_looks_all_differ(names):
    found = looks(names)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    for name in set(names) & set(LOOKS):
        assert found[name] == LOOKS[name]


def drawn():
    with new_figure(2.0, note="a note") as made:
        axes = made.subplots()
        axes.plot([0, 1], [0, 1], color=LOOKS["vit"].colour)
        axes.set_xlabel("share")
    return made


def test_svg_is_the_same_again_and_keeps_text_and_neutral_colours_and_has_no_ground():
    once = drawn()
    text = svg(once)
    assert text == svg(once) == svg(drawn())
    elements = ElementTree.fromstring(text).iter()
    words = {"".join(element.itertext()) for element in elements if "text" in element.tag}
    assert {"share", "A note"} <= words
    assert "<metadata" not in text
    used = set(re.findall(r"#[0-9a-f]{6}\b", text))
    assert {INK} <= used <= {INK, GRID, LOOKS["vit"].colour}


def test_png_is_on_white_and_of_the_asked_size_and_shown_in_a_notebook():
    assert Part("a", "A", "", [], figure=drawn())._repr_png_() == png(drawn())
    assert Part("a", "A", "", [])._repr_png_() is None
    with Image.open(io.BytesIO(png(drawn(), dpi=100))) as image:
        assert image.size == (560, 200)
        assert image.convert("RGB").getpixel((559, 0)) == (255, 255, 255)
