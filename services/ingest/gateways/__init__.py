"""Gateways' formats, each a pure function from bytes to columns."""
