"""Programs for loss and gradients of a network, measured in fresh processes."""
