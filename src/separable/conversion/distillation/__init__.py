"""What `distill` is made of: data, losses and features, steps, the run and its state, several processes."""
