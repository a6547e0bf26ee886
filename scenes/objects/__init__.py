"""Real captioned 3D objects in one compact pack, and the photo sets of subjects made from them."""
