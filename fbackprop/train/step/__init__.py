"""One training step: optimizer, accumulation, loss scaling. Imports losses and below."""
