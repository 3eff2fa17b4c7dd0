"""Lists and tables of inputs."""
