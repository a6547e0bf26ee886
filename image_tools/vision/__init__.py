"""Networks that look at pictures: faces, and what encoders see in reference images."""
