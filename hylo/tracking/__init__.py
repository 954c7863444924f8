"""Where metrics go besides the records: one file per tracker."""
