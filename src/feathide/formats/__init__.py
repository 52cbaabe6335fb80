"""File formats: one file each, and the limits within which strangers' files are parsed."""
