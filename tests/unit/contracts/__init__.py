"""Tests of `tollgate.contracts`."""
