"""Studies: many runs on the same splits, their comparisons, and the record from which a report is made."""
