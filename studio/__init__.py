"""The application: scene config files in, 3D assets out."""
