"""Tables of a report: what a column says and how a value is written."""
