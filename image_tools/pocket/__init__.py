"""The small latent diffusion model that ships with the studio."""
