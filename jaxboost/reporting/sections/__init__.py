"""The sections of a report: from entries of the analysis to blocks of text, tables and plots."""
