"""Where runs run: one file a way."""
