"""A test of the images that the Dockerfile makes, for any machine with Docker, Podman or buildah; see `__main__`."""
