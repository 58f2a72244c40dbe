"""Programs that run in the environments of the libraries, which have none of this project's packages."""
