"""Lists of facts and questions on them: their text and words."""
