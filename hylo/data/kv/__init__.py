"""Text and vocabulary of key-value lists and the questions about them."""
