"""Numbers from records: paired differences, contrasts, verdicts. Neither torch nor matplotlib."""
