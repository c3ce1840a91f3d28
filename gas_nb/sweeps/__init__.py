"""Every solver at every number of evaluations, measured alike; see nbs/04_evaluate.ipynb."""
