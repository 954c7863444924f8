"""Where texts come from: one file a source, with its typed config in it."""
