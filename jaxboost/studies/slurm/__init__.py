"""A study as one array of Slurm jobs that share its runs."""
