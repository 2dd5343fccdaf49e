"""Builders and fakes that the tests own."""
