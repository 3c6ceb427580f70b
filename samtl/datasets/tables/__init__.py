"""What a table of images says: its columns, paths and labels."""
