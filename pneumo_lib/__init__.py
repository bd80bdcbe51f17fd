"""Denoise, classify and honestly evaluate chest X-rays: the library behind the report's notebooks."""

__version__ = "0.1.0"
