"""From a trained scene to GLB, OBJ and PLY files."""
