"""Virtual try-on: people in given garments, from pictures of both."""
