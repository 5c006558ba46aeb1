"""VGG, ViT and CLIP: the families, and what PTMs on images share."""
