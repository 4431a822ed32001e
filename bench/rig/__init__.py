"""The measuring rig of `make bench`; see bench/README.md."""
