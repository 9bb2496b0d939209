"""Compiles training and sampling for chips that this machine does not have, and says what the programs need."""
