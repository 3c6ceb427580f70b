"""Files from anyone: folders and archives, pairs of images and masks, and what the values of masks mean."""
