"""Figures that consist of photographs: samples, masks, mistakes, and what a store holds."""
