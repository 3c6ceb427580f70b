"""The study's figures and tables, from runs, as one HTML page and as PNG, SVG and CSV."""
