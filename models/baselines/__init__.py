"""Published methods, one file each; `anomalib_generic` is the way to the rest of anomalib's models."""
