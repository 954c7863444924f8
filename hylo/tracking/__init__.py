"""Where metrics go besides the records: one file a tracker."""
