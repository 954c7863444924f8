"""Text sources (one file each, including its typed config), tokens and windows."""
