"""Files of weights: found, read without running their code, named where they are something else."""
