"""From a trained model to a bundle that production can trust."""
