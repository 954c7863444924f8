"""How cells are launched: one file per launcher."""
