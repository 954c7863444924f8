"""Numbers from records: paired differences, contrasts, verdicts. Needs neither torch nor matplotlib."""
