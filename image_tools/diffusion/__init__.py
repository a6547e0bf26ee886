"""One diffusion prior around VAE, text encoder, denoiser and schedule."""
