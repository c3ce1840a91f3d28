"""Tokenizers and text encoders that several tiny pipelines share; made here, nothing is loaded."""
