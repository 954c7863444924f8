"""Where runs run: one file per launcher."""
