"""`restage serve`: editors and backbones of this machine behind the protocol of image endpoints, for other machines."""
