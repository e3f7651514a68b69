"""Reports: one page, tables and a model card, made from the analysis of a study."""
