"""What a run trains: configuration, task, built-in tasks, and how they become gradients."""
