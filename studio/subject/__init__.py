"""DreamBooth-to-3D: what happens to a subject's photos before and between the stages of a scene."""
