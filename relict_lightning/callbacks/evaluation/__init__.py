"""Making an evaluation in a run: samples are drawn from the weights that get saved, and checked, here or elsewhere."""
