"""Many fits: heads x splits x seeds, in as few passes over the store as possible."""
