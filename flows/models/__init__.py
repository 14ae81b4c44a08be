"""Models of images: a bijection, what stands behind it, and what turns pixels into reals and back."""
