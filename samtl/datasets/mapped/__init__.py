"""Data sets that give samples by their number, as those of TorchGeo, torchvision and PyTorch do."""
