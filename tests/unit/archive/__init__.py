"""Tests of `services.archive`."""
