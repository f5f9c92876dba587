"""Tests of services/webhooks without I/O."""
