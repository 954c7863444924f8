"""Tables of a report: columns, captions and number formatting."""
