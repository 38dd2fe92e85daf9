"""Methods against each other: sweeps over budgets and seeds, and their pictures."""
