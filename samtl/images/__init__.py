"""Image files to pixels: decoding, resizing, padding and normalising."""
