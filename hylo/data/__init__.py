"""Sources of text (one file each, with its typed config in it), tokens and windows."""
