"""The checkpoint to go back to: which ones to keep, what fresh samples say of them, and their weights in the module."""
