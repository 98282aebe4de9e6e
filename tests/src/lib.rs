//! Fixtures for the end-to-end tests: images, mounts, tools.
