"""The stages of segmenting everything, which `SamAutomaticMaskGenerator` puts together."""
