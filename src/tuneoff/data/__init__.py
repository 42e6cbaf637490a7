"""Sources, tasks, batches and metrics."""
