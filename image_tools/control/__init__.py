"""Steering a prior by images of depth, normals, edges and regions."""
